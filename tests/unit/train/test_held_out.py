"""Laws of held-out tiles: the bits of `read_tile` each time, and no more memory than was said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from train_files import LEGEND, noise, write_raster

from cegate_geo.domain.windows import Window
from cegate_geo.train.chips import read_tile, validation_tiles
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.held_out import HeldOutTiles
from cegate_geo.train.scenes import LabelledScene, PixelReader, open_scenes
from cegate_geo.train.splits import Area, whole

SIDE, BYTES = 512, 512 * 512 * 4
"""Of a tile: three bands and labels."""


def places(folder: Path, *, held_mb: int) -> list[tuple[Area, Window]]:
    """Six tiles of a scene with a hole, of which two look past its edge."""
    folder.mkdir()
    image = noise((1024, 1300))
    image[:, 40:60, 500:530] = 0
    labels = np.random.default_rng(1).choice([0, 1, 7], (1024, 1300)).astype(np.uint8)
    write_raster(folder / "scene.tif", image, nodata=0)
    write_raster(folder / "labels.tif", labels)
    source = SourceConfig(images=str(folder / "scene.tif"), labels=str(folder / "labels.tif"))
    (scene,) = open_scenes(source, LEGEND, cache_mb=held_mb)
    found = validation_tiles([whole(scene)], crop=SIDE)
    assert len(found) == 6
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """Windows that were read from rasters."""
    seen: list[Window] = []
    plain = PixelReader.read

    def reading(self: PixelReader, window: Window) -> object:
        seen.append(window)
        return plain(self, window)

    monkeypatch.setattr(PixelReader, "read", reading)
    return seen


@pytest.mark.parametrize(("held_mb", "cache_mb"), [(64, 0), (0, 0), (0, 3), (0, 64)])
def test_tiles_are_the_same_each_time(tmp_path: Path, held_mb: int, cache_mb: int) -> None:
    found = places(tmp_path / "a", held_mb=held_mb)
    tiles = HeldOutTiles(found, cache_mb=cache_mb)
    assert len(tiles) == 6
    for _ in range(2):
        for tile, place in zip(tiles, found, strict=True):
            for given, expected in zip(tile, read_tile(*place), strict=True):
                assert given.dtype == expected.dtype
                np.testing.assert_array_equal(given, expected)
    some = tiles[1:3]
    assert len(some) == 2
    np.testing.assert_array_equal(some[1][0], tiles[2][0])
    np.testing.assert_array_equal(tiles[-1][1], tiles[5][1])


@pytest.mark.parametrize(("cache_mb", "kept"), [(0, 0), (3, 3), (64, 6)])
def test_what_is_kept_is_not_read_again_and_no_more_is_kept_than_was_said(
    tmp_path: Path, read: list[Window], cache_mb: int, kept: int
) -> None:
    tiles = HeldOutTiles(places(tmp_path / "a", held_mb=0), cache_mb=cache_mb)
    read.clear()
    for image, labels in tiles:
        assert (image.nbytes // 4 + labels.nbytes // 8) == BYTES
    assert len(read) == 6
    read.clear()
    list(tiles)
    assert len(read) == 6 - kept
    assert kept * BYTES <= cache_mb * 2**20


def test_nothing_is_kept_of_a_scene_that_is_in_memory_itself(tmp_path: Path, read: list[Window]) -> None:
    tiles = HeldOutTiles(places(tmp_path / "a", held_mb=64))
    read.clear()
    list(tiles)
    assert not read
    assert not tiles._kept


def test_where_nothing_is_labelled_no_pixel_is_read(tmp_path: Path, read: list[Window]) -> None:
    """A scene of gigabytes may have a few labels."""
    labels = np.full((300, 300), 255, np.uint8)
    labels[100:120, 40:60] = 1
    write_raster(tmp_path / "scene.tif", noise((300, 300)))
    write_raster(tmp_path / "labels.tif", labels)
    source = SourceConfig(images=str(tmp_path / "scene.tif"), labels=str(tmp_path / "labels.tif"))

    def scene(held_mb: int) -> LabelledScene:
        return open_scenes(source, LEGEND, cache_mb=held_mb)[0]

    from_file, from_memory = scene(0), scene(64)
    empty, full, beyond = (
        Window(col_off=c, row_off=r, width=50, height=50) for c, r in ((200, 10), (20, 90), (-60, -60))
    )
    for window in (empty, beyond):
        read.clear()
        assert (from_file.labels(window) == 255).all()
        assert not read
    for window in (empty, full, beyond, Window(col_off=-20, row_off=80, width=400, height=300)):
        np.testing.assert_array_equal(from_file.labels(window), from_memory.labels(window))
    assert (from_file.labels(full) == 1).any()
