"""Published datasets as configurations: they are read where they lie, nothing is copied or converted.

What is not known of a layout is not here: the folders of CASID, how the processed benchmark of CrossEarth (arXiv
2410.22629) merges the classes of RescueNet into five, and the satellite part of the WHU building dataset.

Where the layouts, splits and legends were found:
    Potsdam, Vaihingen   converters of mmsegmentation (`tools/dataset_converters/potsdam.py`, `vaihingen.py`): file
                         names, splits, colours, and that pixels of any other colour do not count
    LoveDA               `torchgeo/datasets/loveda.py`; arXiv 2110.08733
    RescueNet            the authors' repository (BinaLab) and loaders of the published archive: 11 classes. Another
                         release, v1.0, has 12 with other numbers, and only its value 11 would give it away
    WHU aerial           doi 10.1109/TGRS.2018.2858817; the archive "The cropped image tiles and raster labels"
    DeepGlobe roads      arXiv 1805.06561. Only its training part has labels
    Massachusetts roads  V. Mnih, thesis, Toronto 2013; folders as in the archive on Kaggle, `tiff/train`
In masks of one class, values between black and white do not count: the files do not say which class they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import rasterio

from cegate_geo.errors import InputError
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.reader import raster_errors
from cegate_geo.train.byte_rasters import expand
from cegate_geo.train.labels import ANYTHING, IGNORE


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rasters of a dataset with their labels, relative to its folder."""

    images: str
    """Pattern."""
    labels: str
    """Path with `{}` for what the wildcards of `images` stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """How a published dataset lies on the disk, and what its labels mean."""

    about: str
    classes: Mapping[int, str]
    train: tuple[Part, ...]
    validation: tuple[Part, ...] = ()
    """What its authors give to choose by; where there is none, blocks of the training part are held out."""
    test: tuple[Part, ...] = ()
    """What its authors measure on. Never read by `adapt`."""
    remap: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[int, str] = field(default_factory=dict)
    """Grey level → class, in masks that have one band in some archives and three in others."""
    colors: Mapping[str, str] = field(default_factory=dict)
    gsd_m: float | None = None
    """Metres per pixel that its authors state, for files that do not say it."""


_ISPRS = {
    "impervious": "#ffffff",
    "building": "#0000ff",
    "low_vegetation": "#00ffff",
    "tree": "#00ff00",
    "car": "#ffff00",
    "clutter": "#ff0000",
}


def _isprs(about: str, *, gsd_m: float, train: tuple[Part, ...], test: tuple[Part, ...]) -> Dataset:
    return Dataset(
        about=about,
        classes=dict(enumerate(_ISPRS, start=1)),
        colors=_ISPRS,
        remap={**{color: name for name, color in _ISPRS.items()}, ANYTHING: IGNORE},
        train=train,
        test=test,
        gsd_m=gsd_m,
    )


def _potsdam(bands: str, folder: str) -> Dataset:
    def parts(*names: str) -> tuple[Part, ...]:
        labels = "5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif"
        return tuple(Part(images=f"{folder}/top_potsdam_{name}_{bands}.tif", labels=labels) for name in names)

    return _isprs(
        f"ISPRS Potsdam, {bands}, 5 cm, 24 + 14 tiles; labels without boundaries",
        gsd_m=0.05,
        train=parts("[2-7]_1[0-2]", "[67]_[7-9]"),
        test=parts("[2-7]_1[3-5]"),
    )


def _vaihingen() -> Dataset:
    def parts(*numbers: tuple[str, str]) -> tuple[Part, ...]:
        """Tens and, as a pattern, ones of the areas."""
        area, folder = "top_mosaic_09cm_area", "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
        return tuple(
            Part(images=f"top/{area}{tens}{ones}.tif", labels=f"{folder}/{area}{tens}{{}}_noBoundary.tif")
            for tens, ones in numbers
        )

    return _isprs(
        "ISPRS Vaihingen, infrared-red-green, 9 cm, 16 + 17 tiles; labels without boundaries",
        gsd_m=0.09,
        train=parts(("", "[1357]"), ("1", "[1357]"), ("2", "[1368]"), ("3", "[0247]")),
        test=parts(("", "[2468]"), ("1", "[0246]"), ("2", "[02479]"), ("3", "[1358]")),
    )


def _loveda(domain: str) -> Dataset:
    def part(split: str) -> tuple[Part, ...]:
        return (Part(images=f"{split}/{domain}/images_png/*.png", labels=f"{split}/{domain}/masks_png/{{}}.png"),)

    names = ("background", "building", "road", "water", "barren", "forest", "agriculture")
    return Dataset(
        about=f"LoveDA, {domain.lower()}, 0.3 m",
        classes=dict(enumerate(names, start=1)),
        remap={"0": IGNORE},
        train=part("Train"),
        validation=part("Val"),
        gsd_m=0.3,
    )


def _rescuenet() -> Dataset:
    def part(split: str) -> tuple[Part, ...]:
        return (Part(images=f"{split}/{split}-org-img/*.jpg", labels=f"{split}/{split}-label-img/{{}}_lab.png"),)

    names = (
        "background",
        "water",
        "building_no_damage",
        "building_minor_damage",
        "building_major_damage",
        "building_total_destruction",
        "vehicle",
        "road_clear",
        "road_blocked",
        "tree",
        "pool",
    )
    return Dataset(
        about="RescueNet, 11 classes, after hurricane Michael; its authors state no metres per pixel",
        classes=dict(enumerate(names)),
        train=part("train"),
        validation=part("val"),
        test=part("test"),
    )


def _whu() -> Dataset:
    def part(split: str) -> tuple[Part, ...]:
        return (Part(images=f"{split}/image/*.tif", labels=f"{split}/label/{{}}.tif"),)

    return Dataset(
        about="WHU building dataset, aerial, 0.3 m, tiles of 512 px",
        classes={0: "other", 1: "building"},
        levels={0: "other", 255: "building"},
        train=part("train"),
        validation=part("val"),
        test=part("test"),
        gsd_m=0.3,
    )


def _massachusetts() -> Dataset:
    def part(split: str) -> tuple[Part, ...]:
        return (Part(images=f"tiff/{split}/*.tiff", labels=f"tiff/{split}_labels/{{}}.tif"),)

    return Dataset(
        about="Massachusetts roads, 1 m, tiles of 1500 px",
        classes={0: "other", 1: "road"},
        levels={0: "other", 255: "road"},
        train=part("train"),
        validation=part("val"),
        test=part("test"),
        gsd_m=1.0,
    )


DATASETS: Mapping[str, Dataset] = {
    "potsdam-rgb": _potsdam("RGB", "2_Ortho_RGB"),
    "potsdam-irrg": _potsdam("IRRG", "3_Ortho_IRRG"),
    "vaihingen": _vaihingen(),
    "loveda-urban": _loveda("Urban"),
    "loveda-rural": _loveda("Rural"),
    "rescuenet": _rescuenet(),
    "whu-aerial": _whu(),
    "deepglobe-roads": Dataset(
        about="DeepGlobe roads, 0.5 m, tiles of 1024 px",
        classes={0: "other", 1: "road"},
        levels={0: "other", 255: "road"},
        train=(Part(images="train/*_sat.jpg", labels="train/{}_mask.png"),),
        gsd_m=0.5,
    ),
    "massachusetts-roads": _massachusetts(),
}
"""By the name that `cegate-geo dataset` knows."""


def write_configuration(name: str, root: Path, *, gsd_m: float | None = None) -> str:
    """The configuration that reads a dataset where it lies, as TOML.

    Args:
        name: One of `DATASETS`.
        root: Folder that the archives were unpacked into.
        gsd_m: Metres per pixel, where the authors state none.

    Returns:
        [classes], [colors], a [[source]] or [[validation]] for each pattern, the published test part as comments.

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
        for part in dataset.test:
            lines += [f"# images = {_pattern(root, part.images)}, labels = {_pattern(root, part.labels)}"]
    return "\n".join(lines) + "\n"


