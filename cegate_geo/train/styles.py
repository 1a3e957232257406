"""Looks of other places for the chips of one's own: style injection from unlabelled rasters.

A chip keeps its content and its labels, and gets the colours of a random chip of the pool, in one of two ways: by
randomised histogram matching, or by taking over the amplitudes of low frequencies (Fourier domain adaptation). Both
stand in for the learned stylizer of CrossEarth, which was not released.

Sources: Yaras et al., Randomized Histogram Matching, JSTARS 2024; Yang and Soatto, FDA, CVPR 2020, with a random size
of the block as in GeoSA-BaSA, ISPRS J. 2025; CrossEarth, arXiv 2410.22629.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cegate_geo.errors import InputError
from cegate_geo.train.byte_rasters import UnlabelledSource, expand, open_uint8
from cegate_geo.train.fingerprint import Seen, check_value
from cegate_geo.train.raster_input import RGB_BANDS

Image = npt.NDArray[np.uint8]
Method = Literal["histogram", "fourier", "both"]
"""How a look is put on: by matching histograms, by low frequencies (which can leave coloured clouds), or by turns."""

POOL_SIZE = 256
"""Chips whose look is kept."""
MIN_SPREAD = 10.0
"""Standard deviation in grey values below which a chip (sea, a hole) has no look to give."""
MAX_DRAWS = 20
"""Draws for one chip of the pool before a featureless one is taken."""
BLOCK = (0.01, 0.1)
"""Half side of the block of low frequencies relative to the chip, drawn evenly."""


class StylePool:
    """The looks of random chips of unlabelled rasters. Thread-safe: it does not change after it is made.

    Args:
        sources: Where to look.
        side: Side of the chips in pixels, those of the pool and those that are restyled.
        rng: Draws the pool.
        method: How looks are put on.
        count: Chips in the pool.

    Raises:
        InputError: If there is no raster, or all weights are 0.
        RasterError: If one can't be read, or is not of 8 bits.
    """

    def __init__(
        self,
        sources: Sequence[UnlabelledSource],
        *,
        side: int,
        rng: np.random.Generator,
        method: Method = "histogram",
        count: int = POOL_SIZE,
    ) -> None:
        weights = np.array([s.weight for s in sources], float)
        if not len(weights) or weights.min() < 0 or not weights.sum():
            raise InputError("There is no [[style]] to draw from.", hint="Give one with images = '...' and a weight.")
        paths = [expand(s.images) for s in sources]
        channels = len(sources[0].bands or RGB_BANDS)
        self._method = method
        self._block = max(1, int(side * BLOCK[1]))
        self._histograms = np.empty((count, channels, 256), np.float32)
        self._amplitudes = np.empty((count, channels, 2 * self._block + 1, self._block + 1), np.float32)
        for n in range(count):
            chip = _draw(sources, paths, weights / weights.sum(), side, rng)
            self._histograms[n] = cumulative_histograms(chip)
            self._amplitudes[n] = _low(np.abs(_spectrum(_tiled(chip, side))), self._block)

    def __len__(self) -> int:
        return len(self._histograms)

    def seen(self) -> Seen:
        """The pool by its histograms, which are the same wherever they are counted."""
        return Seen(use="looks", name="[[style]]", pixels=check_value(self._histograms), labels=0)

    def restyle(self, image: Image, rng: np.random.Generator) -> Image:
        """(C, S, S) uint8 with the colours of a random chip of the pool; S is the pool's side."""
        n = int(rng.integers(len(self)))
        by_histogram = {"histogram": True, "fourier": False, "both": bool(rng.random() < 0.5)}[self._method]
        if by_histogram:
            return match_histograms(image, self._histograms[n], weight=float(rng.random()))
        return swap_amplitudes(image, self._amplitudes[n], block=float(rng.uniform(*BLOCK)))


def cumulative_histograms(image: Image) -> npt.NDArray[np.float32]:
    """(C, 256): share of the pixels of (C, H, W) uint8 that are at most as bright as each grey level."""
    counts = np.stack([np.bincount(band.reshape(-1), minlength=256) for band in image])
    shares: npt.NDArray[np.float32] = (np.cumsum(counts, axis=1) / image[0].size).astype(np.float32)
    return shares


def match_histograms(image: Image, histograms: npt.NDArray[np.float32], *, weight: float) -> Image:
    """Give each channel the distribution of values of another image.

    Args:
        image: (C, H, W).
        histograms: `cumulative_histograms` of the other image.
        weight: 0 = the image as it is, 1 = wholly matched; between them the curves are mixed.
    """
    level = np.arange(256)
    result = np.empty_like(image)
    for band, own, other, out in zip(image, cumulative_histograms(image), histograms, result, strict=True):
        distinct = np.flatnonzero(np.diff(other, prepend=0))  # flat parts have no inverse
        curve = np.interp(own, other[distinct], distinct)
        table = np.round((1 - weight) * level + weight * curve).astype(np.uint8)
        np.take(table, band, out=out, mode="clip")
    return result


def swap_amplitudes(image: Image, amplitudes: npt.NDArray[np.float32], *, block: float) -> Image:
    """Take over the amplitudes of low frequencies; phases, and with them outlines, stay.

    Args:
        image: (C, S, S).
        amplitudes: (C, 2 b + 1, b + 1) of another image of the same size: rows -b to b, columns 0 to b.
        block: Half side of the swapped block relative to S.
    """
    side, most = image.shape[1], amplitudes.shape[2] - 1
    half = min(most, int(side * block))
    spectrum = _spectrum(image)
    rows = np.arange(-half, half + 1)
    own = spectrum[:, rows, : half + 1]
    size = np.abs(own)
    phase = np.divide(own, size, out=np.ones_like(own), where=size > 0)
    spectrum[:, rows, : half + 1] = amplitudes[:, rows + most, : half + 1] * phase
    values = np.fft.irfft2(spectrum, s=image.shape[1:])
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _spectrum(image: Image) -> npt.NDArray[np.complex64]:
    spectrum: npt.NDArray[np.complex64] = np.fft.rfft2(image.astype(np.float32)).astype(np.complex64)
    return spectrum


def _low(spectrum: npt.NDArray[np.float32], half: int) -> npt.NDArray[np.float32]:
    """(C, 2 half + 1, half + 1): rows -half to half, columns 0 to half."""
    return spectrum[:, np.arange(-half, half + 1), : half + 1]


def _draw(
    sources: Sequence[UnlabelledSource],
    paths: Sequence[Sequence[Path]],
    shares: npt.NDArray[np.float64],
    side: int,
    rng: np.random.Generator,
) -> Image:
    """A chip with something to see, of `side` pixels or as large as the raster is."""
    for _ in range(MAX_DRAWS):
        k = int(rng.choice(len(sources), p=shares))
        path = paths[k][int(rng.integers(len(paths[k])))]
        with open_uint8(path, sources[k].bands) as raster:
            height, width = (min(side, n) for n in raster.shape)
            row, col = (int(rng.integers(n - m + 1)) for n, m in zip(raster.shape, (height, width), strict=True))
            chip = raster.read(row, col, height, width)
        if chip.std(axis=(1, 2)).max() >= MIN_SPREAD:
            break
    return chip


def _tiled(image: Image, side: int) -> Image:
    """A small image mirrored until it fills (C, side, side)."""
    below, right = side - image.shape[1], side - image.shape[2]
    return np.pad(image, ((0, 0), (0, below), (0, right)), mode="symmetric") if below or right else image
