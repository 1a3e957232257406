"""Outlines of areas in a labelled raster, as arcs: lines along pixel edges between two areas, from node to node.

A strip of rows gives the corners of pixels where outlines turn or meet; those of a band of strips are linked to arcs at
once, so that nothing is left of where strips meet. Where outlines cross from one band into the next, arcs are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from cegate_geo.infer.components import Labels
from cegate_geo.infer.strings import put_in_order

NORTH, EAST, SOUTH, WEST = range(4)
UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
"""Which of the four pixel edges that meet at a corner of pixels are part of an outline."""
DEGREE = np.array([bin(edges).count("1") for edges in range(16)], np.int8)
STRAIGHT = (0, UP | DOWN, LEFT | RIGHT)
TURNS = np.array([edges not in STRAIGHT for edges in range(32)])
CUT = 16
"""Marks corners at which arcs end because a band does."""


@dataclass(frozen=True, slots=True)
class Arcs:
    """Lines along pixel edges, each between the same two areas on its whole length, one after the other in `points`."""

    points: npt.NDArray[np.int32]
    """(P, 2): column and row of the corners where they begin, turn and end."""
    offsets: npt.NDArray[np.intp]
    """(A + 1,): where each begins in `points`; the end of one is the begin of the next."""
    left: Labels
    """(A,) what lies to the left of each on its way; 0 = nothing that matters."""
    right: Labels
    begins: npt.NDArray[np.int8]
    """(A,) heading of the first step."""
    ends: npt.NDArray[np.int8]
    """(A,) heading of the last step."""
    is_junction: npt.NDArray[np.bool_]
    """(A, 2): whether three or four arcs meet where it begins, and where it ends. Where arcs are cut between two
    bands, the lower one knows."""

    def __len__(self) -> int:
        return len(self.left)

    @classmethod
    def of(cls, parts: Sequence[Self]) -> Self:
        """Several in one."""
        starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
        joined = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(cls)
            if f.name != "offsets"
        }
        return cls(offsets=np.append(np.concatenate(offsets), starts[-1]), **joined)

    def relabelled(self, number: Labels) -> Self:
        """With new labels for the old ones."""
        return replace(self, left=number[self.left], right=number[self.right])

    def take(self, which: npt.NDArray[np.bool_]) -> Self:
        """Those of which `which` (A,) says so."""
        if which.all():
            return self
        kept = np.flatnonzero(which)
        sizes = np.diff(self.offsets)[kept]
        parts = {f.name: getattr(self, f.name)[kept] for f in fields(self) if f.name not in ("points", "offsets")}
        points = self.points[ramps(self.offsets[kept], sizes)]
        return type(self)(points=points, offsets=np.append(0, np.cumsum(sizes)), **parts)


def ramps(starts: npt.NDArray[np.intp], sizes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """start, start + 1, ... for each start, so many as its size, one after the other."""
    before = np.cumsum(sizes) - sizes
    result: npt.NDArray[np.intp] = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
    return result


@dataclass(frozen=True, slots=True)
class Corners:
    """Corners of pixels where outlines turn, meet or are cut, row by row, each row from left to right."""

    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]
    edges: npt.NDArray[np.uint8]
    """Which edges meet there: bits UP, DOWN, LEFT, RIGHT, and CUT."""
    around: Labels
    """(3, N): labels of the pixels to the upper right, lower right and lower left."""

    def relabelled(self, number: Labels) -> Corners:
        """With new labels for the old ones."""
        return Corners(self.rows, self.cols, self.edges, number[self.around])


def find_corners(labels: Labels, above: Labels, *, first_row: int, cut_above: bool, cut_below: bool) -> Corners:
    """The corners of a strip, without those of its lower edge, which the next strip has.

    Args:
        labels: (H, W) numbers of 4-connected areas, 0 where there is none.
        above: (W,) the row above the strip; zeros above the raster.
        first_row: Of the strip, in the raster.
        cut_above: Whether a band begins with the strip, and not the raster.
        cut_below: Whether a band ends with the strip: then the lower edge's corners are there as far as arcs end there.
    """
    height, width = labels.shape
    framed = np.zeros((height + 1, width + 2), labels.dtype)
    framed[0, 1:-1], framed[1:, 1:-1] = above, labels
    upright, level = framed[:, :-1] != framed[:, 1:], framed[:-1] != framed[1:]
    edges = upright[:-1] * np.uint8(UP)
    edges |= upright[1:] * np.uint8(DOWN)
    edges |= level[:, :-1] * np.uint8(LEFT)
    edges |= level[:, 1:] * np.uint8(RIGHT)
    if cut_above:
        edges[0] |= upright[0] * np.uint8(CUT)
    rows, cols = np.nonzero(TURNS[edges])
    around = np.stack([framed[rows, cols + 1], framed[rows + 1, cols + 1], framed[rows + 1, cols]])
    codes = edges[rows, cols]
    if cut_below:
        cut = np.flatnonzero(upright[-1])
        rows, cols = np.append(rows, np.full(len(cut), height)), np.append(cols, cut)
        codes = np.append(codes, np.full(len(cut), UP | CUT, np.uint8))
        around = np.concatenate([around, np.zeros((3, len(cut)), around.dtype)], axis=1)
    return Corners((rows + first_row).astype(np.int32), cols.astype(np.int32), codes, around)


def link(parts: Sequence[Corners]) -> Arcs | None:
    """The arcs of a band. None without any.

    Args:
        parts: The corners of its strips, from the top on.
    """
    corners = Corners(*(np.concatenate([getattr(part, f.name) for part in parts], axis=-1) for f in fields(Corners)))
    if not len(corners.rows):
        return None
    tail, head, left, right, heading = _steps(corners)
    meets = DEGREE[corners.edges & 15] > 2
    is_node = meets | (corners.edges & CUT > 0)
    leaving = np.full(len(corners.rows), -1)
    leaving[tail] = np.arange(len(tail))
    order, offsets = put_in_order(np.where(is_node[head], -1, leaving[head]), tail)
    first, last = order[offsets[:-1]], order[offsets[1:] - 1]
    way = np.insert(tail[order], offsets[1:], head[last])
    return Arcs(
        np.stack([corners.cols[way], corners.rows[way]], axis=1),
        offsets + np.arange(len(offsets)),
        left[first],
        right[first],
        begins=heading[first],
        ends=heading[last],
        is_junction=meets[np.stack([tail[first], head[last]], axis=1)],
    )


def _steps(
    corners: Corners,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Labels, Labels, npt.NDArray[np.int8]]:
    """Straight lines between corners: where each starts and ends, left and right label, heading.

    They go so that the higher label lies on their left: then all lines between two areas go one way.
    """
    upper_right, lower_right, lower_left = corners.around
    east = np.flatnonzero(corners.edges & RIGHT)
    level = (east, east + 1, upper_right[east], lower_right[east])
    down = np.lexsort((corners.rows, corners.cols))
    place = np.flatnonzero(corners.edges[down] & DOWN)
    south = down[place]
    upright = (south, down[place + 1], lower_right[south], lower_left[south])
    tail, head, left, right = (np.concatenate(pair) for pair in zip(level, upright, strict=True))
    heading = np.repeat(np.array([EAST, SOUTH], np.int8), [len(east), len(south)])
    turned = left < right
    tail, head = np.where(turned, head, tail), np.where(turned, tail, head)
    left, right = np.where(turned, right, left), np.where(turned, left, right)
    return tail, head, left, right, np.where(turned, (heading + 2) % 4, heading).astype(np.int8)
