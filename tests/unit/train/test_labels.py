"""Laws of labels: what a pixel is said to be, from polygons and class rasters, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyproj import CRS, Geod, Transformer
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject, transform_bounds, transform_geom
from train_files import LEGEND, TRANSFORM, noise, pixel_box, write_polygons, write_raster

from cegate_geo.domain.grid import RasterGrid
from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import ConfigError, InputError, LabelError
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.labels import ClassMap, value_text
from cegate_geo.train.polygons import Polygons
from cegate_geo.train.regions import LEAST_ROWS, STRIP_PIXELS, STRIP_ROWS, strips
from cegate_geo.train.scenes import LabelledScene, open_scenes

SHAPE = (90, 120)
WHOLE = Window.of_shape(SHAPE)
OTHER, BUILDING, ROAD = 0, 1, 2


def opened(images: Path, labels: Path, legend: Legend = LEGEND, cache_mb: int = 64, **options: Any) -> LabelledScene:
    (scene,) = open_scenes(SourceConfig(images=str(images), labels=str(labels), **options), legend, cache_mb=cache_mb)
    return scene


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", noise(SHAPE))


def blobs(transform: Affine, count: int = 25, seed: int = 3) -> list[Any]:
    rng = np.random.default_rng(seed)
    shapes = []
    for _ in range(count):
        col, row = rng.uniform((-5, -5), (SHAPE[1] + 5, SHAPE[0] + 5))
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        reach = rng.uniform(2, 14, 7)
        points = [(col + r * np.cos(a), row + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)]
        shapes.append(shapely.Polygon([transform @ p for p in points]))
    return shapes


@pytest.mark.parametrize(
    "transform",
    [
        TRANSFORM,
        Affine(0.5, 0, 600_000, 0, 0.5, 4_000_000),
        Affine.translation(600_000, 4_000_000) @ Affine.rotation(33) @ Affine.scale(0.5, -0.7),
    ],
    ids=["north-up", "south-up", "rotated"],
)
def test_polygons_in_another_crs_are_burnt_where_rasterio_burns_them(tmp_path: Path, transform: Affine) -> None:
    raster = write_raster(tmp_path / "scene.tif", noise(SHAPE), transform=transform)
    shapes = blobs(transform)
    frame = geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:32645").to_crs("EPSG:4326")
    frame.to_file(tmp_path / "labels.geojson")
    stored = geopandas.read_file(tmp_path / "labels.geojson")
    expected = rasterize(
        [(transform_geom("EPSG:4326", "EPSG:32645", g.__geo_interface__), ROAD) for g in stored.geometry],
        out_shape=SHAPE,
        transform=transform,
        fill=OTHER,
        dtype="uint8",
    )
    burnt = opened(raster, tmp_path / "labels.geojson").labels(WHOLE)
    assert 0.1 < (expected == ROAD).mean() < 0.9
    assert (burnt != expected).sum() <= 2  # a vertex may round to the other side of a pixel's centre


def test_polygons_beyond_the_reach_of_the_rasters_crs_are_not_in_it() -> None:
    """Oracle: the same without them; one lies where UTM 45 has no coordinates, one is a point drawn as a polygon."""
    grid = RasterGrid(crs_wkt=CRS.from_epsg(32645).to_wkt(), transform=TRANSFORM, shape=(60, 60))
    back = Transformer.from_crs(32645, 4326, always_xy=True)
    near = shapely.box(*back.transform(*(TRANSFORM @ (10, 40))), *back.transform(*(TRANSFORM @ (30, 20))))
    far, dot = (shapely.from_wkt(f"POLYGON (({ring}))") for ring in ("0 0, 1 0, 1 1, 0 0", "0 0, 0 0, 0 0, 0 0"))
    window = Window.of_shape(grid.shape)
    burnt = [
        Polygons("drawn", CRS.from_epsg(4326), np.array(shapes), np.arange(1, len(shapes) + 1, dtype=np.uint8))
        .on(grid)
        .burn(window, fill=0)
        for shapes in ([near], [near, far, dot], [dot])
    ]
    assert burnt[0].any()
    np.testing.assert_array_equal(burnt[1], burnt[0])
    assert not burnt[2].any()


def test_long_edges_are_bent_as_the_projection_bends_them(tmp_path: Path) -> None:
    transform = Affine(1000, 0, 0, 0, -1000, 7_500_000)  # UTM zone 33 in the far north, 900 km wide
    raster = write_raster(tmp_path / "scene.tif", noise((100, 900)), crs="EPSG:32633", transform=transform)
    box = shapely.box(5, 66.8, 25, 67.2)
    labels = write_polygons(tmp_path / "labels.gpkg", [box], crs="EPSG:4326")
    fine = geopandas.GeoSeries([box.segmentize(0.01)], crs="EPSG:4326").to_crs("EPSG:32633")
    expected = rasterize(fine, out_shape=(100, 900), transform=transform, dtype="uint8") * ROAD
    straight = rasterize(
        geopandas.GeoSeries([box], crs="EPSG:4326").to_crs("EPSG:32633"),
        out_shape=(100, 900),
        transform=transform,
        dtype="uint8",
    )
    burnt = opened(raster, labels).labels(Window.of_shape((100, 900)))
    assert (straight * ROAD != expected).mean() > 0.01
    assert (burnt != expected).mean() < 0.001


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.builds(
        Window,
        col_off=st.integers(-30, 130),
        row_off=st.integers(-30, 100),
        width=st.integers(1, 140),
        height=st.integers(1, 110),
    ),
    kind=st.sampled_from(["polygons", "classes"]),
    cache_mb=st.sampled_from([0, 64]),
)
def test_a_window_is_a_part_of_the_whole_from_file_and_from_memory(
    tmp_path: Path, window: Window, kind: str, cache_mb: int
) -> None:
    values = noise(SHAPE)
    values[:, 40:50, 60:80] = 0
    raster = write_raster(tmp_path / "scene.tif", values, nodata=0)
    shapes = blobs(TRANSFORM, count=60)
    kinds = [(7, 1, 0)[n % 3] for n in range(60)]  # many overlap: the later counts
    burnt = rasterize(
        list(zip(shapes, kinds, strict=True)), out_shape=SHAPE, transform=TRANSFORM, fill=0, dtype="uint8"
    )
    labels = tmp_path / f"labels.{'gpkg' if kind == 'polygons' else 'tif'}"
    if not labels.exists():
        write_polygons(labels, shapes, id=kinds) if kind == "polygons" else write_raster(labels, burnt)
    scene = opened(raster, labels, cache_mb=cache_mb, label_field="id")
    expected_valid = (values != 0).any(0)
    expected_labels = np.where(expected_valid, np.choose(burnt % 5, [OTHER, BUILDING, ROAD]), IGNORE_INDEX)
    padded = [
        np.pad(a, [(0, 0)] * (a.ndim - 2) + [(150, 150)] * 2, constant_values=fill)
        for a, fill in ((values, 0), (expected_valid, False), (expected_labels, IGNORE_INDEX))
    ]
    rows, cols = window.slices(WHOLE.expanded(150))
    for read, whole in zip(scene.read(window), padded, strict=True):
        np.testing.assert_array_equal(read, whole[..., rows, cols])
    assert (scene.image(window).dtype, scene.valid(window).dtype, scene.labels(window).dtype) == (
        np.uint8,
        np.bool_,
        np.uint8,
    )


@pytest.mark.parametrize("field", [["building", "road", "tree"], [1, 7, 9], [1.0, 7.0, 9.0], ["1", " 7", "9"]])
def test_a_field_may_hold_names_ids_or_what_remap_explains(tmp_path: Path, raster: Path, field: list[Any]) -> None:
    shapes = [pixel_box(0, 0, 10, 10), pixel_box(20, 0, 30, 10), pixel_box(40, 0, 50, 10)]
    labels = write_polygons(tmp_path / "labels.gpkg", shapes, kind=field)
    remap = {value_text(field[2]): "ignore"}
    row = opened(raster, labels, label_field="kind", remap=remap).labels(WHOLE)[5]
    assert [row[5], row[15], row[25], row[45]] == [BUILDING, OTHER, ROAD, IGNORE_INDEX]


def test_empty_fields_and_all_the_rest_can_be_named_in_remap(tmp_path: Path, raster: Path) -> None:
    shapes = [pixel_box(10 * n, 0, 10 * n + 10, 10) for n in range(3)]
    labels = write_polygons(tmp_path / "labels.gpkg", shapes, kind=["shed", None, "house"])
    scene = opened(raster, labels, label_field="kind", remap={"": "ignore", "shed": "road", "*": "building"})
    assert scene.labels(WHOLE)[5, [5, 15, 25]].tolist() == [ROAD, IGNORE_INDEX, BUILDING]


def test_of_overlapping_polygons_the_later_counts(tmp_path: Path, raster: Path) -> None:
    shapes = [pixel_box(0, 0, 60, 60), pixel_box(20, 20, 40, 40), pixel_box(30, 30, 35, 35)]
    labels = write_polygons(tmp_path / "labels.gpkg", shapes, kind=["road", "building", "other"])
    burnt = opened(raster, labels, label_field="kind").labels(WHOLE)
    assert [burnt[5, 5], burnt[25, 25], burnt[32, 32]] == [ROAD, BUILDING, OTHER]


def test_polygons_without_a_field_and_background_get_the_classes_that_are_named(tmp_path: Path, raster: Path) -> None:
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 10, 10)])
    assert opened(raster, labels).labels(WHOLE)[[5, 50], [5, 50]].tolist() == [ROAD, OTHER]
    named = opened(raster, labels, label_class="building", background="ignore")
    assert named.labels(WHOLE)[[5, 50], [5, 50]].tolist() == [BUILDING, IGNORE_INDEX]
    assert named.extent == Window(col_off=0, row_off=0, width=10, height=10)
    assert named.class_counts.tolist() == [0, 100, 0]


def test_outside_of_aoi_rows_and_columns_nothing_is_labelled(tmp_path: Path, raster: Path) -> None:
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 120, 45)])
    frame = geopandas.GeoDataFrame(geometry=[pixel_box(10, 10, 60, 80)], crs="EPSG:32645")
    frame.to_crs("EPSG:4326").to_file(tmp_path / "aoi.gpkg", layer="here")
    write_polygons(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 1, 1)])
    aoi = f"{tmp_path / 'aoi.gpkg'}|here"
    scene = opened(raster, labels, aoi=aoi, rows=(30, 70), cols=(0, 50))
    expected = np.full(SHAPE, IGNORE_INDEX)
    expected[30:70, 10:50] = OTHER
    expected[30:45, 10:50] = ROAD
    np.testing.assert_array_equal(scene.labels(WHOLE), expected)
    assert scene.extent == Window(col_off=10, row_off=30, width=40, height=40)


def test_an_aoi_may_lie_in_the_home_folder(tmp_path: Path, raster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 120, 45)])
    write_polygons(tmp_path / "aoi.gpkg", [pixel_box(10, 20, 60, 80)])
    scene = opened(raster, labels, aoi="~/aoi.gpkg")
    assert scene.extent == Window(col_off=10, row_off=20, width=50, height=60)


def test_a_raster_without_polygons_is_background_only_within_an_aoi(tmp_path: Path) -> None:
    far = Affine(0.5, 0, 601_000, 0, -0.5, 4_000_000)
    write_raster(tmp_path / "a.tif", noise(SHAPE))
    write_raster(tmp_path / "b.tif", noise(SHAPE), transform=far)
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 10, 10)])
    config = SourceConfig(images=str(tmp_path / "*.tif"), labels=str(labels))
    with pytest.raises(LabelError, match=r"No polygon of .* lies in .*b\.tif.* aoi"):
        open_scenes(config, LEGEND)
    shapes = [pixel_box(0, 0, 20, 20), pixel_box(0, 0, 20, 20, far)]
    aoi = write_polygons(tmp_path / "aoi.gpkg", shapes)
    scenes = open_scenes(replace(config, aoi=str(aoi)), LEGEND)
    assert [s.class_counts.tolist() for s in scenes] == [[300, 0, 100], [400, 0, 0]]
    assert [s.weight for s in scenes] == [0.5, 0.5]
    write_polygons(labels, [pixel_box(-50, -50, -40, -40)])
    with pytest.raises(LabelError, match="any raster"):
        open_scenes(replace(config, aoi=str(aoi)), LEGEND)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
def test_class_rasters_hold_ids_and_what_remap_explains(tmp_path: Path, raster: Path, dtype: str) -> None:
    values = np.zeros(SHAPE, dtype)
    values[0, :6] = [0, 1, 7, 255, 9, 42]
    labels = write_raster(tmp_path / "labels.tif", values, nodata=42)
    row = opened(raster, labels, remap={"9": "building"}).labels(WHOLE)[0, :6]
    assert row.tolist() == [OTHER, BUILDING, ROAD, IGNORE_INDEX, BUILDING, IGNORE_INDEX]
    explicit = opened(raster, labels, remap={"9": "ignore", "42": "road", "255": "building"}).labels(WHOLE)[0, :6]
    assert explicit.tolist() == [OTHER, BUILDING, ROAD, BUILDING, IGNORE_INDEX, ROAD]


def test_class_rasters_with_values_far_apart_are_read_right(tmp_path: Path, raster: Path) -> None:
    values = np.full(SHAPE, -9999, np.int32)
    values[0, :3] = [1, 2_000_000_000, 7]
    labels = write_raster(tmp_path / "labels.tif", values, nodata=-9999)
    burnt = opened(raster, labels, remap={"2000000000": "road"}).labels(WHOLE)
    assert burnt[0, :4].tolist() == [BUILDING, ROAD, ROAD, IGNORE_INDEX]


@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette"])
def test_colours_of_masks_are_classes_by_remap(tmp_path: Path, raster: Path, kind: str) -> None:
    colors = np.array([(0x3C, 0x10, 0x98), (0xFE, 0xDD, 0x3A), (1, 2, 3)], np.uint8)
    index = np.zeros(SHAPE, np.uint8)
    index[:, 40:80], index[:, 80:] = 1, 2
    if kind == "palette":
        labels = write_raster(
            tmp_path / "labels.png", index, crs=None, transform=Affine.identity(),
            colormap={n: tuple(int(v) for v in c) for n, c in enumerate(colors)},
        )  # fmt: skip
    else:
        values = np.moveaxis(colors[index], 2, 0)
        if kind == "rgba":
            values = np.concatenate([values, np.full((1, *SHAPE), 255, np.uint8)])
        labels = write_raster(tmp_path / "labels.png", values, crs=None, transform=Affine.identity())
    remap = {"#3C1098": "building", "#fedd3a": "road"}
    with pytest.raises(LabelError, match=r"#010203.*remap"):
        opened(raster, labels, remap=remap)
    burnt = opened(raster, labels, remap={**remap, "*": "ignore"}).labels(WHOLE)
    assert burnt[50, [0, 39, 40, 79, 80]].tolist() == [BUILDING, BUILDING, ROAD, ROAD, IGNORE_INDEX]


def test_pixels_without_data_are_not_labelled(tmp_path: Path) -> None:
    values = noise(SHAPE)
    values[:, :10] = 255
    values[0, 20:30] = 255  # one band only: that is data
    raster = write_raster(tmp_path / "scene.tif", values)
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 60, 60)])
    assert opened(raster, labels).valid(WHOLE).all()
    scene = opened(raster, labels, nodata=(255.0,))
    np.testing.assert_array_equal(~scene.valid(WHOLE)[:, 5], np.arange(SHAPE[0]) < 10)
    assert (scene.labels(WHOLE)[:10] == IGNORE_INDEX).all()
    alpha = np.concatenate([noise(SHAPE), np.full((1, *SHAPE), 255, np.uint8)])
    alpha[3, :, :7] = 0
    raster = write_raster(tmp_path / "alpha.tif", alpha, photometric="RGB", alpha="yes")
    scene = opened(raster, labels)
    np.testing.assert_array_equal(scene.labels(WHOLE)[5] == IGNORE_INDEX, np.arange(SHAPE[1]) < 7)


def test_bands_come_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    values = noise(SHAPE, bands=4)
    raster = write_raster(tmp_path / "scene.tif", values)
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 60, 60)])
    np.testing.assert_array_equal(opened(raster, labels, bands=(4, 2, 1)).image(WHOLE), values[[3, 1, 0]])


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4326"])
def test_gsd_is_measured_on_the_ground(tmp_path: Path, crs: str) -> None:
    step = 2.0 if crs == "EPSG:3857" else 1e-5
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(25.0, 60.0)
    transform = Affine(step, 0, x - step * 60, 0, -step, y + step * 45)
    raster = write_raster(tmp_path / "scene.tif", noise(SHAPE), crs=crs, transform=transform)
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 9, 9, transform)], crs=crs)
    back = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    geod = Geod(ellps="WGS84")
    east = geod.inv(*back.transform(x, y), *back.transform(x + 100 * step, y))[2] / 100
    north = geod.inv(*back.transform(x, y), *back.transform(x, y + 100 * step))[2] / 100
    assert opened(raster, labels).gsd_m == pytest.approx((east * north) ** 0.5, rel=1e-4)


def test_rasters_without_crs_take_pixel_coordinates_and_have_no_gsd(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "scene.png", noise(SHAPE), crs=None, transform=Affine.identity())
    labels = write_polygons(tmp_path / "labels.shp", [shapely.box(10, 20, 30, 50)], crs=None)
    scene = opened(raster, labels)
    expected = np.zeros(SHAPE)
    expected[20:50, 10:30] = ROAD
    np.testing.assert_array_equal(scene.labels(WHOLE), expected)
    assert scene.gsd_m is None


def test_a_name_that_stands_for_nothing_is_refused_with_what_there_is(tmp_path: Path, raster: Path) -> None:
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 9, 9)], kind=["hut"], year=[1999])
    with pytest.raises(LabelError, match=r"no field 'class'.*kind, year"):
        opened(raster, labels, label_field="class")
    with pytest.raises(LabelError, match=r"'hut'.*0 = other, 1 = building, 7 = road.*remap"):
        opened(raster, labels, label_field="kind")
    with pytest.raises(ConfigError, match=r"'house'.*other, building, road"):
        opened(raster, labels, label_field="kind", remap={"hut": "house"})
    with pytest.raises(ConfigError, match="background"):
        opened(raster, labels, background="sea")
    with pytest.raises(LabelError, match=r"can.t be read"):
        opened(raster, Path(f"{labels}|nothing"))


def test_class_rasters_of_other_sizes_without_a_place_are_refused(tmp_path: Path, raster: Path) -> None:
    wide = write_raster(tmp_path / "wide.png", np.zeros((90, 123), np.uint8), crs=None, transform=Affine.identity())
    with pytest.raises(LabelError, match=r"123 x 90 pixels, its raster 120 x 90"):
        opened(raster, wide)
    unplaced = write_raster(tmp_path / "unplaced.tif", np.zeros(SHAPE, np.uint8), crs=None, transform=Affine.identity())
    assert opened(raster, unplaced).class_counts.tolist() == [SHAPE[0] * SHAPE[1], 0, 0]
    elsewhere = write_raster(
        tmp_path / "elsewhere.tif", np.zeros(SHAPE, np.uint8), transform=TRANSFORM @ Affine.translation(500, 0)
    )
    with pytest.raises(LabelError, match="no labelled pixel"):
        opened(raster, elsewhere)


@pytest.mark.parametrize(
    ("crs", "transform", "shape"),
    [
        ("EPSG:32645", TRANSFORM @ Affine.translation(3.2, -7.4), (90, 120)),
        ("EPSG:32645", TRANSFORM @ Affine.scale(4.1), (20, 33)),
        ("EPSG:32645", TRANSFORM @ Affine.rotation(30) @ Affine.scale(0.7), (150, 150)),
        ("EPSG:4326", None, (75, 160)),
        ("EPSG:3857", None, (100, 100)),
    ],
    ids=["moved", "coarser", "rotated", "degrees", "mercator"],
)
@pytest.mark.parametrize("kind", ["ids", "rgb"])
def test_class_rasters_on_another_grid_are_brought_onto_the_rasters(
    tmp_path: Path, raster: Path, crs: str, transform: Affine | None, shape: tuple[int, int], kind: str
) -> None:
    """As GDAL's warper does it with nearest neighbours; nothing is labelled where the class raster ends."""
    if transform is None:
        (left, top), (right, bottom) = TRANSFORM @ (0, 0), TRANSFORM @ (SHAPE[1], SHAPE[0])
        left, bottom, right, top = transform_bounds("EPSG:32645", crs, left, bottom, right, top)
        size = Affine.scale((right - left) / shape[1], (bottom - top) / shape[0])
        transform = Affine.translation(left, top) @ size @ Affine.translation(9, 4)
    index = np.random.default_rng(0).integers(0, 3, shape)
    ids, colors = np.array([0, 1, 7], np.uint8), np.array([(9, 9, 9), (0x3C, 0x10, 0x98), (0xFE, 0xDD, 0x3A)], np.uint8)
    values = ids[index] if kind == "ids" else np.moveaxis(colors[index], 2, 0)
    labels = write_raster(tmp_path / "labels.tif", values, crs=crs, transform=transform)
    remap = {} if kind == "ids" else {"#090909": "other", "#3c1098": "building", "#fedd3a": "road"}
    expected = np.full(SHAPE, IGNORE_INDEX, np.uint8)
    reproject(
        index.astype(np.uint8), expected, src_transform=transform, src_crs=crs, dst_transform=TRANSFORM,
        dst_crs="EPSG:32645", resampling=Resampling.nearest, dst_nodata=IGNORE_INDEX, tolerance=0,
    )  # fmt: skip
    scene = opened(raster, labels, remap=remap)
    burnt = scene.labels(WHOLE)
    assert (burnt == IGNORE_INDEX).any()
    assert (burnt != expected).mean() < 0.002  # centres on the border of two pixels
    part = Window(col_off=37, row_off=11, width=50, height=70)
    assert np.array_equal(scene.labels(part), burnt[11:81, 37:87])


