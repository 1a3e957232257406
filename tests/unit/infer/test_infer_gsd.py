"""Metres and square metres per pixel, against geodesics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer, from_gcps

from cegate_geo.domain.windows import Window
from cegate_geo.errors import GeoreferenceWarning, GsdWarning, InputError
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.gsd import check_gsd, measure, model_shape
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


def test_control_points_on_both_sides_of_the_antimeridian_give_the_size_that_they_give_elsewhere() -> None:
    sizes = []
    for west in (85.0, 179.9996):
        points = tuple(
            GroundControlPoint(row=r, col=c, x=(west + c * 1e-5 + 180) % 360 - 180, y=27 - r * 1e-5)
            for r, c in ((0, 0), (0, 80), (100, 0), (100, 80))
        )
        ground = measure(reference(4326, Affine.identity(), gcps=points))
        assert ground is not None
        sizes.append((ground.size().x_m, ground.size().y_m))
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-6)


@pytest.mark.parametrize(
    ("code", "transform", "reason"),
    [
        (4978, Affine(0.13, 0, 300_000, 0, -0.13, 3_000_000), "without a place"),
        (4326, Affine(1e-6, 0, 85, 0, -1e-6, 100), "does not reach"),
    ],
    ids=["geocentric", "latitude of 100 degrees"],
)
def test_coordinates_that_are_nowhere_have_no_size(code: int, transform: Affine, reason: str) -> None:
    with pytest.warns(GeoreferenceWarning, match=reason):
        assert measure(reference(code, transform)) is None


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


@pytest.mark.parametrize(
    ("x_m", "y_m", "resample", "expected"),
    [
        (0.1, 0.2, "auto", None),
        (0.1, 0.2, "always", (1538, 769)),
        (0.13, 0.13, "always", None),
        (0.26, 0.26, "auto", (2000, 2000)),
        (0.26, 0.26, "never", None),
        (0.05, 0.05, "auto", (385, 385)),
        (0.065, 0.26, "auto", (2000, 500)),  # the axes' mean is the model's own GSD
        (0.001, 0.13, "auto", (1000, 8)),
        (1.7, 0.13, "auto", None),
        (1.7, 0.13, "always", (1000, 13077)),
        (1e-6, 1e-6, "auto", (1, 1)),
    ],
)
def test_each_axis_comes_to_the_models_gsd(
    x_m: float, y_m: float, resample: Any, expected: tuple[int, int] | None
) -> None:
    """Toy models are made for 0.13 m and take 0.1 to 0.2 m."""
    ground = measure(reference(32645, Affine(x_m, 0, 500_000, 0, -y_m, 3_000_000), (1000, 1000)))
    assert ground is not None
    # On the central meridian UTM's scale is 0.9996: lengths on the ground are 0.04 % longer.
    shape = model_shape(ground, toys.manifest(), (1000, 1000), resample=resample)
    if expected is None or shape is None:
        assert shape == expected
    else:
        assert np.abs(np.subtract(shape, expected)).max() <= max(1, 6e-4 * max(expected))


def test_a_scene_of_unknown_gsd_is_never_resampled() -> None:
    assert model_shape(None, toys.manifest(), (10, 10), resample="always") is None


def test_the_worse_axis_is_warned_of_and_refused() -> None:
    oblong = measure(reference(32645, Affine(0.065, 0, 500_000, 0, -0.26, 3_000_000)))
    with pytest.warns(GsdWarning, match=r"0\.065 x 0\.26 m per pixel"):
        check_gsd(oblong, toys.manifest())
    far = measure(reference(32645, Affine(0.13, 0, 500_000, 0, -1.7, 3_000_000)))
    with pytest.raises(InputError, match="9 times off"):
        check_gsd(far, toys.manifest())


@pytest.mark.parametrize("shape", [(100, 80), (37, 200), (1, 1)])
def test_corners_stay_where_they_are_in_a_grid_of_another_shape(shape: tuple[int, int]) -> None:
    """Oracle: rasterio, from transforms, control points and RPCs."""
    line, sample = [0.0, 0.0, 1.0, *[0.0] * 17], [0.0, 1.0, *[0.0] * 18]
    one = [1.0, *[0.0] * 19]
    rpcs = RPC(
        height_off=0.0, height_scale=500.0, lat_off=27.0, lat_scale=0.1, long_off=85.0, long_scale=0.1, line_off=49.5,
        line_scale=50.0, samp_off=39.5, samp_scale=40.0, err_bias=None, err_rand=None, line_num_coeff=line,
        line_den_coeff=one, samp_num_coeff=sample, samp_den_coeff=one,
    )  # fmt: skip
    points = tuple(
        GroundControlPoint(row=r, col=c, x=85 + c * 1e-5, y=27 - r * 1e-5, z=4.0, id=f"{r}")
        for r, c in ((0, 0), (0, 80), (100, 0), (100, 80))
    )
    before = reference(32645, CASES["UTM, rotated"][1], rpcs=rpcs)
    after = before.rescaled(shape)
    assert after.shape == shape
    assert after.grid.bounds == pytest.approx(before.grid.bounds)
    by_points = reference(4326, Affine.identity(), gcps=points)
    scaled = by_points.rescaled(shape)
    assert scaled.transform == Affine.identity()
    assert [(p.x, p.y, p.z, p.id) for p in scaled.gcps] == [(p.x, p.y, p.z, p.id) for p in points]
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        old, new = (down * 100, right * 80), (down * shape[0], right * shape[1])
        for a, b in ((before.transform, after.transform), (from_gcps(by_points.gcps), from_gcps(scaled.gcps))):
            np.testing.assert_allclose(b @ new[::-1], a @ old[::-1], rtol=1e-12)
        with RPCTransformer(before.rpcs) as a, RPCTransformer(after.rpcs) as b:
            np.testing.assert_allclose(b.xy(*new, offset="ul"), a.xy(*old, offset="ul"), atol=1e-7)
    assert before.rpcs.line_off == 49.5, "the scene's own is left alone"
