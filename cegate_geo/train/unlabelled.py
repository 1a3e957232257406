"""Random chips from unlabelled rasters, for pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cegate_geo.errors import InputError
from cegate_geo.train.byte_rasters import UnlabelledSource, expand, open_uint8
from cegate_geo.train.raster_input import RGB, Band


class ChipSampler:
    """Draws chips at random places, scales and orientations; rasters are kept in memory as uint8.

    Chips that hold nearly nothing (a standard deviation below 3 grey values: holes, sea) are drawn again.
    """

    def __init__(self, sources: Sequence[UnlabelledSource], *, size: int, scale: tuple[float, float]) -> None:
        if not sources:
            raise InputError("There is no source to draw chips from.", hint="Add a [[source]] with images = '...'.")
        wrong = [list(s.bands) for s in sources if len(s.bands) not in (0, len(RGB))]
        if wrong:
            raise InputError(
                f"The bands {wrong[0]} are not three: pre-training knows red, green and blue of 8 bits only.",
                hint="Choose three here; adapt takes more, and starts from what was learned of these.",
            )
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


def _read_uint8(path: Path, bands: tuple[Band, ...]) -> npt.NDArray[np.uint8]:
    with open_uint8(path, bands) as raster:
        return raster.read(0, 0, *raster.shape)
