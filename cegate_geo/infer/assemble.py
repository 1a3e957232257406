"""From the session's output to bands of finished pixels: stitch, choose the winner, keep what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.infer.class_rule import ClassRule
from cegate_geo.infer.feed import BandEnd, Batch
from cegate_geo.infer.stitch import Block, Stitcher
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.tiles import TilePlan
from cegate_geo.infer.writer import class_raster


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


class Assembler:
    """Takes batches of one shard with their probabilities, gives bands from the top down.

    Args:
        plan: The scene's tile plan.
        region: The shard's window.
        legend: The model's classes.
        rule: How a pixel's class is chosen.
        tally: Counts what comes out.
        emit: Called with each finished band.
        with_confidence: Whether bands hold the winner's probability.
        with_probabilities: Whether bands hold all probabilities.
    """

    def __init__(
        self,
        plan: TilePlan,
        region: Window,
        *,
        legend: Legend,
        rule: ClassRule | None = None,
        tally: Tally,
        emit: Callable[[Band], None],
        with_confidence: bool,
        with_probabilities: bool,
    ) -> None:
        self._plan, self._region, self._tally, self._emit = plan, region, tally, emit
        self._rule = rule or ClassRule()
        self._stitcher = Stitcher(plan, region, classes=len(legend))
        kind = class_raster(legend)
        self._nodata = np.dtype(kind.dtype).type(kind.nodata)
        self._ids = np.array(legend.ids, kind.dtype)
        self._are_channels = legend.ids == tuple(range(len(legend)))
        self._with_confidence, self._with_probabilities = with_confidence, with_probabilities
        self._open_row = -1
        self._window: Window | None = None

    def __call__(self, item: tuple[Batch, npt.NDArray[np.float32]]) -> None:
        """Take a batch and its probabilities (N, K, H, W)."""
        batch, probabilities = item
        number = 0
        for step in batch.steps:
            if isinstance(step, BandEnd):
                self._close_row(step)
                continue
            if step.row != self._open_row:
                self._start_row(step.row)
            block = self._stitcher.add(step, probabilities[number])
            number += 1
            if block is not None:
                self._place(block)

    def _start_row(self, row: int) -> None:
        self._open_row, self._window = row, None
        start, stop = self._plan.rows.final(row)
        start, stop = max(start, self._region.row_off), min(stop, self._region.row_end)
        if start >= stop:
            return
        self._window = Window(
            col_off=self._region.col_off, row_off=start, width=self._region.width, height=stop - start
        )
        shape = self._window.shape
        self._channels = np.zeros(shape, np.uint8 if len(self._ids) <= 256 else np.uint16)
        self._confidence = np.zeros(shape, np.uint8) if self._with_confidence else None
        self._probabilities = np.zeros((len(self._ids), *shape), np.uint8) if self._with_probabilities else None

    def _place(self, block: Block) -> None:
        if self._window is None:
            return
        rows, cols = block.window.slices(self._window)
        channels, best = self._rule.choose(block.probabilities)
        self._channels[rows, cols] = channels
        if self._confidence is not None:
            self._confidence[rows, cols] = np.maximum(_as_bytes(best), 1)
        if self._probabilities is not None:
            self._probabilities[:, rows, cols] = _as_bytes(block.probabilities)

    def _close_row(self, end: BandEnd) -> None:
        if self._window != end.window:
            return  # all tiles of the row were skipped: what was never written is nodata
        window, wanted, self._window = end.window, end.wanted, None
        self._tally.add(window, self._channels, wanted)
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
                window=window,
                wanted=wanted,
                classes=classes,
                confidence=self._confidence,
                probabilities=self._probabilities,
            )
        )


def _as_bytes(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """0..1 as 0..255, rounded to the nearest."""
    scaled = probabilities * np.float32(255)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8)
