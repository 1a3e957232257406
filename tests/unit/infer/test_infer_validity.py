"""What is data, what is filled in, and how strips are read."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cegate_geo.domain.windows import Window
from cegate_geo.errors import RasterError
from cegate_geo.infer import reader as reading
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.reader import Scene
from cegate_geo.infer.strip_reader import StripReader
from cegate_geo.infer.validity import (
    HOLE_MARGIN,
    HOLE_REGROW,
    HOLE_SIDE,
    can_hold,
    equals_nodata,
    fill_invalid,
    holes,
)
from tests import toy_models as toys


def plain_holes(candidates: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Oracle: the definition, square by square, beyond the edge all is hole."""
    height, width = candidates.shape
    padded = np.pad(candidates, HOLE_SIDE, constant_values=True)
    near = np.zeros(candidates.shape, bool)
    for row in range(1 - HOLE_SIDE, height):
        for col in range(1 - HOLE_SIDE, width):
            top, left = row + HOLE_SIDE, col + HOLE_SIDE
            if padded[top : top + HOLE_SIDE, left : left + HOLE_SIDE].all():
                near[
                    max(0, row - HOLE_REGROW) : row + HOLE_SIDE + HOLE_REGROW,
                    max(0, col - HOLE_REGROW) : col + HOLE_SIDE + HOLE_REGROW,
                ] = True
    return rim & near


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.integers(0, 999), st.floats(0.0, 0.02))
def test_holes_are_what_their_definition_says(shape: tuple[int, int], seed: int, specks: float) -> None:
    random = np.random.default_rng(seed)
    candidates = np.zeros(shape, bool)
    for _ in range(3):
        row, col = random.integers(0, shape[0]), random.integers(0, shape[1])
        candidates[row : row + random.integers(1, 40), col : col + random.integers(1, 40)] = True
    candidates ^= random.random(shape) < specks
    rim = candidates | (random.random(shape) < 0.3)
    np.testing.assert_array_equal(holes(candidates, rim), plain_holes(candidates, rim))


def test_a_hole_keeps_its_ragged_edge_and_specks_are_data() -> None:
    candidates = np.zeros((200, 200), bool)
    rows, cols = np.mgrid[:200, :200]
    hole = (rows - 100) ** 2 + (cols - 90) ** 2 < 40**2
    candidates |= hole
    candidates[20:33, 150:163] = True  # a sunlit roof of 13 x 13 pixels
    np.testing.assert_array_equal(holes(candidates, candidates), hole)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(0, 100), st.integers(0, 100), st.integers(1, 60), st.integers(1, 60))
def test_a_window_with_its_margin_says_the_same_as_the_whole(
    seed: int, row: int, col: int, height: int, width: int
) -> None:
    random = np.random.default_rng(seed)
    candidates = np.kron(random.random((9, 9)) < 0.5, np.ones((18, 18), bool)) & (random.random((162, 162)) > 0.001)
    whole = Window.of_shape(candidates.shape)
    window = Window(col_off=col, row_off=row, width=width, height=height).intersection(whole)
    assert window is not None
    around = window.expanded(HOLE_MARGIN).intersection(whole)
    assert around is not None
    cut, rim = around.slices(whole), candidates | (random.random(candidates.shape) < 0.3)
    part = holes(candidates[cut], rim[cut])[window.slices(around)]
    np.testing.assert_array_equal(part, holes(candidates, rim)[window.slices(whole)])


