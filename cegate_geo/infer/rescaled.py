"""A scene at the model's GSD: read strip by strip, and the bookkeeping between its grid and the scene's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.infer.reader import AnyScene, Area, Strip
from cegate_geo.infer.resample import IntArray, Resampling
from cegate_geo.infer.strip_reader import StripReader
from cegate_geo.infer.validity import BoolArray

CHUNK_ROWS = 512
"""Rows, of the scene or of the model's grid, that are resampled at once."""


class RescaledScene:
    """Some columns of a scene on the model's grid, to be read from the top down.

    Args:
        scene: The scene.
        resampling: From the scene's grid to the model's.
        columns: First and past-the-end column of the model's grid.
        on_read: Called with each strip of the scene that was read for it.
    """

    def __init__(
        self,
        scene: AnyScene,
        resampling: Resampling,
        columns: tuple[int, int],
        *,
        on_read: Callable[[Strip], None] = lambda _: None,
    ) -> None:
        self._resampling, self._on_read = resampling, on_read
        self._strips = StripReader(scene, resampling.cols.support(*columns))
        self.shape = resampling.target_shape
        self.block_rows = 1
        scale = resampling.rows.source / resampling.rows.target
        self._step = max(1, min(CHUNK_ROWS, int(CHUNK_ROWS / scale)))

    def read(self, window: Window) -> Strip:
        """Resample a window of the columns that this was made for; it may not begin above the last one."""
        values: list[npt.NDArray[np.generic]] = []
        valid = []
        for start in range(window.row_off, window.row_end, self._step):
            height = min(self._step, window.row_end - start)
            part = Window(col_off=window.col_off, row_off=start, width=window.width, height=height)
            source = self._strips.read(*self._resampling.rows.support(part.row_off, part.row_end))
            self._on_read(source)
            made, holds = self._resampling.apply(source.values, source.valid, around=source.window, window=part)
            values.append(made)
            valid.append(holds)
        return Strip(window=window, values=np.concatenate(values, axis=1), valid=np.concatenate(valid))


class AreaAround:
    """The pixels of the model's grid that have a say in the scene's pixels that are asked for.

    Args:
        asked: What is asked for, on the scene's grid.
        back: From the model's grid to the scene's.
    """

    def __init__(self, asked: Area, back: Resampling) -> None:
        self._asked, self._back = asked, back

    def touches(self, window: Window) -> bool:
        """Whether any pixel of the window may be needed; a quick look."""
        return self._asked.touches(self._back.users(window))

    def mask(self, window: Window) -> BoolArray:
        """(H, W), True where a pixel is needed."""
        around = self._back.users(window)
        rows, cols = self._back.rows, self._back.cols
        needed = _any_of(self._asked.mask(around), *rows.each_users(window.row_off, window.row_end), around.row_off)
        return _any_of(needed.T, *cols.each_users(window.col_off, window.col_end), around.col_off).T


def _any_of(asked: BoolArray, first: IntArray, last: IntArray, offset: int) -> BoolArray:
    """Whether any of rows `first` to `last` (inclusive, from `offset` on) is True, for each of N such spans: (N, W)."""
    padded = np.concatenate([asked, np.zeros((1, asked.shape[1]), np.bool_)])
    edges = np.stack([first, last + 1], axis=1).ravel() - offset
    spans: BoolArray = np.logical_or.reduceat(padded, edges, axis=0)[::2]
    return spans


class WantedRows:
    """Which of the scene's pixels get a class: kept from when they are read until the model's rows around are through.

    Args:
        back: From the model's grid to the scene's.
        target: The shard's window of the scene.
        area: What is asked for, on the scene's grid; None for everything.
    """

    def __init__(self, back: Resampling, target: Window, *, area: Area | None) -> None:
        self._back, self._target, self._area = back, target, area
        self._next = target.row_off
        self._read: list[tuple[int, BoolArray]] = []

    def put(self, strip: Strip) -> None:
        """Take what is valid of a strip of the scene. Strips come from the top down and may share rows."""
        known = self._read[-1][0] + len(self._read[-1][1]) if self._read else self._next
        start, stop = max(known, strip.window.row_off), min(strip.window.row_end, self._target.row_end)
        if start < stop:
            rows, cols = self._span(start, stop).slices(strip.window)
            self._read.append((start, strip.valid[rows, cols].copy()))

    def take(self, stop: int) -> tuple[Window, BoolArray] | None:
        """The rows of the scene that are complete once the model's rows before `stop` are, and were not before.

        Rows that were never read are not wanted: no tile around them was asked for.
        """
        end = min(self._back.rows.ready(stop), self._target.row_end)
        if end <= self._next:
            return None
        window = self._span(self._next, end)
        wanted = np.zeros(window.shape, np.bool_)
        for start, valid in self._read:
            first, last = max(start, window.row_off), min(start + len(valid), end)
            if first < last:
                wanted[first - window.row_off : last - window.row_off] = valid[first - start : last - start]
        self._read = [(start, valid) for start, valid in self._read if start + len(valid) > end]
        self._next = end
        if self._area is not None:
            wanted &= self._area.mask(window)
        return window, wanted

    def _span(self, start: int, stop: int) -> Window:
        return Window(col_off=self._target.col_off, row_off=start, width=self._target.width, height=stop - start)
