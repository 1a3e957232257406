"""The demo from end to end with a minimal budget: with torch, without torch, and where it must refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyogrio
import pytest
import rasterio
from onnx import TensorProto, helper

from cegate_geo.api import describe_model
from cegate_geo.demo.regions import REGION_A, REGION_B, RegionSpec
from cegate_geo.demo.run import MARKER, DemoResult, DemoSettings, run_demo
from cegate_geo.demo.scene import CLASS_NAMES
from cegate_geo.domain.confusion import ConfusionMatrix
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import CancelledError, OutputExistsError

# Four steps from random weights are no training: that it looks collapsed is said, and true.
pytestmark = pytest.mark.filterwarnings("ignore::cegate_geo.errors.CollapseWarning")

ROOT = Path(__file__).resolve().parents[2]


def smaller(spec: RegionSpec) -> RegionSpec:
    """The same region with a ninth of the pixels."""
    height, width = (n // 3 for n in spec.shape)
    return replace(spec, shape=(height, width), gsd_m=spec.settlement.width_m / width)


SETTINGS = DemoSettings(
    labelled=smaller(REGION_A), unseen=smaller(REGION_B), steps=4, batch_size=2, crop=64, weights="random"
)


class Told:
    """Remembers what the demo said."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.ended = 0
        self.parts: dict[str, tuple[int, int]] = {}
        self._total = 0

    def begin(self, title: str, total: int) -> None:
        self.titles.append(title)
        self._total = total

    def advance(self, done: int, note: str) -> None:
        self.parts[self.titles[-1]] = (done, self._total)

    def end(self, seconds: float) -> None:
        self.ended += 1


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Told]:
    told = Told()
    return run_demo(tmp_path_factory.mktemp("demo") / "out", SETTINGS, listener=told), told


def test_the_demo_leaves_everything_that_it_lists(done: tuple[DemoResult, Told]) -> None:
    result, _ = done
    for entry, _ in result.story.files:
        for name in entry.split(", "):
            assert (result.folder / name).exists(), name
    assert result.page == result.folder / "index.html"
    assert result.page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert not list(result.folder.rglob("*.part"))
    assert result.missing == ""


def test_the_mask_lies_on_the_grid_of_the_unseen_region_with_nodata_where_it_has_no_imagery(
    done: tuple[DemoResult, Told],
) -> None:
    folder = done[0].folder
    with rasterio.open(folder / "mask.tif") as mask, rasterio.open(folder / "region_b.tif") as scene:
        assert (mask.crs, mask.transform, mask.shape) == (scene.crs, scene.transform, scene.shape)
        said = mask.read(1)
        assert np.array_equal(said == mask.nodata, scene.dataset_mask() == 0)
        assert set(np.unique(said[said != mask.nodata])) <= set(range(len(CLASS_NAMES)))
    polygons = pyogrio.read_dataframe(folder / "polygons.gpkg")
    assert polygons.crs.to_epsg() == 3035
    assert set(polygons["name"]) <= set(CLASS_NAMES)
    assert len(polygons) == done[0].story.polygons


def test_the_figures_are_those_of_the_masks_against_the_exact_truth(done: tuple[DemoResult, Told]) -> None:
    story, folder = done[0].story, done[0].folder
    assert story.frozen is not None
    for outcome, mask in ((story.frozen, folder / "frozen" / "mask.tif"), (story.adapted, folder / "mask.tif")):
        matrix = ConfusionMatrix(story.legend)
        with rasterio.open(mask) as dataset:
            matrix.update(story.unseen.truth, dataset.read(1))
        assert outcome.metrics == matrix.metrics()
    stored = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    assert stored["complete"] is True
    assert stored["adapted"]["metrics"] == story.adapted.metrics


def test_baseline_and_adapted_differ_in_nothing_but_the_method(done: tuple[DemoResult, Told]) -> None:
    tables = [json.loads((done[0].folder / run / "config.json").read_text()) for run in ("frozen", "adapt")]
    assert [t["peft"].pop("method") for t in tables] == ["frozen", "gate"]
    assert tables[0] == tables[1]
    assert done[0].story.frozen is not None
    assert done[0].story.frozen.trained_parameters < done[0].story.adapted.trained_parameters


