"""Laws of labels made of predictions: sure ones alone, the surest of each class, nothing where it was forbidden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from train_files import LEGEND, pixel_box, write_polygons, write_raster

from cegate_geo.cli.main import main
from cegate_geo.errors import CegateError, ConfigError, InputError, LabelError, OutputExistsError
from cegate_geo.train.self_labels import KeepRule, Prediction, read_self_labels, write_self_labels

IDS = (0, 1, 7)


def prediction(folder: Path, ids: np.ndarray, sure: np.ndarray, name: str = "a") -> Prediction:
    """A mask of the legend's classes, with its confidence."""
    mask = write_raster(folder / f"{name}.tif", ids, nodata=255)
    legend = [{"id": c.id, "name": c.name, "color": c.hex} for c in LEGEND]
    with rasterio.open(mask, "r+") as dataset:
        dataset.update_tags(CEGATE_LEGEND=json.dumps(legend), CEGATE_MODEL_SHA256="abc")
    confidence = write_raster(folder / f"{name}_confidence.tif", sure)
    return Prediction(mask=mask, confidence=confidence, labels=folder / f"{name}_labels.tif")


def random_prediction(folder: Path, shape: tuple[int, int] = (600, 40), seed: int = 0, name: str = "a") -> Prediction:
    rng = np.random.default_rng(seed)
    ids = rng.choice([*IDS, 255], p=[0.6, 0.3, 0.05, 0.05], size=shape).astype(np.uint8)
    return prediction(folder, ids, rng.integers(0, 256, shape).astype(np.uint8), name)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_a_prediction_is_a_label_where_its_class_reaches_the_threshold(tmp_path: Path) -> None:
    made = random_prediction(tmp_path)
    kept = write_self_labels([made], KeepRule(threshold=0.9, thresholds={"building": 0.5}))
    ids, sure = read(made.mask), read(made.confidence) / 255
    keep = (ids != 255) & (sure >= np.where(ids == 1, 0.5, 0.9))
    np.testing.assert_array_equal(read(made.labels), np.where(keep, ids, 255))
    assert [(c.predicted, c.kept) for c in kept] == [((ids == i).sum(), (keep & (ids == i)).sum()) for i in IDS]
    assert [c.least for c in kept] == pytest.approx([230 / 255, 128 / 255, 230 / 255])


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_of_each_class_the_surest_are_kept(tmp_path: Path, share: float) -> None:
    """Of all scenes together, not of each."""
    pair = [random_prediction(tmp_path, seed=n, name=str(n)) for n in (0, 1)]
    write_self_labels(pair, KeepRule(threshold=0.3, share=share))
    ids, sure, labels = (np.concatenate([read(p) for p in paths]) for paths in (
        [p.mask for p in pair], [p.confidence for p in pair], [p.labels for p in pair]
    ))  # fmt: skip
    for i in IDS:
        here = ids == i
        kept = here & (labels == i)
        assert 0 < kept.sum() <= share * here.sum()
        assert sure[kept].min() > sure[here & ~kept].max()
        level_below = here & (sure == sure[here & ~kept].max())
        assert kept.sum() + level_below.sum() > share * here.sum()  # one level more would be too many


def test_what_nothing_tells_apart_is_kept_together(tmp_path: Path) -> None:
    ids = np.zeros((10, 10), np.uint8)
    made = prediction(tmp_path, ids, np.full((10, 10), 250, np.uint8))
    kept = write_self_labels([made], KeepRule(threshold=0.9, share=0.2))
    assert [c.kept for c in kept] == [100, 0, 0]


def test_nothing_is_labelled_in_what_is_left_out(tmp_path: Path) -> None:
    """Nor does it count for the shares."""
    ids, sure = np.zeros((600, 40), np.uint8), np.full((600, 40), 250, np.uint8)
    sure[500:590] = 255
    made = prediction(tmp_path, ids, sure)
    shape = pixel_box(0, 500, 40, 590)
    fence = write_polygons(tmp_path / "fence.gpkg", [shape], crs="EPSG:32645")
    kept = write_self_labels([made], KeepRule(threshold=0.9, share=0.5), leave_out=fence)
    assert (read(made.labels)[500:590] == 255).all()
    assert kept[0].predicted == kept[0].kept == 510 * 40


def test_labels_lie_on_the_grid_and_tell_how_they_were_made(tmp_path: Path) -> None:
    made = random_prediction(tmp_path)
    write_self_labels([made], KeepRule(thresholds={"road": 0.4}, share=0.3))
    with rasterio.open(made.mask) as mask, rasterio.open(made.labels) as labels:
        assert (mask.crs, mask.transform, mask.shape) == (labels.crs, labels.transform, labels.shape)
        assert labels.nodata == 255
        assert {i: labels.colormap(1)[i][:3] for i in IDS} == {c.id: c.color for c in LEGEND}
        assert labels.tags()["CEGATE_MODEL_SHA256"] == "abc"
    assert read_self_labels(made.labels) == {"threshold": 0.9, "thresholds": {"road": 0.4}, "share": 0.3}
    assert read_self_labels(made.mask) is None


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ("grid", LabelError, "pixels, its raster"),
        ("type", InputError, "one of uint8"),
        ("class", ConfigError, "'lake'"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, wrong: str, error: type[CegateError], says: str
) -> None:
    made, rule = random_prediction(tmp_path), KeepRule()
    if wrong == "grid":
        write_raster(made.confidence, np.zeros((599, 40), np.uint8))
    elif wrong == "type":
        write_raster(made.confidence, np.zeros((600, 40), np.float32))
    else:
        rule = KeepRule(thresholds={"lake": 0.5})
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=says):
        write_self_labels([made], rule)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("values", [{"threshold": 1.2}, {"thresholds": {"road": -0.1}}, {"share": 0.0}, {"share": 2}])
def test_rules_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"no (probability|share)"):
        KeepRule(**values)  # type: ignore[arg-type]


def test_the_command_tells_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = random_prediction(tmp_path)
    words = ["self-label", str(made.mask), str(made.confidence), "-o", str(made.labels)]
    assert main([*words, "--threshold", "0.8", "--threshold", "road=0.2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    labels = read(made.labels)
    assert [c["kept"] for c in told["classes"]] == [int((labels == i).sum()) for i in IDS]
    assert main(words) == OutputExistsError.exit_code == 2
    assert main([*words, "--overwrite", "--threshold", "road=much"]) == 2
    _says(capsys.readouterr().err, ["exists already", "is no threshold"])
    assert main([*words, "--overwrite", "--share", "0.5"]) == 0
    assert "building: " in capsys.readouterr().out


def _says(text: str, parts: Sequence[str]) -> None:
    for part in parts:
        assert part in text
