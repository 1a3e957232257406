"""Resampling between two grids over the same ground: area-average where pixels grow, bilinear where they shrink.

Both grids cover exactly the same rectangle, so all that matters is how many pixels each has along an axis. Weights come
from whole numbers and depend on nothing but an output pixel's own place: the same bits come out whatever window is
asked for. Pixels that are no data have no weight; what is left is scaled up to 1.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer.validity import BoolArray

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Taps:
    """Which input pixels make an output pixel along one axis, and how much each counts."""

    index: IntArray
    """(N, T): input pixels of N output pixels."""
    weights: FloatArray
    """(N, T): they sum to 1 along T; a tap that is not needed counts 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisResampling:
    """From `source` pixels to `target` pixels along one axis.

    Laws: the taps of a pixel do not depend on which others are asked for; `first` and `last` never fall; with as many
    pixels on both sides nothing changes.
    """

    source: int
    target: int

    def __post_init__(self) -> None:
        if min(self.source, self.target) < 1:
            raise InputError(f"{self.source} px can't be resampled to {self.target} px: each axis needs one or more.")

    def first(self, pixel: int) -> int:
        """The first input pixel that output pixel `pixel` is made of."""
        return int(self._ends(np.array([pixel]))[0][0])

    def last(self, pixel: int) -> int:
        """The last one."""
        return int(self._ends(np.array([pixel]))[1][0])

    def support(self, start: int, stop: int) -> tuple[int, int]:
        """First and past-the-end input pixel of output pixels `start` up to `stop`."""
        return self.first(start), self.last(stop - 1) + 1

    def ready(self, stop: int) -> int:
        """How many output pixels, from the first on, are made of input pixels before `stop` alone."""
        return bisect_left(range(self.target), stop, key=self.last)

    def users(self, start: int, stop: int) -> tuple[int, int]:
        """First and past-the-end output pixel that any input pixel from `start` up to `stop` has a say in."""
        pixels = range(self.target)
        return bisect_left(pixels, start, key=self.last), bisect_right(pixels, stop - 1, key=self.first)

    def each_users(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """First and last output pixel that each input pixel from `start` up to `stop` has a say in: (N,) each."""
        begin, end = self.users(start, stop)
        first, last = self._ends(np.arange(begin, end, dtype=np.int64))
        pixels = np.arange(start, stop)
        return np.searchsorted(last, pixels) + begin, np.searchsorted(first, pixels, side="right") + begin - 1

    def taps(self, start: int, stop: int) -> Taps:
        """The taps of output pixels `start` up to `stop`."""
        pixels = np.arange(start, stop, dtype=np.int64)
        first, last = self._ends(pixels)
        if self.target == self.source:
            return Taps(first[:, None], np.ones((len(pixels), 1), np.float32))
        if self.target > self.source:
            share = (self._centres(pixels) % (2 * self.target)) / (2 * self.target)
            return Taps(np.stack([first, last], axis=1), np.stack([1 - share, share], axis=1).astype(np.float32))
        # In units of 1 / target of an input pixel, input and output pixels both begin and end at whole numbers.
        reached = first[:, None] + np.arange(-(-self.source // self.target) + 1)
        begin = np.maximum(reached * self.target, pixels[:, None] * self.source)
        end = np.minimum((reached + 1) * self.target, (pixels[:, None] + 1) * self.source)
        weights = np.maximum(end - begin, 0) / self.source
        return Taps(np.minimum(reached, last[:, None]), weights.astype(np.float32))

    def _ends(self, pixels: IntArray) -> tuple[IntArray, IntArray]:
        """First and last input pixel of each output pixel."""
        if self.target == self.source:
            return pixels, pixels
        if self.target > self.source:
            low = self._centres(pixels) // (2 * self.target)
            return np.maximum(low, 0), np.minimum(low + 1, self.source - 1)
        return pixels * self.source // self.target, ((pixels + 1) * self.source - 1) // self.target

    def _centres(self, pixels: IntArray) -> IntArray:
        """Output pixels' centres, from the first input pixel's centre on, in units of 1 / (2 * target)."""
        return (2 * pixels + 1) * self.source - self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """From one grid to another over the same ground, each axis on its own."""

    rows: AxisResampling
    cols: AxisResampling

    @classmethod
    def between(cls, source: tuple[int, int], target: tuple[int, int]) -> Resampling:
        """From a grid of shape `source` = (height, width) to one of shape `target`."""
        return cls(
            rows=AxisResampling(source=source[0], target=target[0]),
            cols=AxisResampling(source=source[1], target=target[1]),
        )

    @property
    def source_shape(self) -> tuple[int, int]:
        """(height, width) of the grid that is read."""
        return self.rows.source, self.cols.source

    @property
    def target_shape(self) -> tuple[int, int]:
        """(height, width) of the grid that is made."""
        return self.rows.target, self.cols.target

    @property
    def inverse(self) -> Resampling:
        """The way back."""
        return Resampling.between(self.target_shape, self.source_shape)

    def support(self, window: Window) -> Window:
        """The input pixels that a window of the output is made of."""
        return _window(
            self.rows.support(window.row_off, window.row_end), self.cols.support(window.col_off, window.col_end)
        )

    def users(self, window: Window) -> Window:
        """The output pixels that any pixel of a window of the input has a say in."""
        return _window(self.rows.users(window.row_off, window.row_end), self.cols.users(window.col_off, window.col_end))

    def apply(
        self, values: npt.NDArray[np.generic], valid: BoolArray, *, around: Window, window: Window
    ) -> tuple[FloatArray, BoolArray]:
        """Make a window of the output.

        Args:
            values: (C, h, w) over `around`, of any type. What is not valid may be anything.
            valid: (h, w), True = data.
            around: A window of the input that holds all of `support(window)`.
            window: A window of the output.

        Returns:
            (C, H, W) float32 over `window`, and (H, W): True where any valid input pixel has a say.
        """
        rows = self._local(self.rows, window.row_off, window.row_end, around.row_off)
        cols = self._local(self.cols, window.col_off, window.col_end, around.col_off)
        if valid.all():
            return self._weigh(values, rows, cols), np.ones(window.shape, np.bool_)
        sums = self._weigh(np.where(valid, values, np.zeros((), values.dtype)), rows, cols)
        present, missing = self._weigh(np.stack([valid, ~valid]).view(np.uint8), rows, cols)
        holds: BoolArray = present > 0
        # Where nothing is missing nothing is scaled: such pixels have the same bits in a window without any hole.
        np.divide(sums, present, out=sums, where=holds & (missing > 0))
        return sums, holds

    def _local(self, axis: AxisResampling, start: int, stop: int, offset: int) -> Taps:
        taps = axis.taps(start, stop)
        return Taps(taps.index - offset, taps.weights)

    def _weigh(self, values: npt.NDArray[np.generic], rows: Taps, cols: Taps) -> FloatArray:
        """Weighted sums of (C, h, w) along both axes. The one that leaves fewer pixels goes first, always the same."""
        if self.rows.target * self.cols.source <= self.rows.source * self.cols.target:
            return _along_cols(_along_rows(values, rows), cols)
        return _along_rows(_along_cols(values, cols), rows)


def _along_rows(values: npt.NDArray[np.generic], taps: Taps) -> FloatArray:
    total = np.zeros((values.shape[0], len(taps.index), values.shape[2]), np.float32)
    for index, weights in zip(taps.index.T, taps.weights.T, strict=True):
        if weights.any():
            total += values[:, index].astype(np.float32, copy=False) * weights[:, None]
    return total


def _along_cols(values: npt.NDArray[np.generic], taps: Taps) -> FloatArray:
    total = np.zeros((*values.shape[:2], len(taps.index)), np.float32)
    for index, weights in zip(taps.index.T, taps.weights.T, strict=True):
        if weights.any():
            total += np.take(values, index, axis=2).astype(np.float32, copy=False) * weights
    return total


def _window(rows: tuple[int, int], cols: tuple[int, int]) -> Window:
    return Window(col_off=cols[0], row_off=rows[0], width=cols[1] - cols[0], height=rows[1] - rows[0])
