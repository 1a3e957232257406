"""Tiles to validate on: read when they are asked for, and kept as far as memory is set aside for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from cegate_geo.domain.windows import Window
from cegate_geo.train.chips import padded, tile_of
from cegate_geo.train.labels import Labels
from cegate_geo.train.scenes import Pixels
from cegate_geo.train.splits import Area
from cegate_geo.train.validation import Tile

TILES_MB = 512
"""Megabytes of raster values and labels of tiles that don't lie in the memory of their scenes."""


class HeldOutTiles(Sequence[Tile]):
    """Tiles without augmentation, as `chips.read_tile` reads them; the same bits each time.

    Args:
        places: Area and window of each.
        cache_mb: What may be kept in memory beside that of the scenes; tiles beyond are read again each time.
    """

    def __init__(self, places: Sequence[tuple[Area, Window]], *, cache_mb: int = TILES_MB) -> None:
        self._places = list(places)
        self._kept: dict[int, tuple[Pixels, Labels]] = {}
        self._left = cache_mb * 2**20

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> HeldOutTiles: ...
    def __getitem__(self, index: int | slice) -> Tile | HeldOutTiles:
        """A tile, or some of them."""
        if isinstance(index, slice):
            return HeldOutTiles(self._places[index], cache_mb=0)
        area, window = self._places[index]
        image, labels = self._kept.get(index) or self._read(index, area, window)
        return tile_of(area, image, labels)

    def _read(self, index: int, area: Area, window: Window) -> tuple[Pixels, Labels]:
        image, labels = padded(area, window)
        size = image.nbytes + labels.nbytes
        inside = window.intersection(area.scene.grid.window)
        is_held = inside is not None and area.scene.is_held(inside)
        if not is_held and size <= self._left:
            self._kept[index] = image, labels
            self._left -= size
        return image, labels
