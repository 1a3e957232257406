"""Counts pixels and square metres of each class while the output streams by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.job import ClassShare

QUANTA = 2**36
"""Parts of a pixel of middling size: areas are summed in whole ones."""
LOW = 2**18


class Tally:
    """Pixels and areas by channel.

    Areas are summed as whole numbers of a small unit, so that the sums do not depend on what was counted when, where
    and by whom: tallies of shards add up to that of one run, to the bit.

    Args:
        legend: The classes, in channel order.
        ground: How to measure pixels; None where that is unknown.
    """

    def __init__(self, legend: Legend, ground: GroundMeasure | None) -> None:
        self._legend, self._ground = legend, ground
        self._pixels = [0] * len(legend)
        self._areas = [0] * len(legend)
        self._is_measured = [True] * len(legend)
        """False for classes of which a pixel lies where its area is not known."""
        size = ground.size() if ground else None
        self._unit_m2 = 2.0 ** math.ceil(math.log2(size.x_m * size.y_m)) / QUANTA if size else 1.0

    def add(self, window: Window, channels: npt.NDArray[np.unsignedinteger], wanted: npt.NDArray[np.bool_]) -> None:
        """Count the winning channels (H, W) of a window where `wanted` (H, W)."""
        if self._ground is None:
            self._count(self._by_row(channels, wanted))
            return
        for part, areas in self._ground.row_areas(window):
            where = part.slices(window)
            counts = self._by_row(channels[where], wanted[where])
            self._count(counts)
            self._measure(counts, areas)

    def include(self, other: Tally) -> None:
        """Add what another tally of the same legend and grid has counted."""
        self._pixels = [a + b for a, b in zip(self._pixels, other._pixels, strict=True)]
        self._areas = [a + b for a, b in zip(self._areas, other._areas, strict=True)]
        self._is_measured = [a and b for a, b in zip(self._is_measured, other._is_measured, strict=True)]

    def to_json(self) -> dict[str, list[int | None]]:
        """What was counted, as JSON values. Law: `include_json` of it gives the same sums."""
        areas = [area if known else None for area, known in zip(self._areas, self._is_measured, strict=True)]
        return {"pixels": [*self._pixels], "areas": areas}

    def include_json(self, counted: Mapping[str, Any]) -> None:
        """Add what `to_json` of a tally of the same legend and grid gave."""
        other = Tally(self._legend, self._ground)
        other._pixels = [int(n) for n in counted["pixels"]]
        other._areas = [int(n or 0) for n in counted["areas"]]
        other._is_measured = [n is not None for n in counted["areas"]]
        self.include(other)

    def _count(self, counts: npt.NDArray[np.int64]) -> None:
        self._pixels = [a + int(b) for a, b in zip(self._pixels, counts.sum(axis=0), strict=True)]

    def _measure(self, counts: npt.NDArray[np.int64], areas: npt.NDArray[np.float64]) -> None:
        """Add areas: `counts` (H, K) pixels of `areas` (H,) square metres each."""
        units = np.rint(areas / self._unit_m2)
        known = units < 2**50  # false for NaN and infinite areas too
        self._is_measured = [
            a and not b for a, b in zip(self._is_measured, counts[~known].sum(axis=0) > 0, strict=True)
        ]
        # In two parts, so that no sum over rows leaves 64 bits.
        high, low = np.divmod(np.where(known, units, 0).astype(np.int64), LOW)
        sums = zip(self._areas, high @ counts, low @ counts, strict=True)
        self._areas = [area + int(more) * LOW + int(rest) for area, more, rest in sums]

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
                pixels=self._pixels[n],
                area_m2=self._area_m2(n) if self._ground else None,
            )
            for n, c in enumerate(self._legend)
        ]

    def _area_m2(self, channel: int) -> float:
        return self._areas[channel] * self._unit_m2 if self._is_measured[channel] else math.nan

    @property
    def pixels(self) -> int:
        """All pixels that got a class."""
        return sum(self._pixels)
