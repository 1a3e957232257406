"""Areas of interest, polygons, and square metres."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
import shapely.affinity
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from cegate_geo.api import predict
from cegate_geo.errors import CegateError, CegateWarning, GeoreferenceWarning, InputError
from cegate_geo.infer import vectorize
from cegate_geo.infer.components import label_areas
from tests import toy_models as toys

NORTH = Affine(0.13, 0, 300_000, 0, -0.13, 3_000_000)


def write_polygons(path: Path, polygons: list[Any], crs: str | None) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(p)} for p in polygons]
    table: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs:
        table["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:{crs.replace(':', '::')}"}}
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def pixel_box(left: int, top: int, right: int, bottom: int) -> Any:
    """A rectangle of whole pixels, in the toy scenes' CRS."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return shapely.Polygon([NORTH @ corner for corner in corners])


def test_far_from_the_areas_no_tile_is_run(tmp_path: Path) -> None:
    """Two areas of 60 px in a scene of 49 tiles run at most 8."""
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((1344, 1344)))
    aoi = write_polygons(
        tmp_path / "aoi.geojson", [pixel_box(100, 120, 160, 180), pixel_box(1000, 1100, 1060, 1160)], "EPSG:32645"
    )
    model = toys.brightness(tmp_path / "m.onnx", size=256, halo=32)
    predict(scene, tmp_path / "whole.tif", model=model)
    result = predict(scene, tmp_path / "part.tif", model=model, aoi=aoi)
    whole, part = toys.read(tmp_path / "whole.tif")[0], toys.read(tmp_path / "part.tif")[0]
    asked = np.zeros((1344, 1344), bool)
    asked[120:180, 100:160] = asked[1100:1160, 1000:1060] = True
    np.testing.assert_array_equal(part, np.where(asked, whole, 255))
    assert result.tiles - result.skipped_tiles <= 8
    assert result.nodata_pixels == np.count_nonzero(~asked)


@pytest.mark.parametrize("invert", [False, True])
def test_areas_with_holes_in_another_crs_are_exact_to_the_pixel(tmp_path: Path, invert: bool) -> None:
    """Oracle: rasterio burns the polygons, projected by pyproj, into the scene's grid."""
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((200, 300)))
    rings = shapely.Polygon(
        [NORTH @ p for p in [(20.3, 15.2), (250.7, 30.1), (180.2, 180.9), (40.4, 150.8)]],
        [[NORTH @ p for p in [(80, 60), (120, 70), (100, 110)]]],
    )
    project = pyproj.Transformer.from_crs(32645, 4326, always_xy=True)
    there = shapely.transform(rings, lambda xy: np.stack(project.transform(xy[:, 0], xy[:, 1]), axis=1))
    shapes = shapely.MultiPolygon([there, shapely.box(0, 0, 1, 1)])
    aoi = write_polygons(tmp_path / "aoi.geojson", [shapes], "OGC:CRS84")
    predict(scene, tmp_path / "mask.tif", model=toys.brightness(tmp_path / "m.onnx"), aoi=aoi, invert_aoi=invert)
    inside = rasterize([rings], out_shape=(200, 300), transform=NORTH).astype(bool)
    got = toys.read(tmp_path / "mask.tif")[0] != 255
    assert np.count_nonzero(got != (inside ^ invert)) <= 5, "a pixel's centre may lie on an edge"


