"""Chips to train on, at random places, scales and orientations, and tiles to validate on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError, LabelError
from cegate_geo.infer.validity import fill_invalid
from cegate_geo.train.augment import band_shifts, photometric, resample, turn
from cegate_geo.train.fingerprint import Seen, check_value
from cegate_geo.train.labels import Labels
from cegate_geo.train.raster_input import FULL_SCALE, RGB
from cegate_geo.train.scenes import LabelledScene, Pixels
from cegate_geo.train.splits import Area
from cegate_geo.train.styles import StylePool

CELL = 64
"""Side of the cells in which labelled pixels are counted, so that places can be drawn by class."""
TINY = np.float32(1e-12)
"""Least standard deviation that is divided by."""
STATISTICS_CELLS = 1024
"""Cells that image statistics are taken from, spread evenly."""


@dataclass(frozen=True, slots=True)
class _Cells:
    """Where labelled pixels lie in an area: those cells of a coarse raster that hold any."""

    extent: Window
    places: npt.NDArray[np.int32]
    """(cells, 2) rows and columns of cells."""
    counts: npt.NDArray[np.int64]
    """(cells, K) pixels per class."""
    seen: Seen
    """What lies in rows of cells that hold labels."""

    @classmethod
    def of(cls, area: Area, classes: int) -> _Cells:
        places, counts, extent = [np.empty((0, 2), np.int32)], [np.empty((0, classes), np.int64)], area.extent
        pixels = truth = 0
        for row in range(extent.row_off, extent.row_end, CELL):
            height = min(CELL, extent.row_end - row)
            strip = Window(col_off=extent.col_off, row_off=row, width=extent.width, height=height)
            if not area.scene.may_be_labelled(strip):
                continue
            image, valid, labels = area.read(strip)
            if (labels == IGNORE_INDEX).all():
                continue
            pixels = check_value(valid, check_value(image, pixels))
            truth = check_value(labels, check_value(np.array([row], np.int64), truth))
            n = -(-extent.width // CELL)
            cell = np.repeat(np.arange(n) * (IGNORE_INDEX + 1), CELL)[: extent.width]
            found = np.bincount((labels + cell).reshape(-1), minlength=n * (IGNORE_INDEX + 1))
            table = found.reshape(n, IGNORE_INDEX + 1)[:, :classes]
            labelled = np.flatnonzero(table.any(1))
            places.append(np.column_stack([np.full(len(labelled), (row - extent.row_off) // CELL), labelled]))
            counts.append(table[labelled])  # a copy: the whole table is 256 numbers for each cell
        seen = Seen(use="training", name=area.scene.name, pixels=pixels, labels=truth)
        return cls(extent, np.concatenate(places).astype(np.int32), np.concatenate(counts), seen)

    def __len__(self) -> int:
        return len(self.places)

    def window(self, k: int) -> Window:
        """The cell with a number."""
        extent, (row, col) = self.extent, (CELL * self.places[k]).tolist()
        row, col = extent.row_off + row, extent.col_off + col
        width, height = min(CELL, extent.col_end - col), min(CELL, extent.row_end - row)
        return Window(col_off=col, row_off=row, width=width, height=height)


class ChipSampler:
    """Draws chips around labelled pixels of the areas. Thread-safe: all randomness comes from the caller's generator.

    Args:
        areas: What may be used.
        crop: Side of a chip in pixels.
        scale: Chips are cut at `crop` times a factor in this range, drawn log-uniformly, and resampled to `crop`.
        balance: Share of the chips that is drawn around a class chosen evenly among those that occur; the others are
            drawn around any labelled pixel.
        classes: Number of classes K.
        photometric: Strength of colour augmentation, see `augment.photometric`, and `augment.band_shifts` for anything
            but 8-bit RGB; 0 turns it off.
        styles: Looks of other places, for chips of `crop` pixels of 8 bits; None for none.
        style: Share of the chips that get one.
        weights: Share of the chips by area; None: as the scenes' sources are weighted, by labelled pixels within.

    Raises:
        LabelError: If nothing is labelled in the areas.
    """

    def __init__(
        self,
        areas: Sequence[Area],
        *,
        crop: int,
        scale: tuple[float, float],
        balance: float,
        classes: int,
        photometric: float,
        styles: StylePool | None = None,
        style: float = 0.0,
        weights: Sequence[float] | None = None,
    ) -> None:
        if weights is not None and (len(weights) != len(areas) or min(weights) < 0 or not sum(weights)):
            raise InputError(f"{len(areas)} areas can't have the weights {list(weights)}.", hint="Give one for each.")
        self.crop, self.scale, self.balance, self.photometric = crop, scale, balance, photometric
        self._styles, self._style = styles, style
        self._areas = list(areas)
        self._cells = [_Cells.of(a, classes) for a in areas]
        self._counts = np.array([c.counts.sum(0) for c in self._cells], np.int64).reshape(-1, classes)
        labelled = self._counts.sum(1)
        if not labelled.any():
            raise LabelError("There is no labelled, valid pixel to train on.", hint="Check labels, aoi and nodata.")
        if weights is None:
            in_scene = np.array([max(1, int(a.scene.class_counts.sum())) for a in areas])
            shares = np.array([a.scene.weight for a in areas]) * labelled / in_scene
        else:
            shares = np.where(labelled > 0, np.asarray(weights, float), 0)
        if not shares.sum() > 0:
            raise InputError("All areas with labels have the weight 0.", hint="Give one source a positive weight.")
        self._shares = shares / shares.sum()
        density = self._counts / np.maximum(labelled, 1)[:, None]
        by_class = self._shares[:, None] * density
        self._present = np.flatnonzero(by_class.sum(0) > 0)
        self._by_class = by_class / np.maximum(by_class.sum(0), 1e-300)
        self._cumulated = [np.cumsum(np.column_stack([c.counts, c.counts.sum(1)]), axis=0) for c in self._cells]
        self.channels = len(areas[0].scene.bands)
        self._has_colours = self.channels == len(RGB) and all(is_byte(a.scene) for a in areas)
        self._statistics = self._measure()

    def pixel_counts(self) -> list[int]:
        """Labelled pixels per class, in channel order."""
        return [int(n) for n in self._counts.sum(0)]

    def seen(self) -> list[Seen]:
        """What chips are drawn from, in the order of the areas, and what the looks are drawn from."""
        looks = [] if self._styles is None else [self._styles.seen()]
        return [cells.seen for cells in self._cells] + looks

    def image_statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation per channel, in units of the scenes' scales, over labelled cells.

        Weighted as chips are drawn; pixels that are no data do not count.
        """
        mean, std = self._statistics
        return {"mean": mean.tolist(), "std": std.tolist()}

    def _measure(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation (C) of the scenes' values, of a cell at a time."""
        sums, squares, weight = np.zeros(self.channels), np.zeros(self.channels), 0.0
        for area, cells, share in zip(self._areas, self._cells, self._shares, strict=True):
            n = len(cells)
            wanted = min(n, max(1, math.ceil(STATISTICS_CELLS * share))) if n else 0
            for k in np.linspace(0, n - 1, wanted).round().astype(int):
                image, valid, _ = area.read(cells.window(k))
                values = image[:, valid].astype(np.float64) / area.scene.scale
                if values.size:
                    sums += share / wanted * values.mean(1)
                    squares += share / wanted * (values**2).mean(1)
                    weight += share / wanted
        mean = sums / weight
        return mean, np.sqrt(np.maximum(0, squares / weight - mean**2))

    def sample(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """One chip.

        Returns:
            Image (C, crop, crop) float32 in units of the scene's scale, 0-1 for 8 bits; labels (crop, crop) int64,
            255 = left out.
        """
        area, row, col = self._place(rng)
        side = self._side(area, rng)
        window = _around(area, row, col, side, rng)
        image, labels = padded(area, window)
        if not is_byte(area.scene):
            image = _scaled(area, image)
        image, labels = resample(image, labels, side=self.crop)
        image, labels = turn(image, labels, quarters=int(rng.integers(4)), flip=bool(rng.random() < 0.5))
        if self._styles is not None and rng.random() < self._style:
            image = self._styles.restyle(np.ascontiguousarray(image), rng)
        picture = self._changed(area, np.ascontiguousarray(image), rng)
        return picture, np.ascontiguousarray(labels).astype(np.int64)

    def _changed(self, area: Area, image: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        if self._has_colours:
            return photometric(image, strength=self.photometric, rng=rng)
        mean, std = (values.astype(np.float32).reshape(-1, 1, 1) for values in self._statistics)
        values = _scaled(area, image) if is_byte(area.scene) else image
        return band_shifts(values, mean, np.maximum(std, TINY), strength=self.photometric, rng=rng)

    def batch(
        self, generators: Sequence[np.random.Generator], readers: Executor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A chip from each generator, the same whoever draws it.

        Args:
            generators: Of each chip.
            readers: Who draws them, several at a time; None for this thread, one after the other.

        Returns:
            Images (N, C, crop, crop) float32, labels (N, crop, crop) int64; see `sample`.
        """
        count = len(generators)
        images = np.empty((count, self.channels, self.crop, self.crop), np.float32)
        labels = np.empty((count, self.crop, self.crop), np.int64)
        found = map(self.sample, generators) if readers is None else readers.map(self.sample, generators)
        for n, (image, truth) in enumerate(found):
            images[n], labels[n] = image, truth
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _place(self, rng: np.random.Generator) -> tuple[Area, int, int]:
        """A labelled pixel: area, row and column in the scene."""
        if rng.random() < self.balance:
            c = int(rng.choice(self._present))
            n = int(rng.choice(len(self._areas), p=self._by_class[:, c]))
        else:
            c = IGNORE_INDEX
            n = int(rng.choice(len(self._areas), p=self._shares))
        cumulated = self._cumulated[n][:, -1 if c == IGNORE_INDEX else c]
        k = int(np.searchsorted(cumulated, rng.integers(cumulated[-1]), side="right"))
        window = self._cells[n].window(k)
        labels = self._areas[n].labels(window)
        places = np.flatnonzero(labels != IGNORE_INDEX if c == IGNORE_INDEX else labels == c)
        row, col = divmod(int(places[rng.integers(len(places))]), window.width)
        return self._areas[n], window.row_off + row, window.col_off + col

    def _side(self, area: Area, rng: np.random.Generator) -> int:
        """Side of the cut in pixels of the scene; larger than the scene only if a chip is."""
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        side = max(1, round(self.crop * math.exp(rng.uniform(low, high))))
        return min(side, max(self.crop, min(area.scene.grid.shape)))


def _around(area: Area, row: int, col: int, side: int, rng: np.random.Generator) -> Window:
    """A window of `side` pixels that holds a pixel at a random place; within the area, else the raster, if it fits."""
    offsets = []
    bounds = (area.extent, area.scene.grid.window)
    for at, axis in ((row, 0), (col, 1)):
        off = at - int(rng.integers(side))
        for box in bounds:
            start = (box.row_off, box.col_off)[axis]
            length = box.shape[axis]
            if length >= side:
                off = min(max(off, start), start + length - side)
                break
        else:
            off = min(max(off, start + length - side), start)
        offsets.append(off)
    return Window(col_off=offsets[1], row_off=offsets[0], width=side, height=side)


def is_byte(scene: LabelledScene) -> bool:
    """Whether values stay bytes until the end, as the curves and styles of colours want them."""
    return scene.dtype == "uint8" and scene.scale == FULL_SCALE["uint8"]


def _scaled(area: Area, values: Pixels) -> npt.NDArray[np.float32]:
    """Raster values as the engine gives them to a model: bit by bit."""
    result: npt.NDArray[np.float32] = values.astype(np.float32) / np.float32(area.scene.scale)
    return result


def padded(area: Area, window: Window) -> tuple[Pixels, Labels]:
    """Image and labels of a window, filled where there is no data as inference fills it: mirrored, then nearest."""
    inside = window.intersection(area.scene.grid.window)
    if inside is None:
        raise InputError(f"{window} lies outside of {area.scene.name}.", hint="Choose a window that meets the raster.")
    image, valid, labels = area.read(inside)
    if inside != window:
        above, left = inside.row_off - window.row_off, inside.col_off - window.col_off
        below, right = window.row_end - inside.row_end, window.col_end - inside.col_end
        sides = ((above, below), (left, right))
        image = np.pad(image, ((0, 0), *sides), mode="symmetric")
        valid = np.pad(valid, sides, mode="symmetric")
        labels = np.pad(labels, sides, constant_values=IGNORE_INDEX)
    if not valid.all():
        image = image.copy()
        fill_invalid(cast(Any, image), valid)
    return image, labels


def validation_tiles(areas: Sequence[Area], *, crop: int) -> list[tuple[Area, Window]]:
    """Windows of `crop` pixels that together hold each labelled pixel of the areas once.

    They may look past the labelled part and past the raster's edge. Windows without labels are left out.
    """
    tiles = []
    for area in areas:
        extent = area.extent
        for row in range(extent.row_off, extent.row_end, crop):
            for col in range(extent.col_off, extent.col_end, crop):
                window = Window(col_off=col, row_off=row, width=crop, height=crop)
                if (area.labels(window) != IGNORE_INDEX).any():
                    tiles.append((area, window))
    return tiles


def read_tile(area: Area, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Image (C, H, W) float32, as `ChipSampler.sample`, and labels (H, W) int64 of a window, without augmentation."""
    return tile_of(area, *padded(area, window))


def tile_of(area: Area, image: Pixels, labels: Labels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """What `padded` gave as `read_tile` gives it."""
    return _scaled(area, image), labels.astype(np.int64)
