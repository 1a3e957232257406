"""A class map without areas that are too small: each takes the class of the neighbour with which it shares most edge.

The smallest goes first, and joins all areas of its new class that it touches; if they are still too small together,
their turn comes again. So a chain of small areas grows until it is large enough or part of something that is. Ties go
to the larger neighbour, then to the one that begins further up, further left. An area that touches nothing but nodata
becomes nodata. Corners are no edges, nodata is no neighbour.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.windows import Window
from cegate_geo.infer.components import Labels, label_areas, smallest_linked
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.writer import write_errors

UNIT = 2.0**-20
"""Areas are added up in whole units of this part of a pixel, so that their order does not change the sum."""
IntArray = npt.NDArray[np.int64]
Strip = tuple[Window, npt.NDArray[np.generic], Labels, int]


@dataclass(frozen=True, slots=True)
class _Survey:
    """What was found in all strips, by number; an area that goes through several strips has one in each."""

    class_id: IntArray
    size: IntArray
    """In units."""
    first: IntArray
    """Place of the first pixel, counted row by row."""
    same: IntArray
    """(2, L) pairs of numbers that are one area."""
    edges: IntArray
    """(3, E) pairs of neighbours, and how many pixel edges they share."""


def sieve(
    mask: Path,
    target: Path,
    *,
    ground: GroundMeasure | None,
    min_area: float,
    strips: Callable[[tuple[int, int]], Iterator[Window]],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a copy of a class raster in which no area is too small.

    Besides a strip it needs about 100 bytes for each area of the raster.

    Args:
        mask: Class ids with nodata.
        target: GeoTIFF to write.
        ground: How to measure pixels; None to count them.
        min_area: Least area in m², or pixels.
        strips: Cuts a raster's shape into full-width windows from top to bottom; has no influence on the result.
        check: Called for each strip; may raise to stop.
    """
    with quiet_about_georeference(), rasterio.open(mask) as source:
        pixel = ground.size().gsd_m ** 2 if ground else 1.0
        survey = _survey(_strips(source, strips, check), ground, pixel * UNIT)
        class_id = _settle(survey, limit=min_area / (pixel * UNIT), nodata=int(source.nodata))
        with write_errors(target):
            profile = {"width": source.width, "height": source.height, "dtype": source.dtypes[0], "count": 1}
            profile |= {"crs": source.crs, "transform": source.transform}
            copy = rasterio.open(
                target, "w", driver="GTiff", nodata=source.nodata, bigtiff="IF_SAFER", sparse_ok=True, **profile
            )
            with copy:
                for window, _, labels, before in _strips(source, strips, check):
                    lookup = np.append(int(source.nodata), class_id[before : before + int(labels.max(initial=0))])
                    ids = lookup.astype(source.dtypes[0])[labels]
                    copy.write(ids, 1, window=RasterioWindow(0, window.row_off, *window.shape[::-1]))


def _strips(
    source: rasterio.DatasetReader,
    strips: Callable[[tuple[int, int]], Iterator[Window]],
    check: Callable[[], None],
) -> Iterator[Strip]:
    """Windows with class ids, labels from 1, and how many labels there were before."""
    before = 0
    for window in strips(source.shape):
        check()
        ids = source.read(1, window=RasterioWindow(0, window.row_off, *window.shape[::-1]))
        labels, count = label_areas(ids, nodata=source.nodata)
        yield window, ids, labels, before
        before += count


def _survey(strips: Iterator[Strip], ground: GroundMeasure | None, unit: float) -> _Survey:
    """Measure all areas and find what they touch."""
    class_id, size, first, same, edges = [], [], [], [], []
    last: tuple[npt.NDArray[np.generic], IntArray] | None = None
    for window, ids, labels, before in strips:
        count = int(labels.max(initial=0))
        flat = labels.ravel()
        where = np.zeros(count + 1, np.int64)
        where[flat[::-1]] = np.arange(len(flat))[::-1]  # the last one written stays
        class_id.append(ids.ravel()[where[1:]].astype(np.int64))
        first.append(where[1:] + window.row_off * window.width)
        size.append(_sizes(labels, window, ground, unit)[1:])
        numbers = np.where(labels > 0, labels.astype(np.int64) + (before - 1), -1)
        pairs = [(numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])]
        if last is not None:
            is_same = (last[0] == ids[0]) & (numbers[0] >= 0)
            same.append(np.unique(np.stack([last[1][is_same], numbers[0][is_same]]), axis=1))
            pairs.append((np.where(is_same, -1, last[1])[None], numbers[:1]))
        edges.append(_count_pairs(pairs))
        last = ids[-1], numbers[-1]
    none = np.zeros((2, 0), np.int64)
    return _Survey(
        class_id=np.concatenate(class_id),
        size=np.concatenate(size),
        first=np.concatenate(first),
        same=np.concatenate([none, *same], axis=1),
        edges=np.concatenate(edges, axis=1),
    )


