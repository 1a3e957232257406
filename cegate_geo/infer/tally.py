"""Counts pixels and square metres of each class while the output streams by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.job import ClassShare


class Tally:
    """Pixels and areas by channel.

    Args:
        legend: The classes, in channel order.
        ground: How to measure pixels; None where that is unknown.
    """

    def __init__(self, legend: Legend, ground: GroundMeasure | None) -> None:
        self._legend, self._ground = legend, ground
        self._pixels = np.zeros(len(legend), np.int64)
        self._areas = np.zeros(len(legend), np.float64)

    def add(self, window: Window, channels: npt.NDArray[np.unsignedinteger], wanted: npt.NDArray[np.bool_]) -> None:
        """Count the winning channels (H, W) of a window where `wanted` (H, W)."""
        if self._ground is None:
            self._pixels += self._by_row(channels, wanted).sum(axis=0)
            return
        for part, areas in self._ground.row_areas(window):
            where = part.slices(window)
            counts = self._by_row(channels[where], wanted[where])
            self._pixels += counts.sum(axis=0)
            self._areas += areas @ counts

    def _by_row(
        self, channels: npt.NDArray[np.unsignedinteger], wanted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """Pixels of each row and channel: (H, K)."""
        rows, classes = channels.shape[0], len(self._legend)
        total = np.count_nonzero(wanted, axis=1)
        counts = np.empty((rows, classes), np.int64)
        for channel in range(1, classes):
            counts[:, channel] = np.count_nonzero((channels == channel) & wanted, axis=1)
        counts[:, 0] = total - counts[:, 1:].sum(axis=1)
        return counts

    def shares(self) -> list[ClassShare]:
        """One entry a class, in the legend's order."""
        return [
            ClassShare(
                id=c.id,
                name=c.name,
                color=c.hex,
                pixels=int(self._pixels[n]),
                area_m2=float(self._areas[n]) if self._ground else None,
            )
            for n, c in enumerate(self._legend)
        ]

    @property
    def pixels(self) -> int:
        """All pixels that got a class."""
        return int(self._pixels.sum())
