"""Published datasets on made files of the same layout: every raster finds its labels, every value its class."""

from __future__ import annotations

import glob
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from train_files import LEGEND, noise, write_raster

from cegate_geo.cli.main import main
from cegate_geo.errors import InputError, LabelError
from cegate_geo.train.config import AdaptConfig, SourceConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.datasets import DATASETS, write_configuration
from cegate_geo.train.regions import fill_template
from cegate_geo.train.scenes import LabelledScene, open_scenes

ISPRS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
"""Colours in the order of the classes; black, the boundary, is none."""
GREYS = [0, 255]
LAYOUTS: dict[str, tuple[list[tuple[str, str]], int, object]] = {
    "potsdam-rgb": (
        [
            (f"2_Ortho_RGB/top_potsdam_{t}_RGB.tif", f"5_Labels_all_noBoundary/top_potsdam_{t}_label_noBoundary.tif")
            for t in ("2_10", "2_11", "6_7", "7_12", "2_13", "5_15")
        ],
        4,
        ISPRS,
    ),
    "potsdam-irrg": (
        [
            (f"3_Ortho_IRRG/top_potsdam_{t}_IRRG.tif", f"5_Labels_all_noBoundary/top_potsdam_{t}_label_noBoundary.tif")
            for t in ("2_10", "7_9", "3_14")
        ],
        2,
        ISPRS,
    ),
    "vaihingen": (
        [
            (
                f"top/top_mosaic_09cm_area{a}.tif",
                "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE/"
                f"top_mosaic_09cm_area{a}_noBoundary.tif",
            )
            for a in (1, 11, 3, 30, 21, 2, 9, 38)
        ],
        5,
        ISPRS,
    ),
    "loveda-urban": (
        [(f"{s}/Urban/images_png/{n}.png", f"{s}/Urban/masks_png/{n}.png") for s, n in (("Train", 1366), ("Val", 7))],
        2,
        [1, 2, 3, 4, 5, 6, 7],
    ),
    "loveda-rural": (
        [(f"{s}/Rural/images_png/{n}.png", f"{s}/Rural/masks_png/{n}.png") for s, n in (("Train", 0), ("Val", 2522))],
        2,
        [1, 2, 3, 4, 5, 6, 7],
    ),
    "rescuenet": (
        [
            (f"{s}/{s}-org-img/{n}.jpg", f"{s}/{s}-label-img/{n}_lab.png")
            for s, n in (("train", 10778), ("val", 10793), ("test", 1))
        ],
        2,
        list(range(11)),
    ),
    "whu-aerial": (
        [(f"{p[0]}/image/{p[1]}.tif", f"{p[0]}/label/{p[1]}.tif") for p in (("train", 0), ("train", 10), ("val", 2))],
        3,
        GREYS,
    ),
    "deepglobe-roads": (
        [(f"train/{n}_sat.jpg", f"train/{n}_mask.png") for n in (104, 1049)],
        2,
        [(g,) * 3 for g in GREYS],
    ),
    "massachusetts-roads": (
        [
            (f"tiff/{s}/{n}.tiff", f"tiff/{s}_labels/{n}.tif")
            for s, n in (("train", "10078660_15"), ("val", "10228690_15"), ("test", "1_15"))
        ],
        2,
        GREYS,
    ),
}  # fmt: skip
"""(image, labels) of each published layout, how many of them `adapt` reads, values or colours of the classes."""


