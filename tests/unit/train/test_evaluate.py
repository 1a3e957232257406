"""Laws of evaluation: figures by hand, from masks and from models, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner, Result
from train_files import TRANSFORM, noise, pixel_box, write_polygons, write_raster

from cegate_geo.api import predict
from cegate_geo.cli.evaluate import command
from cegate_geo.domain.confusion import Metrics
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import CegateWarning, ConfigError, InputError, LabelError
from cegate_geo.train.evaluate import evaluate_mask, evaluate_model, read_legend
from tests import toy_models

LEGEND = Legend.from_names({3: "field", 40: "road"})
SHAPE = (60, 80)


def run(*words: Any) -> Result:
    return CliRunner().invoke(command, [str(w) for w in words])


def confusion(metrics: Metrics) -> list[list[int]]:
    return metrics["confusion"]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Road in columns 20 to 50, field elsewhere."""
    values = np.full(SHAPE, 3, np.uint8)
    values[:, 20:50] = 40
    tag = json.dumps([{"id": c.id, "name": c.name, "color": c.hex} for c in LEGEND])
    path = write_raster(tmp_path / "mask.tif", values, nodata=255)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(CEGATE_LEGEND=tag)
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Road in columns 30 to 60, as polygons in degrees."""
    frame = geopandas.GeoDataFrame({"kind": ["road"]}, geometry=[pixel_box(30, 0, 60, 60)], crs="EPSG:32645")
    frame.to_crs("EPSG:4326").to_file(tmp_path / "truth.gpkg")
    return tmp_path / "truth.gpkg"


def test_figures_of_a_mask_are_those_by_hand(mask: Path, truth: Path) -> None:
    metrics = evaluate_mask(mask, truth, label_field="kind")
    assert confusion(metrics) == [[40 * 60, 10 * 60], [10 * 60, 20 * 60]]
    field, road = metrics["per_class"]
    assert (road["id"], road["name"], road["pixels"]) == (40, "road", 1800)
    assert road["iou"] == pytest.approx(20 / 40)
    assert road["precision"] == road["recall"] == road["f1"] == pytest.approx(20 / 30)
    assert field["iou"] == pytest.approx(40 / 60)
    assert metrics["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics["accuracy"] == pytest.approx(60 / 80)


def test_pixels_of_several_masks_count_together(tmp_path: Path, mask: Path, truth: Path) -> None:
    one = confusion(evaluate_mask(mask, truth, label_field="kind"))
    other = tmp_path / "other.tif"
    shutil.copy(mask, other)
    with rasterio.open(other, "r+") as dataset:
        dataset.write(np.full(SHAPE, 3, np.uint8), 1)
    second = confusion(evaluate_mask(other, truth, label_field="kind"))
    assert second == [[50 * 60, 0], [30 * 60, 0]]
    together = (np.array(one) + second).tolist()
    assert confusion(evaluate_mask([mask, other], truth, label_field="kind")) == together
    done = run(mask, other, "--labels", truth, "--label-field", "kind", "--json", "-")
    assert json.loads(done.stdout)["confusion"] == together
    with rasterio.open(other, "r+") as dataset:
        dataset.update_tags(CEGATE_LEGEND=dataset.tags()["CEGATE_LEGEND"].replace("road", "water"))
    with pytest.raises(InputError, match="other classes than"):
        evaluate_mask([mask, other], truth, label_field="kind")


def test_only_rows_columns_and_aoi_that_are_asked_for_count(tmp_path: Path, mask: Path, truth: Path) -> None:
    aoi = write_polygons(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 40, 60)])
    metrics = evaluate_mask(mask, truth, aoi=str(aoi), rows=(10, 30), cols=(25, 70))
    assert confusion(metrics) == [[0, 5 * 20], [0, 10 * 20]]
    with pytest.raises(LabelError, match="leave nothing"):
        evaluate_mask(mask, truth, rows=(60, 90))


def test_class_rasters_are_truth_on_the_same_grid_only(tmp_path: Path, mask: Path) -> None:
    values = np.full(SHAPE, 255, np.uint8)
    values[:10, :30], values[10:20] = 3, 7
    labels = write_raster(tmp_path / "labels.tif", values)
    assert confusion(evaluate_mask(mask, labels, remap={"7": "road"})) == [[200, 100], [500, 300]]
    with pytest.raises(LabelError, match=r"'7'.*remap"):
        evaluate_mask(mask, labels)
    moved = write_raster(tmp_path / "moved.tif", values, transform=TRANSFORM @ Affine.translation(0, 1))
    with pytest.raises(LabelError, match="rows off"):
        evaluate_mask(mask, moved)


def test_labels_without_prediction_do_not_count_and_are_told(tmp_path: Path, truth: Path) -> None:
    values = np.full(SHAPE, 40, np.uint8)
    values[:15] = 255
    path = write_raster(tmp_path / "holed.tif", values, nodata=255)
    with pytest.warns(CegateWarning, match=r"1200 labelled pixels \(25\.0%\)"):
        metrics = evaluate_mask(path, truth, legend=LEGEND, label_field="kind")
    assert confusion(metrics) == [[0, 50 * 45], [0, 30 * 45]]
    write_raster(path, np.full(SHAPE, 255, np.uint8), nodata=255)
    with pytest.raises(LabelError, match="No pixel has both"):
        evaluate_mask(path, truth, legend=LEGEND, label_field="kind")


def test_ids_beyond_a_byte_are_counted_right(tmp_path: Path) -> None:
    legend = Legend.from_names({255 + 1: "a", 3000: "b"})
    values = np.full(SHAPE, 256, np.uint16)
    values[:, 40:] = 3000
    values[0] = 65535
    path = write_raster(tmp_path / "mask.tif", values, nodata=65535)
    labels = write_raster(tmp_path / "labels.tif", np.full(SHAPE, 3000, np.uint16))
    with pytest.warns(CegateWarning, match="80 labelled"):
        assert confusion(evaluate_mask(path, labels, legend=legend)) == [[0, 0], [59 * 40, 59 * 40]]


def test_a_mask_of_unknown_classes_or_kind_is_refused(tmp_path: Path, truth: Path) -> None:
    plain = write_raster(tmp_path / "plain.tif", np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match=r"does not say.*--class"):
        evaluate_mask(plain, truth)
    with pytest.raises(LabelError, match=r"prediction holds the values \[0\]"):
        evaluate_mask(plain, truth, legend=LEGEND)
    picture = write_raster(tmp_path / "picture.tif", noise(SHAPE))
    with pytest.raises(InputError, match="3 bands"):
        evaluate_mask(picture, truth, legend=LEGEND)
    with pytest.raises(ConfigError, match="sea"):
        evaluate_mask(plain, truth, legend=LEGEND, background="sea")


def bright_scene(folder: Path, name: str, transform: Affine = TRANSFORM, shape: tuple[int, int] = (150, 200)) -> Path:
    image = np.full((3, *shape), 30, np.uint8)
    image[:, 40:90, 50:130] = 220
    return write_raster(folder / name, image, transform=transform)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_models.brightness(tmp_path / "model.onnx", gsd_m=0.5, gsd_range_m=(0.25, 1.0))


def test_the_legend_of_a_predicted_mask_is_found_in_it_and_beside_it(tmp_path: Path, model: Path) -> None:
    scene = bright_scene(tmp_path, "scene.tif")
    predict(scene, tmp_path / "mask.tif", model=model)
    legend = read_legend(tmp_path / "mask.tif")
    assert (legend.ids, legend.names) == ((0, 1), ("other", "building"))
    with rasterio.open(tmp_path / "mask.tif") as dataset:
        write_raster(tmp_path / "bare.tif", dataset.read(), nodata=255)
    (tmp_path / "mask.tif.aux.xml").rename(tmp_path / "bare.tif.aux.xml")
    assert read_legend(tmp_path / "bare.tif").names == ("other", "building")


def test_a_model_is_evaluated_as_its_mask_would_be(tmp_path: Path, model: Path) -> None:
    for n in range(2):
        bright_scene(tmp_path, f"scene_{n}.tif", Affine.translation(0, 1000 * n) @ TRANSFORM)
    boxes = [pixel_box(60, 40, 140, 90, Affine.translation(0, 1000 * n) @ TRANSFORM) for n in range(2)]
    labels = write_polygons(tmp_path / "truth.gpkg", boxes)
    metrics = evaluate_model(model, str(tmp_path / "scene_*.tif"), str(labels))
    hit, off = 2 * 70 * 50, 2 * 10 * 50
    assert confusion(metrics) == [[2 * 150 * 200 - hit - 2 * off, off], [off, hit]]
    masks = []
    for n in range(2):
        predict(tmp_path / f"scene_{n}.tif", tmp_path / f"mask_{n}.tif", model=model)
        masks.append(confusion(evaluate_mask(tmp_path / f"mask_{n}.tif", labels)))
    assert np.sum(masks, 0).tolist() == confusion(metrics)


def test_only_held_out_rows_are_predicted(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = bright_scene(tmp_path, "scene.tif", shape=(600, 200))
    labels = write_polygons(tmp_path / "truth.gpkg", [pixel_box(50, 40, 130, 90)])
    runs = []

    def spy(*args: Any, **options: Any) -> Any:
        runs.append(predict(*args, **options))
        return runs[-1]

    monkeypatch.setattr("cegate_geo.train.evaluate.predict", spy)
    metrics = evaluate_model(model, str(scene), str(labels), rows=(80, 120))
    assert confusion(metrics) == [[40 * 200 - 10 * 80, 0], [0, 10 * 80]]
    whole = predict(scene, tmp_path / "whole.tif", model=model)
    assert runs[0].tiles - runs[0].skipped_tiles < whole.tiles / 2


def test_a_model_sees_what_its_options_say(tmp_path: Path, model: Path) -> None:
    scene = bright_scene(tmp_path, "scene.tif")
    labels = write_polygons(tmp_path / "truth.gpkg", [pixel_box(50, 40, 130, 90)])
    with pytest.warns(CegateWarning, match="4000 labelled"):
        metrics = evaluate_model(model, str(scene), str(labels), predicting={"nodata": (220.0,)})
    assert confusion(metrics) == [[150 * 200 - 4000, 0], [0, 0]]


def test_the_command_prints_a_table_and_writes_the_same_json(tmp_path: Path, mask: Path, truth: Path) -> None:
    expected = evaluate_mask(mask, truth, label_field="kind", rows=(10, 60))
    out = tmp_path / "figures.json"
    result = run(mask, "--labels", truth, "--label-field", "kind", "--rows", "10:60", "--json", out)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == expected
    assert "road" in result.output
    assert "0.5000" in result.output
    assert f"mean IoU {expected['miou']:.4f}" in result.output
    printed = run(mask, "--labels", truth, "--label-field", "kind", "--rows", "10:60", "--json", "-")
    assert json.loads(printed.stdout) == expected
    assert set(expected) == {"miou", "accuracy", "per_class", "confusion"}
    assert set(expected["per_class"][0]) == {"id", "name", "iou", "f1", "precision", "recall", "pixels"}


def test_the_command_takes_a_model_and_remaps(tmp_path: Path, model: Path) -> None:
    scene = bright_scene(tmp_path, "scene.tif")
    labels = write_polygons(tmp_path / "truth.gpkg", [pixel_box(50, 40, 130, 90)], kind=["yes"])
    words = ["--model", model, "--images", scene, "--labels", labels, "--label-field", "kind", "--json", "-"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(*words, "--remap", "yes=building", "--cols", "0:180")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["miou"] == 1.0


@pytest.mark.parametrize(
    "words",
    [
        ["--labels", "x.gpkg"],
        ["m.tif", "--labels", "x.gpkg", "--model", "m.onnx", "--images", "y"],
        ["--labels", "x.gpkg", "--model", "m.onnx"],
        ["m.tif", "--labels", "x.gpkg", "--images", "y"],
        ["m.tif", "--labels", "x.gpkg", "--rows", "10"],
        ["m.tif", "--labels", "x.gpkg", "--rows", "10:5"],
        ["m.tif", "--labels", "x.gpkg", "--remap", "yes"],
    ],
)
def test_usage_that_can_not_be_meant_is_refused(words: list[str]) -> None:
    assert run(*words).exit_code == 2


WITHOUT_TRAINING = """
import sys
for name in ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "geopandas", "pandas", "PIL"):
    sys.modules[name] = None
