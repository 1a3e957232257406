"""Turns strips of a scene into batches for the session, tile row by tile row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.infer.reader import Scene, Strip, StripReader
from cegate_geo.infer.tiles import Tile, TilePlan
from cegate_geo.infer.validity import BoolArray, fill_invalid


class Area(Protocol):
    """The part of a scene that is asked for."""

    def touches(self, window: Window) -> bool:
        """Whether any pixel of the window may be asked for; a quick look."""

    def mask(self, window: Window) -> BoolArray:
        """(H, W), True where a pixel is asked for."""


@dataclass(frozen=True, slots=True)
class BandEnd:
    """A tile row is through: its final rows can be written."""

    window: Window
    wanted: BoolArray
    """(H, W), True where a class is to be written: data, and inside the area."""


@dataclass(slots=True)
class Batch:
    """Input for one session call, and what happens with its output, in order."""

    inputs: npt.NDArray[np.generic]
    """(N, C, H, W)."""
    steps: list[Tile | BandEnd] = field(default_factory=list)
    """The n-th `Tile` among them belongs to the n-th output."""
    tiles: int = 0
    """Tiles in `inputs`."""
    skipped: int = 0
    """Tiles that were passed over since the last batch: empty, or outside the area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputForm:
    """How the session wants its input."""

    batch_size: int
    dtype: np.dtype[np.generic]
    divisor: float
    """Raster values are divided by it."""


class Feed:
    """Batches of one shard.

    Args:
        scene: The scene; read in the thread that iterates.
        plan: The tile plan of the scene.
        region: The shard's window.
        form: How the session wants its input.
        area: What is asked for; None for everything.
    """

    def __init__(self, scene: Scene, plan: TilePlan, region: Window, *, form: InputForm, area: Area | None) -> None:
        self._scene, self._plan, self._region, self._form, self._area = scene, plan, region, form, area
        self._rows = plan.rows.over(region.row_off, region.row_end)
        self._cols = plan.cols.over(region.col_off, region.col_end)

    def __iter__(self) -> Iterator[Batch]:
        plan = self._plan
        first, last = plan.tile(0, self._cols.start).window, plan.tile(0, self._cols.stop - 1).window
        reader = StripReader(self._scene, (first.col_off, min(last.col_end, plan.shape[1])))
        batch = self._empty_batch()
        for row in self._rows:
            tiles = [plan.tile(row, col) for col in self._cols]
            if self._area is not None:
                asked = [t for t in tiles if self._area.touches(t.support)]
                batch.skipped += len(tiles) - len(asked)
                tiles = asked
            if tiles:
                window = tiles[0].window
                strip = reader.read(window.row_off, min(window.row_end, plan.shape[0]))
                wanted = self._wanted(strip)
                for tile in tiles:
                    if not wanted[tile.support.slices(strip.window)].any():
                        batch.skipped += 1
                        continue
                    self._put(batch, tile, strip)
                    if batch.tiles == self._form.batch_size:
                        yield batch
                        batch = self._empty_batch()
                batch.steps.extend(self._band_end(row, strip, wanted))
        yield batch

    def _empty_batch(self) -> Batch:
        shape = (self._form.batch_size, self._scene.channels, *self._plan.tile_shape)
        return Batch(np.empty(shape, self._form.dtype))

    def _wanted(self, strip: Strip) -> BoolArray:
        return strip.valid if self._area is None else strip.valid & self._area.mask(strip.window)

    def _band_end(self, row: int, strip: Strip, wanted: BoolArray) -> Iterator[BandEnd]:
        start, stop = self._plan.rows.final(row)
        if start < stop:
            band = Window(col_off=0, row_off=start, width=self._plan.shape[1], height=stop - start)
            window = band.intersection(self._region)
            if window is not None:
                yield BandEnd(window, wanted[window.slices(strip.window)])

    def _put(self, batch: Batch, tile: Tile, strip: Strip) -> None:
        inside = tile.window.intersection(strip.window) or tile.window
        rows, cols = inside.slices(strip.window)
        values, valid = strip.values[:, rows, cols], strip.valid[rows, cols]
        if inside != tile.window:
            below, right = tile.window.height - inside.height, tile.window.width - inside.width
            values = np.pad(values, ((0, 0), (0, below), (0, right)), mode="symmetric")
            valid = np.pad(valid, ((0, below), (0, right)), mode="symmetric")
        target = batch.inputs[batch.tiles]
        if valid.all():
            self._scale(values, target)
        else:
            self._scale(np.where(valid, values, np.zeros((), values.dtype)), target)
            fill_invalid(target, valid)
        batch.tiles += 1
        batch.steps.append(tile)

    def _scale(self, values: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> None:
        if self._form.divisor == 1:
            np.copyto(target, values, casting="unsafe")
        else:
            np.divide(values, np.float32(self._form.divisor), out=target, dtype=np.float32, casting="unsafe")
