"""Published datasets on made files of the same layout: every raster finds its labels, every value its class."""

from __future__ import annotations

import glob
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from train_files import LEGEND, noise, write_raster

from cegate_geo.cli.main import main
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import InputError, LabelError
from cegate_geo.train.config import AdaptConfig, SourceConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.dataset_tables import write_configuration
from cegate_geo.train.datasets import DATASETS
from cegate_geo.train.regions import fill_template
from cegate_geo.train.scenes import LabelledScene, open_scenes
from cegate_geo.train.suite import SettingConfig

ISPRS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
"""Colours in the order of the classes; black, the boundary, is none."""
GREYS = [0, 255]
_POTSDAM = ("2_10", "2_11", "6_7", "7_12", "2_13", "5_15")
_TRUTH = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"


def _each(images: str, labels: str, *names: str) -> list[tuple[str, str]]:
    """Pairs of images and labels; of a name "split/file", `@` stands for the split and `{}` for the file."""
    pairs = []
    for name in names:
        split, _, file = name.rpartition("/")
        pairs.append((images.replace("@", split).format(file), labels.replace("@", split).format(file)))
    return pairs


def _potsdam(bands: str, folder: str) -> list[tuple[str, str]]:
    labels = "5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif"
    return _each(f"{folder}/top_potsdam_{{}}_{bands}.tif", labels, *_POTSDAM)


LAYOUTS: dict[str, tuple[list[tuple[str, str]], int, object]] = {
    "potsdam-rgb": (_potsdam("RGB", "2_Ortho_RGB"), 4, ISPRS),
    "potsdam-irrg": (_potsdam("IRRG", "3_Ortho_IRRG"), 4, ISPRS),
    "potsdam-rgb-5": (_potsdam("RGB", "2_Ortho_RGB"), 4, ISPRS),
    "potsdam-irrg-5": (_potsdam("IRRG", "3_Ortho_IRRG"), 4, ISPRS),
    "vaihingen": (
        _each(
            "top/top_mosaic_09cm_area{}.tif", _TRUTH + "/top_mosaic_09cm_area{}_noBoundary.tif",
            "1", "11", "3", "30", "21", "2", "9", "38",
        ),
        5,
        ISPRS,
    ),
    "loveda-urban": (
        _each("@/Urban/images_png/{}.png", "@/Urban/masks_png/{}.png", "Train/1366", "Val/7"), 2, list(range(1, 8))
    ),
    "loveda-rural": (
        _each("@/Rural/images_png/{}.png", "@/Rural/masks_png/{}.png", "Train/0", "Val/2522"), 2, list(range(1, 8))
    ),
    "rescuenet": (
        _each("@/@-org-img/{}.jpg", "@/@-label-img/{}_lab.png", "train/10778", "val/10793", "test/1"),
        2,
        list(range(11)),
    ),
    "rescuenet-5": (_each("@-org-img/{}.jpg", "@-label-img/{}_lab.png", "test/10781"), 0, list(range(1, 6))),
    "casid": (
        _each("all_@/image/{}.png", "all_@/label/{}-label.png", "train/1", "train/12_3", "test/2"), 2, list(range(5))
    ),
    "whu-aerial": (_each("@/image/{}.tif", "@/label/{}.tif", "train/0", "train/10", "val/2", "test/7"), 3, GREYS),
    "whu-satellite": (
        _each("@/image/{}.tif", "@/label/{}.tif", "train/1_28", "train/2_7", "train_no/1_0", "test/1010", "test_no/3"),
        3,
        GREYS,
    ),
    "deepglobe-roads": (
        _each("@/{}_sat.jpg", "@/{}_mask.png", "train/104", "train/1049"), 2, [(g,) * 3 for g in GREYS]
    ),
    "massachusetts-roads": (
        _each("tiff/@/{}.tiff", "tiff/@_labels/{}.tif", "train/10078660_15", "val/10228690_15", "test/1_15"), 2, GREYS
    ),
}  # fmt: skip
"""(image, labels) of each published layout, how many of them `adapt` reads, values or colours of the classes."""
MERGED = np.array([0, 1, 2, 2, 3, 4, 255], np.uint8)
"""Channel of each colour of ISPRS where all vegetation is one class."""
SIZES = {"rescuenet": 0.02, "rescuenet-5": 0.02, "whu-satellite": 0.45}
"""Metres per pixel of what states none."""


ANY_SOURCE = '[[source]]\nimages = "a"\nlabels = "b"\n'


