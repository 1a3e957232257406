"""Metres and square metres per pixel, against geodesics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from cegate_geo.domain.windows import Window
from cegate_geo.errors import GeoreferenceWarning, GsdWarning, InputError
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.gsd import check_gsd, measure
from tests import toy_models as toys

CASES: dict[str, tuple[int, Affine]] = {
    "degrees at the equator": (4326, Affine(1e-4, 0, 10, 0, -1e-4, 0.5)),
    "degrees at 60 north": (4326, Affine(1e-4, 0, 10, 0, -1e-4, 60)),
    "coarse degrees": (4326, Affine(0.5, 0, -20, 0, -0.5, 70)),
    "Web Mercator at 60 north": (3857, Affine(10, 0, 1_113_194, 0, -10, 8_399_737)),
    "UTM": (32645, Affine(10, 0, 300_000, 0, -10, 3_000_000)),
    "UTM, rotated": (32645, Affine(10, 0, 300_000, 0, -10, 3_000_000) @ Affine.rotation(30)),
    "UTM, south-up and oblong": (32645, Affine(10, 0, 300_000, 0, 5, 3_000_000)),
    "feet": (2263, Affine(3, 0, 900_000, 0, -3, 200_000)),
    "polar": (3031, Affine(500, 0, -1_000_000, 0, -500, 1_000_000)),
}


def reference(code: int, transform: Affine, shape: tuple[int, int] = (100, 80), **more: Any) -> Georeference:
    return Georeference(crs=CRS.from_epsg(code), transform=transform, shape=shape, **more)


@pytest.mark.parametrize("case", CASES)
def test_sizes_are_geodesic_along_both_axes(case: str) -> None:
    """Oracle: the geodesic between the middles of a pixel's edges."""
    code, transform = CASES[case]
    ground = measure(reference(code, transform))
    assert ground is not None
    geod, (row, col) = pyproj.Geod(ellps="GRS80" if code == 2263 else "WGS84"), (50, 40)
    project = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
    for d_col, d_row, got in ((0.5, 0, ground.size().x_m), (0, 0.5, ground.size().y_m)):
        a = project.transform(*(transform @ (col - d_col, row - d_row)))
        b = project.transform(*(transform @ (col + d_col, row + d_row)))
        assert got == pytest.approx(geod.inv(*a, *b)[2], rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_areas_of_windows_are_geodesic(case: str) -> None:
    """Oracle: the geodesic area of the window's outline, drawn pixel by pixel."""
    code, transform = CASES[case]
    window = Window(col_off=7, row_off=3, width=61, height=90)
    ground = measure(reference(code, transform))
    assert ground is not None
    got = sum(part.width * areas.sum() for part, areas in ground.row_areas(window))
    geod = pyproj.Geod(ellps="GRS80" if code == 2263 else "WGS84")
    expected = 0.0
    for row in range(window.row_off, window.row_end):
        edge = [(c, row) for c in range(window.col_off, window.col_end + 1)]
        edge += [(c, row + 1) for c in range(window.col_end, window.col_off - 1, -1)]
        project = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
        lon, lat = project.transform(*np.array([transform @ point for point in edge]).T)
        expected += abs(geod.polygon_area_perimeter(lon, lat)[0])
    assert got == pytest.approx(expected, rel=2e-4)


def test_a_pixel_has_the_same_area_in_any_window() -> None:
    ground = measure(reference(*CASES["UTM"], shape=(1000, 900)))
    assert ground is not None

    def paint(window: Window) -> np.ndarray:
        areas = np.zeros((1000, 900))
        for part, values in ground.row_areas(window):
            areas[part.slices(Window.of_shape((1000, 900)))] = values[:, None]
        return areas

    whole = paint(Window.of_shape((1000, 900)))
    part = paint(Window(col_off=77, row_off=333, width=600, height=70))
    np.testing.assert_array_equal(part[333:403, 77:677], whole[333:403, 77:677])
    assert np.count_nonzero(part) == 600 * 70


def test_web_mercator_pixels_shrink_with_latitude() -> None:
    """The naive answer would be 10 m."""
    ground = measure(reference(*CASES["Web Mercator at 60 north"]))
    assert ground is not None
    assert ground.size().gsd_m == pytest.approx(5.0, rel=0.01)


def test_control_points_give_a_size() -> None:
    points = tuple(
        GroundControlPoint(row=r, col=c, x=85 + c * 1e-5, y=27 - r * 1e-5)
        for r, c in ((0, 0), (0, 80), (100, 0), (100, 80))
    )
    ground = measure(reference(4326, Affine.identity(), gcps=points))
    assert ground is not None
    assert ground.size().y_m == pytest.approx(1.108, rel=1e-3)


def test_where_nothing_says_how_large_pixels_are_that_is_said() -> None:
    nowhere = Georeference(crs=None, transform=Affine.identity(), shape=(10, 10))
    with pytest.warns(GeoreferenceWarning, match="no CRS"):
        assert measure(nowhere) is None
    out = reference(32645, Affine(1e7, 0, 1e9, 0, -1e7, 1e9))
    with pytest.warns(GeoreferenceWarning, match="does not reach"):
        assert measure(out) is None
    with pytest.warns(GsdWarning, match="unknown"):
        assert check_gsd(None, toys.manifest()) is None


@pytest.mark.parametrize(
    ("gsd", "verdict"), [(0.1, "ok"), (0.2, "ok"), (0.21, "warn"), (0.05, "warn"), (1.7, "no"), (0.011, "no")]
)
def test_scenes_off_the_range_are_warned_of_then_refused(gsd: float, verdict: str) -> None:
    ground = measure(reference(32645, Affine(gsd, 0, 500_000, 0, -gsd, 3_000_000)))
    if verdict == "warn":
        with pytest.warns(GsdWarning, match="results may be poor"):
            check_gsd(ground, toys.manifest())
    elif verdict == "no":
        with pytest.raises(InputError, match="times off"):
            check_gsd(ground, toys.manifest())
        with pytest.warns(GsdWarning):
            check_gsd(ground, toys.manifest(), force=True)
    else:
        assert check_gsd(ground, toys.manifest()) == pytest.approx(gsd, rel=1e-3)