def test_labels_that_can_not_be_meant_are_refused(tmp_path: Path, raster: Path) -> None:
    (lines := tmp_path / "lines").mkdir()
    points = write_polygons(lines / "a.gpkg", [shapely.Point(600_010, 3_999_990), pixel_box(0, 0, 9, 9)])
    with pytest.raises(LabelError, match="1 Point"):
        opened(raster, points)
    away = write_polygons(tmp_path / "away.gpkg", [pixel_box(500, 500, 510, 510)])
    with pytest.raises(LabelError, match="No polygon"):
        opened(raster, away)
    unplaced = write_polygons(tmp_path / "unplaced.shp", [pixel_box(0, 0, 9, 9)], crs=None)
    with pytest.raises(LabelError, match="polygons have no CRS"):
        opened(raster, unplaced)
    floats = write_raster(tmp_path / "floats.tif", np.zeros(SHAPE, np.float32))
    with pytest.raises(LabelError, match="float32"):
        opened(raster, floats)
    several = write_raster(tmp_path / "several.tif", noise(SHAPE))
    with pytest.raises(LabelError, match=r"3 bands.*remap"):
        opened(raster, several)
    strange = write_raster(tmp_path / "strange.tif", np.full(SHAPE, 70, np.uint8))
    with pytest.raises(LabelError, match=r"'70'.*remap"):
        opened(raster, strange)
    empty = write_raster(tmp_path / "empty.tif", np.full(SHAPE, 255, np.uint8))
    with pytest.raises(LabelError, match="no labelled pixel"):
        opened(raster, empty)
    with pytest.raises(LabelError, match="keys"):
        opened(raster, strange, remap={"forest": "road"})


