r"""The tile plan: which windows the model sees, and how much each tile counts at each pixel.

A pure function of the raster's shape and the parameters, the same for every shard and every run. Both axes are planned
alike and independently, so a tile's weight at a pixel is the product of a row weight and a column weight.

Along an axis, neighbouring tiles share at least `2 * halo` pixels. Between them lies a cut in the middle of what they
share; a cosine ramp around the cut passes the weight from one to the other. Within `halo // 2` of a tile's inner edge
its weight is zero, so that what a model says right at the edge of its tile is never used:

    tile i    ______________________________
                                   \\________ weight 1 → 0
    tile i+1              ________/
                         |    |cut|    |
                     zero ramp    ramp zero
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError

StitchMode = Literal["blend", "crop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """The tiles along one axis.

    Laws: the cores of all tiles partition the axis; the weights of all tiles at a pixel sum to exactly 1; at most two
    tiles have weight at a pixel.
    """

    length: int
    """Pixels of the raster along the axis."""
    size: int
    """Pixels of a tile; more than `length` where the only tile looks past the edge."""
    offsets: tuple[int, ...]
    """First pixel of each tile, ascending."""
    cuts: tuple[int, ...]
    """Between tile i and i + 1: the first pixel of the core of i + 1."""
    ramp: int
    """Pixels over which the weight passes from one tile to the next; even; 0 for hard cuts."""

    def __len__(self) -> int:
        return len(self.offsets)

    def core(self, n: int) -> tuple[int, int]:
        """First and past-the-end pixel that tile n alone owns."""
        return (self.cuts[n - 1] if n else 0), (self.cuts[n] if n < len(self.cuts) else self.length)

    def support(self, n: int) -> tuple[int, int]:
        """First and past-the-end pixel where tile n has any weight: the core and the ramps on both sides."""
        start, stop = self.core(n)
        half = self.ramp // 2
        return start - half if n else 0, stop + half if n < len(self.cuts) else self.length

    def final(self, n: int) -> tuple[int, int]:
        """The pixels that are complete once tiles 0..n are added and were not before. They partition the axis."""
        start, stop = self.support(n)
        return start, stop - self.ramp if n < len(self.cuts) else stop

    def weights(self, n: int) -> npt.NDArray[np.float32]:
        """Weight of tile n over its support: float32, shape (support,)."""
        start, stop = self.support(n)
        weights = np.ones(stop - start, np.float32)
        if n:
            weights[: self.ramp] = rising(self.ramp)
        if n < len(self.cuts):
            weights[len(weights) - self.ramp :] = falling(self.ramp)
        return weights

    def over(self, start: int, stop: int) -> range:
        """The tiles that have weight at any pixel from `start` up to `stop`."""
        return range(
            next(n for n in range(len(self)) if self.support(n)[1] > start),
            next(n for n in reversed(range(len(self))) if self.support(n)[0] < stop) + 1,
        )


def rising(ramp: int) -> npt.NDArray[np.float32]:
    """Cosine ramp from 0 to 1 over `ramp` (even) pixels, float32.

    The upper half is computed and the lower is 1 minus its mirror, which float32 does without rounding. So
    `rising(n) + falling(n) == 1` holds exactly, not nearly.
    """
    position = (np.arange(ramp // 2, ramp) + 0.5) / max(ramp, 1)
    upper = (0.5 - 0.5 * np.cos(np.pi * position)).astype(np.float32)
    return np.concatenate([(np.float32(1) - upper)[::-1], upper])


def falling(ramp: int) -> npt.NDArray[np.float32]:
    """The mirror image of `rising`."""
    return rising(ramp)[::-1].copy()


def plan_axis(length: int, *, size: int, halo: int, stitch: StitchMode = "blend") -> Axis:
    """Spread tiles of `size` pixels evenly over `length` pixels, so that neighbours share `2 * halo` or more.

    Args:
        length: Pixels of the raster, 1 or more.
        size: Pixels of a tile. Where it exceeds `length` the one tile looks past the end.
        halo: Pixels on each side that only give context, 0 or more, less than half of `size` where one tile does not
            suffice.
        stitch: "blend" with cosine ramps, or "crop" to the cores.

    Raises:
        InputError: If the sizes leave no core.
    """
    if length < 1 or size < 1 or halo < 0 or (length > size and 2 * halo >= size):
        raise InputError(
            f"No tiles of {size} px with a halo of {halo} px can be laid over {length} px.",
            hint="Use a halo of less than half the tile size.",
        )
    count = 1 if length <= size else math.ceil((length - size) / (size - 2 * halo)) + 1
    offsets = tuple(n * (length - size) // (count - 1) if n else 0 for n in range(count))
    cuts = tuple((left + size + right) // 2 for left, right in itertools.pairwise(offsets))
    ramp = 0
    if stitch == "blend" and cuts:
        shared = min(left + size - right for left, right in itertools.pairwise(offsets))
        room = min((b - a for a, b in itertools.pairwise(cuts)), default=shared)
        ramp = max(0, min(shared - 2 * (halo // 2), room)) // 2 * 2
    return Axis(length=length, size=size, offsets=offsets, cuts=cuts, ramp=ramp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One model call."""

    row: int
    """Number of its tile row, from the top."""
    col: int
    """Number of its tile column, from the left."""
    window: Window
    """What the model reads; past the raster's edge only where the raster is smaller than a tile."""
    core: Window
    """The pixels that it alone owns."""
    support: Window
    """The pixels where it has any weight; within `window`, contains `core`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """All tiles of a raster."""

    rows: Axis
    cols: Axis

    @classmethod
    def of_shape(
        cls, shape: tuple[int, int], *, tile_shape: tuple[int, int], halo: int, stitch: StitchMode = "blend"
    ) -> TilePlan:
        """Plan a raster of `shape` = (height, width) in tiles of `tile_shape` = (height, width)."""
        return cls(
            rows=plan_axis(shape[0], size=tile_shape[0], halo=halo, stitch=stitch),
            cols=plan_axis(shape[1], size=tile_shape[1], halo=halo, stitch=stitch),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the raster."""
        return self.rows.length, self.cols.length

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(height, width) of every tile."""
        return self.rows.size, self.cols.size

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(row, col) for row in range(len(self.rows)) for col in range(len(self.cols)))

    def tile(self, row: int, col: int) -> Tile:
        """The tile in tile row `row` and tile column `col`."""
        height, width = self.tile_shape
        window = Window(col_off=self.cols.offsets[col], row_off=self.rows.offsets[row], width=width, height=height)
        return Tile(
            row=row,
            col=col,
            window=window,
            core=_window(self.rows.core(row), self.cols.core(col)),
            support=_window(self.rows.support(row), self.cols.support(col)),
        )


def shard_windows(
    shape: tuple[int, int], *, largest: tuple[int, int], align: int, within: Window | None = None
) -> list[Window]:
    """Cut a raster of `shape`, or the part `within`, into shards, column strip by column strip from the top down.

    Shards partition what is cut. Every tile that has weight in a shard is computed for it; results do not depend on how
    a raster is cut.

    Args:
        shape: (height, width).
        largest: (height, width) that a shard has at most, but for one block that it always has.
        align: Side of a block; shards meet where blocks do.
        within: What is to be cut; None for everything.
    """
    whole = within or Window.of_shape(shape)
    rows = _edges(whole.row_off, whole.row_end, largest[0], align)
    cols = _edges(whole.col_off, whole.col_end, largest[1], align)
    return [_window(r, c) for c in itertools.pairwise(cols) for r in itertools.pairwise(rows)]


def _edges(start: int, stop: int, longest: int, align: int) -> list[int]:
    step = max(align, longest // align * align)
    return [start, *range((start // step + 1) * step, stop, step), stop]


def _window(rows: tuple[int, int], cols: tuple[int, int]) -> Window:
    return Window(col_off=cols[0], row_off=rows[0], width=cols[1] - cols[0], height=rows[1] - rows[0])