@settings(deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.integers(0, 99))
def test_filling_depends_on_valid_pixels_only_and_keeps_them(valid: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.random((2, *valid.shape), np.float32)
    other = np.where(valid, values, random.random((2, *valid.shape), np.float32))
    fill_invalid(values, valid)
    fill_invalid(other, valid)
    np.testing.assert_array_equal(values, other)
    if valid.any():
        known = {tuple(v) for v in values[:, valid].T.tolist()}
        assert {tuple(v) for v in values.reshape(2, -1).T.tolist()} == known, "nothing is made up"
    else:
        assert (values == 0).all()


def test_the_nearest_valid_pixel_of_the_row_fills() -> None:
    values = np.array([[[0, 1, 2, 3, 4, 5], [9, 9, 9, 9, 9, 9]]], np.float32)
    valid = np.array([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    fill_invalid(values, valid)
    assert values[0].tolist() == [[1, 1, 1, 4, 4, 4], [1, 1, 1, 4, 4, 4]]


def test_nodata_values_may_differ_by_band_and_be_nan() -> None:
    values = np.array([[[1, 1, np.nan]], [[2, 3, 2]]])
    assert equals_nodata(values, [1, 2]).tolist() == [[True, False, False]]
    assert equals_nodata(values, [np.nan, 2]).tolist() == [[False, False, True]]
    assert equals_nodata(values.astype(np.float32), 1.5, tolerance=0.5).tolist() == [[True, False, False]]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_strips_hold_what_rasterio_reads_and_each_row_is_read_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = (data.draw(st.integers(1, 120)), data.draw(st.integers(1, 40)))
    layout = data.draw(
        st.sampled_from([{"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}, {"blockysize": 33}])
    )
    path = toys.write_raster(tmp_path_factory.mktemp("s") / "scene.tif", toys.noise(shape), nodata=0, **layout)
    left = data.draw(st.integers(0, shape[1] - 1))
    right = data.draw(st.integers(left + 1, shape[1]))
    starts = sorted(data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=8)))
    scene = Scene(str(path), toys.manifest(3))
    rows_read: list[int] = []
    original = scene.read

    def counted(window: Window) -> reading.Strip:
        rows_read.extend(range(window.row_off, window.row_end))
        return original(window)

    scene.read = counted  # type: ignore[method-assign]
    strips, stop = StripReader(scene, (left, right)), 0
    for start in starts:
        stop = max(stop, data.draw(st.integers(start + 1, shape[0])))
        strip = strips.read(start, stop)
        with rasterio.open(path) as dataset:
            window = rasterio.windows.Window(left, start, right - left, stop - start)
            np.testing.assert_array_equal(strip.values, dataset.read(window=window))
            np.testing.assert_array_equal(strip.valid, dataset.dataset_mask(window=window) > 0)
    scene.close()
    assert len(rows_read) == len(set(rows_read))


def test_missing_and_foreign_files_are_named() -> None:
    with pytest.raises(RasterError, match="There is no file"):
        Scene("/nowhere/scene.tif", toys.manifest())
    with pytest.raises(RasterError, match="can't be read"):
        Scene(__file__, toys.manifest())


def test_subdatasets_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "scene.gpkg"
    for table in ("one", "two"):
        with rasterio.open(
            path,
            "w",
            driver="GPKG",
            width=4,
            height=4,
            count=3,
            dtype="uint8",
            raster_table=table,
            append_subdataset=True,
            **toys.UTM,
        ) as dataset:
            dataset.write(toys.noise((4, 4)))
    with pytest.raises(RasterError, match="subdatasets"):
        Scene(str(path), toys.manifest())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 150), st.integers(0, 150), st.integers(1, 50), st.integers(1, 50))
def test_what_is_a_hole_does_not_depend_on_the_window_that_is_read(
    tmp_path_factory: pytest.TempPathFactory, row: int, col: int, height: int, width: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "lossy.tif"
    if not path.exists():
        values = toys.noise((200, 200)) // 2
        values[:, 20:90, 30:100] = values[:, 120:180, 60:75] = values[:, 150:160, 100:200] = 255
        toys.write_raster(path, values, compress="JPEG", photometric="YCBCR", jpeg_quality=95)
    scene = Scene(str(path), toys.manifest(3), nodata=[255])
    whole = scene.read(Window.of_shape((200, 200)))
    window = Window(col_off=col, row_off=row, width=width, height=height)
    part = scene.read(window)
    scene.close()
    assert not whole.valid[50, 60]
    assert whole.valid[155, 150], "too thin for a hole"
    np.testing.assert_array_equal(part.valid, whole.valid[row : row + height, col : col + width])
    np.testing.assert_array_equal(part.values, whole.values[:, row : row + height, col : col + width])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_smallest_float_is_nodata_however_many_digits_a_header_gives(tmp_path: Path, dtype: str) -> None:
    """Oracle: GDAL's mask. ASCII and ENVI headers have six digits of it."""
    smallest = float(np.finfo(dtype).min)
    values = np.array([[[smallest, -1e30, 0, 1]]], dtype)
    path = toys.write_raster(tmp_path / "scene.tif", values, nodata=float(f"{smallest:.5e}"))
    scene = Scene(str(path), toys.manifest(bands=("height",), dtype="float32"), bands=["1"])
    with rasterio.open(path) as dataset:
        expected = dataset.read_masks(1) > 0
    valid = scene.read(Window.of_shape((1, 4))).valid
    scene.close()
    assert expected.tolist() == [[False, True, True, True]]
    np.testing.assert_array_equal(valid, expected)


def test_bands_of_different_float_types_are_read_together(tmp_path: Path) -> None:
    values = toys.noise((5, 6)).astype(np.float64) / 3
    toys.write_raster(tmp_path / "source.tif", values)
    where = "<SRS>EPSG:32645</SRS><GeoTransform>300000,0.13,0,3000000,0,-0.13</GeoTransform>"
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{n}"><SimpleSource><SourceFilename relativeToVRT="1">source.tif'
        f"</SourceFilename><SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
        for n, kind in enumerate(("Float32", "Float64", "Float32"), start=1)
    )
    path = tmp_path / "scene.vrt"
    path.write_text(f'<VRTDataset rasterXSize="6" rasterYSize="5">{where}{bands}</VRTDataset>', encoding="utf-8")
    scene = Scene(str(path), toys.manifest(dtype="float32"), bands=["1", "2", "3"])
    found = scene.read(Window.of_shape((5, 6))).values
    scene.close()
    assert found.dtype == scene.dtype == np.float64
    with rasterio.open(path) as dataset:
        for n, band in enumerate(found, start=1):
            np.testing.assert_array_equal(band, dataset.read(n))


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.CegateWarning")
def test_a_truncated_png_is_refused_and_not_read_as_noise(tmp_path: Path) -> None:
    whole = toys.write_raster(tmp_path / "whole.png", toys.noise((90, 70)), driver="PNG", photometric=None)
    path = tmp_path / "scene.png"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    refused = pytest.raises(RasterError, match="Read Error")
    with gdal_settings(str(path)), closing(Scene(str(path), toys.manifest())) as scene, refused:
        scene.read(Window.of_shape((90, 70)))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scene.tif")
    with pytest.raises(RasterError, match="pipe or a device"):
        Scene(str(tmp_path / "scene.tif"), toys.manifest())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scene.zip", "/vsizip/{}/NAME"),
        ("scene.tar.gz", "/vsitar/{}/NAME"),
        ("scene.tif.gz", "/vsigzip/{}."),
        ("scene.ecw", "no driver"),
        ("folder", "name a raster in it"),
    ],
)
def test_what_is_no_raster_is_told_from_what_is_damaged(tmp_path: Path, name: str, hint: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"PK\5\6" + bytes(18))
    with pytest.raises(RasterError, match="not recognized") as caught:
        Scene(str(path), toys.manifest())
    assert hint.format(path) in caught.value.hint


