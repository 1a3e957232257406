"""Laws of the two regions that the demo makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyogrio.raw
import pyproj
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from cegate_geo.demo.regions import REGION_A, REGION_B, Region, RegionSpec, make_region, write_region
from cegate_geo.demo.render import cast_shadows
from cegate_geo.demo.scene import CLASS_NAMES, demo_legend
from cegate_geo.domain.legend import IGNORE_INDEX

OTHER, BUILDING, ROAD, TREE, WATER = range(5)


def smaller(spec: RegionSpec) -> RegionSpec:
    """The same region at three times the GSD: a ninth of the pixels."""
    height, width = (n // 3 for n in spec.shape)
    return replace(spec, shape=(height, width), gsd_m=spec.settlement.width_m / width)


@pytest.fixture(scope="module")
def regions() -> dict[str, Region]:
    return {spec.name: make_region(spec, seed=3) for spec in (REGION_A, REGION_B)}


@pytest.fixture(params=["region_a", "region_b"])
def region(request: pytest.FixtureRequest, regions: dict[str, Region]) -> Region:
    return regions[request.param]


def test_the_same_seed_makes_the_same_region_and_another_seed_another() -> None:
    small = smaller(REGION_B)
    first, again, other = make_region(small, 5), make_region(small, 5), make_region(small, 6)
    assert np.array_equal(first.picture, again.picture)
    assert np.array_equal(first.truth, again.truth)
    assert [p.wkb for _, p in first.polygons] == [p.wkb for _, p in again.polygons]
    assert not np.array_equal(first.truth, other.truth)


def test_every_class_occurs_in_both_regions(region: Region) -> None:
    shares = [(region.truth == i).sum() / region.valid.sum() for i in range(len(CLASS_NAMES))]
    assert min(shares) > 0.02
    assert shares[BUILDING] > 0.06


def test_truth_polygons_neither_overlap_nor_leave_gaps(region: Region) -> None:
    total = sum(p.area for _, p in region.polygons)
    union = shapely.union_all([p for _, p in region.polygons])
    assert total == pytest.approx(union.area, rel=1e-6)
    assert union.area == pytest.approx(region.valid.sum() * region.spec.gsd_m**2, rel=2e-3)


def test_the_order_in_which_polygons_are_burnt_does_not_matter(region: Region) -> None:
    backwards = rasterize(
        [(p, i) for i, p in reversed(region.polygons)],
        out_shape=region.spec.shape,
        transform=region.spec.transform,
        fill=IGNORE_INDEX,
        dtype="uint8",
    )
    assert np.array_equal(backwards, region.truth)


def test_files_give_back_picture_truth_grid_and_nodata(region: Region, tmp_path: Path) -> None:
    spec = region.spec
    files = write_region(region, tmp_path)
    with rasterio.open(files.scene) as scene:
        assert scene.crs == rasterio.crs.CRS.from_user_input(spec.crs)
        assert scene.transform == spec.transform
        assert scene.shape == spec.shape
        assert scene.res == (spec.gsd_m, spec.gsd_m)
        assert np.array_equal(scene.read(), region.picture)
        assert np.array_equal(scene.dataset_mask() > 0, region.valid)
    meta, _, geometry, fields = pyogrio.raw.read(files.labels)
    assert pyproj.CRS(meta["crs"]).equals(pyproj.CRS(spec.crs))
    ids = [CLASS_NAMES.index(name) for name in fields[0]]
    burnt = rasterize(
        list(zip(shapely.from_wkb(geometry), ids, strict=True)),
        out_shape=spec.shape,
        transform=spec.transform,
        fill=IGNORE_INDEX,
        dtype="uint8",
    )
    assert np.array_equal(burnt, region.truth)


@pytest.mark.parametrize("spec", [REGION_A, REGION_B], ids=["a", "b"])
def test_a_pixel_is_as_long_on_the_ground_as_its_name_says(spec: RegionSpec) -> None:
    crs = pyproj.CRS(spec.crs)
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    left, right = (to_degrees.transform(spec.left + x, spec.top) for x in (0, 100 * spec.gsd_m))
    length = pyproj.Geod(ellps="WGS84").inv(*left, *right)[2] / 100
    assert length == pytest.approx(spec.gsd_m, rel=0.01)
    assert spec.settlement.width_m == pytest.approx(spec.gsd_m * spec.shape[1])
    assert spec.settlement.height_m == pytest.approx(spec.gsd_m * spec.shape[0])


def test_only_the_second_region_has_holes_and_they_are_at_its_corners() -> None:
    a, b = make_region(smaller(REGION_A), 0), make_region(smaller(REGION_B), 0)
    assert a.valid.all()
    assert 0.02 < 1 - b.valid.mean() < 0.2
    assert not any(b.valid[r, c] for r in (0, -1) for c in (0, -1))
    assert (b.picture[:, ~b.valid] == 0).all()
    assert (b.picture[:, b.valid] > 0).all()


def _contrast(region: Region, class_id: int, shift: tuple[int, int] = (0, 0)) -> float:
    """Mean step of the picture across the outlines of a class's polygons, moved by `shift` pixels."""
    picture = region.picture.astype(np.int32).sum(0)
    inside = np.roll(region.truth == class_id, shift, (0, 1))
    steps = []
    for axis in (0, 1):
        edge = np.diff(inside.astype(np.int8), axis=axis) != 0
        near = np.abs(np.diff(picture, axis=axis))
        steps.append(near[edge & np.delete(region.valid, -1, axis)].mean())
    return float(np.mean(steps))