def test_ranges_and_numbers_of_files_are_checked(tmp_path: Path, raster: Path) -> None:
    labels = write_raster(tmp_path / "labels_1.png", np.zeros(SHAPE, np.uint8))
    with pytest.raises(LabelError, match=r"rows = \[50, 20\]"):
        opened(raster, labels, rows=(50, 20))
    with pytest.raises(LabelError, match="No raster"):
        opened(raster, labels, rows=(100, 200))
    write_raster(tmp_path / "labels_2.png", np.zeros(SHAPE, np.uint8))
    with pytest.raises(LabelError, match=r"1 rasters.*2 label files"):
        opened(raster, tmp_path / "labels_*.png")
    with pytest.raises(InputError, match="No file matches"):
        opened(raster, tmp_path / "nothing.gpkg")


def test_rasters_of_types_that_models_do_not_know_are_refused_with_the_mend(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "scene.tif", noise(SHAPE).astype(np.int32))
    labels = write_polygons(tmp_path / "labels.gpkg", [pixel_box(0, 0, 9, 9)])
    with pytest.raises(InputError, match=r"scene.tif holds int32.*gdal_translate"):
        opened(raster, labels)


def test_many_scenes_hold_no_file_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    for n in range(40):
        write_raster(tmp_path / f"scene_{n:02}.tif", noise((20, 20), seed=n))
        write_raster(tmp_path / f"labels_{n:02}.tif", np.full((20, 20), n % 2, np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        config = SourceConfig(images=str(tmp_path / "scene_*.tif"), labels=str(tmp_path / "labels_*.tif"))
        scenes = open_scenes(config, LEGEND)
        counts = [int((s.labels(Window.of_shape((20, 20))) == n % 2).sum()) for n, s in enumerate(scenes)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert counts == [400] * 40


def test_a_value_is_looked_up_in_remap_then_names_then_ids() -> None:
    legend = Legend.from_names({0: "1", 1: "zero"})
    assert ClassMap(legend).channel("1") == 0
    assert ClassMap(legend).channel("0") == 0
    assert ClassMap(legend, {"1": "zero"}).channel("1") == 1
    assert ClassMap(legend).channel("2") is None
    assert [value_text(v) for v in (np.int64(3), 3.0, 3.5, float("nan"), None, " a ")] == ["3", "3", "3.5", "", "", "a"]


@pytest.mark.shared_data
def test_banepa_polygons_agree_with_its_class_raster(shared_data: Path) -> None:
    legend = Legend.from_names(["other", "building"])
    folder = shared_data / "scene"
    scene = opened(
        folder / "banepa_11264x8704_rgb.tif",
        folder / "banepa_osm_buildings.geojson",
        legend,
        rows=(5000, 6000),
        cols=(3584, 6656),
    )
    assert scene.gsd_m == pytest.approx(0.132, abs=0.0005)
    with rasterio.open(folder / "banepa_mask_central_block.tif") as source:
        truth = source.read(1, window=((5000, 6000), (3584, 6656)))
    said = scene.labels(Window(col_off=3584, row_off=5000, width=3072, height=1000))
    assert (said == truth).mean() > 0.999


@pytest.mark.shared_data
def test_the_amazon_mask_of_another_size_is_refused(shared_data: Path) -> None:
    folder, legend = shared_data / "amazon", Legend.from_names({1: "forest", 2: "not forest"})
    with pytest.raises(LabelError, match=r"Amazon_181\.tiff_34\.png has 515 x 512 pixels, its raster 512 x 512"):
        open_scenes(SourceConfig(images=str(folder / "images/*.tiff"), labels=str(folder / "masks/*.png")), legend)


@pytest.mark.shared_data
def test_dubai_colours_are_classes_in_rgb_and_palette_masks(shared_data: Path) -> None:
    legend = Legend.from_names(["building", "land", "road", "vegetation", "water"])
    colors = {"#3C1098": 0, "#8429F6": 1, "#6EC1E4": 2, "#FEDD3A": 3, "#E2A929": 4}
    remap = {**{key: legend.names[c] for key, c in colors.items()}, "*": "ignore"}
    for tile, mode in (("tile1", "RGB"), ("tile2", "P")):
        image = shared_data / "dubai" / tile / "images/image_part_001.jpg"
        mask = shared_data / "dubai" / tile / "masks/image_part_001.png"
        scene = opened(image, mask, legend, remap=remap)
        with Image.open(mask) as picture:
            assert picture.mode == mode
            rgb = np.asarray(picture.convert("RGB"))
        expected = np.full(rgb.shape[:2], IGNORE_INDEX)
        for key, c in colors.items():
            expected[(rgb == [int(key[n : n + 2], 16) for n in (1, 3, 5)]).all(2)] = c
        np.testing.assert_array_equal(scene.labels(scene.grid.window), expected)


def drawn(tmp_path: Path, *boxes: tuple[int, int, int, int], **options: Any) -> LabelledScene:
    """A scene of 1,500 x 2,000 pixels with buildings in boxes of (col, row, col, row)."""
    image = write_raster(tmp_path / "large.tif", np.zeros((3, 1500, 2000), np.uint8))
    polygons = write_polygons(tmp_path / "drawn.gpkg", [pixel_box(*box) for box in boxes])
    return opened(image, polygons, label_class="building", **options)


def test_background_counts_around_the_polygons_alone(tmp_path: Path) -> None:
    scene = drawn(tmp_path, (100, 60, 140, 100), (1300, 1100, 1350, 1180))
    assert scene.extent == Window(col_off=100, row_off=60, width=1250, height=1120)
    read = scene.labels(Window(col_off=0, row_off=0, width=2000, height=1500))
    assert (read[60:1180, 100:1350] != IGNORE_INDEX).all()
    assert (read != IGNORE_INDEX).sum() == scene.extent.area
    assert (read == BUILDING).sum() == 40 * 40 + 50 * 80


def test_around_few_polygons_there_is_ground_to_learn_from(tmp_path: Path) -> None:
    scene = drawn(tmp_path, (20, 700, 60, 740))
    assert scene.extent == Window(col_off=0, row_off=208, width=552, height=1024)


@pytest.mark.parametrize("said", [{"rows": (0, 1500)}, {"cols": (0, 2000)}, {"aoi": "everywhere.gpkg"}])
def test_what_is_said_to_be_labelled_has_background_everywhere(tmp_path: Path, said: dict[str, Any]) -> None:
    if "aoi" in said:
        said = {"aoi": str(write_polygons(tmp_path / said["aoi"], [pixel_box(-9, -9, 2009, 1509)]))}
    assert drawn(tmp_path, (100, 60, 140, 100), **said).extent == Window.of_shape((1500, 2000))


@pytest.mark.parametrize("width", [1, 5000, 40_000, 500_000])
def test_strips_partition_a_window_and_are_lower_where_it_is_wide(width: int) -> None:
    window = Window(col_off=7, row_off=11, width=width, height=1300)
    found = strips(window)
    assert found[0].row_off == window.row_off
    assert all(one.row_end == other.row_off for one, other in itertools.pairwise(found))
    assert found[-1].row_end == window.row_end
    assert all((strip.col_off, strip.width) == (7, width) for strip in found)
    assert all(strip.area <= STRIP_PIXELS or strip.height == LEAST_ROWS for strip in found[:-1])
    assert max(strip.height for strip in found) == min(STRIP_ROWS, max(LEAST_ROWS, STRIP_PIXELS // width))
