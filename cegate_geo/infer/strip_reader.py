"""Strips of a scene from the top down, each pixel once.

Full strips are read, not tiles: that is several times faster than boundless reads tile by tile, and a compressed block
is decoded once.
"""

from __future__ import annotations

import numpy as np

from cegate_geo.domain.windows import Window
from cegate_geo.infer.reader import Strip, StripSource

MAX_BLOCK_ROWS = 1024
"""Strips are aligned to source blocks up to this height; higher ones are left to GDAL's cache."""


class StripReader:
    """Reads strips of the same columns from the top down; rows that strips share are read once.

    Args:
        scene: The scene.
        columns: First and past-the-end column.
    """

    def __init__(self, scene: StripSource, columns: tuple[int, int]) -> None:
        self._scene, self._columns = scene, columns
        self._held: Strip | None = None

    def read(self, start: int, stop: int) -> Strip:
        """Rows `start` up to `stop`; `start` may not lie above that of the last call."""
        held = self._held
        if held is not None and held.window.row_end <= start:
            held = None
        if held is None or held.window.row_end < stop:
            begin = start if held is None else held.window.row_end
            block = self._scene.block_rows if self._scene.block_rows <= MAX_BLOCK_ROWS else 1
            end = min(self._scene.shape[0], -(-stop // block) * block)
            fresh = self._scene.read(self._rows(begin, end))
            held = fresh if held is None else _below(_cut(held, start, held.window.row_end), fresh)
        self._held = _cut(held, start, held.window.row_end)
        return _cut(held, start, stop)

    def _rows(self, start: int, stop: int) -> Window:
        left, right = self._columns
        return Window(col_off=left, row_off=start, width=right - left, height=stop - start)


def _cut(strip: Strip, start: int, stop: int) -> Strip:
    window = Window(col_off=strip.window.col_off, row_off=start, width=strip.window.width, height=stop - start)
    rows, _ = window.slices(strip.window)
    return Strip(window=window, values=strip.values[:, rows], valid=strip.valid[rows])


def _below(upper: Strip, lower: Strip) -> Strip:
    """Both strips as one."""
    window = Window(
        col_off=upper.window.col_off,
        row_off=upper.window.row_off,
        width=upper.window.width,
        height=upper.window.height + lower.window.height,
    )
    return Strip(
        window=window,
        values=np.concatenate([upper.values, lower.values], axis=1),
        valid=np.concatenate([upper.valid, lower.valid]),
    )
