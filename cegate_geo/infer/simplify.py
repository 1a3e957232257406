"""Arcs with fewer points: neighbours still share their edges, nothing crosses, nothing vanishes.

Each arc is made simpler once (Douglas and Peucker 1973, doi:10.3138/FM57-6770-U75U-7727), whatever lies on its sides,
with its ends fixed. A shortcut is taken only if no point of any other outline, and of the rest of its own, lies between
it and what it cuts off, as those outlines were before (de Berg, van Kreveld,
Schirra 1998, doi:10.1559/152304098782383007).
That is enough for all of them together: if two shortcuts crossed, one of them would have cut off a point of the other's
outline. So it needs no look at what became of the others, and bands of a raster can be done one after the other. Whole
numbers decide, not rounded ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cegate_geo.infer.arcs import Arcs, ramps

GROUP = 1_000_000
"""Pairs of points and lines that are looked at together."""
IntArray = npt.NDArray[np.intp]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far outlines may move."""

    distance: float
    """In the unit of `pixel`."""
    pixel: tuple[float, float] = (1.0, 1.0)
    """Width and height of a pixel."""


def simplify(arcs: Arcs, tolerance: Tolerance, *, cut_rows: tuple[int, int]) -> Arcs:
    """The arcs of a band, simpler.

    Args:
        arcs: All arcs of the band.
        tolerance: How far they may move.
        cut_rows: First and last row of corners. No shortcut runs along one: the next band's outlines are not known.
    """
    points = arcs.points.astype(np.int64)
    chords = _Chords(points, np.array(tolerance.pixel))
    begins, ends = arcs.offsets[:-1], arcs.offsets[1:] - 1
    kept = np.zeros(len(points), np.bool_)
    kept[begins] = kept[ends] = True
    first, last = begins[ends - begins > 1], ends[ends - begins > 1]
    while True:
        is_long = last - first > 1
        first, last = first[is_long], last[is_long]
        if not len(first):
            first, last = _twins(points, kept, begins)
            if not len(first):
                break
            _, farthest = chords.farthest(first, last)
        else:
            distance, farthest = chords.farthest(first, last)
            breaks = distance > tolerance.distance
            breaks |= (points[first, 1] == points[last, 1]) & np.isin(points[first, 1], cut_rows)
            breaks |= (points[first] == points[last]).all(axis=1)
            sound = np.flatnonzero(~breaks)
            breaks[sound] = chords.cut_off_something(first[sound], last[sound], distance[sound])
            first, last, farthest = first[breaks], last[breaks], farthest[breaks]
        kept[farthest] = True
        first, last = np.concatenate([first, farthest]), np.concatenate([farthest, last])
    count = np.add.reduceat(kept, begins, dtype=np.intp)
    return replace(arcs, points=arcs.points[kept], offsets=np.append(0, np.cumsum(count)))


def _twins(points: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_], begins: IntArray) -> tuple[IntArray, IntArray]:
    """Shortcuts between two points that another line joins already."""
    first = np.flatnonzero(kept)
    is_start = np.zeros(len(points) + 1, np.bool_)
    is_start[begins] = is_start[-1] = True
    first, last = first[:-1], first[1:]
    inside = ~is_start[last]
    first, last = first[inside], last[inside]
    place = points[:, 1] * (points[:, 0].max() + 1) + points[:, 0]
    low, high = np.minimum(place[first], place[last]), np.maximum(place[first], place[last])
    order = np.lexsort((high, low))
    same = (np.diff(low[order]) == 0) & (np.diff(high[order]) == 0)
    is_twin = np.zeros(len(first), np.bool_)
    is_twin[order[1:][same]] = is_twin[order[:-1][same]] = True
    is_twin &= last - first > 1
    return first[is_twin], last[is_twin]


