"""The configuration that reads a published dataset where it lies."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import rasterio

from cegate_geo.errors import InputError
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.reader import raster_errors
from cegate_geo.train.byte_rasters import expand
from cegate_geo.train.datasets import DATASETS, Dataset, Part
from cegate_geo.train.labels import ANYTHING, IGNORE
from cegate_geo.train.regions import fill_template

MOST_BLANK = 1000
"""Masks that are looked into, at most, for one that holds more than its background."""


def write_configuration(name: str, root: Path, *, gsd_m: float | None = None) -> str:
    """The configuration that reads a dataset where it lies, as TOML.

    Args:
        name: One of `DATASETS`.
        root: Folder that the archives were unpacked into.
        gsd_m: Metres per pixel, where the authors state none.

    Returns:
        [classes], [colors], a [[source]] or [[validation]] for each pattern; the published test part as comments, ready
        to become a [[setting.test]] of a benchmark suite.

    Raises:
        InputError: If there is no such dataset, or the folder does not hold it.
    """
    if name not in DATASETS:
        raise InputError(f"There is no dataset {name!r}.", hint=f"Use one of {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    gsd_m = dataset.gsd_m if gsd_m is None else gsd_m
    root = root.resolve()
    lines = [f"# {dataset.about}", "", "[classes]", *(f"{k} = {json.dumps(v)}" for k, v in dataset.classes.items())]
    if dataset.colors:
        lines += ["", "[colors]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in dataset.colors.items())]
    for table, parts in (("source", dataset.train), ("validation", dataset.validation)):
        for part in parts:
            lines += ["", *_table(table, name, dataset, part, root, gsd_m)]
    if dataset.test:
        lines += ["", "# Kept for measuring, and never read by adapt:"]
    for number, part in enumerate(dataset.test, start=1):
        is_here = bool(glob.glob(_unquoted(root, part.images))) or not dataset.train  # noqa: PTH207 - absolute patterns
        own = name if len(dataset.test) == 1 else f"{name}-{number}"  # a setting's regions need names of their own
        told = _table("setting.test", own, dataset, part, root, gsd_m) if is_here else [f"not here: {part.images}"]
        lines += ["#", *(f"# {line}" for line in told)]
    return "\n".join(lines) + "\n"


def _table(table: str, name: str, dataset: Dataset, part: Part, root: Path, gsd_m: float | None) -> list[str]:
    images = expand(_unquoted(root, part.images))
    remap = dataset.remap if not dataset.levels else _levels(dataset, _labels(images, part, root))
    lines = [
        f"[[{table}]]",
        f"name = {json.dumps(name)}",
        f"images = {_pattern(root, part.images)}",
        f"labels = {_pattern(root, part.labels)}",
    ]
    if remap:
        lines.append("remap = { " + ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in remap.items()) + " }")
    if gsd_m is not None:
        lines.append(f"gsd_m = {gsd_m}")
    if table != "setting.test":
        lines.append(f"weight = {float(len(images))}  # rasters, so that all are drawn alike")
    return lines


def _pattern(root: Path, relative: str) -> str:
    return json.dumps(_unquoted(root, relative), ensure_ascii=False)


def _unquoted(root: Path, relative: str) -> str:
    """A pattern in a folder whose own name may hold wildcards."""
    return f"{glob.escape(str(root))}/{relative}"


def _labels(images: list[Path], part: Part, root: Path) -> Iterator[Path]:
    """The labels of each image.

    Raises:
        InputError: If an image has none.
    """
    for image in images:
        path = fill_template(_unquoted(root, part.labels), _unquoted(root, part.images), image)
        if not path.is_file():
            raise InputError(f"{image} has no labels: there is no {path}.", hint="Unpack the labels, too.")
        yield path


def _levels(dataset: Dataset, masks: Iterator[Path]) -> dict[str, str]:
    """The remap for grey levels, as ids or as colours, whatever these masks hold; other values do not count.

    Of masks in which the classes' ids stand instead, there is nothing to remap.
    """
    is_color = False
    for _, mask in zip(range(MOST_BLANK), masks, strict=False):
        with raster_errors(str(mask)), quiet_about_georeference(), rasterio.open(mask) as opened:
            is_color = opened.count >= 3 or opened.colorinterp[0].name == "palette"
            values = {int(v) for v in np.unique(opened.read(1))}
        if values - {0}:
            if not is_color and values <= dataset.classes.keys():
                return {}
            break
    return _level_names(dataset.levels, is_color=is_color)


def _level_names(levels: Mapping[int, str], *, is_color: bool) -> dict[str, str]:
    names = {f"#{v:02x}{v:02x}{v:02x}" if is_color else str(v): name for v, name in levels.items()}
    return {**names, ANYTHING: IGNORE}
