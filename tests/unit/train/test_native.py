"""Laws of the native profile: raster values in, the portable profile's answers out, and no second contract."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from affine import Affine
from click.testing import CliRunner
from test_export import CLASSES, SIDE, images, manifest, toy

from cegate_geo import api
from cegate_geo.cli.export import command
from cegate_geo.cli.main import main
from cegate_geo.domain.legend import Legend, LegendClass
from cegate_geo.domain.manifest import METADATA_KEY, Manifest
from cegate_geo.errors import InputError, ModelError
from cegate_geo.train import onnx_graph
from cegate_geo.train.export import ExportReport, export_model
from cegate_geo.train.native import make_native, raster_values, unit_values

TRANSFORM = Affine(0.15, 0, 500_000, 0, -0.15, 3_000_000)
LEGEND = Legend(
    (
        LegendClass(id=7, name="other", color=(0, 0, 0)),
        LegendClass(id=2, name="roof", color=(255, 0, 0)),
        LegendClass(id=250, name="water", color=(0, 0, 255)),
    )
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportReport, ExportReport]:
    """One model in both profiles, with class ids that are no channel numbers."""
    folder = tmp_path_factory.mktemp("native")
    contract = dataclasses.replace(manifest(), legend=LEGEND)
    sample = images(2)
    return (
        export_model(toy()[0], contract, folder / "portable.onnx", sample=sample),
        export_model(toy()[0], contract, folder / "native.onnx", sample=sample, profile="native"),
    )


def run(path: Path, values: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(names, {"image": values})


def raster_tiles(dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (3, 3, SIDE, SIDE)).astype(dtype)


def test_raster_values_give_what_their_quotients_give_in_the_portable_profile(
    exported: tuple[ExportReport, ExportReport],
) -> None:
    portable, native = exported
    values = raster_tiles()
    (expected,) = run(portable.path, values.astype(np.float32) / np.float32(255))
    probabilities, ids, confidence = run(native.path, values)
    assert np.array_equal(probabilities, expected)
    assert np.array_equal(ids, np.array(LEGEND.ids, np.uint8)[expected.argmax(1)])
    assert len(np.unique(ids)) == CLASSES
    np.testing.assert_allclose(confidence, expected.max(1), rtol=1e-6)
    assert (ids.dtype, confidence.dtype) == (np.uint8, np.float32)
    assert native.parity["max_abs"] < 1e-4


def test_the_file_states_its_own_contract_and_no_other(exported: tuple[ExportReport, ExportReport]) -> None:
    portable, native = exported
    properties = {p.key: p.value for p in onnx.load(native.path).metadata_props}
    assert set(properties) == {METADATA_KEY}  # Deepness and GeoDeep would feed values in 0-1 units
    read = Manifest.from_json(properties[METADATA_KEY])
    assert (read.scaling, read.dtype, read.output, read.legend) == ("none", "uint8", "probabilities", LEGEND)
    assert not read.is_portable
    assert "class_names" in {p.key for p in onnx.load(portable.path).metadata_props}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    values = np.random.default_rng(6).integers(1, 256, (3, 90, 110), dtype=np.uint8)
    values[:, 20:60, 30:70] = 0
    profile = {"driver": "GTiff", "width": 110, "height": 90, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", **profile, crs="EPSG:32645", transform=TRANSFORM) as target:
        target.write(values)
    return path


def test_predictions_of_both_profiles_are_equal(
    exported: tuple[ExportReport, ExportReport], scene: Path, tmp_path: Path
) -> None:
    found = []
    for report in exported:
        mask, sure = tmp_path / f"{report.path.stem}.tif", tmp_path / f"{report.path.stem}-confidence.tif"
        api.predict(scene, mask, model=report.path, confidence=sure)
        with rasterio.open(mask) as classes, rasterio.open(sure) as confidence:
            found.append((classes.read(1), confidence.read(1)))
    assert len(np.unique(found[0][0])) > CLASSES - 1
    for portable, native in zip(*found, strict=True):
        assert np.array_equal(portable, native)


def test_info_and_check_know_the_profile(
    exported: tuple[ExportReport, ExportReport], scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(exported[1].path)
    assert main(["info", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"]["scaling"] == "none"
    assert [o["name"] for o in facts["outputs"]] == ["probabilities", "class", "confidence"]
    assert main(["check", "--model", model, str(scene)]) == 0, capsys.readouterr().out


def test_sixteen_bits_are_divided_by_their_own_maximum(exported: tuple[ExportReport, ExportReport]) -> None:
    portable = exported[0]
    contract = dataclasses.replace(manifest(), legend=LEGEND, dtype="uint16", input_maximum=4000.0)
    graph = make_native(onnx.load(portable.path), contract)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    values = raster_tiles("uint16") * 15
    (probabilities,) = session.run(["probabilities"], {"image": values})
    (expected,) = run(portable.path, values.astype(np.float32) / np.float32(4000))
    assert np.array_equal(probabilities, expected)


def test_values_in_unit_range_and_back(tmp_path: Path) -> None:
    values = torch.from_numpy(raster_tiles())
    assert torch.equal(raster_values(unit_values(values, manifest()), manifest()), values)
    beyond = raster_values(torch.tensor([-0.1, 1.2]), manifest())
    assert beyond.tolist() == [0, 255]  # not those that are left of -26 and 306 in 8 bits
    deep = dataclasses.replace(manifest(), dtype="uint16", input_maximum=10_000.0)
    assert raster_values(torch.tensor([-0.0005, 0.5, 7.0]), deep).tolist() == [0, 5000, 65535]
    floats = dataclasses.replace(manifest(), dtype="float32")
    with pytest.raises(InputError, match="float32"):
        export_model(toy()[0], floats, tmp_path / "m.onnx", sample=images(2), profile="native")
    assert not list(tmp_path.iterdir())


def test_a_graph_without_a_softmax_of_its_own_is_refused(exported: tuple[ExportReport, ExportReport]) -> None:
    graph = onnx.load(exported[0].path)
    (last,) = [node for node in graph.graph.node if onnx_graph.OUTPUT in node.output]
    last.op_type = "Mul"
    with pytest.raises(ModelError, match="Mul"):
        make_native(graph, manifest())


@pytest.mark.parametrize("beside", ["--stac", "--emd"])
def test_what_describes_the_portable_profile_is_not_written_beside_another(tmp_path: Path, beside: str) -> None:
    words = [str(tmp_path), "-o", str(tmp_path / "m.onnx"), "--profile", "native", beside]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert "portable profile only" in result.output
