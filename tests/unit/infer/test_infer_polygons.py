"""Polygons of class maps: exact, valid, neighbours share their edges; simpler, and without small areas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer import areas as module
from cegate_geo.infer.components import label_areas
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.gsd import measure
from cegate_geo.infer.job import VectorOptions
from cegate_geo.infer.rings import as_polygons
from cegate_geo.infer.sieve import sieve
from cegate_geo.infer.simplify import Tolerance
from cegate_geo.infer.vectorize import wanted_classes
from tests import toy_models as toys

NODATA = 255
Ids = npt.NDArray[np.uint8]
Found = list[tuple[Any, int, int, int]]
"""Polygon, class id, pixels, sum of confidence."""


def random_ids(height: int, width: int, classes: int, seed: int, grain: int) -> Ids:
    """Noise of single pixels, or of blocks, or smooth shapes; with nodata."""
    random = np.random.default_rng(seed)
    if grain < 3:
        ids = random.integers(0, classes + 1, (height, width))
        ids = np.kron(ids, np.ones((grain, 3 - grain), int))
    else:
        field = random.random((height, width))
        for _ in range(grain):
            field = (field + np.roll(field, 1, 0) + np.roll(field, 1, 1) + np.roll(field, -1, 0) * 2) / 5
        ids = np.digitize(field, np.quantile(field, np.linspace(0, 1, classes + 2)[1:-1]))
    return np.where(ids == classes, NODATA, ids).astype(np.uint8)


maps = st.builds(
    random_ids,
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 9999),
    st.sampled_from([1, 2, 5]),
)
fast = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, ids: Ids) -> tuple[Path, Path]:
    certainty = (np.arange(ids.size) % 255 + 1).reshape(ids.shape).astype(np.uint8)
    mask = toys.write_raster(folder / "ids.tif", ids[None], nodata=NODATA)
    return mask, toys.write_raster(folder / "certainty.tif", certainty[None], nodata=0)


def find(folder: Path, ids: Ids, *, strip: int = 10**6, band: int = 10**7, tolerance: float = 0.0) -> Found:
    """Polygons in pixel coordinates; strips and bands are of about so many rows."""
    mask, certainty = write(folder, ids)
    saved = module.STRIP_PIXELS, module.BAND_PIXELS
    module.STRIP_PIXELS, module.BAND_PIXELS = strip * ids.shape[1], band * ids.shape[1]
    found: Found = []
    try:
        wanted = Tolerance(distance=tolerance) if tolerance else None
        for areas in module.find_areas(mask, certainty, ground=None, tolerance=wanted):
            sums = areas.sums
            numbers = (sums.class_id.tolist(), sums.pixels.tolist(), sums.confidence.tolist())
            found += zip(as_polygons(areas.rings, Affine.identity()), *numbers, strict=True)
    finally:
        module.STRIP_PIXELS, module.BAND_PIXELS = saved
    return found


def as_bytes(found: Found) -> list[Any]:
    return [(shapely.to_wkb(polygon), *numbers) for polygon, *numbers in found]


@fast
@given(maps, st.sampled_from([1, 2, 4, 16]), st.sampled_from([1, 2, 4, 16]))
def test_polygons_are_the_areas_of_the_mask(tmp_path: Path, ids: Ids, strip: int, band: int) -> None:
    """Oracles: a numbering of areas, GDAL's polygons of the same map, and burning each polygon back."""
    found = find(tmp_path, ids, strip=strip, band=band)
    labels, count = label_areas(ids, nodata=NODATA)
    assert len(found) == count
    painted = np.zeros(ids.shape, int)
    sure = toys.read(tmp_path / "certainty.tif")[0].astype(int)
    for polygon, class_id, pixels, confidence in found:
        assert polygon.is_valid
        inside = rasterize([polygon], out_shape=ids.shape).astype(bool)
        painted += inside
        assert polygon.area == inside.sum() == pixels
        assert (ids[inside] == class_id).all()
        assert len(np.unique(labels[inside])) == 1
        assert confidence == sure[inside].sum()
    np.testing.assert_array_equal(painted, ids != NODATA)
    gdal = [shapely.geometry.shape(g) for g, _ in shapes(ids, mask=ids != NODATA, connectivity=4)]
    plain = [
        shapely.normalize(shapely.simplify([p for p, *_ in found], 0)),
        shapely.normalize(shapely.simplify(gdal, 0)),
    ]
    assert sorted(shapely.to_wkt(plain[0])) == sorted(shapely.to_wkt(plain[1]))


