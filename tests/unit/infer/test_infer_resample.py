"""Resampling between grids over the same ground: against GDAL, and by its own laws."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling as Algorithm
from rasterio.warp import reproject

from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer.resample import AxisResampling, Resampling
from cegate_geo.infer.rescaled import AreaAround, WantedRows

LENGTHS = st.integers(1, 60)
SHAPES = [
    ((90, 130), (41, 70)),
    ((41, 70), (90, 130)),
    ((41, 130), (90, 70)),
    ((64, 64), (32, 32)),
    ((100, 100), (100, 37)),
    ((70, 50), (9, 6)),
    ((3, 2), (20, 31)),
    ((33, 57), (1, 1)),
]


def by_gdal(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(C, H, W) float resampled by GDAL's warper, one axis after the other: average down, bilinear up."""
    for target in ((shape[0], values.shape[2]), shape):
        source = values.shape[1:]
        if target == source:
            continue
        made = np.zeros((len(values), *target), np.float32)
        shrinks = target[0] < source[0] or target[1] < source[1]
        reproject(
            values.astype(np.float32),
            made,
            src_transform=Affine.scale(1 / source[1], 1 / source[0]),
            dst_transform=Affine.scale(1 / target[1], 1 / target[0]),
            src_crs="EPSG:3857",
            dst_crs="EPSG:3857",
            resampling=Algorithm.average if shrinks else Algorithm.bilinear,
            tolerance=0,
        )
        values = made
    return values


def whole(values: np.ndarray, valid: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """All of it at once."""
    resampling = Resampling.between(valid.shape, shape)
    return resampling.apply(values, valid, around=Window.of_shape(valid.shape), window=Window.of_shape(shape))


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_it_is_what_gdal_makes_of_it(source: tuple[int, int], target: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, *source), np.uint8)
    made, holds = whole(values, np.ones(source, bool), target)
    np.testing.assert_allclose(made, by_gdal(values, target), atol=1e-4)
    assert holds.all()


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_what_is_no_data_has_no_weight(source: tuple[int, int], target: tuple[int, int]) -> None:
    """Oracle: GDAL's sum of what is valid by its sum of valid pixels. Under the holes stand numbers that are none."""
    random = np.random.default_rng(1)
    values = random.integers(0, 256, (2, *source)).astype(np.float32)
    valid = random.random(source) > 0.4
    share = by_gdal(valid[None], target)[0]
    made, holds = whole(np.where(valid, values, np.nan), valid, target)
    np.testing.assert_array_equal(holds, share > 1e-6)
    expected = by_gdal(np.where(valid, values, 0), target)[:, holds] / share[holds]
    np.testing.assert_allclose(made[:, holds], expected, atol=0.02)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, st.data())
def test_an_axis_keeps_its_laws(source: int, target: int, data: st.DataObject) -> None:
    axis = AxisResampling(source=source, target=target)
    taps = axis.taps(0, target)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], taps.index), taps.weights)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    assert (matrix >= 0).all()
    if source >= target:
        np.testing.assert_allclose(matrix.sum(axis=0), target / source, atol=1e-6)  # each pixel counts the same
    start = data.draw(st.integers(0, target - 1))
    stop = data.draw(st.integers(start + 1, target))
    part = axis.taps(start, stop)
    np.testing.assert_array_equal(part.index, taps.index[start:stop])
    np.testing.assert_array_equal(part.weights, taps.weights[start:stop])
    first, past = axis.support(start, stop)
    assert not np.delete(matrix[start:stop], np.s_[first:past], axis=1).any()
    assert part.index.min() >= first
    assert part.index.max() < past
    for end in range(source + 1):
        ready = axis.ready(end)
        assert not matrix[:ready, end:].any()
        assert ready == target or axis.last(ready) >= end
    for pixel in range(source):
        first, past = axis.users(pixel, pixel + 1)
        assert not np.delete(matrix[:, pixel], np.s_[first:past]).any()
        assert tuple(ends[0] for ends in axis.each_users(pixel, pixel + 1)) == (first, past - 1)


@settings(deadline=None)
@given(LENGTHS, LENGTHS)
def test_there_and_back_each_pixel_sees_itself(source: int, target: int) -> None:
    """What makes sure that a valid pixel among nothing but holes gets a class: it has weight in what gives it one."""
    there, back = AxisResampling(source=source, target=target), AxisResampling(source=target, target=source)
    for pixel in range(source):
        taps = back.taps(pixel, pixel + 1)
        used = taps.index[0][taps.weights[0] > 0]
        sees = [there.taps(int(n), int(n) + 1) for n in used]
        assert any(pixel in t.index[0][t.weights[0] > 0] for t in sees)


