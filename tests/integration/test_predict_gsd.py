"""Law 9: the model sees a scene at its own GSD, and the other laws hold all the same."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.transform import from_gcps

from cegate_geo.api import Progress, predict
from cegate_geo.errors import CancelledError, GsdWarning, InputError
from cegate_geo.infer import assemble, budget, rescaled
from cegate_geo.infer.tiles import plan_axis
from tests import toy_models as toys
from tests.integration.test_predict_laws import SHAPES, blob, flagged, largest_step
from tests.integration.test_predict_vector import write_polygons
from tests.unit.infer.test_infer_resample import by_gdal

GSD_M = 0.13
"""The toy models', which take 0.1 to 0.2 m. So the scenes' pixels are 0.26 m for a factor of 2, 0.052 m for 0.4."""


@pytest.fixture(autouse=True)
def _expect_gsd_warnings() -> Iterator[None]:
    """Each scene here is off the model's range, which is warned of; tests of their own look at that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GsdWarning)
        yield


def write(path: Path, values: np.ndarray, factor: float | tuple[float, float], **profile: Any) -> Path:
    """A scene in UTM whose pixels are `factor` (along the row, down the column) times the model's."""
    across, down = factor if isinstance(factor, tuple) else (factor, factor)
    # UTM's scale at this place is 1.00009, so that the ground is measured 0.01 % off: less than a pixel here.
    where = Affine(GSD_M * across, 0, 300_000, 0, -GSD_M * down, 3_000_000)
    return toys.write_raster(path, values, **({"crs": "EPSG:32645", "transform": where} | profile))


def scaled_shape(shape: tuple[int, int], factor: float | tuple[float, float]) -> tuple[int, int]:
    across, down = factor if isinstance(factor, tuple) else (factor, factor)
    return max(1, round(shape[0] * down)), max(1, round(shape[1] * across))


def outputs(folder: Path, name: str = "") -> dict[str, Path]:
    return {kind: folder / f"{name}{kind}.tif" for kind in ("probabilities", "confidence")}


