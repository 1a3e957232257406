"""What is found out about a model, part by part, and which of several finds counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from cegate_geo.domain.contract import Fit, Layout, StatedContract
from cegate_geo.domain.manifest import OutputKind
from cegate_geo.errors import ModelError

STATED = "option"
"""Where a part comes from that the user stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How raster values become a model's input: `(clip(x) / divisor - mean) / std`.

    Each is empty, one number for all bands, or one for each.
    """

    divisor: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    clip: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedClass:
    """A class with the id that its model's maker gave it."""

    id: int
    name: str
    color: tuple[int, int, int] | None = None


class Facts(TypedDict, total=False):
    """What one source says. A key that is missing is not said."""

    name: str
    description: str
    licence: str
    names: tuple[Mapping[int, str], ...]
    """Channel (or class id) → name; one for all outputs, or one for each."""
    classes: tuple[NamedClass, ...]
    """The same with ids and colours, in the order of the channels."""
    bands: tuple[str, ...]
    scene_bands: tuple[str, ...]
    gsd_m: float
    tile_shape: tuple[int, int]
    overlap: float
    """Share of a tile's side that it has in common with its neighbour."""
    threshold: float
    scaling: Scaling
    dtype: Literal["uint8", "uint16", "float32"]
    output: OutputKind
    head: str
    """Name of the output to use."""
    input_layout: Layout
    fit: Fit
    unscalable: str
    """Why the values can't be scaled as this source wants it: the user has to state the scaling."""
    notes: tuple[str, ...]
    """What is said and not done here, for a warning."""


def stated_facts(stated: StatedContract) -> Facts:
    """What the user says."""
    facts: Facts = {}
    if stated.classes:
        facts["names"] = (dict(enumerate(stated.classes)),)
    if stated.scale or stated.mean or stated.std:
        facts["scaling"] = Scaling(divisor=tuple(stated.scale), mean=tuple(stated.mean), std=tuple(stated.std))
    if stated.gsd_m is not None:
        facts["gsd_m"] = stated.gsd_m
    if stated.output_kind is not None:
        facts["output"] = stated.output_kind
    if stated.threshold is not None:
        facts["threshold"] = stated.threshold
    if stated.head:
        facts["head"] = stated.head
    if stated.dtype is not None:
        facts["dtype"] = stated.dtype
    return facts


def merge(found: Sequence[tuple[str, Facts]]) -> tuple[Facts, dict[str, str]]:
    """Of each part what the first source says, and which source that is. `notes` are gathered from all.

    `names` and `classes` are one part: who states either has the say.
    """
    facts: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, said in found:
        for key, value in said.items():
            part = "classes" if key == "names" else key
            if key == "notes":
                facts[key] = (*facts.get(key, ()), *cast("tuple[str, ...]", value))
            elif part not in sources:
                facts[key], sources[part] = value, source
    return cast("Facts", facts), sources


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ModelError: If it can't be read, or holds something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} can't be read as JSON: {error}.", hint="Check the path and the file.") from error
    if not isinstance(table, dict):
        raise ModelError(f"{path.name} holds no JSON object, but {type(table).__name__}.", hint="Check the file.")
    return table


def number(value: Any, *, what: str, mend: str) -> float:
    """A finite number, also one that is written as a string.

    Raises:
        ModelError: If it is none.
    """
    try:
        result = float(value)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what} is {value!r}, not a number.", hint=mend) from error
    if not abs(result) < float("inf") or isinstance(value, bool):
        raise ModelError(f"{what} is {value!r}, not a number.", hint=mend)
    return result


def numbers(value: Any, *, what: str, mend: str) -> tuple[float, ...]:
    """One number, or a list of them.

    Raises:
        ModelError: If it is neither.
    """
    values = value if isinstance(value, list) else [value]
    return tuple(number(entry, what=what, mend=mend) for entry in values)


def class_names(value: Any, *, what: str) -> dict[int, str]:
    """Channel → name from a list of names, or from an object with numbers as keys.

    Raises:
        ModelError: If it is neither.
    """
    pairs = list(enumerate(value)) if isinstance(value, list) else None
    if isinstance(value, dict):
        pairs = list(value.items())
    try:
        names = {int(key): str(name) for key, name in pairs or ()}
    except (TypeError, ValueError):
        names = {}
    if not names or min(names) < 0:
        raise ModelError(
            f"{what} is {value!r}, neither names in a list nor an object of number and name.",
            hint="Correct it, or state the names: --classes NAME,NAME.",
        )
    return names