@settings(deadline=None, max_examples=50)
@given(st.tuples(LENGTHS, LENGTHS), st.tuples(LENGTHS, LENGTHS), st.data())
def test_a_window_has_the_same_bits_as_the_whole(
    source: tuple[int, int], target: tuple[int, int], data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values, valid = random.integers(0, 256, (2, *source), np.uint8), random.random(source) > 0.3
    valid[: source[0] // 2] = True
    row, col = data.draw(st.integers(0, target[0] - 1)), data.draw(st.integers(0, target[1] - 1))
    height, width = data.draw(st.integers(1, target[0] - row)), data.draw(st.integers(1, target[1] - col))
    window = Window(col_off=col, row_off=row, width=width, height=height)
    resampling = Resampling.between(source, target)
    around = resampling.support(window)
    rows, cols = around.slices(Window.of_shape(source))
    part = resampling.apply(values[:, rows, cols], valid[rows, cols], around=around, window=window)
    rows, cols = window.slices(Window.of_shape(target))
    all_of_it = whole(values, valid, target)
    np.testing.assert_array_equal(part[0], all_of_it[0][:, rows, cols])
    np.testing.assert_array_equal(part[1], all_of_it[1][rows, cols])


def test_a_grid_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="0 px"):
        AxisResampling(source=10, target=0)


class Asked:
    """Some pixels of a small raster."""

    def __init__(self, wanted: np.ndarray) -> None:
        self._wanted = wanted

    def touches(self, window: Window) -> bool:
        return bool(self.mask(window).any())

    def mask(self, window: Window) -> np.ndarray:
        return self._wanted[window.slices(Window.of_shape(self._wanted.shape))]


@settings(deadline=None, max_examples=50)
@given(st.tuples(LENGTHS, LENGTHS), st.tuples(LENGTHS, LENGTHS), st.integers(0, 99))
def test_what_is_needed_around_an_area_is_what_has_weight_in_it(
    scene: tuple[int, int], tiles: tuple[int, int], seed: int
) -> None:
    """Oracle: the weights themselves, pixel by pixel."""
    wanted = np.random.default_rng(seed).random(scene) > 0.9
    back = Resampling.between(tiles, scene)
    weights = []
    for axis in (back.rows, back.cols):
        matrix = np.zeros((axis.target, axis.source))
        taps = axis.taps(0, axis.target)
        np.add.at(matrix, (np.arange(axis.target)[:, None], taps.index), taps.weights)
        weights.append(matrix > 0)
    exact = np.einsum("ri,rc,cj->ij", weights[0].astype(int), wanted.astype(int), weights[1].astype(int)) > 0
    area, window = AreaAround(Asked(wanted), back), Window.of_shape(tiles)
    needed = area.mask(window)
    assert (needed | ~exact).all(), "something is missing"
    grown = np.zeros_like(exact)  # a tap without weight may be taken along: no farther than a pixel
    for row, col in np.argwhere(exact):
        grown[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = True
    assert (grown | ~needed).all()
    assert area.touches(window) == wanted.any()
    rows, cols = slice(tiles[0] // 3, tiles[0] // 3 + 1), slice(tiles[1] // 2, tiles[1])
    part = Window(col_off=cols.start, row_off=rows.start, width=cols.stop - cols.start, height=1)
    np.testing.assert_array_equal(area.mask(part), needed[rows, cols])


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LENGTHS, st.data())
def test_wanted_rows_come_once_each_and_in_order(scene: int, tiles: int, data: st.DataObject) -> None:
    from cegate_geo.infer.reader import Strip

    valid = np.random.default_rng(data.draw(st.integers(0, 9))).random((scene, 4)) > 0.5
    there, back = Resampling.between((scene, 4), (tiles, 4)), Resampling.between((tiles, 4), (scene, 4))
    rows = WantedRows(back, Window(col_off=1, row_off=0, width=3, height=scene), area=None)
    given_back, stop = [], 0
    while stop < tiles:
        start, stop = stop, data.draw(st.integers(stop + 1, tiles))
        first, past = there.rows.support(start, stop)
        window = Window(col_off=0, row_off=first, width=4, height=past - first)
        rows.put(Strip(window=window, values=np.zeros((1, *window.shape), np.uint8), valid=valid[first:past]))
        part = rows.take(stop)
        if part is not None:
            assert part[0].row_off == sum(len(p) for p in given_back)
            given_back.append(part[1])
    np.testing.assert_array_equal(np.concatenate(given_back), valid[:, 1:])
