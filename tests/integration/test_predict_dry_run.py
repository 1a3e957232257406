"""`predict --dry-run` says what `predict` then does, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from shapely.geometry import box, mapping

from cegate_geo.api import plan, predict
from cegate_geo.cli.events import CancelWatch
from cegate_geo.cli.main import main
from cegate_geo.errors import GsdWarning, InputError, OutputExistsError
from tests import toy_models as toys


def two_squares(path: Path) -> Path:
    """Polygons over two far corners of a scene in `toys.UTM`: between them tiles lie outside."""
    transform, features = toys.UTM["transform"], []
    for col, row in ((20, 20), (340, 240)):
        (left, top), (right, bottom) = transform @ (col, row), transform @ (col + 40, row + 40)
        features.append({"type": "Feature", "properties": {}, "geometry": mapping(box(left, bottom, right, top))})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32645"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


def test_the_plan_is_what_is_done_then(tmp_path: Path) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((300, 400)))
    model = toys.identity(tmp_path / "m.onnx")
    area = two_squares(tmp_path / "area.geojson")
    options = {"model": model, "aoi": area, "probabilities": tmp_path / "p.tif", "vector": tmp_path / "v.gpkg"}
    before = sorted(tmp_path.rglob("*"))
    planned = plan(path, tmp_path / "mask.tif", **options)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    done = predict(path, tmp_path / "mask.tif", **options)
    assert (planned.tiles, planned.skipped_tiles) == (done.tiles, done.skipped_tiles)
    assert planned.skipped_tiles > 0
    assert planned.grid == done.grid
    assert set(planned.outputs) == set(tmp_path.rglob("*")) - set(before)
    assert (planned.provider, planned.batch_size, planned.tile_shape) == ("cpu", 1, (64, 64))
    assert planned.seconds is not None
    assert 0 < planned.seconds < 60
    assert planned.ground is not None
    assert planned.ground["gsd_m"] == pytest.approx(0.13, rel=0.01)


def test_time_grows_with_the_tiles_that_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of the model takes one second by this clock; so many tiles are so many seconds."""
    from cegate_geo.infer import forecast

    seconds = iter(range(1000))
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(seconds))
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((300, 400)))
    model = toys.identity(tmp_path / "m.onnx")
    planned = plan(path, tmp_path / "mask.tif", model=model)
    assert planned.seconds == planned.tiles
    planned = plan(path, tmp_path / "mask.tif", model=model, batch_size=4)
    assert planned.seconds == planned.tiles / 4
    area = two_squares(tmp_path / "area.geojson")
    planned = plan(path, tmp_path / "mask.tif", model=model, aoi=area)
    assert planned.seconds == planned.tiles - planned.skipped_tiles < planned.tiles


def test_memory_says_what_shards_are_cut_for(tmp_path: Path) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((600, 5000)))
    model = toys.identity(tmp_path / "m.onnx", size=512, halo=64)
    roomy = plan(path, tmp_path / "mask.tif", model=model, max_memory_mb=2048)
    assert roomy.shards == 1
    assert roomy.shard_width == 5000
    tight = plan(path, tmp_path / "mask.tif", model=model, max_memory_mb=roomy.memory_mb - 20)
    assert tight.shards > 1
    assert tight.shard_width < 5000
    assert tight.memory_mb <= tight.max_memory_mb < roomy.memory_mb
    more = plan(path, tmp_path / "mask.tif", model=model, max_memory_mb=2048, probabilities=tmp_path / "p.tif")
    assert more.memory_mb > roomy.memory_mb


def test_a_scene_that_will_be_resampled_says_so(tmp_path: Path) -> None:
    where = {"crs": "EPSG:32645", "transform": Affine(0.39, 0, 300_000, 0, -0.39, 3_000_000)}
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((100, 100)), **where)
    model = toys.identity(tmp_path / "m.onnx")
    with pytest.warns(GsdWarning):
        planned = plan(path, tmp_path / "mask.tif", model=model)
    assert planned.resampled is not None
    assert planned.resampled["width"] == 300
    assert planned.grid["width"] == 100
    assert planned.model_gsd_m == (0.1, 0.2)


def test_what_predict_refuses_the_plan_refuses(tmp_path: Path) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((100, 100)))
    model = toys.identity(tmp_path / "m.onnx")
    (tmp_path / "mask.tif").touch()
    with pytest.raises(OutputExistsError):
        plan(path, tmp_path / "mask.tif", model=model)
    with pytest.raises(InputError, match="halo"):
        plan(path, tmp_path / "other.tif", model=model, halo=40)


def test_an_empty_scene_has_no_time(tmp_path: Path) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", np.zeros((3, 100, 100), np.uint8), nodata=0)
    planned = plan(path, tmp_path / "mask.tif", model=toys.identity(tmp_path / "m.onnx"))
    assert planned.seconds is None
    assert planned.tiles == 4


def test_the_command_says_it_for_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((100, 100)))
    words = ["predict", str(path), "-o", str(tmp_path / "mask.tif"), "-m", str(toys.identity(tmp_path / "m.onnx"))]
    assert main([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "tiles     4 of 64 x 64 px" in text
    assert f"would write {tmp_path / 'mask.tif'}" in text
    monkeypatch.setattr(CancelWatch, "watch_input", lambda *_: None)  # pytest's stdin is at its end
    assert main([*words, "--dry-run", "--events", "jsonl"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = events[-1]
    assert (result["event"], result["dry_run"], result["tiles"]) == ("result", True, 4)
    assert not (tmp_path / "mask.tif").exists()


def test_the_plan_of_a_part_is_what_is_done_then(tmp_path: Path) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((1100, 90)))
    options = {"model": toys.identity(tmp_path / "m.onnx"), "shard": "1/3", "shard_rows": 512}
    planned = plan(path, tmp_path / "mask.tif", **options)
    done = predict(path, tmp_path / "mask.tif", **options)
    assert planned.outputs == [done.output] == [tmp_path / "mask.tif.job"]
    assert (planned.shards, planned.tiles) == (1, done.tiles)
    planned = plan(path, tmp_path / "mask.tif", **options | {"shard": "2/2", "shard_rows": 4096})
    assert planned.shards == 2, "cut as the shards that are there"


def test_the_plan_refuses_shards_of_another_job(tmp_path: Path) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)))
    model = toys.identity(tmp_path / "m.onnx")
    predict(path, tmp_path / "mask.tif", model=model, shard="1/1")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="tta was none, is flips"):
        plan(path, tmp_path / "mask.tif", model=model, tta="flips")
    assert plan(path, tmp_path / "mask.tif", model=model, tta="flips", resume=False).tiles > 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before, "nothing is written"
