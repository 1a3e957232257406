"""Published datasets: how they lie on the disk, and what their labels mean. Nothing is copied or converted.

Where the layouts, splits and legends were found:
    Potsdam, Vaihingen   converters of mmsegmentation (`tools/dataset_converters/potsdam.py`, `vaihingen.py`): file
                         names, splits, colours, and that pixels of any other colour do not count
    LoveDA               `torchgeo/datasets/loveda.py`; arXiv 2110.08733
    RescueNet            the authors' repository (BinaLab) and loaders of the published archive: 11 classes, in the
                         order of its loader (its README has vehicles behind roads). Another release, v1.0, has 12 with
                         other numbers, and only its value 11 would give it away
    CASID                doi 10.1016/j.isprsjprs.2023.09.007; folders, names and classes as CrossEarth (arXiv
                         2410.22629) reads them, `configs/_base_/datasets`, `rs_dataset/casid.py`. Size of a pixel:
                         its authors' 980 images of 5000 px that cover 24,500 km². There the labels of the tropical
                         monsoon's test part lie in `label_id`
    WHU aerial           doi 10.1109/TGRS.2018.2858817; the archive "The cropped image tiles and raster labels"
    WHU satellite        the same authors; "Satellite dataset II (East Asia)", "1. The cropped image data and raster
                         labels": 13,662 + 3,726 tiles, with (train, test) and mostly without (_no) buildings
    DeepGlobe roads      arXiv 1805.06561. Only its training part has labels
    Massachusetts roads  V. Mnih, thesis, Toronto 2013; folders as in the archive on Kaggle, `tiff/train`
    ...-5                five classes, for Potsdam → RescueNet: CrossEarth's `potsdam_rescue.py`, `rescue.py`. How its
                         authors merged RescueNet's eleven was not published, so that their processed copy is read
In masks of one class, values between black and white do not count: the files do not say which class they are. Copies in
which such masks hold 0 and 1 (CrossEarth's processed benchmark) are told by their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cegate_geo.train.labels import ANYTHING, IGNORE

SPLIT = "@"
"""In the patterns below: the name of a part, or the pattern of its tiles."""


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
    """Empty for what is only measured on."""
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


def _dataset(
    about: str,
    images: str,
    labels: str,
    *,
    train: tuple[str, ...] = ("train",),
    validation: tuple[str, ...] = (),
    test: tuple[str, ...] = (),
    **meaning: Any,
) -> Dataset:
    """A dataset whose parts differ in what stands for `@` in their patterns."""

    def parts(splits: tuple[str, ...]) -> tuple[Part, ...]:
        return tuple(Part(images=images.replace(SPLIT, s), labels=labels.replace(SPLIT, s)) for s in splits)

    return Dataset(about=about, train=parts(train), validation=parts(validation), test=parts(test), **meaning)


def _one_class(name: str) -> dict[str, Any]:
    return {"classes": {0: "other", 1: name}, "levels": {0: "other", 255: name}}


def _colored(colors: Mapping[str, str], merged: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Classes from 1 that are told by their colours; `merged`: colour → class for what else belongs to one."""
    remap = {color: name for name, color in colors.items()} | dict(merged or {})
    return {
        "classes": dict(enumerate(colors, start=1)),
        "colors": colors,
        "remap": {**remap, ANYTHING: IGNORE},
    }