class _Chords:
    """Straight lines between two points of an arc, by the numbers of these points."""

    def __init__(self, points: npt.NDArray[np.int64], pixel: FloatArray) -> None:
        self._points, self._pixel = points, pixel
        self._width = int(points[:, 0].max()) + 1
        # Which point of which arc lies at a place: any of them, where several arcs meet.
        self._places, self._numbers = np.unique(points[:, 1] * self._width + points[:, 0], return_index=True)

    def _distances(self, point: IntArray, first: IntArray, last: IntArray) -> FloatArray:
        """From points to chords."""
        start = self._points[first] * self._pixel
        way, to = self._points[last] * self._pixel - start, self._points[point] * self._pixel - start
        length2 = (way**2).sum(axis=1)
        share = np.clip((way * to).sum(axis=1) / np.where(length2 > 0, length2, 1), 0, 1)
        away: FloatArray = np.hypot(*(to - share[:, None] * way).T)
        return away

    def farthest(self, first: IntArray, last: IntArray) -> tuple[FloatArray, IntArray]:
        """The largest distance of the points that each chord would cut off, and which point that is."""
        distance, which = np.zeros(len(first)), np.zeros(len(first), np.intp)
        sizes = last - first - 1
        for part in _groups(sizes):
            point = ramps(first[part] + 1, sizes[part])
            chord = np.repeat(np.arange(len(sizes[part])), sizes[part])
            away = self._distances(point, first[part][chord], last[part][chord])
            starts = np.cumsum(sizes[part]) - sizes[part]
            distance[part] = np.maximum.reduceat(away, starts)
            is_farthest = np.flatnonzero(away == distance[part][chord])
            which[part] = point[is_farthest[np.searchsorted(is_farthest, starts)]]
        return distance, which

    def cut_off_something(self, first: IntArray, last: IntArray, distance: FloatArray) -> npt.NDArray[np.bool_]:
        """Whether a point that is not the chord's own lies on it, or between it and what it would cut off."""
        found = np.zeros(len(first), np.bool_)
        sizes = np.abs(self._points[last, 1] - self._points[first, 1]) + 2 * self._reach(distance) + 1
        for part in _groups(sizes):
            chord, point = self._near(first[part], last[part], distance[part])
            low, high = first[part][chord], last[part][chord]
            steps = high - low + 1
            for some in _groups(steps):
                inside = self._is_between(point[some], low[some], high[some])
                found[np.arange(len(found))[part][chord[some][inside]]] = True
        return found

    def _reach(self, distance: FloatArray) -> npt.NDArray[np.int64]:
        reach: npt.NDArray[np.int64] = np.floor(distance / self._pixel.min() * (1 + 1e-9)).astype(np.int64)
        return reach

    def _near(self, first: IntArray, last: IntArray, distance: FloatArray) -> tuple[IntArray, IntArray]:
        """Pairs of a chord and a point of something else that is as near to it as its own points are."""
        corners = np.stack([self._points[first], self._points[last]])
        reach = self._reach(distance)[:, None]
        low, high = corners.min(axis=0) - reach, corners.max(axis=0) + reach
        rows = high[:, 1] - low[:, 1] + 1
        chord = np.repeat(np.arange(len(first)), rows)
        row = ramps(low[:, 1], rows) * self._width
        start = np.searchsorted(self._places, row + np.maximum(low[chord, 0], 0))
        stop = np.searchsorted(self._places, row + np.minimum(high[chord, 0], self._width - 1), "right")
        counts = np.maximum(stop - start, 0)
        chord, point = np.repeat(chord, counts), self._numbers[ramps(start, counts)]
        is_other = (point < first[chord]) | (point > last[chord])
        for end in (first, last):
            is_other &= (self._points[point] != self._points[end[chord]]).any(axis=1)
        chord, point = chord[is_other], point[is_other]
        is_near = self._distances(point, first[chord], last[chord]) <= distance[chord] * (1 + 1e-9) + 1e-12
        return chord[is_near], point[is_near]

    def _is_between(self, point: IntArray, first: IntArray, last: IntArray) -> npt.NDArray[np.bool_]:
        """Whether points lie in what closed lines (points of an arc, first to last, and back) enclose, or on a chord.

        Counts how often a ray to the right meets the line.
        """
        sizes = last - first + 1
        pair = np.repeat(np.arange(len(point)), sizes)
        start = ramps(first, sizes)
        stop = np.where(start == last[pair], first[pair], start + 1)
        (ax, ay), (bx, by) = (self._points[which].T for which in (start, stop))
        x, y = self._points[point[pair]].T
        side = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
        meets = ((ay > y) != (by > y)) & (np.where(by > ay, side, -side) < 0)
        on_it = (start == last[pair]) & (side == 0)
        on_it &= (
            (np.minimum(ax, bx) <= x)
            & (x <= np.maximum(ax, bx))
            & (np.minimum(ay, by) <= y)
            & (y <= np.maximum(ay, by))
        )
        starts = np.cumsum(sizes) - sizes
        odd = np.add.reduceat(meets, starts, dtype=np.intp) % 2 == 1
        result: npt.NDArray[np.bool_] = odd | np.logical_or.reduceat(on_it, starts)
        return result


def _groups(sizes: npt.NDArray[np.integer]) -> list[slice]:
    """Slices of things that come to about GROUP together."""
    if not len(sizes):
        return []
    starts = np.flatnonzero(np.diff(np.cumsum(sizes) // GROUP, prepend=-1))
    return [slice(int(a), int(b)) for a, b in zip(starts, np.append(starts[1:], len(sizes)), strict=True)]
