"""What `check` finds, on scenes and models that are good, and on ones that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from onnx import helper
from rasterio.control import GroundControlPoint

from cegate_geo.api import CheckReport, check
from cegate_geo.cli.main import main
from cegate_geo.domain.windows import Window
from cegate_geo.errors import ModelError, RasterError
from cegate_geo.infer import selftest
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.predictor import Predictor
from cegate_geo.infer.seams import measure_seams
from cegate_geo.infer.tiles import TilePlan
from cegate_geo.infer.verdicts import Verdict
from cegate_geo.infer.written_part import cut_georeference
from tests import toy_models as toys


def verdict(report: CheckReport, name: str) -> Verdict:
    (found,) = [v for v in report.verdicts if v.name == name]
    return found


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    values = toys.noise((300, 400)) // 8 + 100
    return toys.write_raster(tmp_path / "scene.tif", values.astype(np.uint8))


def test_a_good_model_on_a_good_scene_passes_all(tmp_path: Path, scene: Path) -> None:
    before = sorted(tmp_path.iterdir())
    report = check(scene, model=toys.identity(tmp_path / "m.onnx"))
    assert {v.name: v.state for v in report.verdicts} == dict.fromkeys(
        ("bands", "gsd", "parity", "determinism", "batch", "seams", "georeference", "nodata"), "ok"
    )
    assert report.is_good
    assert report.tile_shape == (64, 64)
    assert verdict(report, "gsd").number == pytest.approx(0.13, rel=0.01)
    assert verdict(report, "seams").number == pytest.approx(0, abs=1e-6)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "m.onnx", *before], "nothing is written"


def test_seams_are_what_weights_add_and_nothing_else() -> None:
    """By hand: two tiles that say 0.2 and 0.8 everywhere differ by 0.6; a ramp of 8 px passes it on in steps."""
    plan = TilePlan.of_shape((10, 100), tile_shape=(10, 64), halo=4)
    tiles = {(0, n): np.full((1, 10, 64), value, np.float32) for n, value in enumerate((0.2, 0.8))}
    frame, valid = Window.of_shape((10, 100)), np.ones((10, 100), np.bool_)
    found = measure_seams(plan, tiles, frame=frame, valid=valid)
    weights = plan.cols.weights(1)[: plan.cols.ramp]
    assert found.largest == pytest.approx(0.6 * np.diff(weights).max(), rel=1e-4)
    assert found.usual == 0
    cropped = TilePlan.of_shape((10, 100), tile_shape=(10, 64), halo=4, stitch="crop")
    assert measure_seams(cropped, tiles, frame=frame, valid=valid).largest == pytest.approx(0.6)
    hidden = valid.copy()
    hidden[:, 30:70] = False
    assert measure_seams(cropped, tiles, frame=frame, valid=hidden).largest == 0, "where there is no data nobody looks"


def test_what_the_scene_does_is_no_seam() -> None:
    """Tiles that agree have none, however rough the scene, also where they only touch."""
    values = toys.noise((64, 200)).astype(np.float32) / 255
    for halo, stitch in ((8, "blend"), (8, "crop")):
        plan = TilePlan.of_shape((64, 200), tile_shape=(64, 64), halo=halo, stitch=stitch)  # type: ignore[arg-type]
        tiles = {(t.row, t.col): values[(slice(None), *t.window.slices(Window.of_shape((64, 200))))] for t in plan}
        found = measure_seams(plan, tiles, frame=Window.of_shape((64, 200)), valid=np.ones((64, 200), np.bool_))
        assert found.largest < 1e-6
        assert found.usual > 0.5


def test_cropping_a_transformer_is_found(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:640, :700] / 100
    bands = [np.sin(rows + cols), np.cos(rows - 2 * cols), np.sin(2 * rows)]
    path = toys.write_raster(tmp_path / "scene.tif", (np.array(bands) * 100 + 127).astype(np.uint8))
    model = toys.transformer(tmp_path / "vit.onnx")
    assert verdict(check(path, model=model), "seams").state == "ok"
    cropped = check(path, model=model, stitch="crop")
    assert verdict(cropped, "seams").state == "fail"
    assert verdict(cropped, "seams").number > 0.1
    assert "blend" in verdict(cropped, "seams").hint
    assert not cropped.is_good


def test_a_model_that_rolls_dice_is_found(tmp_path: Path, scene: Path) -> None:
    node = helper.make_node("RandomUniformLike", ["x"], ["y"])
    model = toys.save(tmp_path / "m.onnx", toys.manifest(3), [node], {}, classes=3, sides=(64, 64))
    report = check(scene, model=model)
    assert verdict(report, "determinism").state == "fail"
    assert not report.is_good


def test_a_model_that_mixes_the_tiles_of_a_batch_is_found(tmp_path: Path, scene: Path) -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)
    wide = helper.make_node("Expand", ["y0", "shape"], ["y"])
    shape = helper.make_node("Shape", ["x"], ["shape"])
    node.output[0] = "y0"
    model = toys.save(tmp_path / "m.onnx", toys.manifest(3), [node, shape, wide], {}, classes=3, sides=(64, 64))
    report = check(scene, model=model)
    assert verdict(report, "determinism").state == "ok"
    assert verdict(report, "batch").state == "fail"
    single = toys.identity(tmp_path / "one.onnx", batch=1)
    assert verdict(check(scene, model=single), "batch").state == "skipped"


def test_a_provider_that_is_off_fails(tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.identity(tmp_path / "m.onnx")
    real = selftest.load_predictor

    def other(*args: Any, **more: Any) -> Predictor:
        import dataclasses

        predictor = real(*args, **more)
        session = predictor.session

        class Off:
            get_inputs, get_outputs = session.get_inputs, session.get_outputs

            def run(self, *given: Any) -> Any:
                return [values * np.float32(0.5) for values in session.run(*given)]

        way = dataclasses.replace(predictor.way, provider="cuda")
        options = dataclasses.replace(predictor.options, provider="cuda")
        return dataclasses.replace(predictor, session=Off(), provider="cuda", way=way, options=options)

    monkeypatch.setattr(selftest, "load_predictor", other)
    report = check(scene, model=model)
    assert verdict(report, "parity").state == "fail"
    assert verdict(report, "parity").number > 0.05
    assert verdict(report, "provider").state == "warning"


def test_scenes_that_do_not_fit_are_findings(tmp_path: Path) -> None:
    model = toys.identity(tmp_path / "m.onnx")
    deep = toys.write_raster(tmp_path / "deep.tif", toys.noise((80, 80)).astype(np.uint16))
    report = check(deep, model=model)
    assert [(v.name, v.state) for v in report.verdicts] == [("bands", "fail")]
    assert "gdal_translate" in report.verdicts[0].hint
    coarse = {"crs": "EPSG:32645", "transform": Affine(10, 0, 300_000, 0, -10, 3_000_000)}
    report = check(toys.write_raster(tmp_path / "coarse.tif", toys.noise((80, 80)), **coarse), model=model)
    assert verdict(report, "gsd").state == "fail"
    assert verdict(report, "seams").state == "ok", "the other tests are made all the same"
    nowhere = toys.write_raster(
        tmp_path / "nowhere.tif", toys.noise((80, 80)), crs=None, transform=toys.UTM["transform"]
    )
    report = check(nowhere, model=model)
    assert verdict(report, "georeference").state == "warning"
    assert report.is_good


def test_what_can_not_be_opened_raises_as_in_predict(tmp_path: Path, scene: Path) -> None:
    model = toys.identity(tmp_path / "m.onnx")
    with pytest.raises(RasterError, match="no file"):
        check(tmp_path / "missing.tif", model=model)
    with pytest.raises(ModelError, match="no model"):
        check(scene, model=tmp_path / "missing.onnx")


def test_holes_without_a_flag_are_suspected(tmp_path: Path) -> None:
    values = np.clip(toys.noise((600, 600)), 1, 254)
    model = toys.identity(tmp_path / "m.onnx")
    report = check(toys.write_raster(tmp_path / "full.tif", values), model=model)
    assert verdict(report, "nodata").state == "ok"
    values[:, :200, :200] = 255
    path = toys.write_raster(tmp_path / "white.tif", values)
    found = verdict(check(path, model=model), "nodata")
    assert found.state == "warning"
    assert "--nodata 255" in found.hint
    assert verdict(check(path, model=model, nodata=[255]), "nodata").state == "ok"
    flagged = toys.write_raster(tmp_path / "flagged.tif", values, nodata=255)
    found = verdict(check(flagged, model=model), "nodata")
    assert found.state == "ok"
    assert "nodata value 255" in found.message
    values[:] = 255
    report = check(toys.write_raster(tmp_path / "empty.tif", values, nodata=255), model=model)
    assert verdict(report, "tiles").state == "fail"


def test_data_is_found_where_the_middle_is_empty(tmp_path: Path) -> None:
    values = np.zeros((3, 1000, 1000), np.uint8)
    values[:, 850:, :150] = 100
    path = toys.write_raster(tmp_path / "corner.tif", values, nodata=0)
    report = check(path, model=toys.identity(tmp_path / "m.onnx"))
    assert report.tile_shape == (64, 64)
    assert verdict(report, "nodata").message.startswith("2.")


@pytest.mark.parametrize("kind", ["transform", "rotated", "gcps"])
def test_a_cut_georeference_is_where_rasterio_puts_it(tmp_path: Path, kind: str) -> None:
    """Oracle: rasterio's own window_transform, and control points moved by hand."""
    points = [GroundControlPoint(row=r, col=c, x=80 + c / 1e4, y=27 - r / 1e4) for r in (0, 90) for c in (0, 120)]
    where: dict[str, Any] = {
        "transform": toys.UTM,
        "rotated": {"crs": "EPSG:32645", "transform": Affine.rotation(20) @ Affine.scale(0.13, -0.13)},
        "gcps": {"gcps": points, "crs": "EPSG:4326"},
    }[kind]
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((90, 120)), **where)
    window = Window(col_off=30, row_off=20, width=40, height=50)
    with rasterio.open(path) as dataset:
        cut = cut_georeference(Georeference.read(dataset), window)
        corners = [dataset.xy(row, col, offset="ul") for row, col in ((20, 30), (70, 70))]
    assert cut.shape == (50, 40)
    if kind == "gcps":
        assert {(p.row, p.col, p.x) for p in cut.gcps} == {(p.row - 20, p.col - 30, p.x) for p in points}
    else:
        np.testing.assert_allclose([cut.transform @ (0, 0), cut.transform @ (40, 50)], corners)
    model = toys.identity(tmp_path / "m.onnx", gsd_m=0.13, gsd_range_m=(0.01, 100))
    found = verdict(check(path, model=model), "georeference")
    assert found.state == "ok"
    assert found.number == pytest.approx(0, abs=1e-6)


