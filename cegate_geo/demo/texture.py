"""Noise and blur in plain numpy: what turns flat colours into ground, leaves and tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def _spline_matrix(length: int, knots: int) -> FloatArray:
    """(length, knots) weights of a uniform cubic B-spline whose knots span the axis."""
    position = np.linspace(1.0, knots - 2.0001, length, dtype=np.float32)
    left = np.floor(position).astype(np.intp)
    t = position - left
    weights = np.zeros((length, knots), np.float32)
    rows = np.arange(length)
    for offset, w in (
        (-1, (1 - t) ** 3 / 6),
        (0, (3 * t**3 - 6 * t**2 + 4) / 6),
        (1, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6),
        (2, t**3 / 6),
    ):
        weights[rows, np.minimum(left + offset, knots - 1)] += w
    return weights


def smooth_noise(shape: tuple[int, int], cell_px: float, rng: np.random.Generator) -> FloatArray:
    """Gaussian noise with features of about `cell_px` pixels.

    Args:
        shape: (height, width) in pixels.
        cell_px: Distance of the random knots in pixels; 2 and more.
        rng: Source of randomness.

    Returns:
        (H, W) float32 with mean 0 and standard deviation 1.
    """
    knots = [max(4, int(n / cell_px) + 4) for n in shape]
    grid = rng.standard_normal(knots, dtype=np.float32)
    noise = _spline_matrix(shape[0], knots[0]) @ grid @ _spline_matrix(shape[1], knots[1]).T
    noise -= noise.mean()
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def white_noise(shape: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """(H, W) float32 of independent standard normal values."""
    return rng.standard_normal(shape, dtype=np.float32)


def gaussian_blur(array: FloatArray, sigma_px: float) -> FloatArray:
    """Blur the first two axes of (H, W) or (H, W, C) with a Gaussian of `sigma_px`; edges are repeated.

    A sigma of 0 gives the array back.
    """
    if sigma_px <= 0:
        return array
    radius = max(1, int(np.ceil(2.5 * sigma_px)))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(array.ndim)]
        padded = np.pad(array, padding, mode="edge")
        length = array.shape[axis]
        result = np.zeros_like(array)
        for n, tap in enumerate(taps):
            result += tap * (padded[n : n + length] if axis == 0 else padded[:, n : n + length])
        array = result
    return array


def box_blur(array: FloatArray, radius_px: int) -> FloatArray:
    """Mean of the (2 r + 1)² neighbours of each pixel of (H, W); edges are repeated. Its cost does not grow with r."""
    size = 2 * radius_px + 1
    for axis in (0, 1):
        padding = [(radius_px + 1, radius_px) if a == axis else (0, 0) for a in range(2)]
        total = np.cumsum(np.pad(array, padding, mode="edge"), axis=axis, dtype=np.float64)
        ahead, behind = (total[size:], total[:-size]) if axis == 0 else (total[:, size:], total[:, :-size])
        array = ((ahead - behind) / size).astype(np.float32)
    return array


def halve(array: FloatArray) -> FloatArray:
    """Mean of 2 x 2 pixels of (H, W) or (H, W, C); H and W are even."""
    rows = array[0::2] + array[1::2]
    return np.asarray((rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25), np.float32)
