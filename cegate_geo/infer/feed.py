"""Turns strips of a scene into batches for the session, tile row by tile row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Margin
from cegate_geo.domain.windows import Window
from cegate_geo.infer.normalisation import Normalisation
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
    normalisation: Normalisation | None = None
    margin: Margin = field(default_factory=Margin)
    """What the session sees around a tile beyond the tile itself."""


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
        plan, margin = self._plan, self._form.margin
        first, last = (margin.around(plan.tile(0, c).window) for c in (self._cols.start, self._cols.stop - 1))
        reader = StripReader(self._scene, (max(0, first.col_off), min(last.col_end, plan.shape[1])))
        batch = self._empty_batch()
        for row in self._rows:
            tiles = [plan.tile(row, col) for col in self._cols]
            if self._area is not None:
                asked = [t for t in tiles if self._area.touches(t.support)]
                batch.skipped += len(tiles) - len(asked)
                tiles = asked
            if tiles:
                window = margin.around(tiles[0].window)
                strip = reader.read(max(0, window.row_off), min(window.row_end, plan.shape[0]))
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
        window = self._form.margin.around(Window.of_shape(self._plan.tile_shape))
        return Batch(np.empty((self._form.batch_size, self._scene.channels, *window.shape), self._form.dtype))

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
        window = self._form.margin.around(tile.window)
        inside = window.intersection(strip.window) or window
        rows, cols = inside.slices(strip.window)
        values, valid = strip.values[:, rows, cols], strip.valid[rows, cols]
        if inside != window:
            above, left = inside.row_off - window.row_off, inside.col_off - window.col_off
            down = (above, window.height - inside.height - above)
            across = (left, window.width - inside.width - left)
            values = np.pad(values, ((0, 0), down, across), mode="symmetric")
            valid = np.pad(valid, (down, across), mode="symmetric")
        target = batch.inputs[batch.tiles]
        if valid.all():
            self._scale(values, target)
        else:
            self._scale(np.where(valid, values, np.zeros((), values.dtype)), target)
            fill_invalid(target, valid)
        batch.tiles += 1
        batch.steps.append(tile)

    def _scale(self, values: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> None:
        form, more = self._form, self._form.normalisation
        if more is not None:
            np.copyto(target, more.apply(values, form.divisor), casting="unsafe")
        elif form.divisor == 1:
            np.copyto(target, values, casting="unsafe")
        else:
            np.divide(values, np.float32(form.divisor), out=target, dtype=np.float32, casting="unsafe")


def middle_tile(scene: Scene, plan: TilePlan, form: InputForm) -> npt.NDArray[np.generic] | None:
    """Input (1, C, H, W) of the tile that lies nearest to the scene's middle and holds data; None where none does.

    Depends on nothing but scene and plan, so that all shards of a scene see the same one.
    """

    def middle(window: Window) -> Window:
        row, col = window.row_off + window.height // 2, window.col_off + window.width // 2
        return Window(col_off=col, row_off=row, width=1, height=1)

    def distance(tile: Tile) -> int:
        here, centre = middle(tile.core), middle(Window.of_shape(plan.shape))
        return (here.row_off - centre.row_off) ** 2 + (here.col_off - centre.col_off) ** 2

    for tile in sorted(plan, key=distance):
        for batch in Feed(scene, plan, middle(tile.core), form=form, area=None):
            if batch.tiles:
                return batch.inputs[:1]
    return None
