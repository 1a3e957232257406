"""From arcs to the rings of areas: outer outline first, then holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from cegate_geo.infer.arcs import Arcs, ramps
from cegate_geo.infer.components import Labels
from cegate_geo.infer.strings import put_in_order

GROUP_POINTS = 250_000
"""Rings are put together so many points at a time: what is needed on the way is several times the result."""
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Rings:
    """Rings of whole pixels' corners, one after the other; the area lies to the left of the way, rows counted down."""

    points: npt.NDArray[np.int32]
    """(P, 2) column and row. The first point of a ring, its leftmost topmost one, is not repeated at its end."""
    offsets: IntArray
    """(R + 1,) where each begins in `points`."""
    label: Labels
    """(R,) the area that each belongs to."""

    @property
    def double_areas(self) -> npt.NDArray[np.int64]:
        """Twice the area in pixels, exact: above 0 for outer rings, below for holes."""
        x, y = self.points.astype(np.int64).T
        after = np.arange(1, len(self.points) + 1)
        after[self.offsets[1:] - 1] = self.offsets[:-1]
        return np.add.reduceat(x[after] * y - x * y[after], self.offsets[:-1])

    def take(self, which: IntArray) -> Self:
        """Some of them."""
        sizes = np.diff(self.offsets)[which]
        points = self.points[ramps(self.offsets[which], sizes)]
        return type(self)(points, np.append(0, np.cumsum(sizes)), self.label[which])