@pytest.mark.parametrize("factor", [2.0, 0.4, 3.7, (2.0, 0.4), (1.0, 0.3)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_ramp_comes_back_as_a_ramp(tmp_path: Path, factor: float | tuple[float, float], batch_size: int) -> None:
    """Identity: both ways leave a plane as it is, but for the outermost pixels, which have one neighbour less.

    Within half a level, which is what 8 bits round off: so there is no step at tiles, strips, or blocks of the output.
    """
    rows, cols = np.mgrid[:700, :640]
    planes = [30 + 0.2 * cols, 40 + 0.1 * rows + 0.15 * cols, 200 - 0.2 * rows]
    scene = write(tmp_path / "scene.tif", np.array(planes, np.float32), factor)
    model = toys.identity(tmp_path / "identity.onnx", dtype="float32")
    result = predict(scene, tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", batch_size=batch_size)
    assert (result.resampled["height"], result.resampled["width"]) == scaled_shape((700, 640), factor)
    got = toys.read(tmp_path / "p.tif")
    rim = 4
    inner = np.s_[:, rim:-rim, rim:-rim]
    assert np.abs(got - planes)[inner].max() <= 0.51
    assert np.abs(got - planes).max() <= 0.51 + 0.25 * rim
    assert largest_step(got) <= 1.6 / 255
    best = np.sort(planes, axis=0)
    clear = (best[-1] - best[-2] > 0.01)[inner[1:]]
    classes = toys.read(tmp_path / "mask.tif")[0][inner[1:]]
    np.testing.assert_array_equal(classes[clear], np.argmax(planes, axis=0)[inner[1:]][clear])


@pytest.mark.parametrize("factor", [2.0, 0.4, (0.313, 1.713)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gsd", ["source", "model"])
def test_every_pixel_gets_a_class_however_small_the_scene(
    tmp_path: Path, shape: tuple[int, int], factor: float | tuple[float, float], gsd: Any
) -> None:
    """Partition, also where a few pixels are left for a whole tile. One colour stays one colour."""
    scene = write(tmp_path / "scene.tif", np.full((3, *shape), 99, np.uint8), factor)
    model = toys.identity(tmp_path / "identity.onnx")
    result = predict(scene, tmp_path / "mask.tif", model=model, gsd=gsd, **outputs(tmp_path))
    expected = shape if gsd == "source" else scaled_shape(shape, factor)
    assert sum(c.pixels for c in result.classes) == expected[0] * expected[1]
    assert result.nodata_pixels == 0
    mask, got = toys.read(tmp_path / "mask.tif")[0], toys.read(tmp_path / "probabilities.tif")
    assert mask.shape == expected
    assert (mask == 0).all()
    assert (got == 99).all()


def by_hand(scene: np.ndarray, valid: np.ndarray, model: Path, tiles: tuple[int, int]) -> np.ndarray:
    """Probabilities of a whole scene: GDAL resamples there, the graph runs once, GDAL resamples back."""
    share = by_gdal(valid[None], tiles)[0]
    seen = by_gdal(np.where(valid, scene, 0), tiles) / np.maximum(share, 1e-9)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": (seen[None] / 255).astype(np.float32)})
    holds = (share > 1e-6)[None]
    return by_gdal(np.where(holds, whole[0], 0), valid.shape) / np.maximum(by_gdal(holds, valid.shape), 1e-9)


@pytest.mark.parametrize("factor", [2.0, 0.4, 3.3, (0.45, 1.9), (1.0, 0.3)])
@pytest.mark.parametrize("shape", [(30, 40), (150, 217), (401, 333)])
def test_streamed_equals_whole_scene_resampled_by_gdal(
    tmp_path: Path, shape: tuple[int, int], factor: float | tuple[float, float]
) -> None:
    scene = toys.noise(shape, seed=3)
    path = write(tmp_path / "scene.tif", scene, factor)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3, halo=8)
    predict(path, tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    expected = by_hand(scene, np.ones(shape, bool), model, scaled_shape(shape, factor))
    assert np.abs(toys.read(tmp_path / "p.tif") - expected * 255).max() <= 0.51
    best = np.sort(expected, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0][clear], expected.argmax(axis=0)[clear])


@pytest.mark.parametrize("factor", [2.0, 0.4])
def test_the_models_grid_shows_what_the_model_said(tmp_path: Path, factor: float) -> None:
    scene = toys.noise((150, 217), seed=3)
    path, tiles = write(tmp_path / "scene.tif", scene, factor), scaled_shape((150, 217), factor)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3, halo=8)
    predict(path, tmp_path / "mask.tif", model=model, gsd="model", probabilities=tmp_path / "p.tif")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": (by_gdal(scene, tiles)[None] / 255).astype(np.float32)})
    assert np.abs(toys.read(tmp_path / "p.tif") - whole[0] * 255).max() <= 0.51


@pytest.mark.parametrize("factor", [2.0, 0.3])
def test_nothing_depends_on_shards_batches_strips_or_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    shape = (330, 1300)
    scene, valid = np.maximum(toys.noise(shape, seed=7), 1), blob(shape)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3)
    striped = write(tmp_path / "striped.tif", np.where(valid, scene, 0), factor, nodata=0)
    tiled = write(
        tmp_path / "tiled.tif", np.where(valid, scene, 0), factor, nodata=0, tiled=True, blockxsize=64, blockysize=48
    )
    runs: dict[str, dict[str, Any]] = {
        "plain": {"max_memory_mb": 4096},
        "batches": {"batch_size": 7},
        "shards": {},
        "blocks": {"scene": tiled},
        "chunks": {},
    }
    tiles = {}
    for name, options in runs.items():
        if name == "chunks":
            monkeypatch.setattr(rescaled, "CHUNK_ROWS", 37)
            monkeypatch.setattr(assemble, "RESTORED_ROWS", 11)
        monkeypatch.setattr(budget, "MAX_WIDTH", 512 if name == "shards" else 5000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GsdWarning)
            tiles[name] = predict(
                **{"scene": striped, "output": tmp_path / f"{name}.tif", "model": model}
                | outputs(tmp_path, name)
                | options
            ).tiles
    assert tiles["shards"] > tiles["plain"]
    for name in list(runs)[1:]:
        for kind in ("", "probabilities", "confidence"):
            np.testing.assert_array_equal(
                toys.read(tmp_path / f"{name}{kind}.tif"), toys.read(tmp_path / f"plain{kind}.tif"), err_msg=name
            )


@pytest.mark.parametrize("factor", [2.0, 0.4])
@pytest.mark.parametrize("how", ["alpha", "mask", "value"])
def test_nodata_stays_the_scenes_and_what_stands_under_it_says_nothing(tmp_path: Path, how: str, factor: float) -> None:
    shape = (150, 200)
    scene, valid = np.maximum(toys.noise(shape, seed=5), 1), blob(shape)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3, halo=8)
    made = []
    for name, under in {"zero": 0, "white": 255, "noise": toys.noise(shape, seed=6)}.items():
        path = tmp_path / f"{name}.tif"
        values = np.where(valid, scene, under).astype(np.uint8)
        if how == "value":
            write(path, np.where(valid, scene, 0), factor, nodata=0)
        else:
            flagged(path, values, valid, how)
            with rasterio.open(path, "r+") as dataset:
                dataset.transform = Affine(GSD_M * factor, 0, 300_000, 0, -GSD_M * factor, 3_000_000)
        predict(path, tmp_path / f"m_{name}.tif", model=model, **outputs(tmp_path, name))
        mask, certainty = toys.read(tmp_path / f"m_{name}.tif")[0], toys.read(tmp_path / f"{name}confidence.tif")[0]
        np.testing.assert_array_equal(mask == 255, ~valid)
        np.testing.assert_array_equal(certainty == 0, ~valid)
        with rasterio.open(tmp_path / f"{name}probabilities.tif") as dataset:
            np.testing.assert_array_equal(dataset.read_masks(1) > 0, valid)
        made.append((mask, certainty, toys.read(tmp_path / f"{name}probabilities.tif")))
    for other in made[1:]:
        for got, expected in zip(other, made[0], strict=True):
            np.testing.assert_array_equal(got, expected)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_valid_pixel_is_lost_and_no_hole_bleeds(tmp_path: Path, data: st.DataObject) -> None:
    """Some rectangles of one colour in a sea of white: each pixel of them gets that colour back, and nothing else."""
    shape = data.draw(st.tuples(st.integers(20, 150), st.integers(20, 150)))
    factor = tuple(data.draw(st.sampled_from([0.2, 0.4, 0.7, 1.0, 1.4, 2.0, 5.1])) for _ in "xy")
    valid = np.zeros(shape, bool)
    for _ in range(data.draw(st.integers(1, 4))):
        row, col = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
        valid[row : row + data.draw(st.integers(1, 30)), col : col + data.draw(st.integers(1, 30))] = True
    scene = np.where(valid, np.array([77, 180, 30])[:, None, None], 255).astype(np.uint8)
    write(tmp_path / "scene.tif", scene, factor, nodata=255)
    predict(
        tmp_path / "scene.tif",
        tmp_path / "mask.tif",
        model=toys.identity(tmp_path / "identity.onnx", size=32, halo=8),
        probabilities=tmp_path / "p.tif",
        resample="always",
        overwrite=True,
    )
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], np.where(valid, 1, 255))
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), np.where(valid, scene, 0))


