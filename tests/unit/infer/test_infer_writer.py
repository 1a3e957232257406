"""Scratch rasters: what other threads do to GDAL's block cache does not reach them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.infer import writer
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.writer import RasterWriter, class_raster, cog_block_size, make_cog, probability_raster
from tests import toy_models as toys

SIDE, ROUNDS = 1024, 6


def test_a_mask_and_its_bands_survive_readers_that_press_on_the_cache(tmp_path: Path) -> None:
    """With a mask inside of the file, most rounds lost blocks or failed."""
    source = toys.write_raster(
        tmp_path / "scene.tif", toys.noise((SIDE, SIDE)), tiled=True, blockxsize=256, blockysize=256
    )
    with rasterio.open(source) as dataset:
        georeference = Georeference.read(dataset)
    kind, done = probability_raster(Legend.from_names(["a", "b", "c"])), threading.Event()

    def press(seed: int) -> None:
        random = np.random.default_rng(seed)
        with rasterio.Env(GDAL_CACHEMAX=1), rasterio.open(source) as dataset:
            while not done.is_set():
                row, col = random.integers(0, SIDE - 600, 2)
                dataset.read(window=rasterio.windows.Window(col, row, 600, 600))

    readers = [threading.Thread(target=press, args=(n,)) for n in range(2)]
    for reader in readers:
        reader.start()
    try:
        for n in range(ROUNDS):
            random = np.random.default_rng(n)
            values = random.integers(0, 255, (3, SIDE, SIDE)).astype(kind.dtype)
            valid = random.random((SIDE, SIDE)) > 0.3
            scratch, cog = tmp_path / f"scratch{n}.tif", tmp_path / f"cog{n}.tif"
            with rasterio.Env(GDAL_CACHEMAX=1), RasterWriter(scratch, georeference, kind, tags={}) as target:
                for row in range(0, SIDE, 200):
                    height = min(200, SIDE - row)
                    part = slice(row, row + height)
                    window = Window(col_off=0, row_off=row, width=SIDE, height=height)
                    target.write(window, values[:, part], valid=valid[part])
            make_cog(scratch, cog, kind)
            with rasterio.open(cog) as dataset:
                np.testing.assert_array_equal(dataset.read(), values)
                np.testing.assert_array_equal(dataset.dataset_mask() > 0, valid)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not cog.with_name(cog.name + ".msk").exists(), "the result's mask lies within it"


def test_overviews_of_many_bands_are_means_of_what_is_data(tmp_path: Path) -> None:
    """Their blocks are small, for all bands are in each."""
    legend = Legend.from_names([f"class {n}" for n in range(19)])
    kind, shape = probability_raster(legend), (700, 900)
    values = toys.noise(shape, channels=19)
    valid = np.ones(shape, np.bool_)
    valid[100:333, 200:401] = False
    values[:, ~valid] = 0
    georeference = Georeference(shape=shape, **toys.UTM)
    with RasterWriter(tmp_path / "scratch.tif", georeference, kind, tags={}) as writer:
        writer.write(Window.of_shape(shape), values, valid=valid)
    make_cog(tmp_path / "scratch.tif", tmp_path / "cog.tif", kind)
    with rasterio.open(tmp_path / "cog.tif") as cog:
        assert set(cog.block_shapes) == {(256, 256)}
        assert cog.overviews(1) == cog.overviews(19) == [2, 4]
        np.testing.assert_array_equal(cog.read(), values)
    for level, factor in enumerate((2, 4)):
        with rasterio.open(tmp_path / "cog.tif", overview_level=level) as overview:
            found, holds = overview.read(), overview.read_masks(1) > 0
        parts = (19, shape[0] // factor, factor, shape[1] // factor, factor)
        counts = valid.reshape(parts[1:]).sum(axis=(1, 3))
        means = values.astype(np.float64).reshape(parts).sum(axis=(2, 4)) / np.maximum(counts, 1)
        inside = (counts > 0) & holds
        assert inside.sum() > 0.9 * (counts > 0).sum()
        assert np.abs(found - means)[:, inside].max() <= 1


def test_blocks_of_a_cog_are_small_where_bands_are_many() -> None:
    sizes = {}
    for count in (2, 6, 7, 19, 60, 200):
        kind = probability_raster(Legend.from_names([f"{n}" for n in range(count)]))
        sizes[count] = cog_block_size(kind)
    assert sizes == {2: 512, 6: 512, 7: 256, 19: 256, 60: 128, 200: 128}
    assert cog_block_size(class_raster(Legend.from_names(["a", "b"]))) == 512


def test_threads_change_no_byte_of_a_cog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one core and one with many write the same file."""
    kind, random = class_raster(Legend.from_names(["a", "b", "c"])), np.random.default_rng(0)
    values = random.integers(0, 3, (4, 90, 70), np.uint8)[0].repeat(40, axis=0).repeat(40, axis=1)
    values[random.random(values.shape) < 0.05] = 255
    place = Georeference(shape=values.shape, crs=CRS.from_epsg(32645), transform=Affine(0.1, 0, 3e5, 0, -0.1, 3e6))
    with RasterWriter(tmp_path / "scratch.tif", place, kind, tags={}) as target:
        target.write(Window.of_shape(values.shape), values)
    found = []
    for cores in (1, 2, 64):
        monkeypatch.setattr(writer, "usable_cores", lambda cores=cores: cores)
        make_cog(tmp_path / "scratch.tif", tmp_path / f"{cores}.tif", kind)
        found.append((tmp_path / f"{cores}.tif").read_bytes())
    assert found[0] == found[1] == found[2]
    with rasterio.open(tmp_path / "64.tif") as dataset:
        assert dataset.overviews(1) == [2, 4, 8]
        np.testing.assert_array_equal(dataset.read(1), values)
