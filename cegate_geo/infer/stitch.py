"""Blends the tiles of one shard and gives each pixel away as soon as it is complete.

Tiles come in tile rows from the top, each from the left. Only what later tiles still add to is kept: one ramp to the
right of the current tile, and one band of ramp rows below the current tile row. Sums are taken in the same order
whatever the shard, first along the row and then down, so that a pixel has the same bits in every shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.infer.tiles import Tile, TilePlan, falling, rising

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Block:
    """Complete pixels."""

    window: Window
    probabilities: FloatArray
    """(K, height, width), float32."""


class Stitcher:
    """Accumulates the tiles of one shard.

    Args:
        plan: The raster's tile plan.
        region: The shard's window.
        classes: Channels K of the model's output.

    A tile that holds nothing of interest is simply not added: where it has weight nothing valid lies.
    """

    def __init__(self, plan: TilePlan, region: Window, *, classes: int) -> None:
        self._plan, self._region = plan, region
        self.rows = plan.rows.over(region.row_off, region.row_end)
        """Tile rows of this shard."""
        self.cols = plan.cols.over(region.col_off, region.col_end)
        """Tile columns of this shard."""
        self._first_col = plan.cols.support(self.cols.start)[0]
        last_col = plan.cols.support(self.cols.stop - 1)[1]
        self._below = np.zeros((classes, plan.rows.ramp, last_col - self._first_col), np.float32)
        self._right: tuple[int, int, FloatArray] | None = None
        self._row_up = rising(plan.rows.ramp)[:, None]
        self._row_down = falling(plan.rows.ramp)[:, None]
        self._col_up, self._col_down = rising(plan.cols.ramp), falling(plan.cols.ramp)

    def add(self, tile: Tile, probabilities: FloatArray) -> Block | None:
        """Add a tile; its array (K, H, W) over `tile.window` is used up. Gives the pixels that are now complete."""
        rows, cols = tile.support.slices(tile.window)
        part = self._blend_columns(tile, probabilities[:, rows, cols])
        part = self._blend_rows(tile, part)
        window = _span(self._plan.rows.final(tile.row), self._plan.cols.final(tile.col))
        if window is None:
            return None
        inside = window.intersection(self._region)
        if inside is None:
            return None
        rows, cols = inside.slices(window)
        return Block(inside, part[:, rows, cols])

    def _blend_columns(self, tile: Tile, part: FloatArray) -> FloatArray:
        """Blend with the tile to the left, keep the ramp for the tile to the right."""
        ramp = self._plan.cols.ramp
        if not ramp:
            return part
        left, self._right = self._right, None
        if tile.col > self.cols.start:
            edge = part[:, :, :ramp]
            edge *= self._col_up
            if left is not None and left[:2] == (tile.row, tile.col - 1):
                edge += left[2]
        if tile.col < len(self._plan.cols) - 1:
            self._right = (tile.row, tile.col, part[:, :, -ramp:] * self._col_down)
            part = part[:, :, :-ramp]
        return part

    def _blend_rows(self, tile: Tile, part: FloatArray) -> FloatArray:
        """Blend with the tile row above, keep the ramp for the tile row below."""
        ramp = self._plan.rows.ramp
        if not ramp:
            return part
        start = self._plan.cols.final(tile.col)[0] - self._first_col
        below = self._below[:, :, start : start + part.shape[2]]
        if tile.row > self.rows.start:
            edge = part[:, :ramp]
            edge *= self._row_up
            edge += below
        if tile.row < len(self._plan.rows) - 1:
            np.multiply(part[:, -ramp:], self._row_down, out=below)
            part = part[:, :-ramp]
        return part


def _span(rows: tuple[int, int], cols: tuple[int, int]) -> Window | None:
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        return None
    return Window(col_off=cols[0], row_off=rows[0], width=cols[1] - cols[0], height=rows[1] - rows[0])


def winners(probabilities: FloatArray) -> tuple[npt.NDArray[np.unsignedinteger], FloatArray]:
    """Winning channel (H, W) and its probability (H, W) of (K, H, W). Of equals the first wins, as in argmax.

    A running maximum: several times faster than argmax over the first axis where classes are few.
    """
    best = probabilities[0].copy()
    index = np.zeros(best.shape, np.uint8 if len(probabilities) <= 256 else np.uint16)
    for channel in range(1, len(probabilities)):
        candidate = probabilities[channel]
        # Later channels have higher numbers: the highest that ever rose above all before it is the winner.
        np.maximum(index, (candidate > best) * index.dtype.type(channel), out=index)
        np.maximum(best, candidate, out=best)
    return index, best