def make(root: Path, name: str) -> dict[str, np.ndarray]:
    """Files of a layout; gives the channel of each pixel by name of the image, 255 where nothing counts."""
    pairs, _, values = LAYOUTS[name]
    assert isinstance(values, list)
    expected = {}
    for n, (image, labels) in enumerate(pairs):
        channels = np.random.default_rng(n).integers(0, len(values), (20, 30))
        is_color = isinstance(values[0], tuple)
        table = np.array([*values, (0, 0, 0) if values == ISPRS else values[0]], np.uint8)
        if name.startswith("loveda"):
            table[-1] = 0
        channels[:3] = len(values)  # boundary, no data
        raster = table[channels]
        for path in (root / image, root / labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        if image.endswith("jpg"):
            Image.fromarray(np.moveaxis(noise((20, 30), seed=n), 0, 2)).save(root / image)
        else:
            write_raster(root / image, noise((20, 30), seed=n), crs=None)
        write_raster(root / labels, np.moveaxis(raster, 2, 0) if is_color else raster, crs=None)
        counts = name.startswith(("potsdam", "vaihingen", "loveda"))
        expected[Path(image).name] = np.where(channels == len(values), 255 if counts else 0, channels)
    return expected


@pytest.mark.parametrize("name", DATASETS)
def test_every_raster_finds_its_labels_and_every_value_its_class(tmp_path: Path, name: str) -> None:
    root = tmp_path / "a [odd] folder"
    expected = make(root, name)
    text = write_configuration(name, root, gsd_m=0.02 if name == "rescuenet" else None)
    config = build(AdaptConfig, tomllib.loads(text))
    scenes: list[LabelledScene] = []
    for source in (*config.source, *config.validation):
        found = open_scenes(source, config.legend)
        assert source.weight == len(found)
        scenes += found
    assert len(scenes) == LAYOUTS[name][1] == len({s.name for s in scenes})
    for scene in scenes:
        np.testing.assert_array_equal(scene.labels(scene.grid.window), expected[scene.name])
        assert scene.gsd_m == (0.02 if name == "rescuenet" else DATASETS[name].gsd_m)
    read = {s.name for s in scenes}
    assert all("test/" not in image for image, _ in LAYOUTS[name][0] if Path(image).name in read)


@pytest.mark.parametrize(("name", "bands"), [("whu-aerial", 3), ("massachusetts-roads", 3), ("deepglobe-roads", 1)])
def test_masks_of_one_class_may_have_one_band_or_three(tmp_path: Path, name: str, bands: int) -> None:
    expected = make(tmp_path, name)
    for image, labels in LAYOUTS[name][0]:
        grey = (expected[Path(image).name] * 255).astype(np.uint8)
        grey[-1] = 100  # neither: the edge of a mask that was resampled
        expected[Path(image).name][-1] = 255
        write_raster(tmp_path / labels, np.stack([grey] * bands), crs=None)
    config = build(AdaptConfig, tomllib.loads(write_configuration(name, tmp_path)))
    for source in config.source:
        for scene in open_scenes(source, config.legend):
            np.testing.assert_array_equal(scene.labels(scene.grid.window), expected[scene.name])


def test_labels_are_found_by_name_not_by_order(tmp_path: Path) -> None:
    """area1.tif comes before area11.tif, but area1_noBoundary.tif after area11_noBoundary.tif."""
    images, labels = "top_*.tif", "gt/top_{}_truth.tif"
    assert fill_template(labels, images, Path("x/top_area1.tif")) == Path("gt/top_area1_truth.tif")
    assert fill_template("{}.png", "a_[12]_?_b.tif", Path("a_1_7_b.tif")) == Path("1_7.png")
    odd = glob.escape("/d [1]/") + "a*.tif"
    assert fill_template(glob.escape("/d [1]/") + "{}.png", odd, Path("/d [1]/a7.tif")) == Path("/d [1]/7.png")
    with pytest.raises(LabelError, match="no wildcard"):
        fill_template("{}.png", "a/b.tif", Path("a/b.tif"))
    write_raster(tmp_path / "a1.tif", noise((8, 8)))
    with pytest.raises(LabelError, match=r"a1\.tif has no labels: there is no .*1_gt\.tif"):
        open_scenes(SourceConfig(images=str(tmp_path / "a*.tif"), labels=str(tmp_path / "{}_gt.tif")), LEGEND)


def test_many_rasters_are_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cegate_geo.train.scenes.MANY", 2)
    for n in range(4):
        write_raster(tmp_path / f"a{n}.tif", noise((40, 40), seed=n))
        write_raster(tmp_path / f"a{n}_gt.tif", np.full((40, 40), n % 2, np.uint8))
    source = SourceConfig(images=str(tmp_path / "a?.tif"), labels=str(tmp_path / "a{}_gt.tif"))
    scenes = open_scenes(source, LEGEND, cache_mb=0)
    held = open_scenes(source, LEGEND)
    for _ in range(2):
        for n, (scene, other) in enumerate(zip(scenes, held, strict=True)):
            for a, b in zip(scene.read(scene.grid.window), other.read(scene.grid.window), strict=True):
                np.testing.assert_array_equal(a, b)
            assert (scene.labels(scene.grid.window) == n % 2).all()
    assert all(s._pixels._scene is None for s in scenes)


def test_the_command_lists_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "LoveDA", "loveda-urban")
    assert main(["dataset"]) == 0
    listed = capsys.readouterr().out.split()
    assert all(name in listed for name in DATASETS)
    target = tmp_path / "u.toml"
    words = ["dataset", "loveda-urban", str(tmp_path / "LoveDA"), "-o", str(target)]
    assert main(words) == 0
    config = build(AdaptConfig, tomllib.loads(target.read_text(encoding="utf-8")))
    assert config.legend.ids == tuple(range(1, 8))
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["dataset", "casid", str(tmp_path)]) == 2
    assert "There is no dataset 'casid'" in capsys.readouterr().err


def test_a_folder_without_the_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No file matches"):
        write_configuration("vaihingen", tmp_path)
    make(tmp_path, "whu-aerial")
    for labels in (tmp_path / "train" / "label").iterdir():
        labels.unlink()
    with pytest.raises(InputError, match="has no labels"):
        write_configuration("whu-aerial", tmp_path)