def test_useless_areas_are_refused(tmp_path: Path) -> None:
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((60, 60)))
    model = toys.brightness(tmp_path / "m.onnx")
    elsewhere = write_polygons(tmp_path / "far.geojson", [shapely.box(10, 10, 11, 11)], "OGC:CRS84")
    points = write_polygons(tmp_path / "points.geojson", [shapely.Point(1, 1)], "OGC:CRS84")
    (tmp_path / "junk.gpkg").write_text("no vector file")
    for aoi in (elsewhere, points, tmp_path / "junk.gpkg", f"{elsewhere}|nolayer"):
        with pytest.raises(InputError):
            predict(scene, tmp_path / "mask.tif", model=model, aoi=aoi)
    assert not (tmp_path / "mask.tif").exists()


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3), st.integers(0, 999))
def test_areas_are_numbered_as_a_flood_fill_would(height: int, width: int, classes: int, seed: int) -> None:
    """Oracle: a flood fill, pixel by pixel."""
    ids = np.random.default_rng(seed).integers(0, classes + 1, (height, width))
    expected, number = np.zeros(ids.shape, int), 0
    for start in np.argwhere(ids):
        if expected[tuple(start)]:
            continue
        number += 1
        stack = [tuple(start)]
        while stack:
            row, col = stack.pop()
            if expected[row, col]:
                continue
            expected[row, col] = number
            for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                if 0 <= r < height and 0 <= c < width and ids[r, c] == ids[row, col] and not expected[r, c]:
                    stack.append((r, c))
    labels, count = label_areas(ids, nodata=0)
    np.testing.assert_array_equal(labels, expected)
    assert count == number


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
@pytest.mark.parametrize("transform", [NORTH, NORTH @ Affine.rotation(30), Affine(0.13, 0, 3e5, 0, 0.13, 3e6)])
def test_vector_area_equals_raster_area(tmp_path: Path, suffix: str, transform: Affine) -> None:
    blocks = np.kron(toys.noise((50, 40), seed=4), np.ones((1, 13, 17), np.uint8))
    scene = toys.write_raster(tmp_path / "scene.tif", blocks, crs="EPSG:32645", transform=transform)
    target = tmp_path / f"polygons{suffix}"
    result = predict(
        scene, tmp_path / "mask.tif", model=toys.brightness(tmp_path / "m.onnx"), vector=target,
        confidence=tmp_path / "c.tif",
    )  # fmt: skip
    if suffix == ".gpkg":
        with closing(sqlite3.connect(target)) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (10200,), "GDAL 3.6 warns of newer ones"
    meta, _, wkb, columns = pyogrio.raw.read(target)
    assert list(meta["fields"]) == ["class", "name", "area_m2", "confidence"]
    assert pyproj.CRS.from_user_input(meta["crs"]) == pyproj.CRS.from_epsg(32645)
    table = dict(zip(meta["fields"], columns, strict=True))
    shapes = shapely.from_wkb(wkb)
    assert len(shapes) == result.polygons
    assert shapely.is_valid(shapes).all()
    assert shapely.area(shapes).sum() == pytest.approx(blocks[0].size * 0.13**2, rel=1e-9)
    ids, sure = toys.read(tmp_path / "mask.tif")[0], toys.read(tmp_path / "c.tif")[0]
    for share in result.classes:
        mine = table["class"] == share.id
        assert set(table["name"][mine]) == {share.name}
        assert table["area_m2"][mine].sum() == pytest.approx(share.area_m2, rel=1e-9)
        weighted = (table["confidence"] * table["area_m2"])[mine].sum() / share.area_m2
        assert weighted == pytest.approx(sure[ids == share.id].mean() / 255, abs=1e-4)
    burnt = rasterize(zip(shapes, table["class"], strict=True), out_shape=ids.shape, transform=transform, fill=255)
    np.testing.assert_array_equal(burnt, ids)


def read_polygons(path: Path) -> tuple[Any, dict[str, Any]]:
    meta, _, wkb, columns = pyogrio.raw.read(path)
    return shapely.from_wkb(wkb), dict(zip(meta["fields"], columns, strict=True))


def test_outlines_that_take_more_than_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((700, 90)))
    given = {"model": toys.brightness(tmp_path / "m.onnx"), "vector": tmp_path / "v.fgb", "shard_rows": 512}
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(vectorize, "POINT_BYTES", 2**20)
    with pytest.raises(CegateError, match=r"take \d+ MB at least, --max-memory allows \d+ MB") as told:
        predict(path, tmp_path / "mask.tif", **given, max_memory_mb=1024)
    assert "--vector-classes" in told.value.hint
    assert "2 of 2 shards are kept" in told.value.hint
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in before} == {"mask.tif.job"}
    result = predict(path, tmp_path / "mask.tif", **given)
    assert result.resumed_shards == 2, "without --max-memory they take what they take"