@fast
@given(maps, st.sampled_from([0, 0.6, 1.5, 20]))
def test_strips_leave_no_trace(tmp_path: Path, ids: Ids, tolerance: float) -> None:
    for band in (4, 16, 10**7):
        whole = as_bytes(find(tmp_path, ids, band=band, tolerance=tolerance))
        for strip in (1, 2, 8):
            assert as_bytes(find(tmp_path, ids, strip=strip, band=band, tolerance=tolerance)) == whole


@fast
@given(maps)
def test_bands_leave_no_trace_in_exact_polygons(tmp_path: Path, ids: Ids) -> None:
    whole = as_bytes(find(tmp_path, ids))
    for band in (1, 2, 8):
        assert as_bytes(find(tmp_path, ids, band=band)) == whole


@fast
@given(maps, st.sampled_from([1, 4, 10**7]))
def test_neighbours_share_every_point_of_their_edges(tmp_path: Path, ids: Ids, band: int) -> None:
    """A point that lies on a neighbour's edge is one of the neighbour's own: GEOS calls that a valid coverage."""
    found = find(tmp_path, ids, strip=1, band=band)
    assert shapely.coverage_is_valid(np.array([polygon for polygon, *_ in found], object))


@fast
@given(maps, st.sampled_from([0.5, 0.9, 1.5, 3, 10, 100]), st.sampled_from([4, 16, 10**7]))
def test_simpler_polygons_neither_overlap_nor_gape_nor_vanish(
    tmp_path: Path, ids: Ids, tolerance: float, band: int
) -> None:
    exact, simple = find(tmp_path, ids, band=band), find(tmp_path, ids, band=band, tolerance=tolerance)
    polygons = np.array([polygon for polygon, *_ in simple], object)
    assert shapely.is_valid(polygons).all()
    assert (shapely.area(polygons) > 0).all()
    assert shapely.coverage_is_valid(polygons)
    assert sorted((len(p.interiors), *more) for p, *more in simple) == sorted(
        (len(p.interiors), *more) for p, *more in exact
    )
    assert shapely.get_num_coordinates(polygons).sum() <= sum(shapely.get_num_coordinates(p) for p, *_ in exact)
    united = shapely.union_all(polygons)
    assert shapely.area(united) == pytest.approx(shapely.area(polygons).sum())
    gaps = sum(len(part.interiors) for part in shapely.get_parts(united))
    before = shapely.union_all([polygon for polygon, *_ in exact])
    assert gaps == sum(len(part.interiors) for part in shapely.get_parts(before))


@fast
@given(maps, st.sampled_from([0.6, 1.5, 3]))
def test_no_outline_moves_farther_than_it_may(tmp_path: Path, ids: Ids, tolerance: float) -> None:
    def lines(found: Found) -> Any:
        return shapely.union_all([polygon.boundary for polygon, *_ in found])

    exact, simple = lines(find(tmp_path, ids)), lines(find(tmp_path, ids, tolerance=tolerance))
    assert shapely.hausdorff_distance(exact, simple, densify=0.1) <= tolerance + 1e-9 or exact.is_empty


def test_a_slanted_edge_loses_its_stairs(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:200, :200]
    ids = (rows * 3 > cols * 2 + 40).astype(np.uint8)
    found = find(tmp_path, ids, tolerance=1)
    assert [shapely.get_num_coordinates(polygon) <= 8 for polygon, *_ in found] == [True, True]
    assert all(polygon.area == pytest.approx(pixels, rel=0.02) for polygon, _, pixels, _ in found)


