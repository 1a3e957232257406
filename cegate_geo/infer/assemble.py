"""From the session's output to bands of finished pixels: stitch, choose the winner, keep what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError
from cegate_geo.infer.class_rule import ClassRule
from cegate_geo.infer.feed import BandEnd, Batch
from cegate_geo.infer.resample import Resampling
from cegate_geo.infer.stitch import Block, Stitcher
from cegate_geo.infer.tiles import TilePlan
from cegate_geo.infer.view import Shard
from cegate_geo.infer.writer import BLOCK_SIZE, class_raster

RESTORED_ROWS = 64
"""Rows, of the tiles' grid or of the outputs', whose probabilities are resampled at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Finished rows of a shard."""

    window: Window
    wanted: npt.NDArray[np.bool_]
    """(H, W), False where the output is nodata."""
    classes: npt.NDArray[np.unsignedinteger]
    """(H, W) class ids, or nodata."""
    confidence: npt.NDArray[np.uint8] | None
    """(H, W) winner's probability, 1..255 = 0..1, 0 = nodata."""
    probabilities: npt.NDArray[np.uint8] | None
    """(K, H, W), 0..255 = 0..1."""


class Counter(Protocol):
    """Counts what comes out."""

    def add(self, window: Window, channels: npt.NDArray[np.unsignedinteger], wanted: npt.NDArray[np.bool_]) -> None:
        """Count the winning channels (H, W) of a window where `wanted` (H, W)."""


class Canvas:
    """The pixels of one band at a time while they are filled, part by part.

    Args:
        legend: The model's classes.
        rule: How a pixel's class is chosen.
        tally: Counts what comes out.
        emit: Called with each finished band.
        with_confidence: Whether bands hold the winner's probability.
        with_probabilities: Whether bands hold all probabilities.
    """

    def __init__(
        self,
        legend: Legend,
        *,
        rule: ClassRule | None = None,
        tally: Counter,
        emit: Callable[[Band], None],
        with_confidence: bool,
        with_probabilities: bool,
    ) -> None:
        self._tally, self._emit = tally, emit
        self._rule = rule or ClassRule()
        kind = class_raster(legend)
        self._nodata = np.dtype(kind.dtype).type(kind.nodata)
        self._ids = np.array(legend.ids, kind.dtype)
        self._are_channels = legend.ids == tuple(range(len(legend)))
        self._with_confidence, self._with_probabilities = with_confidence, with_probabilities
        self.classes = len(legend)
        """Channels of the model's output."""

    def open(self, window: Window) -> None:
        """Begin a band."""
        self._window, shape = window, window.shape
        self._channels = np.zeros(shape, np.uint8 if len(self._ids) <= 256 else np.uint16)
        self._confidence = np.zeros(shape, np.uint8) if self._with_confidence else None
        self._probabilities = np.zeros((len(self._ids), *shape), np.uint8) if self._with_probabilities else None

    def place(self, block: Block) -> None:
        """Fill a part of the band."""
        rows, cols = block.window.slices(self._window)
        channels, best = self._rule.choose(block.probabilities)
        self._channels[rows, cols] = channels
        if self._confidence is not None:
            self._confidence[rows, cols] = np.maximum(_as_bytes(best), 1)
        if self._probabilities is not None:
            self._probabilities[:, rows, cols] = _as_bytes(block.probabilities)

    def close(self, wanted: npt.NDArray[np.bool_]) -> None:
        """Finish the band: where it is not `wanted` (H, W) it becomes nodata."""
        self._tally.add(self._window, self._channels, wanted)
        classes = self._channels if self._are_channels else self._ids[self._channels]
        classes = classes.astype(self._ids.dtype, copy=False)
        if not wanted.all():
            empty = ~wanted
            classes[empty] = self._nodata
            if self._confidence is not None:
                self._confidence[empty] = 0
            if self._probabilities is not None:
                self._probabilities[:, empty] = 0
        self._emit(
            Band(
                window=self._window,
                wanted=wanted,
                classes=classes,
                confidence=self._confidence,
                probabilities=self._probabilities,
            )
        )


class Rows(Protocol):
    """What becomes of the stitched rows of one shard, from the top down."""

    def begin(self, window: Window) -> None:
        """The rows of `window`, on the grid of the tiles, come next."""

    def place(self, block: Block) -> None:
        """A part of them is complete."""

    def end(self, end: BandEnd) -> None:
        """A tile row is through. Where none of its tiles was run, nothing of it was begun."""


class Assembler:
    """Takes batches of one shard with their probabilities, stitches them tile row by tile row.

    Args:
        plan: The tile plan.
        region: The shard's window, on the grid of the tiles.
        classes: Channels of the model's output.
        rows: Takes what is complete.
    """

    def __init__(self, plan: TilePlan, region: Window, *, classes: int, rows: Rows) -> None:
        self._plan, self._region, self._rows = plan, region, rows
        self._stitcher = Stitcher(plan, region, classes=classes)
        self._open_row = -1
        self._window: Window | None = None

    def __call__(self, item: tuple[Batch, npt.NDArray[np.float32]]) -> None:
        """Take a batch and its probabilities (N, K, H, W)."""
        batch, probabilities = item
        number = 0
        for step in batch.steps:
            if isinstance(step, BandEnd):
                self._rows.end(step)
                continue
            if step.row != self._open_row:
                self._open_row, self._window = step.row, _final_rows(self._plan, step.row, self._region)
                if self._window is not None:
                    self._rows.begin(self._window)
            block = self._stitcher.add(step, probabilities[number])
            number += 1
            if block is not None and self._window is not None:
                self._rows.place(block)


