"""UPerNet (arXiv 1807.10221) on the token maps of a ViT: pyramid pooling on the coarsest map, features fused top down.

Pooling into b x b bins is written as two small matrix products, b x h and w x b: the same numbers as adaptive average
pooling, from operators that every runtime has. Bins follow the crop, as atrous rates should (arXiv 2307.14179): a bin
covers the same ground whatever the crop, since scenes are brought to the model's ground sampling distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from cegate_geo.errors import ConfigError
from cegate_geo.train.norms import Norm, make_norm

BINS = (1, 2, 3, 6)
"""Bins of an axis at the published crop."""
REFERENCE = 16
"""Cells of an axis of the coarsest map at the published crop: 512 pixels at stride 32."""


def reassemble(in_dim: int, dim: int, octave: int) -> nn.Module:
    """Tokens to a map that is finer (octave < 0) or coarser (octave = 1) than the token grid by factors of two."""
    if octave < 0:
        factor = 2**-octave
        return nn.Sequential(nn.Conv2d(in_dim, dim, 1), nn.ConvTranspose2d(dim, dim, kernel_size=factor, stride=factor))
    if octave == 0:
        return nn.Conv2d(in_dim, dim, 1)
    return nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)


def bins_for(size: int, bins: int) -> int:
    """How many bins an axis gets so that a bin covers the ground that it covers at the published crop.

    Args:
        size: Cells of the axis.
        bins: Bins at the published crop.

    Returns:
        1 to `size`.
    """
    return min(size, max(1, math.floor(bins * size / REFERENCE + 0.5)))


@lru_cache(maxsize=256)
def pooling_matrix(size: int, bins: int) -> NDArray[np.float32]:
    """(bins, size): rows that average the cells from floor(i * size / bins) to ceil((i + 1) * size / bins)."""
    matrix = np.zeros((bins, size), np.float32)
    for i in range(bins):
        first, end = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:end] = 1 / (end - first)
    return matrix


def pool(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(N, D, h, w) → (N, D, *shape) by averages; equal to adaptive average pooling."""
    rows, cols = (torch.tensor(pooling_matrix(n, b), device=x.device) for n, b in zip(x.shape[-2:], shape, strict=True))
    return rows.to(x.dtype) @ x @ cols.to(x.dtype).T


class UPerNetHead(nn.Module):
    """Pyramid pooling and a feature pyramid. With a patch of 16 pixels and four levels the logits have stride 4.

    Pooled maps are normalised by groups in any case: one bin of one image has no variance.

    Args:
        in_dim: Width D of the tokens.
        levels: Number of feature maps.
        dim: Width of the head, a multiple of 8.
        classes: Number of classes K.
        norm: What it normalises by, see `heads`.
    """

    def __init__(self, *, in_dim: int, levels: int, dim: int, classes: int, norm: Norm = "batch") -> None:
        super().__init__()
        if dim % 8:
            raise ConfigError(f"model.head_dim = {dim} is no multiple of 8.", hint="Use 64, 96, 128, 256, ...")
        self.norms = nn.ModuleList([make_norm(norm, in_dim, groups=1) for _ in range(levels)])
        self.reassemble = nn.ModuleList([reassemble(in_dim, dim, level - (levels - 2)) for level in range(levels)])
        self.pooled = nn.ModuleList([_conv(dim, dim, 1, "group") for _ in BINS])
        self.top = _conv(dim * (1 + len(BINS)), dim, 3, norm)
        self.lateral = nn.ModuleList([_conv(dim, dim, 1, norm) for _ in range(levels - 1)])
        self.smooth = nn.ModuleList([_conv(dim, dim, 3, norm) for _ in range(levels - 1)])
        self.fuse = _conv(levels * dim, dim, 3, norm)
        self.classify = nn.Conv2d(dim, classes, 1)

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Levels (N, D, h, w), shallow to deep → (N, K, 4h, 4w) for four levels; the image is not looked at."""
        maps = [r(n(f)) for r, n, f in zip(self.reassemble, self.norms, features, strict=True)]
        joined = [self.look_around(maps[-1])]
        for lateral, finer in zip(reversed(self.lateral), reversed(maps[:-1]), strict=True):
            joined.insert(0, lateral(finer) + _resize(joined[0], finer))
        smoothed = [smooth(x) for smooth, x in zip(self.smooth, joined[:-1], strict=True)]
        same = [_resize(x, joined[0]) for x in (*smoothed, joined[-1])]
        return self.classify(self.fuse(torch.cat(same, 1)))

    def look_around(self, x: torch.Tensor) -> torch.Tensor:
        """The coarsest map (N, dim, h, w) beside its averages over bins of four sizes → the same shape."""
        parts = [x]
        for convolve, bins in zip(self.pooled, BINS, strict=True):
            shape = (bins_for(x.shape[-2], bins), bins_for(x.shape[-1], bins))
            parts.append(_resize(convolve(pool(x, shape)), x))
        return self.top(torch.cat(parts, 1))


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _conv(channels: int, dim: int, kernel: int, norm: Norm) -> nn.Module:
    convolve = nn.Conv2d(channels, dim, kernel, padding=kernel // 2)
    return nn.Sequential(convolve, make_norm(norm, dim, groups=8), nn.ReLU())