_ISPRS = {
    "impervious": "#ffffff",
    "building": "#0000ff",
    "low_vegetation": "#00ffff",
    "tree": "#00ff00",
    "car": "#ffff00",
    "clutter": "#ff0000",
}
_FIVE = {
    "impervious": "#ffffff",
    "building": "#0000ff",
    "vegetation": "#00ff00",
    "car": "#ffff00",
    "clutter": "#ff0000",
}
_MERGED = {_ISPRS["low_vegetation"]: "vegetation"}
_LOVEDA = ("background", "building", "road", "water", "barren", "forest", "agriculture")
_RESCUENET = (
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


def _potsdam(bands: str, folder: str, legend: str, meaning: Mapping[str, Any]) -> Dataset:
    return _dataset(
        f"ISPRS Potsdam, {bands}, 5 cm, 24 + 14 tiles; labels without boundaries{legend}",
        f"{folder}/top_potsdam_@_{bands}.tif",
        "5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif",
        train=("[2-7]_1[0-2]", "[67]_[7-9]"),
        test=("[2-7]_1[3-5]",),
        gsd_m=0.05,
        **meaning,
    )


def _loveda(domain: str) -> Dataset:
    return _dataset(
        f"LoveDA, {domain.lower()}, 0.3 m",
        f"@/{domain}/images_png/*.png",
        f"@/{domain}/masks_png/{{}}.png",
        train=("Train",),
        validation=("Val",),
        classes=dict(enumerate(_LOVEDA, start=1)),
        remap={"0": IGNORE},
        gsd_m=0.3,
    )


DATASETS: Mapping[str, Dataset] = {
    "potsdam-rgb": _potsdam("RGB", "2_Ortho_RGB", "", _colored(_ISPRS)),
    "potsdam-irrg": _potsdam("IRRG", "3_Ortho_IRRG", "", _colored(_ISPRS)),
    "potsdam-rgb-5": _potsdam("RGB", "2_Ortho_RGB", "; all vegetation one class", _colored(_FIVE, _MERGED)),
    "potsdam-irrg-5": _potsdam("IRRG", "3_Ortho_IRRG", "; all vegetation one class", _colored(_FIVE, _MERGED)),
    "vaihingen": _dataset(
        "ISPRS Vaihingen, infrared-red-green, 9 cm, 16 + 17 tiles; labels without boundaries",
        "top/top_mosaic_09cm_area@.tif",
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE/top_mosaic_09cm_area{}_noBoundary.tif",
        train=("[1357]", "[1][1357]", "[2][1368]", "[3][0247]"),
        test=("[2468]", "[1][0246]", "[2][02479]", "[3][1358]"),
        gsd_m=0.09,
        **_colored(_ISPRS),
    ),
    "loveda-urban": _loveda("Urban"),
    "loveda-rural": _loveda("Rural"),
    "rescuenet": _dataset(
        "RescueNet, 11 classes, after hurricane Michael; its authors state no metres per pixel",
        "@/@-org-img/*.jpg",
        "@/@-label-img/{}_lab.png",
        validation=("val",),
        test=("test",),
        classes=dict(enumerate(_RESCUENET)),
    ),
    "rescuenet-5": _dataset(
        "RescueNet in CrossEarth's copy, 5 classes as in potsdam-rgb-5, to measure on only",
        "@-org-img/*.jpg",
        "@-label-img/{}_lab.png",
        train=(),
        test=("test",),
        classes=dict(enumerate(_FIVE, start=1)),
        colors=_FIVE,
        remap={"0": IGNORE},
    ),
    "casid": _dataset(
        "CASID, 1 m, one climate zone: ROOT is its folder, with all_train and all_test in it",
        "all_@/image/*.png",
        "all_@/label/{}-label.png",
        test=("test",),
        classes=dict(enumerate(("background", "building", "forest", "road", "water"))),
        gsd_m=1.0,
    ),
    "whu-aerial": _dataset(
        "WHU building dataset, aerial, 0.3 m, tiles of 512 px",
        "@/image/*.tif",
        "@/label/{}.tif",
        validation=("val",),
        test=("test",),
        gsd_m=0.3,
        **_one_class("building"),
    ),
    "whu-satellite": _dataset(
        "WHU building dataset, satellite II (East Asia), tiles of 512 px; 0.35 m by its area: --gsd",
        "@/image/*.tif",
        "@/label/{}.tif",
        train=("train", "train_no"),
        test=("test", "test_no"),
        **_one_class("building"),
    ),
    "deepglobe-roads": _dataset(
        "DeepGlobe roads, 0.5 m, tiles of 1024 px",
        "@/*_sat.jpg",
        "@/{}_mask.png",
        gsd_m=0.5,
        **_one_class("road"),
    ),
    "massachusetts-roads": _dataset(
        "Massachusetts roads, 1 m, tiles of 1500 px",
        "tiff/@/*.tiff",
        "tiff/@_labels/{}.tif",
        validation=("val",),
        test=("test",),
        gsd_m=1.0,
        **_one_class("road"),
    ),
}
"""By the name that `cegate-geo dataset` knows."""