@pytest.mark.parametrize("beyond", [0, 1, 2])
def test_the_last_rows_before_an_empty_tile_row_are_not_lost(tmp_path: Path, beyond: int) -> None:
    """They wait for the model's next rows, which are never run."""
    stop = plan_axis(200, size=32, halo=8).final(2)[1]
    scene = np.full((3, 400, 60), 77, np.uint8)
    scene[:, 2 * stop - beyond :] = 0
    write(tmp_path / "scene.tif", scene, 0.5, nodata=0)
    model = toys.identity(tmp_path / "identity.onnx", size=32, halo=8)
    result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model)
    assert result.resampled["height"] == 200
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0] == 255, scene[0] == 0)


@pytest.mark.parametrize("factor", [2.0, 0.4])
def test_blending_leaves_no_seams(tmp_path: Path, factor: float) -> None:
    """The law of the seams, with tiles on a grid of their own: its steps, spread out."""
    tiles = np.array(scaled_shape((640, 700), 1 / factor))
    rows, cols = np.mgrid[: tiles[0], : tiles[1]] * factor / 100
    bands = [np.sin(rows + cols), np.cos(rows - 2 * cols), np.sin(2 * rows)]
    scene = write(tmp_path / "scene.tif", (np.array(bands) * 100 + 127).astype(np.uint8), factor)
    model = toys.transformer(tmp_path / "vit.onnx")
    grids: tuple[Any, ...] = ("source", "model")
    for gsd in grids:
        predict(scene, tmp_path / f"{gsd}.tif", model=model, probabilities=tmp_path / f"p_{gsd}.tif", gsd=gsd)
        pixel = factor if gsd == "source" else 1.0  # in pixels of the model, over which 0.02 is allowed
        assert largest_step(toys.read(tmp_path / f"p_{gsd}.tif")) <= 0.02 * max(pixel, 1.0)