def assemble(arcs: Arcs, is_wanted: npt.NDArray[np.bool_]) -> Rings:
    """The rings of areas of which all arcs are there.

    They are in the order of the row in which their areas end and of the areas' first points; the rings of an area
    follow each other, its outer one first, its holes by their first points.

    Where an area meets itself at a corner, rings go straight past each other rather than through the area's pixels: no
    ring comes to a point twice, and rings of an area share single points only, as OGC asks (Simple Features 6.1.11).

    Args:
        arcs: With all that bound the wanted areas.
        is_wanted: By label.
    """
    forward, backward = np.flatnonzero(is_wanted[arcs.left]), np.flatnonzero(is_wanted[arcs.right])
    arc = np.concatenate([forward, backward])
    is_back = np.arange(len(arc)) >= len(forward)
    following = _following(arcs, arc, is_back)
    order, begins = put_in_order(following, np.arange(len(arc)))
    arc, is_back = arc[order], is_back[order]
    sizes = np.add.reduceat(np.diff(arcs.offsets)[arc] - 1, begins[:-1])
    groups = np.flatnonzero(np.diff(np.cumsum(sizes) // GROUP_POINTS, prepend=-1))
    parts = []
    for first, last in zip(groups, np.append(groups[1:], len(sizes)), strict=True):
        here = slice(begins[first], begins[last])
        parts.append(_joined(arcs, arc[here], is_back[here], begins[first : last + 1] - begins[first]))
    counts = np.concatenate([counts for _, counts, _ in parts])
    label = np.concatenate([label for _, _, label in parts])
    points = np.concatenate([points for points, _, _ in parts])
    del parts
    return _sorted(Rings(points, np.append(0, np.cumsum(counts)), label))


def _following(arcs: Arcs, arc: IntArray, is_back: npt.NDArray[np.bool_]) -> IntArray:
    """The arc that each leads on to, around the same area, which lies to the left."""
    label = np.where(is_back, arcs.right[arc], arcs.left[arc]).astype(np.int64)
    width = int(arcs.points[:, 0].max()) + 1
    node = arcs.points[:, 1].astype(np.int64) * width + arcs.points[:, 0]
    head, tail = node[arcs.offsets[:-1]][arc], node[arcs.offsets[1:] - 1][arc]
    start, end = np.where(is_back, tail, head), np.where(is_back, head, tail)
    first, last = arcs.begins[arc], arcs.ends[arc]
    leaves, arrives = np.where(is_back, (last + 2) % 4, first), np.where(is_back, (first + 2) % 4, last)
    base = int(node.max()) + 1
    start, end = label * base + start, label * base + end
    by_start = np.argsort(start, kind="stable")
    place = np.searchsorted(start[by_start], end)
    following = by_start[place]
    second = by_start[np.minimum(place + 1, len(arc) - 1)]
    # Two of an area's arcs leave where it meets itself: to the right lies the way along the same neighbour.
    takes_second = (start[second] == end) & (leaves[second] == (arrives + 1) % 4)
    return np.where(takes_second, second, following)


def _joined(
    arcs: Arcs, arc: IntArray, is_back: npt.NDArray[np.bool_], begins: IntArray
) -> tuple[npt.NDArray[np.int32], IntArray, Labels]:
    """Arcs put together to rings: points, how many in each ring, and the area of each.

    Points where arcs were cut but that lie on a straight line are left out; those where three areas meet are kept.
    """
    low, high = arcs.offsets[arc], arcs.offsets[arc + 1] - 1
    sizes = high - low
    step = ramps(np.zeros(len(arc), np.intp), sizes)
    points = arcs.points[
        np.repeat(np.where(is_back, high, low), sizes) + np.repeat(np.where(is_back, -1, 1), sizes) * step
    ]
    at_end = arcs.is_junction[arc]
    starts, ends = np.where(is_back[:, None], at_end[:, ::-1], at_end).T
    before = np.arange(len(arc)) - 1
    before[begins[:-1]] = begins[1:] - 1
    cut = (np.cumsum(sizes) - sizes)[~(starts | ends[before])]
    firsts = np.append(0, np.cumsum(np.add.reduceat(sizes, begins[:-1])))
    ring = np.searchsorted(firsts, cut, "right") - 1
    previous = np.where(cut == firsts[ring], firsts[ring + 1], cut) - 1
    after = np.where(cut + 1 == firsts[ring + 1], firsts[ring], cut + 1)
    ahead, behind = (points[after] - points[cut]).astype(np.int64), (points[cut] - points[previous]).astype(np.int64)
    is_straight = ahead[:, 0] * behind[:, 1] == ahead[:, 1] * behind[:, 0]
    kept = np.ones(len(points), np.bool_)
    kept[cut[is_straight]] = False
    counts = np.add.reduceat(kept, firsts[:-1], dtype=np.intp)
    label = np.where(is_back, arcs.right[arc], arcs.left[arc])[begins[:-1]]
    return _turned(points[kept], counts), counts, label


def _turned(points: npt.NDArray[np.int32], counts: IntArray) -> npt.NDArray[np.int32]:
    """Each ring from its leftmost topmost point on."""
    begins = np.cumsum(counts) - counts
    place = points[:, 1].astype(np.int64) * (int(points[:, 0].max()) + 1) + points[:, 0]
    lowest = np.repeat(np.minimum.reduceat(place, begins), counts)
    # No ring has a point twice.
    shift = np.flatnonzero(place == lowest) - begins
    step = ramps(np.zeros(len(counts), np.intp), counts) + np.repeat(shift, counts)
    turned: npt.NDArray[np.int32] = points[np.repeat(begins, counts) + step % np.repeat(counts, counts)]
    return turned


def _sorted(rings: Rings) -> Rings:
    """By the last row of the area, the area's first point, and the ring's."""
    is_hole = rings.double_areas < 0
    outer = np.flatnonzero(~is_hole)
    x, y = rings.points[rings.offsets[:-1]].T
    last_row = np.maximum.reduceat(rings.points[:, 1], rings.offsets[:-1])
    area = np.zeros(int(rings.label.max()) + 1, np.intp)
    area[rings.label[outer[np.lexsort((x[outer], y[outer], last_row[outer]))]]] = np.arange(len(outer))
    return rings.take(np.lexsort((x, y, is_hole, area[rings.label])))


def as_polygons(rings: Rings, transform: Affine) -> npt.NDArray[Any]:
    """Shapely polygons in map coordinates, one for each area, of rings in order.

    A point has the same coordinates in all polygons that it is part of, to the bit.
    """
    t = transform
    counts = np.diff(rings.offsets)
    closed = np.insert(np.arange(len(rings.points)), rings.offsets[1:], rings.offsets[:-1])
    col, row = rings.points[closed].astype(np.float64).T
    points = np.stack([t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f], axis=1)
    begins = np.flatnonzero(np.diff(rings.label, prepend=-1))
    offsets = (np.append(0, np.cumsum(counts + 1)), np.append(begins, len(counts)))
    polygons: npt.NDArray[Any] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, offsets)
    return polygons