def test_a_speck_beside_a_line_keeps_the_line_off(tmp_path: Path) -> None:
    """The shortcut across the notch would leave the speck on the wrong side."""
    ids = np.zeros((30, 60), np.uint8)
    ids[15:] = 1
    ids[12:15, 28:36] = 1
    ids[13, 31] = 0
    simple = find(tmp_path, ids, tolerance=5)
    assert sorted(len(polygon.interiors) for polygon, *_ in simple) == [0, 0, 1]
    assert shapely.coverage_is_valid(np.array([polygon for polygon, *_ in simple], object))


def cut(rows: int) -> Any:
    def strips(shape: tuple[int, int]) -> Iterator[Window]:
        for start in range(0, shape[0], rows):
            yield Window(col_off=0, row_off=start, width=shape[1], height=min(rows, shape[0] - start))

    return strips


def sieved_one_by_one(ids: Ids, limit: int) -> Ids:
    """The rule word for word, with everything numbered anew after each step."""
    ids = ids.copy()
    while True:
        labels, count = label_areas(ids, nodata=NODATA)
        pixels = np.bincount(labels.ravel(), minlength=count + 1)
        small = [(pixels[n], n) for n in range(1, count + 1) if pixels[n] < limit]
        if not small:
            return ids
        _, mine = min(small)  # labels go by first pixel
        shared: dict[int, int] = {}
        for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
            for here, there in ((one, other), (other, one)):
                for n in there[(here == mine) & (there != mine) & (there > 0)].tolist():
                    shared[n] = shared.get(n, 0) + 1
        best = max(shared, key=lambda n: (shared[n], pixels[n], -n), default=0)
        ids[labels == mine] = ids[labels == best][0] if shared else NODATA


@fast
@given(maps, st.sampled_from([2, 3, 6, 30, 5000]))
def test_small_areas_join_the_neighbour_with_the_longest_shared_edge(tmp_path: Path, ids: Ids, limit: int) -> None:
    mask, _ = write(tmp_path, ids)
    expected = sieved_one_by_one(ids, limit)
    for rows in (1, 3, 100):
        sieve(mask, tmp_path / "sieved.tif", ground=None, min_area=limit, strips=cut(rows))
        np.testing.assert_array_equal(toys.read(tmp_path / "sieved.tif")[0], expected)
    labels, _ = label_areas(expected, nodata=NODATA)
    assert (np.bincount(labels.ravel())[1:] >= limit).all()


def test_how_small_is_measured_on_the_ground(tmp_path: Path) -> None:
    """Two specks of as many pixels in degrees: the one further north is smaller."""
    ids = np.zeros((600, 40), np.uint8)
    ids[20:30, 10:20] = ids[570:580, 10:20] = 1
    where = {"crs": "EPSG:4326", "transform": Affine(0.1, 0, 10, 0, -0.1, 62)}
    mask = toys.write_raster(tmp_path / "ids.tif", ids[None], nodata=NODATA, **where)
    with rasterio.open(mask) as dataset:
        ground = measure(Georeference.read(dataset))
    geod = pyproj.Geod(ellps="WGS84")
    north, south = (
        abs(geod.geometry_area_perimeter(shapely.box(11, top - 1, 12, top).segmentize(0.01))[0]) for top in (60, 5)
    )
    sieve(mask, tmp_path / "sieved.tif", ground=ground, min_area=(north + south) / 2, strips=cut(50))
    sieved = toys.read(tmp_path / "sieved.tif")[0]
    assert (sieved[25, 15], sieved[575, 15]) == (0, 1)


def test_classes_are_asked_for_by_name_or_id() -> None:
    legend = Legend.from_names({0: "other", 3: "building", 4: "3"})
    assert wanted_classes(legend, ()) is None
    assert wanted_classes(legend, ("building", "0")) == (3, 0)
    assert wanted_classes(legend, ("3",)) == (4,), "a name goes before an id"
    with pytest.raises(InputError, match="no class 'roof'"):
        wanted_classes(legend, VectorOptions(classes=("roof",)).classes)