@pytest.mark.parametrize("factor", [2.0, 0.4])
@pytest.mark.parametrize("gsd", ["source", "model"])
@pytest.mark.parametrize("invert", [False, True])
def test_an_area_of_interest_gives_that_part_of_the_whole(
    tmp_path: Path, factor: float, gsd: Any, invert: bool
) -> None:
    """Bit for bit, also at its edges; far from it no tile is run. Oracle for its edges: rasterio burns the polygons."""
    scene = write(tmp_path / "scene.tif", toys.noise(scaled_shape((700, 800), 1 / factor), seed=1), factor)
    ground = Affine(GSD_M, 0, 300_000, 0, -GSD_M, 3_000_000)
    shapes = [
        shapely.Polygon([ground @ p for p in corners])
        for corners in (
            [(50.3, 60.2), (130.1, 75.5), (90.7, 140.2)],
            [(600, 500), (640, 500), (640, 520), (600, 520)],
        )
    ]
    aoi = write_polygons(tmp_path / "aoi.geojson", shapes, "EPSG:32645")
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3, size=128, halo=16)
    common: dict[str, Any] = {"model": model, "gsd": gsd}
    whole = predict(scene, tmp_path / "whole.tif", **common, **outputs(tmp_path, "whole"))
    part = predict(scene, tmp_path / "part.tif", **common, **outputs(tmp_path, "part"), aoi=aoi, invert_aoi=invert)
    with rasterio.open(tmp_path / "part.tif") as dataset:
        inside = rasterio.features.rasterize(shapes, out_shape=dataset.shape, transform=dataset.transform) > 0
    inside ^= invert
    assert inside.any()
    np.testing.assert_array_equal(
        toys.read(tmp_path / "part.tif")[0], np.where(inside, toys.read(tmp_path / "whole.tif")[0], 255)
    )
    for kind in ("probabilities", "confidence"):
        np.testing.assert_array_equal(
            toys.read(tmp_path / f"part{kind}.tif"), np.where(inside, toys.read(tmp_path / f"whole{kind}.tif"), 0)
        )
    if not invert:
        assert part.tiles - part.skipped_tiles <= 8 < whole.tiles


def test_degrees_far_north_are_resampled_along_both_axes(tmp_path: Path) -> None:
    """At 60 degrees north a degree of longitude is half as long: such pixels are twice as high as wide."""
    degree_m = {"down": 111_412.0, "across": 55_800.0}
    step = 0.26 / degree_m["down"]
    rows, cols = np.mgrid[:300, :400]
    planes = np.array([30 + 0.2 * cols, 40 + 0.3 * rows, 120 + 0.1 * rows - 0.1 * cols], np.float32)
    where = Affine(step, 0, 10, 0, -step, 60)
    scene = write(tmp_path / "scene.tif", planes, 1, crs="EPSG:4326", transform=where)
    model = toys.identity(tmp_path / "identity.onnx", dtype="float32")
    result = predict(
        scene, tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", vector=tmp_path / "v.gpkg"
    )
    assert result.resampled["x_m"] == pytest.approx(GSD_M, rel=3e-3)
    assert result.resampled["y_m"] == pytest.approx(GSD_M, rel=3e-3)
    assert result.resampled["height"] == pytest.approx(600, abs=2)
    assert result.resampled["width"] == pytest.approx(402, abs=3)
    got = toys.read(tmp_path / "p.tif")
    assert np.abs(got - planes)[:, 3:-3, 3:-3].max() <= 0.51
    areas = pyogrio.raw.read(tmp_path / "v.gpkg")[3][2]
    assert areas.sum() == pytest.approx(sum(c.area_m2 for c in result.classes), rel=1e-9)
    assert areas.sum() == pytest.approx(300 * 400 * 0.26 * step * degree_m["across"], rel=1e-3)


