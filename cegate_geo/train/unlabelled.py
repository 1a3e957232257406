"""Random chips from unlabelled rasters, for pre-training and style pools."""

from __future__ import annotations

import contextlib
import glob
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from rasterio.windows import Window
from torch.nn import functional as F

from cegate_geo.errors import InputError, RasterError

SIDECARS = (".aux.xml", ".ovr", ".msk", ".qml")
"""Endings of files that belong to a raster and are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledSource:
    """Rasters to draw chips from."""

    images: str
    """Path or glob pattern."""
    weight: float = 1.0
    """Share of the chips relative to other sources."""
    bands: tuple[int, ...] = (1, 2, 3)
    """Bands, from 1, in the order red, green, blue."""


class ChipSampler:
    """Draws chips at random places, scales and orientations; rasters are kept in memory as uint8.

    Chips that hold nearly nothing (a standard deviation below 3 grey values: holes, sea) are drawn again.
    """

    def __init__(self, sources: Sequence[UnlabelledSource], *, size: int, scale: tuple[float, float]) -> None:
        if not sources:
            raise InputError("There is no source to draw chips from.", hint="Add a [[source]] with images = '...'.")
        self.size, self.scale = size, scale
        self.images = [[_read_uint8(path, s.bands) for path in expand(s.images)] for s in sources]
        weights = np.array([s.weight for s in sources], float)
        self.source_weights = weights / weights.sum()
        areas = [np.array([i.shape[1] * i.shape[2] for i in group], float) for group in self.images]
        self.image_weights = [a / a.sum() for a in areas]

    def batch(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """(count, 3, size, size) float32 in 0-1 units."""
        return torch.stack([self._chip(rng) for _ in range(count)])

    def _chip(self, rng: np.random.Generator) -> torch.Tensor:
        for _ in range(20):
            group = rng.choice(len(self.images), p=self.source_weights)
            image = self.images[group][rng.choice(len(self.images[group]), p=self.image_weights[group])]
            low, high = np.log(self.scale[0]), np.log(self.scale[1])
            side = min(round(self.size * float(np.exp(rng.uniform(low, high)))), *image.shape[1:])
            row = int(rng.integers(image.shape[1] - side + 1))
            col = int(rng.integers(image.shape[2] - side + 1))
            cut = image[:, row : row + side, col : col + side]
            if cut[:, ::8, ::8].std() >= 3.0:
                break
        chip = torch.from_numpy(np.ascontiguousarray(cut)).float().div_(255)
        if side != self.size:
            down = {"mode": "bilinear", "align_corners": False, "antialias": side > self.size}
            chip = F.interpolate(chip[None], size=(self.size, self.size), **down)[0]
        return _jitter(_turn(chip, rng), rng)


def _turn(chip: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    chip = torch.rot90(chip, int(rng.integers(4)), (1, 2))
    return chip.flip(2) if rng.random() < 0.5 else chip


def _jitter(chip: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gain, offset and gamma as another sensor, season or haze would have them."""
    gain = torch.from_numpy(rng.uniform(0.8, 1.25, (3, 1, 1)).astype(np.float32)) ** 0.7
    offset = float(rng.uniform(-0.05, 0.05))
    gamma = float(np.exp(rng.uniform(-0.25, 0.25)))
    return (chip.clamp(1e-4, 1).pow(gamma) * gain * float(rng.uniform(0.8, 1.2)) + offset).clamp_(0, 1)


def expand(pattern: str) -> list[Path]:
    """Files that match a path or glob pattern, sorted, without what GDAL and QGIS lay beside a raster.

    Raises:
        InputError: If none does.
    """
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns, too
    paths = [Path(p) for p in found if not p.lower().endswith(SIDECARS)]
    if not paths:
        raise InputError(
            f"No file matches {pattern!r}.", hint="Check the path; patterns are relative to where you are."
        )
    return paths


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning for files that lie nowhere: chips need no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


class Uint8Raster:
    """Three bands of an open raster of 8 bits. Made by `open_uint8`."""

    def __init__(self, dataset: Any, bands: tuple[int, ...]) -> None:
        self._dataset, self._bands = dataset, bands
        self.shape: tuple[int, int] = dataset.shape

    def read(self, row: int, col: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """(3, height, width) of a window within the raster."""
        values: npt.NDArray[np.uint8] = self._dataset.read(self._bands, window=Window(col, row, width, height))
        return values


@contextlib.contextmanager
def open_uint8(path: Path, bands: tuple[int, ...]) -> Iterator[Uint8Raster]:
    """Open a raster to look at its pixels only: whatever its place, as long as it holds bytes.

    Raises:
        RasterError: If it can't be read, lacks a band, or holds other numbers.
    """
    try:
        with _quiet(), rasterio.open(path) as dataset:
            if max(bands) > dataset.count or dataset.dtypes[0] != "uint8":
                raise RasterError(
                    f"{path} has {dataset.count} bands of {dataset.dtypes[0]}; bands {bands} of uint8 are needed.",
                    hint="Choose other bands, or scale it to 8 bits first (gdal_translate -ot Byte -scale).",
                )
            yield Uint8Raster(dataset, bands)
    except rasterio.errors.RasterioIOError as error:
        raise RasterError(f"{path} can't be read: {error}.", hint="Check that it is a raster.") from error


def _read_uint8(path: Path, bands: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    with open_uint8(path, bands) as raster:
        return raster.read(0, 0, *raster.shape)