def test_the_model_tells_what_it_is(done: tuple[DemoResult, Told]) -> None:
    story = done[0].story
    info = describe_model(done[0].folder / "model.onnx")
    assert info.manifest.legend == story.legend
    assert info.manifest.gsd_m == pytest.approx(0.45, rel=0.01)
    assert story.gate is not None
    assert len(story.gate.active) == round(0.25 * story.gate.layers * 3)
    assert len(story.gate.kept) == len(info.manifest.modules_kept)
    assert sum(story.gate.scores.values()) == pytest.approx(3)


def test_a_random_backbone_is_never_passed_off_as_a_pretrained_one(done: tuple[DemoResult, Told]) -> None:
    page = done[0].page.read_text(encoding="utf-8")
    assert "random weights" in page
    assert "say nothing about adapting a foundation model" in page


def test_every_step_is_announced_timed_and_counted_to_its_end(done: tuple[DemoResult, Told]) -> None:
    result, told = done
    assert told.ended == len(told.titles) == len(result.story.timings)
    assert len({name for name, _ in result.story.timings}) == len(result.story.timings)
    assert all(part == total for part, total in told.parts.values())


def test_another_demo_replaces_the_first_but_nothing_else_is_ever_removed(
    done: tuple[DemoResult, Told], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(done[0].folder, copy)
    (copy / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CancelledError):
        run_demo(copy, SETTINGS, cancelled=lambda: True)
    assert (copy / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert not (copy / "index.html").exists()
    assert json.loads((copy / MARKER).read_text())["complete"] is False
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="no demo wrote"):
        run_demo(other, SETTINGS)
    assert (other / "model.onnx").read_text(encoding="utf-8") == "mine"


def write_red_roofs(path: Path) -> None:
    """A model of one convolution that calls red what is building."""
    manifest = Manifest(
        name="red-roofs",
        legend=Legend.from_names(["other", "building"]),
        bands=("red", "green", "blue"),
        gsd_m=0.15,
        gsd_range_m=(0.1, 0.3),
        tile_size=128,
        halo=16,
        description="Calls red what is building.",
    )
    weights = np.array([[[[0.0]], [[0.0]], [[0.0]]], [[[60.0]], [[-60.0]], [[0.0]]]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)],
        "red",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 128, 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 128, 128])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel()),
            helper.make_tensor("b", TensorProto.FLOAT, [2], [0.0, -8.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, manifest.to_metadata())
    onnx.save(model, path)


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm", "onnx", "geopandas", "safetensors", "PIL"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from cegate_geo.infer import models
if sys.argv[2]:
    from pathlib import Path
    models.model_folders = lambda: [Path(sys.argv[2])]
from cegate_geo.cli.main import main
sys.exit(main(["demo", "-o", sys.argv[1]]))
"""


def run_without_torch(folder: Path, models: Path | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, str(folder), str(models or "")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_torch_the_shipped_model_predicts_and_the_user_learns_how_to_get_the_rest(tmp_path: Path) -> None:
    folder, models = tmp_path / "out", tmp_path / "models"
    models.mkdir()
    write_red_roofs(models / "red-roofs.onnx")
    finished = run_without_torch(folder, models)
    assert finished.returncode == 0, finished.stderr
    assert 'pip install "cegate-geo[cpu,train]"' in finished.stderr
    assert str(folder / "index.html") in finished.stdout
    figures = json.loads((folder / MARKER).read_text())
    assert figures["missing"] in {"torch", "timm", "onnx", "geopandas", "safetensors"}
    assert figures["frozen"] is None
    building = figures["adapted"]["metrics"]["per_class"][1]
    assert building["name"] == "building"
    assert building["iou"] > 0.2  # most roofs of region A are red
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "Nothing was trained" in page
    assert "red-roofs" in page
    with rasterio.open(folder / "mask.tif") as mask, rasterio.open(folder / "region_a.tif") as scene:
        assert (mask.crs, mask.transform, mask.shape) == (scene.crs, scene.transform, scene.shape)
    assert not (folder / "adapt").exists()


def test_without_torch_and_without_a_model_the_error_says_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "none"
    empty.mkdir()
    finished = run_without_torch(tmp_path / "out", empty)
    assert finished.returncode == 3
    assert "No model is shipped" in finished.stderr
    assert not (tmp_path / "out" / "index.html").exists()