def georeferences() -> dict[str, dict[str, Any]]:
    """Each at twice the model's GSD."""
    north = Affine(0.26, 0, 300_000, 0, -0.26, 3_000_000)
    points = [
        GroundControlPoint(row=r, col=c, x=300_000 + c * 0.26, y=3_000_000 - r * 0.26, z=3.0)
        for r, c in ((0, 0), (0, 91), (70, 0), (70, 91))
    ]
    return {
        "north-up": {"crs": "EPSG:32645", "transform": north},
        "south-up": {"crs": "EPSG:32645", "transform": Affine(0.26, 0, 300_000, 0, 0.26, 3_000_000)},
        "rotated": {"crs": "EPSG:32645", "transform": north @ Affine.rotation(30)},
        "Web Mercator": {"crs": "EPSG:3857", "transform": Affine(0.52, 0, 1_113_194, 0, -0.52, 8_399_737)},
        "feet": {"crs": "EPSG:2263", "transform": Affine(0.85, 0, 9e5, 0, -0.85, 2e5)},
        "gcps": {"gcps": points, "crs": "EPSG:32645"},
    }


def corners(dataset: Any) -> np.ndarray:
    """Where the raster's corners lie: (4, 2)."""
    points, _ = dataset.gcps
    transform = from_gcps(points) if points else dataset.transform
    return np.array([transform @ (c, r) for c in (0, dataset.width) for r in (0, dataset.height)])


@pytest.mark.parametrize("kind", georeferences())
@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
@pytest.mark.parametrize("gsd", ["source", "model"])
def test_outputs_lie_where_the_scene_lies_on_either_grid(
    tmp_path: Path, kind: str, area_or_point: str, gsd: Any
) -> None:
    profile = georeferences()[kind]
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 91)), **profile)
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT=area_or_point)
    model = toys.brightness(tmp_path / "m.onnx")
    result = predict(scene, tmp_path / "mask.tif", model=model, gsd=gsd, **outputs(tmp_path))
    for path in (tmp_path / "mask.tif", *outputs(tmp_path).values()):
        with rasterio.open(scene) as source, rasterio.open(path) as made:
            if gsd == "source":
                assert made.shape == (70, 91)
                assert made.transform.almost_equals(source.transform, 1e-12)
            else:
                assert made.shape == pytest.approx((140, 182), abs=3)
                if kind != "gcps":
                    assert made.transform.a * made.width == pytest.approx(source.transform.a * source.width)
            assert made.crs == source.crs
            assert made.gcps[1] == source.gcps[1]
            # Within a hundredth of a pixel: PixelIsPoint and control points go through GDAL's half pixels.
            slack = 0.14 if area_or_point == "Point" and kind == "gcps" else 1e-6
            np.testing.assert_allclose(corners(made), corners(source), rtol=0, atol=slack)
    assert result.grid["width"] == (91 if gsd == "source" else made.width)
    assert result.grid["gsd_m"] == pytest.approx(result.resampled["x_m"] * (2 if gsd == "source" else 1), rel=0.02)