@pytest.mark.parametrize("class_id", [BUILDING, ROAD, TREE])
def test_truth_lies_exactly_on_what_the_picture_shows(region: Region, class_id: int) -> None:
    here = _contrast(region, class_id)
    moved = [_contrast(region, class_id, s) for s in ((0, 2), (0, -2), (2, 0), (-2, 0))]
    assert here > 1.15 * max(moved)


def test_what_grows_is_green_and_what_is_built_is_not(region: Region) -> None:
    red, green, blue = (region.picture[i].astype(float) for i in range(3))
    greenness = 2 * green - red - blue
    assert greenness[region.truth == TREE].mean() > greenness[region.truth == BUILDING].mean() + 5
    assert greenness[region.truth == OTHER].mean() > greenness[region.truth == ROAD].mean() + 5


def test_the_second_region_is_duller_than_the_first(regions: dict[str, Region]) -> None:
    colourfulness = [(r.picture.max(0).astype(int) - r.picture.min(0))[r.valid].mean() for r in regions.values()]
    assert colourfulness[0] > 1.3 * colourfulness[1]


@pytest.mark.parametrize(
    ("azimuth", "corner"), [(180.0, (slice(20, 40), slice(40, 60))), (90.0, (slice(40, 60), slice(20, 40)))]
)
def test_a_shadow_is_as_long_as_height_over_tangent_and_points_away_from_the_sun(
    azimuth: float, corner: tuple[slice, slice]
) -> None:
    height = np.zeros((100, 100), np.float32)
    height[40:60, 40:60] = 10.0
    shadow = cast_shadows(height, pixel_m=1.0, azimuth_deg=azimuth, elevation_deg=27.0) > 0
    expected = np.zeros_like(shadow)
    expected[corner] = True
    length = np.count_nonzero(shadow.any(axis=1 if azimuth == 180 else 0))
    assert length == pytest.approx(10 / np.tan(np.radians(27.0)), abs=1)
    assert (shadow & ~expected).sum() == 0
    assert not shadow[40:60, 40:60].any()


def test_flat_ground_has_no_shadow() -> None:
    assert not cast_shadows(np.zeros((8, 9), np.float32), pixel_m=0.2, azimuth_deg=10, elevation_deg=20).any()


def test_the_legend_names_the_classes_in_order_with_colours_that_differ() -> None:
    legend = demo_legend()
    assert legend.names == CLASS_NAMES
    assert len({c.color for c in legend}) == len(CLASS_NAMES)