def test_a_scene_at_another_gsd_is_checked_as_the_model_sees_it(tmp_path: Path) -> None:
    where = {"crs": "EPSG:32645", "transform": Affine(0.4, 0, 300_000, 0, -0.4, 3_000_000)}
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((150, 170)) // 4 + 90, **where)
    report = check(path, model=toys.identity(tmp_path / "m.onnx"))
    assert verdict(report, "gsd").state == "warning"
    assert verdict(report, "seams").state == "ok"
    assert verdict(report, "seams").number == pytest.approx(0, abs=1e-5)


def test_the_command_says_it_for_people_and_programs(
    tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toys.identity(tmp_path / "m.onnx")
    assert main(["check", "-m", str(model), str(scene)]) == 0
    text = capsys.readouterr().out
    assert "ok       seams" in text
    assert main(["check", "-m", str(model), str(scene), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["ok"]
    assert set(table) == {
        "ok", "scene", "model", "model_sha256", "provider", "tile_shape", "seconds_per_tile", "versions", "verdicts",
    }  # fmt: skip
    assert set(table["verdicts"][0]) == {"name", "state", "number", "limit", "message", "hint"}
    deep = toys.write_raster(tmp_path / "deep.tif", toys.noise((80, 80)).astype(np.uint16))
    assert main(["check", "-m", str(model), str(deep)]) == 1
    assert main(["check", "-m", str(model), str(tmp_path / "missing.tif")]) == 2
    assert main(["check", "-m", str(tmp_path / "missing.onnx"), str(scene)]) == 3


@pytest.mark.shared_data
def test_the_white_holes_of_a_real_scene_are_found(shared_data: Path) -> None:
    path = shared_data / "scene" / "banepa_11264x8704_rgb.tif"
    report = check(path, model="buildings-drone-15cm")
    assert report.is_good
    assert "--nodata 255" in verdict(report, "nodata").hint
    assert verdict(report, "seams").number < 0.02