def test_within_the_models_range_nothing_is_resampled(tmp_path: Path) -> None:
    """Same bytes as with resampling switched off, and no word of it."""
    scene = write(tmp_path / "scene.tif", toys.noise((100, 130)), 0.8)
    model = toys.convolutions(tmp_path / "conv.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for resample in ("auto", "never"):
            result = predict(scene, tmp_path / f"{resample}.tif", model=model, resample=resample)  # type: ignore[arg-type]
            assert result.resampled is None
    assert (tmp_path / "auto.tif").read_bytes() == (tmp_path / "never.tif").read_bytes()
    with rasterio.open(tmp_path / "auto.tif") as dataset:
        assert "CEGATE_RESAMPLED" not in dataset.tags()
    assert predict(scene, tmp_path / "always.tif", model=model, resample="always").resampled is not None
    assert toys.read(tmp_path / "always.tif").shape == (1, 100, 130)
    on_the_models = predict(scene, tmp_path / "model.tif", model=model, gsd="model")
    assert toys.read(tmp_path / "model.tif").shape == (1, 80, 104)
    assert on_the_models.resampled["grid"] == "model"


def test_switched_off_the_scene_is_run_as_it_is(tmp_path: Path) -> None:
    scene = toys.noise((100, 130))
    path, model = write(tmp_path / "scene.tif", scene, 2.0), toys.identity(tmp_path / "m.onnx")
    with pytest.warns(GsdWarning, match="results may be poor"):
        predict(path, tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", resample="never")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)
    with pytest.raises(InputError, match="forbids"):
        predict(path, tmp_path / "no.tif", model=model, resample="never", gsd="model")


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.GeoreferenceWarning")
def test_without_a_crs_nothing_is_resampled(tmp_path: Path) -> None:
    scene = toys.noise((60, 70))
    where = Affine(0.5, 0, 0, 0, -0.5, 0)
    path = toys.write_raster(tmp_path / "scene.tif", scene, crs=None, transform=where)
    model = toys.identity(tmp_path / "m.onnx")
    for gsd in ("source", "model"):
        with pytest.warns(GsdWarning, match="unknown"):
            result = predict(
                path, tmp_path / f"{gsd}.tif", model=model, probabilities=tmp_path / f"p_{gsd}.tif", gsd=gsd
            )  # type: ignore[arg-type]
        assert result.resampled is None
        np.testing.assert_array_equal(toys.read(tmp_path / f"p_{gsd}.tif"), scene)


def test_far_off_it_is_refused_and_forced_only_fine_pixels_are_resampled(tmp_path: Path) -> None:
    """From pixels 20 times too coarse 400 would be made up each."""
    model = toys.identity(tmp_path / "m.onnx")
    coarse = write(tmp_path / "coarse.tif", toys.noise((40, 40)), 20)
    fine = write(tmp_path / "fine.tif", toys.noise((400, 400)), 1 / 20)
    for scene in (coarse, fine):
        with pytest.raises(InputError, match="times off"):
            predict(scene, tmp_path / "mask.tif", model=model)
    assert not (tmp_path / "mask.tif").exists()
    assert predict(coarse, tmp_path / "coarse_mask.tif", model=model, force=True).resampled is None
    seen = predict(fine, tmp_path / "fine_mask.tif", model=model, force=True).resampled
    assert (seen["width"], seen["height"]) == (20, 20)
    seen = predict(coarse, tmp_path / "always.tif", model=model, force=True, resample="always").resampled
    assert seen["width"] == 800


@pytest.mark.parametrize("when", [0.0, 0.4])
def test_a_cancelled_run_leaves_nothing(tmp_path: Path, when: float) -> None:
    out, seen = tmp_path / "out", [0.0]
    out.mkdir()
    scene = write(tmp_path / "scene.tif", toys.noise((900, 900)), 0.4)

    def progress(at: Progress) -> None:
        seen.append(at.fraction)

    with pytest.raises(CancelledError):
        predict(
            scene, out / "mask.tif", model=toys.brightness(tmp_path / "m.onnx"), vector=out / "v.gpkg",
            progress=progress, cancel=lambda: len(seen) > 1 and seen[-1] >= when,
        )  # fmt: skip
    assert list(out.iterdir()) == []
    assert seen[-1] < 1


def test_sixteen_bits_and_whole_number_graphs_are_resampled_too(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    scene = np.full((3, 60, 70), 10_201, np.uint16)
    scene[:, ::2] += 1  # the mean is 10201.5
    path = write(tmp_path / "scene.tif", scene, 0.5)
    model = toys.identity(tmp_path / "m.onnx", dtype="uint16", input_maximum=20_400.0)
    predict(path, tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    assert set(np.unique(toys.read(tmp_path / "p.tif"))) <= {127, 128}
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Div", ["f", "d"], ["y"])]
    bytes_in = toys.save(
        tmp_path / "bytes.onnx", toys.manifest(3, scaling="none"), nodes, {"d": np.array(255, np.float32)}, classes=3,
        sides=(64, 64), input_type=TensorProto.UINT8,
    )  # fmt: skip
    even = np.full((3, 60, 70), 100, np.uint8)
    even[:, ::4] = 103  # the mean is 100.75 or 101.5, never cut to 100
    predict(
        write(tmp_path / "even.tif", even, (1, 0.25)), tmp_path / "m8.tif", model=bytes_in,
        probabilities=tmp_path / "p8.tif",
    )  # fmt: skip
    assert set(np.unique(toys.read(tmp_path / "p8.tif"))) == {101}


def test_tags_events_and_info_tell_of_it(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", toys.noise((100, 130)), 0.4)
    words = [sys.executable, "-m", "cegate_geo.cli.main"]
    run = [
        *words, "predict", str(scene), "-o", str(tmp_path / "mask.tif"), "-m", str(toys.brightness(tmp_path / "m.onnx"))
    ]  # fmt: skip
    with subprocess.Popen(
        [*run, "--events=jsonl", "--gsd=model"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert any(e["event"] == "warning" and e["code"] == "gsd" and "resampled to 0.13 m" in e["message"] for e in events)
    result = events[-1]
    assert result["grid"].items() >= {"width": 52, "height": 40}.items()
    assert result["resampled"].items() >= {"width": 52, "height": 40, "grid": "model"}.items()
    assert result["resampled"]["x_m"] == pytest.approx(GSD_M, rel=1e-3)
    info = subprocess.run(
        [*words, "info", "--json", str(tmp_path / "mask.tif")], capture_output=True, text=True, check=True
    )
    assert json.loads(json.loads(info.stdout)["tags"]["CEGATE_RESAMPLED"]) == result["resampled"]
    plain = subprocess.run([*run, "--overwrite"], capture_output=True, text=True, check=True)
    assert "the model saw 52 x 40 px of 0.13 x 0.13 m; outputs lie on the scene's grid" in plain.stdout
    text = subprocess.run([*words, "predict", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--gsd [source|model]" in text
    assert "--resample [auto|always|never]" in text


@pytest.mark.parametrize("gsd", ["source", "model"])
def test_polygons_and_areas_are_those_of_the_mask(tmp_path: Path, gsd: Any) -> None:
    blocks = np.kron(toys.noise((50, 40), seed=4), np.ones((1, 13, 17), np.uint8))
    scene = write(tmp_path / "scene.tif", blocks, 0.4)
    model = toys.brightness(tmp_path / "m.onnx")
    result = predict(scene, tmp_path / "mask.tif", model=model, vector=tmp_path / "v.gpkg", gsd=gsd)
    meta, _, wkb, columns = pyogrio.raw.read(tmp_path / "v.gpkg")
    table, shapes = dict(zip(meta["fields"], columns, strict=True)), shapely.from_wkb(wkb)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        pairs = zip(shapes, table["class"], strict=True)
        burnt = rasterio.features.rasterize(pairs, out_shape=mask.shape, transform=mask.transform, fill=255)
        np.testing.assert_array_equal(burnt, mask.read(1))
    for share in result.classes:
        assert table["area_m2"][table["class"] == share.id].sum() == pytest.approx(share.area_m2, rel=1e-9)
    assert shapely.area(shapes).sum() == pytest.approx(blocks[0].size * (0.4 * GSD_M) ** 2, rel=1e-9)
    assert sum(c.area_m2 for c in result.classes) == pytest.approx(blocks[0].size * (0.4 * GSD_M) ** 2, rel=2e-3)