@pytest.mark.parametrize(
    ("pam", "message"),
    [
        ("<GeoTransform>nan,0.13,0,3000000,0,-0.13</GeoTransform>", "to no number"),
        ("<GeoTransform>300000,0.13,0,1e309,0,-0.13</GeoTransform>", "to no number"),
        ("<GeoTransform>300000,1e-11,0,3000000,0,-1e-11</GeoTransform>", "to the same coordinates"),
        ("<SRS>EPSG:999999</SRS>", "crs not found: EPSG:999999"),
    ],
)
def test_a_place_that_is_none_is_refused(tmp_path: Path, pam: str, message: str) -> None:
    with quiet_about_georeference():
        path = toys.write_raster(tmp_path / "scene.tif", toys.noise((5, 6)), crs=None)
    path.with_name("scene.tif.aux.xml").write_text(f"<PAMDataset>{pam}</PAMDataset>", encoding="utf-8")
    with pytest.raises(RasterError, match=message) as caught:
        Scene(str(path), toys.manifest())
    assert "gdal_edit.py" in caught.value.hint


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", -9999), ("uint8", 300), ("uint8", 254.5), ("int16", 65535), ("uint16", np.inf)]
)
def test_a_value_that_pixels_cannot_have_equals_none(dtype: str, value: float) -> None:
    """Casts wrap around: -9999 as a byte is 241, which is data."""
    limits = np.iinfo(dtype)
    every = np.arange(limits.min, limits.max + 1).astype(dtype)[None, None]
    assert not equals_nodata(every, value).any()
    assert not can_hold(np.dtype(dtype), value)
    assert can_hold(np.dtype("float32"), value)