from cegate_geo.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def run_without_training(*words: Any) -> subprocess.CompletedProcess[str]:
    """The command where nothing of the extra `train` can be imported, as after `pip install "cegate-geo[cpu]"`."""
    argv = [sys.executable, "-c", WITHOUT_TRAINING, "evaluate", *(str(w) for w in words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_a_mask_is_evaluated_to_the_same_figures_without_the_extra_train(
    tmp_path: Path, mask: Path, truth: Path
) -> None:
    aoi = write_polygons(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 70, 60)])
    raster = write_raster(tmp_path / "labels.tif", np.full(SHAPE, 3, np.uint8))
    for words, expected in (
        (["--labels", truth, "--label-field", "kind"], evaluate_mask(mask, truth, label_field="kind")),
        (["--labels", truth, "--label-field", "kind", "--aoi", aoi, "--rows", "5:40"],
         evaluate_mask(mask, truth, label_field="kind", aoi=str(aoi), rows=(5, 40))),
        (["--labels", raster], evaluate_mask(mask, raster)),
    ):  # fmt: skip
        result = run_without_training(mask, *words, "--json", "-")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == expected


def test_a_model_is_evaluated_to_the_same_figures_without_the_extra_train(tmp_path: Path, model: Path) -> None:
    scene = bright_scene(tmp_path, "scene.tif")
    labels = write_polygons(tmp_path / "truth.gpkg", [pixel_box(50, 40, 130, 90)])
    words = ["--model", model, "--images", scene, "--labels", labels, "--rows", "80:120", "--json", "-"]
    result = run_without_training(*words)
    assert result.returncode == 0, result.stderr
    expected = evaluate_model(model, str(scene), str(labels), rows=(80, 120))
    assert json.loads(result.stdout) == expected


def test_classes_of_a_foreign_mask_can_be_named(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "mask.tif", np.ones(SHAPE, np.uint8))
    labels = write_polygons(tmp_path / "truth.gpkg", [pixel_box(0, 0, 80, 30)])
    result = run(path, "--labels", labels, "--class", "no", "--class", "yes", "--json", "-")
    assert json.loads(result.stdout)["accuracy"] == 0.5


@pytest.mark.shared_data
def test_a_real_mask_compared_with_itself_is_perfect(shared_data: Path) -> None:
    folder = shared_data / "scene"
    mask, legend = folder / "banepa_mask_central_block.tif", Legend.from_names(["other", "building"])
    metrics = evaluate_mask(
        mask, folder / "banepa_osm_buildings.geojson", legend=legend, rows=(5000, 5600), cols=(3584, 6656)
    )
    assert metrics["accuracy"] is not None
    assert metrics["accuracy"] > 0.999
    assert sum(map(sum, confusion(metrics))) == 600 * 3072
