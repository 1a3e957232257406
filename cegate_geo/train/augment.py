"""Augmentation of chips: another orientation, another sensor, season, haze or focus.

Labels are only moved, never interpolated. All randomness comes from the generator that is passed in; with strength 0
the photometric part is the identity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Image = npt.NDArray[np.uint8]
FloatImage = npt.NDArray[np.float32]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
DEVIATION = 0.2
"""Usual standard deviation of a channel of 8-bit RGB, in 0-1 units: by it strengths become shares of a band's own."""
BLUR_SHARE, NOISE_SHARE, HAZE_SHARE = 0.2, 0.25, 0.25
"""Share of the chips that are blurred, noisy, hazy at strength 1."""


def turn(
    image: npt.NDArray[Any], labels: npt.NDArray[Any], *, quarters: int, flip: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rotate by quarter turns, then mirror: the eight symmetries of a square.

    Args:
        image: (C, S, S).
        labels: (S, S).
        quarters: Quarter turns counter-clockwise.
        flip: Whether to mirror left and right afterwards.

    Returns:
        Views of both, moved alike.
    """
    image, labels = np.rot90(image, quarters, (1, 2)), np.rot90(labels, quarters)
    return (image[:, :, ::-1], labels[:, ::-1]) if flip else (image, labels)


def resample(
    image: npt.NDArray[Any], labels: npt.NDArray[np.uint8], *, side: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Bring a square chip to `side` pixels: the image smoothly (area-weighted when it shrinks), labels by nearest.

    Args:
        image: (C, S, S) uint8 or float32.
        labels: (S, S).
        side: Wanted S.
    """
    old = image.shape[1]
    if old == side:
        return image, labels
    whole = torch.from_numpy(np.ascontiguousarray(image))[None]
    resized = F.interpolate(whole, size=(side, side), mode="bilinear", align_corners=False, antialias=side < old)
    index = ((np.arange(side) + 0.5) * (old / side)).astype(np.intp)
    return resized[0].numpy(), labels[index][:, index]


def photometric(image: Image, *, strength: float, rng: np.random.Generator) -> FloatImage:
    """Change colours, focus and noise as another sensor, season or sky would.

    Per channel gain, offset, gamma and haze; saturation and hue for all; blur and noise on a share of the chips.
    The ranges follow randomised spectral and brightness shifts that helped across regions: gain ±20 %, offset ±0.05,
    gamma e^±0.25 at strength 1.

    Args:
        image: (3, H, W) uint8.
        strength: 0 = identity, 1 = usual; must not be negative.
        rng: Source of all randomness.

    Returns:
        (3, H, W) float32 in 0-1 units.
    """
    if strength <= 0:
        return image.astype(np.float32) / np.float32(255)
    result = apply_curves(image, tone_curves(strength, rng))
    result = mix_channels(result, color_matrix(strength, rng))
    if rng.random() < BLUR_SHARE * min(strength, 2):
        result = blur(result, float(rng.uniform(0.1, 0.5)) * min(strength, 2) / 2)
    if rng.random() < NOISE_SHARE * min(strength, 2):
        add_noise(result, sigma=float(rng.uniform(0, 0.04)) * strength, rng=rng)
    return np.clip(result, 0, 1, out=result)


def band_shifts(
    image: FloatImage,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
    *,
    strength: float,
    rng: np.random.Generator,
) -> FloatImage:
    """Change light, contrast, focus and noise of any bands, each by shares of its own standard deviation.

    What is left of `photometric` where bands have no colours: saturation, hue and haze are not defined, and a gamma
    neither where values may be negative. Most of a change is the same for all bands, so that their ratios, which tell
    what grows, stay near what they are.

    Args:
        image: (C, H, W).
        mean: (C, 1, 1) of each band, in the units of `image`.
        std: (C, 1, 1) standard deviation, in the units of `image`.
        strength: 0 = identity, 1 = usual; must not be negative.
        rng: Source of all randomness.

    Returns:
        (C, H, W); the same array where nothing is changed.
    """
    if strength <= 0:
        return image
    result = (image - mean) / std
    gain = np.exp(strength * (rng.uniform(-0.18, 0.18) + rng.uniform(-0.06, 0.06, mean.shape)))
    offset = strength / DEVIATION * (rng.uniform(-0.04, 0.04) + rng.uniform(-0.015, 0.015, mean.shape))
    result = result * gain.astype(np.float32) + offset.astype(np.float32)
    if rng.random() < BLUR_SHARE * min(strength, 2):
        result = blur(result, float(rng.uniform(0.1, 0.5)) * min(strength, 2) / 2)
    if rng.random() < NOISE_SHARE * min(strength, 2):
        add_noise(result, sigma=float(rng.uniform(0, 0.04)) * strength / DEVIATION, rng=rng)
    shifted: FloatImage = result * std + mean
    return shifted


def tone_curves(strength: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(3, 256) float32: for each channel the new value, in 0-1 units, of each grey level."""
    level = np.linspace(0, 1, 256)[None]
    gamma = np.exp(strength * (rng.uniform(-0.25, 0.25) + rng.uniform(-0.08, 0.08, (3, 1))))
    gain = np.exp(strength * (rng.uniform(-0.18, 0.18) + rng.uniform(-0.12, 0.12, (3, 1))))
    offset = strength * (rng.uniform(-0.04, 0.04) + rng.uniform(-0.03, 0.03, (3, 1)))
    curves = level**gamma * gain + offset
    if rng.random() < HAZE_SHARE * min(strength, 2):
        density = min(0.9, strength * rng.uniform(0.05, 0.35))
        light = rng.uniform(0.7, 0.95) + np.array([[-0.03], [0.0], [0.03]])  # haze is a little blue
        curves = curves * (1 - density) + light * density
    result: npt.NDArray[np.float32] = np.clip(curves, 0, 1).astype(np.float32)
    return result


def apply_curves(image: Image, curves: npt.NDArray[np.float32]) -> FloatImage:
    """Look up each channel of (C, H, W) uint8 in its curve of (C, 256)."""
    result = np.empty(image.shape, np.float32)
    for channel, curve, out in zip(image, curves, result, strict=True):
        np.take(curve, channel, out=out, mode="clip")
    return result


def color_matrix(strength: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(3, 3) matrix that changes saturation and lets channels leak into each other; grey keeps its brightness."""
    saturation = float(np.exp(strength * rng.uniform(-0.4, 0.4)))
    matrix = saturation * np.eye(3) + (1 - saturation) * LUMA[None, :]
    leak = strength * rng.uniform(-0.05, 0.05, (3, 3))
    leak -= leak.mean(1, keepdims=True)  # rows sum to 0: grey stays grey
    return (matrix + leak).astype(np.float32)


def mix_channels(image: FloatImage, matrix: npt.NDArray[np.float32]) -> FloatImage:
    """(3, H, W) times a (3, 3) matrix."""
    mixed: FloatImage = (matrix @ image.reshape(3, -1)).reshape(image.shape)
    return mixed


def blur(image: FloatImage, weight: float) -> FloatImage:
    """Blur (C, H, W) by the kernel (w, 1 - 2w, w) along both axes; edges repeat. `weight` lies in 0 to 0.5."""
    for axis in (1, 2):
        result = image * np.float32(1 - 2 * weight)
        scaled = image * np.float32(weight)
        body, first, last = ([slice(None)] * 3 for _ in range(3))
        ahead, behind = list(body), list(body)
        ahead[axis], behind[axis], first[axis], last[axis] = (
            slice(1, None),
            slice(None, -1),
            slice(0, 1),
            slice(-1, None),
        )
        result[tuple(ahead)] += scaled[tuple(behind)]
        result[tuple(behind)] += scaled[tuple(ahead)]
        result[tuple(first)] += scaled[tuple(first)]
        result[tuple(last)] += scaled[tuple(last)]
        image = result
    return image


def add_noise(image: FloatImage, *, sigma: float, rng: np.random.Generator) -> None:
    """Add noise of standard deviation `sigma` in 0-1 units, in place.

    Differences of two uniform bytes: triangular, nearly normal, and several times faster than normal numbers.
    """
    count = image.size
    pool = np.frombuffer(rng.bytes(2 * count), np.uint8).reshape(2, *image.shape)
    spread = np.sqrt(2 * (256**2 - 1) / 12)  # of the difference of two uniform bytes
    noise = np.subtract(pool[0], pool[1], dtype=np.float32)
    noise *= np.float32(sigma / spread)
    image += noise