def make(root: Path, name: str) -> dict[str, np.ndarray]:
    """Files of a layout; gives the channel of each pixel by name of the image, 255 where nothing counts."""
    pairs, _, values = LAYOUTS[name]
    assert isinstance(values, list)
    expected = {}
    for n, (image, labels) in enumerate(pairs):
        channels = np.random.default_rng(n).integers(0, len(values), (20, 30))
        is_color = isinstance(values[0], tuple)
        table = np.array([*values, (0, 0, 0) if values == ISPRS else values[0]], np.uint8)
        if name.startswith(("loveda", "rescuenet-5")):
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
        counts = name.startswith(("potsdam", "vaihingen", "loveda", "rescuenet-5"))
        channels = np.where(channels == len(values), 255 if counts else 0, channels)
        if name.startswith("potsdam") and name.endswith("-5"):
            channels = MERGED[np.minimum(channels, 6)]
        expected[Path(image).name] = channels
    return expected


def read_configuration(text: str) -> AdaptConfig:
    return build(AdaptConfig, tomllib.loads(text + ("" if "[[source]]" in text else ANY_SOURCE)))


def read_tests(text: str) -> list[SourceConfig]:
    """The tables of the test part, which stand in comments."""
    lines = [line.removeprefix("# ") for line in text.partition("never read by adapt:\n")[2].split("\n")]
    tables = tomllib.loads(
        "\n".join(["[setting]", *(line for line in lines if not line.startswith(("#", "not here")))])
    )
    return list(build(SettingConfig, {"name": "s", **tables["setting"]}).test) if "test" in tables["setting"] else []


@pytest.mark.parametrize("name", DATASETS)
def test_every_raster_finds_its_labels_and_every_value_its_class(tmp_path: Path, name: str) -> None:
    root = tmp_path / "a [odd] folder"
    expected = make(root, name)
    size = SIZES.get(name)
    text = write_configuration(name, root, gsd_m=size)
    config = read_configuration(text)
    read: list[LabelledScene] = []
    for source in (*config.source, *config.validation) if "[[source]]" in text else ():
        found = open_scenes(source, config.legend)
        assert source.weight == len(found)
        read += found
    kept = [scene for source in read_tests(text) for scene in open_scenes(source, config.legend)]
    pairs, count, _ = LAYOUTS[name]
    assert len(read) == count == len({s.name for s in read})
    unused = {"top_mosaic_09cm_area9.tif"}  # of no split
    assert {s.name for s in read} | {s.name for s in kept} | unused == {Path(i).name for i, _ in pairs} | unused
    assert not {s.name for s in read} & {s.name for s in kept}
    for scene in (*read, *kept):
        np.testing.assert_array_equal(scene.labels(scene.grid.window), expected[scene.name])
        assert scene.gsd_m == (size or DATASETS[name].gsd_m)


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


def test_masks_with_ids_instead_of_grey_levels_are_told_by_their_values(tmp_path: Path) -> None:
    """As in the processed copies of CrossEarth's benchmark; what is blank says nothing."""
    expected = make(tmp_path, "whu-satellite")
    for image, labels in LAYOUTS["whu-satellite"][0]:
        if image.endswith("1_28.tif") or "_no" in image:
            expected[Path(image).name][:] = 0
        write_raster(tmp_path / labels, expected[Path(image).name].astype(np.uint8), crs=None)
    (one, two) = build(AdaptConfig, tomllib.loads(write_configuration("whu-satellite", tmp_path, gsd_m=1.0))).source
    legend = Legend.from_names({0: "other", 1: "building"})
    assert one.remap == {}
    scenes = [*open_scenes(one, legend), *open_scenes(two, legend)]
    assert len(scenes) == 3
    for scene in scenes:
        np.testing.assert_array_equal(scene.labels(scene.grid.window), expected[scene.name])


def test_a_test_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    make(tmp_path, "whu-aerial")
    shutil.rmtree(tmp_path / "test")
    assert "# not here: test/image/*.tif" in write_configuration("whu-aerial", tmp_path)
    with pytest.raises(InputError, match="No file matches"):
        write_configuration("rescuenet-5", tmp_path)


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
    assert main(["dataset", "atlantis", str(tmp_path)]) == 2
    assert "There is no dataset 'atlantis'" in capsys.readouterr().err


def test_a_folder_without_the_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No file matches"):
        write_configuration("vaihingen", tmp_path)
    make(tmp_path, "whu-aerial")
    for labels in (tmp_path / "train" / "label").iterdir():
        labels.unlink()
    with pytest.raises(InputError, match="has no labels"):
        write_configuration("whu-aerial", tmp_path)
