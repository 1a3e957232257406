# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of `cegate-geo adapt`: the classes of a legend, and a configuration file. No qgis."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union

from .outcome import EngineError
from .words import tr

CONFIG = "adapt.toml"
LABELS = "labels.gpkg"
AREA = "area.gpkg"
"""Files of the plugin in the folder of a run, beside the engine's."""
SHIPPED = "shipped"
"""Stands for the small base that comes with the engine."""
SHIPPED_BACKBONE = "vit_tiny_patch16_224"
CHIP = 256
"""Pixels, each way, of what the small base learns from at most."""
HEADS = ("dpt-detail", "dpt", "linear", "dpt-unet", "upernet")
DEVICES = ("auto", "cpu", "cuda")
IGNORE = "ignore"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
LARGEST_ID = 254
"""255 is nodata in class maps."""


@dataclass(frozen=True)
class LabelClass:
    """A class of the model that will be made."""

    id: int
    name: str
    color: str
    """'#rrggbb', or empty."""


def make_legend(
    values: Sequence[str], *, background: str, names: Mapping[str, str], colors: Mapping[str, str]
) -> tuple[LabelClass, ...]:
    """The classes that labels stand for.

    Whole numbers stay the ids of their classes; other values are numbered in alphabetical order, or in the order of
    `names`. A background class that no polygon has goes first.

    Args:
        values: What the field holds, as text, each once.
        background: Class of ground that no polygon covers; 'ignore' or empty for none.
        names: Value → name, where the layer says it.
        colors: Value → '#rrggbb', where the layer says it.

    Raises:
        EngineError: If there are fewer than two classes, or ids that can't be.
    """
    ground = "" if background.strip().lower() in ("", IGNORE) else background.strip()
    if values and all(v.isdecimal() for v in values):
        ids = {v: int(v) for v in values}
        if max(ids.values()) > LARGEST_ID:
            raise EngineError(
                tr("The class {id} is too large: ids lie between 0 and {highest}.").format(
                    id=max(ids.values()), highest=LARGEST_ID
                )
            )
    else:
        order = list(names)
        ranked = sorted(values, key=lambda v: (order.index(v) if v in names else len(order), v.lower()))
        shift = 1 if ground and ground not in (names.get(v, v) for v in values) else 0
        ids = {v: n + shift for n, v in enumerate(ranked)}
    found = [LabelClass(ids[v], names.get(v) or v, colors.get(v, "")) for v in values]
    if ground and ground not in [c.name for c in found] and ground not in values:
        free = next(n for n in range(LARGEST_ID + 1) if n not in ids.values())
        found.append(LabelClass(free, ground, ""))
    twice = sorted({c.name for c in found if [d.name for d in found].count(c.name) > 1})
    if twice:
        raise EngineError(
            tr("The class name {name!r} stands for several values of the field. Name them apart.").format(name=twice[0])
        )
    if len(found) < 2:
        one = tr("only the class '{name}'").format(name=found[0].name) if found else tr("no class")
        raise EngineError(
            tr(
                "The labels hold {one}: a model needs two or more. Draw another, or name the class of the "
                "ground that no polygon covers as Background (for instance: other)."
            ).format(one=one)
        )
    return tuple(sorted(found, key=lambda c: c.id))


@dataclass(frozen=True)
class AdaptJob:
    """One adaptation. None and empty mean: as the engine decides."""

    run: Path
    images: tuple[str, ...]
    legend: tuple[LabelClass, ...]
    background: str = ""
    """Name of a class; empty: only what was drawn counts."""
    has_area: bool = False
    targets: tuple[str, ...] = ()
    bands: tuple[Union[int, str], ...] = ()
    """Numbers from 1, or names."""
    nodata: tuple[float, ...] = ()
    name: str = "model"
    backbone: str = SHIPPED
    """SHIPPED, or timm's name."""
    weights: str = ""
    head: str = "dpt-detail"
    tile_size: int = 384
    budget: float = 1.0
    steps: int = 1000
    batch_size: int = 4
    lr: Optional[float] = None
    head_lr: Optional[float] = None
    validation: float = 0.15
    seed: int = 0
    device: str = "auto"
    resume: bool = False

    def config(self) -> str:
        """The configuration as TOML; the engine's README says what each key means."""
        shipped = self.backbone == SHIPPED
        # The small base learns at rates that would ruin a foundation model, and from smaller chips; these are the
        # engine's own for it.
        crop = min(CHIP, self.tile_size) if shipped else self.tile_size
        lr = self.lr or (1e-3 if shipped else 5e-5)
        head_lr = self.head_lr or (2e-3 if shipped else None)
        every = max(1, min(250, self.steps // 4))
        tables: list[tuple[str, list[tuple[str, object]]]] = [
            ("", [("name", self.name)]),
            ("[classes]", [(str(c.id), c.name) for c in self.legend]),
            ("[colors]", [(c.name, c.color) for c in self.legend if c.color]),
        ]
        for image in self.images:
            tables.append(("[[source]]", self._source(image)))
        for target in self.targets:
            more: list[tuple[str, object]] = [("bands", list(self.bands))] if self.bands else []
            tables.append(("[[style]]", [("images", glob.escape(target)), *more]))
        model: list[tuple[str, object]] = [
            ("backbone", SHIPPED_BACKBONE if shipped else self.backbone),
            ("weights", SHIPPED if shipped else self.weights),
            ("head", self.head),
            ("head_dim", 64 if shipped else 128),
            ("tile_size", self.tile_size),
        ]
        train: list[tuple[str, object]] = [
            ("steps", self.steps), ("batch_size", self.batch_size), ("crop", crop), ("lr", lr),
            ("ema", 0.995 if shipped else 0.999), ("validation", self.validation), ("validate_every", every),
            ("save_every", every), ("seed", self.seed),
        ]  # fmt: skip
        if head_lr:
            train.append(("head_lr", head_lr))
        tables += [("[model]", model), ("[peft]", [("budget", self.budget)]), ("[train]", train)]
        return "\n\n".join(_table(head, rows) for head, rows in tables if rows) + "\n"

    def _source(self, image: str) -> list[tuple[str, object]]:
        rows: list[tuple[str, object]] = [
            ("images", glob.escape(image)),
            ("labels", str(self.run / LABELS)),
            ("label_field", "class"),
            ("background", self.background or IGNORE),
        ]
        rows += [("aoi", str(self.run / AREA))] if self.has_area else []
        rows += [("bands", list(self.bands))] if self.bands else []
        return rows + ([("nodata", list(self.nodata))] if self.nodata else [])

    def arguments(self) -> list[str]:
        """Everything behind `cegate-geo`, without the option that turns events on."""
        words = ["adapt", str(self.run / CONFIG), f"--output={self.run}"]
        words += [] if self.device == "auto" else [f"--device={self.device}"]
        return words + (["--resume"] if self.resume else [])


def _table(head: str, rows: Sequence[tuple[str, object]]) -> str:
    lines = [head] if head else []
    return "\n".join(lines + [f"{key if BARE_KEY.fullmatch(key) else _value(key)} = {_value(v)}" for key, v in rows])


def _value(value: object) -> str:
    """A value in TOML; JSON's strings and whole numbers are TOML's, but for DEL."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run that was begun."""
    return (folder / "config.json").is_file()


def can_resume(folder: Path) -> bool:
    """Whether a folder holds all that going on needs; a run that was never saved starts at its first step."""
    return holds_run(folder) and (folder / CONFIG).is_file()
