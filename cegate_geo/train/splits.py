"""Which pixels train and which validate: spatial blocks with a buffer, so that nothing leaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.domain.windows import Window, iter_blocks
from cegate_geo.errors import InputError
from cegate_geo.train.labels import Labels
from cegate_geo.train.scenes import LabelledScene, Pixels

MIN_BLOCK = 32
"""Blocks are not made smaller than that, in pixels."""
KEPT_IN_TRAINING = 0.5
"""Share of each class's pixels that the choice of blocks leaves for training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """The pixels of a scene whose labels may be used: in one of `allowed`, in none of `excluded`.

    The image may be seen beyond: a chip's context is not supervised.
    """

    scene: LabelledScene
    allowed: tuple[Window, ...]
    """Windows that do not overlap."""
    excluded: tuple[Window, ...] = ()

    @property
    def extent(self) -> Window:
        """Smallest window around all that is allowed."""
        col, row = min(w.col_off for w in self.allowed), min(w.row_off for w in self.allowed)
        right, bottom = max(w.col_end for w in self.allowed), max(w.row_end for w in self.allowed)
        return Window(col_off=col, row_off=row, width=right - col, height=bottom - row)

    def read(self, window: Window) -> tuple[Pixels, npt.NDArray[np.bool_], Labels]:
        """Image, valid and labels of a window; labels outside of the area are 255."""
        image, valid, labels = self.scene.read(window)
        return image, valid, self._cut(labels, window)

    def labels(self, window: Window) -> Labels:
        """(H, W) uint8 channel indices; 255 = left out."""
        return self._cut(self.scene.labels(window), window)

    def _cut(self, labels: Labels, window: Window) -> Labels:
        result = labels
        if not any(w.contains(window) for w in self.allowed):
            result = np.full_like(labels, IGNORE_INDEX)
            for part in (w.intersection(window) for w in self.allowed):
                if part is not None:
                    place = part.slices(window)
                    result[place] = labels[place]
        holes = [part for part in (w.intersection(window) for w in self.excluded) if part is not None]
        if holes and result is labels:
            result = labels.copy()
        for part in holes:
            result[part.slices(window)] = IGNORE_INDEX
        return result


def whole(scene: LabelledScene) -> Area:
    """All labelled pixels of a scene."""
    return Area(scene=scene, allowed=(scene.extent,))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    scene: int
    window: Window
    counts: npt.NDArray[np.int64]


def split_scenes(
    scenes: Sequence[LabelledScene], *, fraction: float, block: int, buffer: int, seed: int
) -> tuple[list[Area], list[Area]]:
    """Hold out spatial blocks of the labelled scenes.

    Validation gets a block of every class where there are enough of them, and blocks at random until it has its share.
    Laws: no training pixel lies within `buffer` pixels of a validation block, not in an overlapping scene either; both
    sides hold labels; the same seed gives the same split.

    Args:
        scenes: What is labelled.
        fraction: Share of the labelled pixels to hold out, in (0, 1).
        block: Side of a block in pixels; halved while one block alone exceeds the share.
        buffer: Pixels around each block that neither train nor validate.
        seed: Of the random choice.

    Returns:
        Training areas and validation areas; scenes with nothing on one side are missing there.

    Raises:
        InputError: If the labelled part is too small to be split.
    """
    if not 0 < fraction < 1 or block < 1 or buffer < 0:
        raise InputError(
            f"Can't split by fraction={fraction}, block={block}, buffer={buffer}.",
            hint="fraction lies between 0 and 1, block is positive, buffer at least 0.",
        )
    while True:
        blocks = _labelled_blocks(scenes, block)
        pixels = [int(b.counts.sum()) for b in blocks]
        if max(pixels, default=0) <= fraction * sum(pixels) or block // 2 < max(MIN_BLOCK, buffer):
            break
        block //= 2
    chosen = _choose(blocks, fraction, np.random.default_rng(seed))
    held_out = [blocks[n] for n in chosen]
    validation = [
        Area(scene=s, allowed=tuple(b.window for b in held_out if b.scene == n))
        for n, s in enumerate(scenes)
        if any(b.scene == n for b in held_out)
    ]
    training = []
    for n, scene in enumerate(scenes):
        near = [_near(b, n, scenes, buffer) for b in held_out]
        area = Area(scene=scene, allowed=(scene.extent,), excluded=tuple(w for w in near if w is not None))
        if has_labels(area):
            training.append(area)
    if not training or not validation:
        raise InputError(
            f"The labelled part is too small to hold out {fraction:.0%} of it in blocks of {block} pixels with a "
            f"buffer of {buffer}.",
            hint="Give [[validation]] rasters, a smaller train.crop, or train.validation = 0.",
        )
    return training, validation


def apart(scenes: Sequence[LabelledScene], held_out: Sequence[Area], *, buffer: int) -> list[Area]:
    """All labelled pixels of scenes but those on the ground of held-out areas; scenes without any are missing.

    Args:
        scenes: With a CRS, or nothing of them counts as held out.
        held_out: Areas of other scenes.
        buffer: Pixels around each of them that are left out, too.
    """
    found = []
    for scene in scenes:
        near = [
            _near(_Block(scene=1, window=w, counts=scene.class_counts), 0, (scene, area.scene), buffer)
            for area in held_out
            for w in area.allowed
        ]
        area = Area(scene=scene, allowed=(scene.extent,), excluded=tuple(w for w in near if w is not None))
        if has_labels(area):
            found.append(area)
    return found


def has_labels(area: Area) -> bool:
    """Whether any pixel is labelled."""
    return any((area.labels(w) != IGNORE_INDEX).any() for w in _blocks(area.extent, 512))


def _blocks(extent: Window, side: int) -> Iterator[Window]:
    for w in iter_blocks(extent.shape, block_height=side, block_width=side):
        col, row = extent.col_off + w.col_off, extent.row_off + w.row_off
        yield Window(col_off=col, row_off=row, width=w.width, height=w.height)


def _labelled_blocks(scenes: Sequence[LabelledScene], side: int) -> list[_Block]:
    found = []
    for n, scene in enumerate(scenes):
        for window in _blocks(scene.extent, side):
            counts = np.bincount(scene.labels(window).reshape(-1), minlength=256)[: len(scene.class_counts)]
            if counts.any():
                found.append(_Block(scene=n, window=window, counts=counts))
    return found


def _choose(blocks: Sequence[_Block], fraction: float, rng: np.random.Generator) -> list[int]:
    """Indices of the blocks to hold out: one for each class, rarest first, then any, up to the share."""
    if len(blocks) < 2:
        return []
    counts = np.stack([b.counts for b in blocks])
    total = counts.sum(0)
    wanted = fraction * total.sum()
    order = rng.permutation(len(blocks))
    chosen: list[int] = []

    def leaves_enough(n: int) -> bool:
        rest = total - counts[[*chosen, n]].sum(0)
        return len(chosen) + 1 < len(blocks) and bool((rest >= KEPT_IN_TRAINING * total).all())

    for c in sorted(np.flatnonzero(total), key=lambda c: (total[c], c)):
        enough = fraction * total[c]
        for n in sorted((int(n) for n in order), key=lambda n: counts[n, c] < min(enough, counts[:, c].max())):
            if counts[chosen, c].sum() > 0:
                break
            if counts[n, c] > 0 and leaves_enough(n):
                chosen.append(n)
    for n in (int(n) for n in order):
        have = counts[chosen].sum()
        if n in chosen or not leaves_enough(n):
            continue
        if not chosen or abs(have + counts[n].sum() - wanted) < abs(wanted - have):
            chosen.append(n)
    if not chosen:  # every block holds most of some class: the smallest one has to do
        chosen = [int(np.argmin(counts.sum(1)))]
    return sorted(chosen)


def _near(block: _Block, n: int, scenes: Sequence[LabelledScene], buffer: int) -> Window | None:
    """The window of scene `n` within `buffer` pixels of a block, on the ground, or None if it is not there at all."""
    if block.scene == n:
        return block.window.expanded(buffer)
    here, there = scenes[n].grid, scenes[block.scene].grid
    if here.crs_wkt is None or there.crs_wkt is None:
        return None
    to_here = Transformer.from_crs(CRS.from_wkt(there.crs_wkt), CRS.from_wkt(here.crs_wkt), always_xy=True)
    try:
        bounds = to_here.transform_bounds(*there.crop(block.window).bounds)
    except ProjError:  # the block has no place in that CRS
        return None
    if not np.isfinite(bounds).all():
        return None
    left, bottom, right, top = bounds
    corners = np.array([~here.transform @ (x, y) for x in (left, right) for y in (bottom, top)])
    low, high = np.floor(corners.min(0)).astype(int) - buffer, np.ceil(corners.max(0)).astype(int) + buffer
    window = Window(col_off=int(low[0]), row_off=int(low[1]), width=int(high[0] - low[0]), height=int(high[1] - low[1]))
    return window if window.intersection(here.window) is not None else None