def _table(table: str, name: str, dataset: Dataset, part: Part, root: Path, gsd_m: float | None) -> list[str]:
    images = expand(_unquoted(root, part.images))
    remap = dataset.remap if not dataset.levels else _levels(dataset, _first_labels(images, part, root))
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
    lines.append(f"weight = {float(len(images))}  # rasters, so that all are drawn alike")
    return lines


def _pattern(root: Path, relative: str) -> str:
    return json.dumps(_unquoted(root, relative), ensure_ascii=False)


def _unquoted(root: Path, relative: str) -> str:
    """A pattern in a folder whose own name may hold wildcards."""
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in str(root))
    return f"{escaped}/{relative}"


def _first_labels(images: list[Path], part: Part, root: Path) -> Path:
    from cegate_geo.train.regions import fill_template

    path = fill_template(_unquoted(root, part.labels), _unquoted(root, part.images), images[0])
    if not path.is_file():
        raise InputError(f"{images[0]} has no labels: there is no {path}.", hint="Unpack the labels, too.")
    return path


def _levels(dataset: Dataset, labels: Path) -> dict[str, str]:
    """The remap for grey levels, as ids or as colours, whatever these masks hold; other values do not count."""
    with raster_errors(str(labels)), quiet_about_georeference(), rasterio.open(labels) as opened:
        is_color = opened.count >= 3 or opened.colorinterp[0].name == "palette"
    names = {f"#{v:02x}{v:02x}{v:02x}" if is_color else str(v): name for v, name in dataset.levels.items()}
    return {**names, ANYTHING: IGNORE}