def _sizes(labels: Labels, window: Window, ground: GroundMeasure | None, unit: float) -> IntArray:
    """Area of each label in whole units."""
    count = int(labels.max(initial=0)) + 1
    if ground is None:
        return np.bincount(labels.ravel(), minlength=count) * round(1 / unit)
    total = np.zeros(count, np.int64)
    for part, row_areas in ground.row_areas(window):
        inside = labels[part.slices(window)]
        weights = np.broadcast_to(np.rint(row_areas / unit)[:, None], inside.shape)
        # Exact: whole numbers whose sum over a strip stays below 2**53.
        total += np.bincount(inside.ravel(), weights=weights.ravel(), minlength=count).astype(np.int64)
    return total


def _count_pairs(pairs: list[tuple[IntArray, IntArray]]) -> IntArray:
    """(3, E): different pairs of numbers of neighbouring pixels, and how often they meet."""
    found = []
    for one, other in pairs:
        meets = (one != other) & (one >= 0) & (other >= 0)
        found.append(np.stack([one[meets], other[meets]]))
    both = np.sort(np.concatenate(found, axis=1), axis=0)
    return _add_up(both, np.ones(both.shape[1], np.int64))


def _add_up(pairs: IntArray, counts: IntArray) -> IntArray:
    """(3, E) different pairs with the sums of their counts."""
    if not pairs.shape[1]:
        return np.zeros((3, 0), np.int64)
    order = np.lexsort(pairs[::-1])
    low, high = pairs[:, order]
    begins = np.flatnonzero((np.diff(low, prepend=-1) != 0) | (np.diff(high, prepend=-1) != 0))
    return np.stack([low[begins], high[begins], np.add.reduceat(counts[order], begins)])


def _settle(survey: _Survey, *, limit: float, nodata: int) -> IntArray:
    """The class of each number when nothing is too small any more."""
    count = len(survey.size)
    parent = smallest_linked(count, *survey.same).astype(np.int64)
    size, first = np.zeros(count, np.int64), survey.first.copy()
    np.add.at(size, parent, survey.size)
    np.minimum.at(first, parent, survey.first)
    class_id = survey.class_id.copy()
    is_small = size < limit
    ends = np.sort(parent[survey.edges[:2]], axis=0)
    low, high, lengths = _add_up(ends, survey.edges[2])
    here, there = np.concatenate([low, high]), np.concatenate([high, low])
    lengths = np.concatenate([lengths, lengths])
    matters = is_small[here]
    here, there, lengths = here[matters], there[matters], lengths[matters]
    order = np.argsort(here, kind="stable")
    here, there, lengths = here[order], there[order], lengths[order]
    small = np.flatnonzero(is_small & (parent == np.arange(count)))
    bounds = zip(np.searchsorted(here, small), np.searchsorted(here, small, "right"), strict=True)
    around = {
        int(n): dict(zip(there[a:b].tolist(), lengths[a:b].tolist(), strict=True))
        for n, (a, b) in zip(small, bounds, strict=True)
    }
    _join(around, parent, size, first=first, class_id=class_id, limit=limit, nodata=nodata)
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return class_id[parent]


def _join(
    around: dict[int, dict[int, int]],
    parent: IntArray,
    size: IntArray,
    *,
    first: IntArray,
    class_id: IntArray,
    limit: float,
    nodata: int,
) -> None:
    """Join small areas, in place: `around` has the neighbours of each with the edge that they share."""

    def root_of(number: int) -> int:
        while (up := int(parent[number])) != number:
            parent[number] = parent[up]
            number = up
        return number

    queue = [(int(size[n]), int(first[n]), n) for n in around]
    heapq.heapify(queue)
    while queue:
        size_then, _, number = heapq.heappop(queue)
        if number not in around or size[number] != size_then:
            continue  # it was joined, or has grown and waits again
        shared: dict[int, int] = {}
        for other, length in around.pop(number).items():
            root = root_of(other)
            if root != number:
                shared[root] = shared.get(root, 0) + length
        if not shared:
            class_id[number] = nodata
            continue
        best = max(shared, key=lambda n: (shared[n], int(size[n]), -int(first[n])))
        joined = [n for n in shared if class_id[n] == class_id[best]]
        for other in joined:
            del shared[other]
            for beyond, length in around.pop(other, {}).items():
                shared[beyond] = shared.get(beyond, 0) + length
        for other in (number, *joined):
            if other != best:
                parent[other] = best
                size[best] += size[other]
                first[best] = min(first[best], first[other])
        if size[best] < limit:
            around[best] = shared
            heapq.heappush(queue, (int(size[best]), int(first[best]), best))
