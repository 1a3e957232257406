"""Names, ids and colours of a foreign model's classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cegate_geo.domain.contract import TensorForm
from cegate_geo.domain.legend import DEFAULT_COLORS, Legend, LegendClass
from cegate_geo.errors import InputError, ModelError
from cegate_geo.infer.foreign.facts import Facts, NamedClass

BACKGROUND = "background"
MEND = "State the names in the order of its output: --classes NAME,NAME."


def make_legend(path: Path, facts: Facts, form: TensorForm, *, head: int, are_ids: bool) -> Legend:
    """The classes of an output.

    A channel without a name becomes `class_i`; of a single channel the first class is what it does not find.

    Args:
        path: Model file, for messages.
        facts: What is known of the model.
        form: Form of its tensors.
        head: Number of the output that is used, from 0.
        are_ids: Whether the output holds class ids.

    Raises:
        ModelError: If names and channels do not go together, or ids are needed and have no names.
    """
    try:
        if facts.get("classes"):
            return Legend(_coloured(_listed(path, facts["classes"], form, are_ids=are_ids)))
        several = facts.get("names") or ({},)
        names = several[min(head, len(several) - 1)]
        return Legend(_coloured(_named(path, names, form, are_ids=are_ids)))
    except InputError as error:
        raise ModelError(f"The classes of {path.name} can't be used: {error.message}", hint=MEND) from error


def _listed(path: Path, classes: tuple[NamedClass, ...], form: TensorForm, *, are_ids: bool) -> list[NamedClass]:
    """Classes that came with ids: as many as channels, or without the background, which is then the first."""
    given, channels = list(classes), form.channels
    wanted = max(2, channels)
    if len(given) == wanted or (are_ids and len(given) >= 2):
        return given
    if all(c.id != 0 for c in given) and (are_ids or len(given) == wanted - 1):
        return [NamedClass(id=0, name=_free(BACKGROUND, {c.name for c in given})), *given]
    raise ModelError(
        f"{path.name} gives {channels} channels, but {len(given)} classes are named: "
        f"{', '.join(f'{c.id} {c.name}' for c in given)}.",
        hint=MEND,
    )


def _named(path: Path, names: Mapping[int, str], form: TensorForm, *, are_ids: bool) -> list[NamedClass]:
    count = max(names, default=-1) + 1
    if are_ids and count < 1:
        raise ModelError(f"{path.name} gives class ids, but nothing names the classes.", hint=MEND)
    if form.channels == 1 and set(names) == {0}:
        names, count = {0: _free(BACKGROUND, set(names.values())), 1: names[0]}, 2
    wanted = count if are_ids else max(2, form.channels)
    if count > wanted:
        raise ModelError(
            f"{path.name} gives {form.channels} channels, but {count} classes are named: {', '.join(names.values())}.",
            hint=MEND,
        )
    taken: set[str] = set()
    classes = []
    for channel in range(max(2, wanted)):
        name = _free(names.get(channel) or f"class_{channel}", taken)
        taken.add(name)
        classes.append(NamedClass(id=channel, name=name))
    return classes


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken yet; two classes of one name can't be told apart."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _coloured(classes: list[NamedClass]) -> tuple[LegendClass, ...]:
    return tuple(
        LegendClass(id=c.id, name=c.name, color=c.color or DEFAULT_COLORS[n % len(DEFAULT_COLORS)])
        for n, c in enumerate(classes)
    )