def test_small_polygons_join_their_surroundings_on_demand(tmp_path: Path) -> None:
    """Areas and confidence are those of all pixels; the mask and its figures stay what the model said."""
    scene = np.zeros((3, 100, 100), np.uint8)
    scene[:, 10:12, 10:12] = scene[:, 50:80, 50:80] = 255
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.brightness(tmp_path / "m.onnx")
    for name, least in (("all", 0.0), ("big", 1.0)):
        result = predict(
            tmp_path / "scene.tif", tmp_path / f"{name}.tif", model=model, vector=tmp_path / f"{name}.gpkg",
            confidence=tmp_path / f"{name}_sure.tif", min_area_m2=least,
        )  # fmt: skip
        assert [c.pixels for c in result.classes] == [9096, 904]
    np.testing.assert_array_equal(toys.read(tmp_path / "all.tif"), toys.read(tmp_path / "big.tif"))
    assert sorted(read_polygons(tmp_path / "all.gpkg")[1]["class"].tolist()) == [0, 1, 1]
    polygons, table = read_polygons(tmp_path / "big.gpkg")
    assert sorted(table["class"].tolist()) == [0, 1]
    other = table["class"].tolist().index(0)
    assert len(polygons[other].interiors) == 1
    assert polygons[other].area == pytest.approx(9100 * 0.13**2)
    assert table["area_m2"].sum() == pytest.approx(sum(c.area_m2 for c in result.classes if c.area_m2))
    sure = toys.read(tmp_path / "big_sure.tif")[0].astype(float)
    sure[50:80, 50:80] = np.nan
    assert table["confidence"][other] == pytest.approx(np.nanmean(sure) / 255)
    assert sorted(p.name for p in tmp_path.iterdir() if "sieved" in p.name) == []


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_polygons_of_some_classes_simplified_in_metres(tmp_path: Path, suffix: str) -> None:
    rows, cols = np.mgrid[:150, :150]
    scene = np.where((rows - 70) ** 2 + (cols - 60) ** 2 < 50**2, 255, 0).astype(np.uint8)
    toys.write_raster(tmp_path / "scene.tif", np.stack([scene] * 3))
    target = tmp_path / f"v{suffix}"
    result = predict(
        tmp_path / "scene.tif", tmp_path / "m.tif", model=toys.brightness(tmp_path / "m.onnx"), vector=target,
        vector_classes=["building"], simplify_m=0.13,
    )  # fmt: skip
    (circle,), table = read_polygons(target)
    assert (table["name"].tolist(), result.polygons) == (["building"], 1)
    assert 10 < shapely.get_num_coordinates(circle) < 60
    assert circle.area == pytest.approx(table["area_m2"][0], rel=0.02)
    exact = shapely.transform(shapely.Point(60, 70).buffer(50), lambda xy: np.array([NORTH @ tuple(p) for p in xy]))
    assert shapely.hausdorff_distance(exact.exterior, circle.exterior) < 2.2 * 0.13
    assert [p.name for p in tmp_path.iterdir() if "collected" in p.name] == []


def test_a_class_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    toys.write_raster(tmp_path / "scene.tif", toys.noise((60, 60)))
    with pytest.raises(InputError, match="no class 'roof'"):
        predict(
            tmp_path / "scene.tif", tmp_path / "m.tif", model=toys.brightness(tmp_path / "m.onnx"),
            vector=tmp_path / "v.gpkg", vector_classes=["roof"],
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.CegateWarning")
def test_polygons_of_a_scene_without_transform_are_refused(tmp_path: Path) -> None:
    points = [
        rasterio.control.GroundControlPoint(r, c, 85 + c / 1e6, 27 - r / 1e6) for r, c in ((0, 0), (0, 60), (60, 0))
    ]
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((60, 60)), gcps=points, crs="EPSG:4326")
    with pytest.raises(InputError, match="transform"):
        predict(
            scene,
            tmp_path / "m.tif",
            model=toys.brightness(tmp_path / "m.onnx"),
            vector=tmp_path / "v.gpkg",
            force=True,
        )
    assert not (tmp_path / "m.tif").exists()


def test_an_area_on_a_scene_without_crs_is_taken_at_its_word_with_a_warning(tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx")
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((100, 100)), crs=None, transform=NORTH)
    aoi = write_polygons(tmp_path / "aoi.geojson", [pixel_box(0, 0, 50, 100)], "EPSG:32645")
    with pytest.warns(CegateWarning) as said:
        result = predict(scene, tmp_path / "mask.tif", model=model, aoi=aoi)
    assert sum("has no CRS: its coordinates are taken" in str(w.message) for w in said) == 1
    assert sum(c.pixels for c in result.classes) == 5000


def test_an_area_within_one_pixel_is_told(tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx")
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((100, 100)))
    aoi = write_polygons(
        tmp_path / "aoi.geojson",
        [shapely.affinity.scale(pixel_box(10, 10, 11, 11), 0.2, 0.2, origin=NORTH @ (10, 10))],
        "EPSG:32645",
    )
    with pytest.warns(GeoreferenceWarning, match="No pixel got a class"):
        assert predict(scene, tmp_path / "mask.tif", model=model, aoi=aoi).nodata_pixels == 10_000
