"""Turns strips of a scene into batches for the session, tile row by tile row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Margin
from cegate_geo.domain.windows import Window
from cegate_geo.infer.normalisation import Normalisation
from cegate_geo.infer.reader import Strip
from cegate_geo.infer.rescaled import RescaledScene, WantedRows
from cegate_geo.infer.strip_reader import StripReader
from cegate_geo.infer.tiles import Tile, TilePlan
from cegate_geo.infer.validity import BoolArray, fill_invalid
from cegate_geo.infer.view import Shard, View


@dataclass(frozen=True, slots=True)
class BandEnd:
    """A tile row is through: its final rows can be written."""

    window: Window
    """The tile row's final rows, on the grid of the tiles."""
    wanted: BoolArray
    """(H, W), True where there is a result: data, and asked for."""
    restored: tuple[Window, BoolArray] | None = None
    """Where outputs lie on the scene's grid and tiles do not: the rows of the scene that are complete now, and (H, W),
    True where a class is to be written."""


@dataclass(slots=True)
class Batch:
    """Input for one session call, and what happens with its output, in order."""

    inputs: npt.NDArray[np.generic]
    """(N, C, H, W), N the same in every batch: a session may compute batches of different sizes in different ways. What
    follows the `tiles` first ones repeats the last of them."""
    steps: list[Tile | BandEnd] = field(default_factory=list)
    """The n-th `Tile` among them belongs to the n-th output."""
    tiles: int = 0
    """Tiles in `inputs`; where there is none, `inputs` holds nothing."""
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
        view: The scene as the model sees it; read in the thread that iterates.
        plan: The tile plan of the grid that the model sees.
        shard: What is to be computed.
        form: How the session wants its input.
    """

    def __init__(self, view: View, plan: TilePlan, shard: Shard, *, form: InputForm) -> None:
        self._view, self._plan, self._shard, self._form = view, plan, shard, form
        self._area, region = view.needed, shard.region
        self._rows = plan.rows.over(region.row_off, region.row_end)
        self._cols = plan.cols.over(region.col_off, region.col_end)
        back = view.back
        self._restored = None if back is None else WantedRows(back, shard.target, area=view.asked)

    def __iter__(self) -> Iterator[Batch]:
        plan, reader, batch = self._plan, self._open(), self._empty_batch()
        for row in self._rows:
            asked = self._asked(row)
            batch.skipped += len(self._cols) - len(asked)
            strip = wanted = None
            is_run = False
            if asked:
                window = self._form.margin.around(asked[0].window)
                strip = reader.read(max(0, window.row_off), min(window.row_end, plan.shape[0]))
                wanted = self._wanted(strip)
                for tile in asked:
                    if not wanted[tile.support.slices(strip.window)].any():
                        batch.skipped += 1
                        continue
                    is_run = True
                    self._put(batch, tile, strip)
                    if batch.tiles == self._form.batch_size:
                        yield batch
                        batch = self._empty_batch()
            end = self._band_end(row, strip, wanted, is_run=is_run)
            if end is not None:
                batch.steps.append(end)
            if not batch.tiles:
                # However much of a scene is empty: nothing gathers, and somebody looks whether to go on.
                yield batch
                batch = self._empty_batch()
        if batch.tiles:
            batch.inputs[batch.tiles :] = batch.inputs[batch.tiles - 1]
        yield batch

    def _open(self) -> StripReader:
        """A reader of all columns that the shard's tiles see, on their grid."""
        view, plan = self._view, self._plan
        ends = (self._cols.start, self._cols.stop - 1)
        first, last = (self._form.margin.around(plan.tile(0, col).window) for col in ends)
        columns = max(0, first.col_off), min(last.col_end, plan.shape[1])
        if view.resampling is None:
            return StripReader(view.scene, columns)
        on_read = self._restored.put if self._restored is not None else lambda _: None
        return StripReader(RescaledScene(view.scene, view.resampling, columns, on_read=on_read), columns)

    def _asked(self, row: int) -> list[Tile]:
        """The tiles of a row that may hold something that is asked for."""
        tiles = [self._plan.tile(row, col) for col in self._cols]
        return tiles if self._area is None else [t for t in tiles if self._area.touches(t.support)]

    def _empty_batch(self) -> Batch:
        window = self._form.margin.around(Window.of_shape(self._plan.tile_shape))
        return Batch(np.empty((self._form.batch_size, self._view.scene.channels, *window.shape), self._form.dtype))

    def _wanted(self, strip: Strip) -> BoolArray:
        return strip.valid if self._area is None else strip.valid & self._area.mask(strip.window)

    def _band_end(self, row: int, strip: Strip | None, wanted: BoolArray | None, *, is_run: bool) -> BandEnd | None:
        """The end of a tile row; None where it gives nothing to write."""
        start, stop = self._plan.rows.final(row)
        restored = self._restored.take(stop) if self._restored is not None else None
        if not is_run and (restored is None or not restored[1].any()):
            return None
        if start == stop:
            return None
        band = Window(col_off=0, row_off=start, width=self._plan.shape[1], height=stop - start)
        window = band.intersection(self._shard.region)
        if window is None:
            return None
        if strip is None or wanted is None:
            return BandEnd(window, np.zeros(window.shape, np.bool_), restored)
        return BandEnd(window, wanted[window.slices(strip.window)], restored)

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
        elif form.divisor == 1 and target.dtype.kind in "ui" and values.dtype.kind == "f":
            np.rint(values, out=target, casting="unsafe")  # resampled, for a graph that takes whole numbers
        elif form.divisor == 1:
            np.copyto(target, values, casting="unsafe")
        else:
            np.divide(values, np.float32(form.divisor), out=target, dtype=np.float32, casting="unsafe")


def middle_tile(view: View, plan: TilePlan, form: InputForm) -> npt.NDArray[np.generic] | None:
    """Input (1, C, H, W) of the tile that lies nearest to the scene's middle and holds data; None where none does.

    Depends on nothing but scene and plan, so that all shards of a scene see the same one.
    """
    everything = replace(view, restores=False, asked=None)

    def middle(window: Window) -> Window:
        row, col = window.row_off + window.height // 2, window.col_off + window.width // 2
        return Window(col_off=col, row_off=row, width=1, height=1)

    def distance(tile: Tile) -> int:
        here, centre = middle(tile.core), middle(Window.of_shape(plan.shape))
        return (here.row_off - centre.row_off) ** 2 + (here.col_off - centre.col_off) ** 2

    for tile in sorted(plan, key=distance):
        pixel = middle(tile.core)
        for batch in Feed(everything, plan, Shard(target=pixel, region=pixel), form=form):
            if batch.tiles:
                return batch.inputs[:1]
    return None
