"""Areas of a class raster, strip by strip, exact to the pixel.

Areas are 4-connected. Outlines are traced as arcs, lines between two areas from junction to junction, so that what two
neighbours share is one line and stays one. An area is complete when the rows below can't add to it any more; until then
its number, its sums and its outline are kept, never its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.windows import Window
from cegate_geo.infer.arcs import Arcs, Corners, find_corners, link
from cegate_geo.infer.components import Labels, label_areas, smallest_linked
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.rings import Rings, assemble
from cegate_geo.infer.simplify import Tolerance, simplify

STRIP_PIXELS = 2**20
"""Pixels that are looked at together; some 40 bytes each."""
BAND_PIXELS = 2**23
"""Pixels whose outlines are linked together."""
MAX_ROWS = 1024
BATCH_POINTS, BATCH_AREAS = 200_000, 20_000
"""What is written at once; a single area may have more points."""


@dataclass(slots=True)
class Sums:
    """What areas add up to, by label; label 0 is nothing."""

    class_id: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    area_m2: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.int64]
    """Sum over the pixels, 0..255 each."""

    @classmethod
    def none(cls) -> Sums:
        """Of no area yet."""
        nothing = np.zeros(1, np.int64)
        return cls(nothing, nothing, np.zeros(1), nothing)

    def and_(self, other: Sums) -> Sums:
        """With the areas of another, whose labels go on from the last of these."""
        pairs = ((getattr(self, name), getattr(other, name)[1:]) for name in self.__slots__)
        return Sums(*(np.concatenate(pair) for pair in pairs))

    def merged(self, root: Labels) -> Sums:
        """Of areas that turned out to be one; `root` is the label that stands for each."""
        count = len(root)
        pixels, confidence, area_m2 = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count)
        for total, values in ((pixels, self.pixels), (confidence, self.confidence), (area_m2, self.area_m2)):
            np.add.at(total, root, values)
        return Sums(self.class_id, pixels, area_m2, confidence)

    def take(self, which: npt.NDArray[np.integer]) -> Sums:
        """Of some of the areas."""
        return Sums(*(getattr(self, name)[which] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Areas:
    """Complete areas: the rings of the first, the second, ..., and what they add up to."""

    rings: Rings
    sums: Sums

    def batches(self) -> Iterator[tuple[Rings, Sums]]:
        """All of them, so many at a time that they can be written."""
        begins = np.flatnonzero(np.diff(self.rings.label, prepend=-1))
        points = self.rings.offsets[np.append(begins[1:], len(self.rings.label))]
        group = np.maximum(points // BATCH_POINTS, np.arange(len(begins)) // BATCH_AREAS)
        firsts = np.flatnonzero(np.diff(group, prepend=-1))
        for first, last in zip(firsts, np.append(firsts[1:], len(begins)), strict=True):
            rings = np.arange(begins[first], begins[last] if last < len(begins) else len(self.rings.label))
            yield self.rings.take(rings), self.sums.take(np.arange(first, last))


@dataclass(slots=True)
class _Open:
    """What is known of areas that may go on in the rows below."""

    above: Labels
    """(W,) labels of the last row."""
    above_ids: npt.NDArray[np.generic]
    first_row: int = 0
    """Of the band in hand."""
    sums: Sums = field(default_factory=Sums.none)
    corners: list[Corners] = field(default_factory=list)
    """Of the band in hand."""
    arcs: list[Arcs] = field(default_factory=list)
    """Of the bands before."""

    def relabel(self, number: Labels) -> None:
        """Give new labels."""
        self.above = number[self.above]
        self.corners = [part.relabelled(number) for part in self.corners]
        self.arcs = [part.relabelled(number) for part in self.arcs]


def strip_rows(width: int, pixels: int) -> int:
    """Rows of a strip of about so many pixels: a power of two, MAX_ROWS at most."""
    return int(min(MAX_ROWS, 2 ** int(np.log2(max(1, pixels // width)))))


def strips(shape: tuple[int, int]) -> Iterator[tuple[Window, bool, bool]]:
    """Full-width windows from top to bottom, and whether a band begins and ends with each."""
    height, width = shape
    rows, band = strip_rows(width, STRIP_PIXELS), strip_rows(width, BAND_PIXELS)
    start = 0
    while start < height:
        stop = min(start + rows, (start // band + 1) * band, height)
        window = Window(col_off=0, row_off=start, width=width, height=stop - start)
        yield window, start % band == 0, stop % band == 0 or stop == height
        start = stop


def find_areas(
    mask: Path,
    confidence: Path,
    *,
    ground: GroundMeasure | None,
    classes: Collection[int] | None = None,
    tolerance: Tolerance | None = None,
    check: Callable[[], None] = lambda: None,
    announce: Callable[[int], None] = lambda _: None,
) -> Iterator[Areas]:
    """The areas of a class raster, each as soon as it is complete; in the same order however the raster is cut.

    Args:
        mask: Class ids with nodata.
        confidence: Raster of the same grid, 1..255 = 0..1.
        ground: How to measure pixels; None where that is unknown.
        classes: Leave out areas of others; None for all.
        tolerance: How far outlines may move to become simpler; None for not at all.
        check: Called for each strip; may raise to stop.
        announce: Told how many points of outlines are about to be put together to rings; may raise to stop.
    """
    with ExitStack() as stack:
        stack.enter_context(quiet_about_georeference())
        ids_of, certainty_of = (stack.enter_context(rasterio.open(path)) for path in (mask, confidence))
        nodata = ids_of.nodata
        state = _Open(np.zeros(ids_of.width, np.int32), np.full(ids_of.width, nodata, ids_of.dtypes[0]))
        for window, begins_band, ends_band in strips(ids_of.shape):
            check()
            place = RasterioWindow(0, window.row_off, *window.shape[::-1])
            ids = ids_of.read(1, window=place)
            if classes is not None:
                ids[~np.isin(ids, [*classes])] = nodata
            labels = _continue(state, ids, nodata=nodata)
            new = _measure(
                labels, ids, certainty_of.read(1, window=place), window=window, ground=ground, known=state.sums
            )
            labels = _unite(state, labels, ids, new)
            is_last = window.row_end == ids_of.height
            state.corners.append(
                find_corners(
                    labels,
                    state.above,
                    first_row=window.row_off,
                    cut_above=begins_band and window.row_off > 0,
                    cut_below=ends_band and not is_last,
                )
            )
            state.above, state.above_ids = labels[-1], ids[-1]
            if is_last:
                nothing = np.zeros((1, ids_of.width), np.int32)
                state.corners.append(
                    find_corners(nothing, labels[-1], first_row=window.row_end, cut_above=False, cut_below=False)
                )
                state.above = nothing[0]
            if ends_band:
                yield from _complete(state, tolerance, announce, last_row=window.row_end)


def _continue(state: _Open, ids: npt.NDArray[np.generic], *, nodata: float) -> Labels:
    """Labels of a strip, numbered on from those that are open."""
    labels, _ = label_areas(ids, nodata=nodata)
    labels[labels > 0] += np.int32(len(state.sums.pixels) - 1)
    return labels


def _measure(
    labels: Labels,
    ids: npt.NDArray[np.generic],
    confidence: npt.NDArray[np.uint8],
    *,
    window: Window,
    ground: GroundMeasure | None,
    known: Sums,
) -> Sums:
    """Class, pixels, area and confidence of the labels of a strip that are not known yet."""
    if not labels.any():
        return Sums.none()
    labels = np.where(labels > 0, labels - np.int32(len(known.pixels) - 1), 0)
    size = int(labels.max()) + 1
    pixels = np.bincount(labels.ravel(), minlength=size)
    certainty = np.bincount(labels.ravel(), weights=confidence.ravel(), minlength=size)
    class_id = np.zeros(size, np.int64)
    class_id[labels.ravel()] = ids.ravel()
    areas = np.zeros(size)
    if ground is not None:
        for part, row_areas in ground.row_areas(window):
            inside = labels[part.slices(window)]
            weights = np.broadcast_to(row_areas[:, None], inside.shape)
            areas += np.bincount(inside.ravel(), weights=weights.ravel(), minlength=size)
    return Sums(class_id, pixels, areas, certainty.astype(np.int64))


def _unite(state: _Open, labels: Labels, ids: npt.NDArray[np.generic], new: Sums) -> Labels:
    """Join what goes on across the strip's upper edge. Gives the strip's labels anew."""
    sums = state.sums.and_(new)
    meets = (state.above_ids == ids[0]) & (state.above > 0) & (labels[0] > 0)
    root = smallest_linked(len(sums.pixels), state.above[meets], labels[0][meets]).astype(np.int32)
    is_root = root == np.arange(len(root))
    number = (np.cumsum(is_root, dtype=np.int32) - 1)[root]
    state.sums = sums.merged(root).take(np.flatnonzero(is_root))
    state.relabel(number)
    return number[labels]


def _complete(
    state: _Open, tolerance: Tolerance | None, announce: Callable[[int], None], *, last_row: int
) -> Iterator[Areas]:
    """At the end of a band: the areas that do not reach its last row. Their labels are given up."""
    arcs = link(state.corners)
    state.corners = []
    if arcs is not None:
        cut_rows = (state.first_row, last_row)
        state.arcs.append(arcs if tolerance is None else simplify(arcs, tolerance, cut_rows=cut_rows))
    state.first_row = last_row
    is_open = np.zeros(len(state.sums.pixels), np.bool_)
    is_open[state.above] = True
    is_open[0] = False
    is_done = ~is_open
    is_done[0] = False
    parts = [part.take(is_done[part.left] | is_done[part.right]) for part in state.arcs]
    parts = [part for part in parts if len(part)]
    announce(sum(len(part.points) for part in parts))
    if parts:
        rings = assemble(Arcs.of(parts), is_done)
        del parts
        first = np.flatnonzero(np.diff(rings.label, prepend=-1))
        yield Areas(rings, state.sums.take(rings.label[first]))
    number = np.where(is_open, np.cumsum(is_open), 0).astype(np.int32)
    state.sums = state.sums.take(np.flatnonzero(is_open | (np.arange(len(is_open)) == 0)))
    state.relabel(number)
    kept = [part.take((part.left > 0) | (part.right > 0)) for part in state.arcs]
    state.arcs = [part for part in kept if len(part)]