class SameGrid:
    """Rows of tiles that lie on the outputs' grid: they are the bands.

    Args:
        canvas: Where bands are filled.
    """

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._window: Window | None = None

    def begin(self, window: Window) -> None:
        """Begin a band."""
        self._window = window
        self._canvas.open(window)

    def place(self, block: Block) -> None:
        """Fill a part of it."""
        self._canvas.place(block)

    def end(self, end: BandEnd) -> None:
        """Write it."""
        if self._window == end.window:
            self._window = None
            self._canvas.close(end.wanted)


class OtherGrid:
    """Rows of tiles on another grid than the outputs': probabilities go back before the winner is chosen.

    Args:
        shard: What is to be written, and the window of the tiles' grid that it takes.
        back: From the tiles' grid to the outputs'.
        canvas: Where bands are filled, on the outputs' grid.
    """

    def __init__(self, shard: Shard, *, back: Resampling, canvas: Canvas) -> None:
        self._region, self._back, self._canvas = shard.region, back, canvas
        self._end = shard.region.row_off
        """Rows before it are complete."""
        self._sums = np.zeros((canvas.classes, 0, shard.region.width), np.float32)
        """(K, H, W): the last complete rows, down to `_end`."""
        self._holds = np.zeros((0, shard.region.width), np.bool_)
        """(H, W), True where they are results."""
        self._band: Block | None = None

    def begin(self, window: Window) -> None:
        """Begin rows of the tiles' grid."""
        self._band = self._empty(window)

    def place(self, block: Block) -> None:
        """Fill a part of them."""
        if self._band is not None:
            rows, cols = block.window.slices(self._band.window)
            self._band.probabilities[:, rows, cols] = block.probabilities

    def _empty(self, window: Window) -> Block:
        return Block(window, np.zeros((self._canvas.classes, *window.shape), np.float32))

    def end(self, end: BandEnd) -> None:
        """Write the output's rows that are complete now."""
        band, self._band = self._band, None
        if band is None or band.window != end.window:
            band = self._empty(end.window)  # no tile of the row was run
        self._hold(band.probabilities, end)
        if end.restored is not None:
            window, wanted = end.restored
            for part in _block_rows(window):
                self._restore(part, wanted[part.slices(window)])
        kept = max(0, self._end - self._first_needed(self._end))
        self._sums = self._sums[:, self._sums.shape[1] - kept :].copy()
        self._holds = self._holds[len(self._holds) - kept :].copy()

    def _hold(self, probabilities: npt.NDArray[np.float32], end: BandEnd) -> None:
        """Put new rows below those that are still needed."""
        top, row = self._first_needed(end.window.row_off), end.window.row_off
        old = max(0, self._end - top)
        # Between them may lie tile rows that were passed over: they hold no results.
        gap = np.zeros((row - max(top, self._end), end.window.width), np.bool_)
        empty = np.zeros((self._canvas.classes, *gap.shape), np.float32)
        self._sums = np.concatenate([self._sums[:, self._sums.shape[1] - old :], empty, probabilities], axis=1)
        self._holds = np.concatenate([self._holds[len(self._holds) - old :], gap, end.wanted])
        self._end = end.window.row_end

    def _first_needed(self, stop: int) -> int:
        """The first row that output rows are made of which are not complete with the rows before `stop`."""
        row = self._back.rows.ready(stop)
        return stop if row == self._back.rows.target else min(stop, self._back.rows.first(row))

    def _restore(self, window: Window, wanted: npt.NDArray[np.bool_]) -> None:
        """Write one band of the output."""
        if not wanted.any():
            return
        self._canvas.open(window)
        begin, rows = self._end - self._sums.shape[1], self._back.rows
        step = max(1, min(RESTORED_ROWS, RESTORED_ROWS * rows.target // rows.source))
        for row in range(window.row_off, window.row_end, step):
            height = min(step, window.row_end - row)
            part = Window(col_off=window.col_off, row_off=row, width=window.width, height=height)
            around = self._back.support(part)
            here = slice(around.row_off - begin, around.row_end - begin)
            cols = slice(around.col_off - self._region.col_off, around.col_end - self._region.col_off)
            made, holds = self._back.apply(
                self._sums[:, here, cols], self._holds[here, cols], around=around, window=part
            )
            if (wanted[part.slices(window)] & ~holds).any():
                raise CegateError(f"Pixels of {part} were left without a result.", hint="Report this, with the scene.")
            self._canvas.place(Block(part, made))
        self._canvas.close(wanted)


def _block_rows(window: Window) -> Iterator[Window]:
    """A window, cut where a row of the output's blocks begins."""
    start = window.row_off
    while start < window.row_end:
        stop = min(window.row_end, (start // BLOCK_SIZE + 1) * BLOCK_SIZE)
        yield Window(col_off=window.col_off, row_off=start, width=window.width, height=stop - start)
        start = stop


def _final_rows(plan: TilePlan, row: int, region: Window) -> Window | None:
    """The part of a region that is complete with a tile row and was not before."""
    start, stop = plan.rows.final(row)
    start, stop = max(start, region.row_off), min(stop, region.row_end)
    if start >= stop:
        return None
    return Window(col_off=region.col_off, row_off=start, width=region.width, height=stop - start)


def _as_bytes(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """0..1 as 0..255, rounded to the nearest."""
    scaled = probabilities * np.float32(255)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8)
