"""A small U-Net (arXiv 1505.04597): four levels, normalised, bilinear upsampling."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from cegate_geo.train.norms import Norm, make_norm

WIDTHS = (14, 28, 56, 112)
"""Channels of the levels, from fine to coarse: 0.37 M parameters."""


class UNet(nn.Module):
    """Normalised images in, logits at full size out.

    Statistics are by default those of the training data (batch normalisation), not of the image: a field without
    texture stays one, where normalisation by groups would stretch its faint contrast.

    Args:
        classes: Number of classes K.
        widths: Channels of the levels, from fine to coarse.
        norm: What it normalises by.
        channels: Bands C of the image.
    """

    def __init__(
        self, classes: int, widths: tuple[int, ...] = WIDTHS, *, norm: Norm = "batch", channels: int = 3
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _pair(before, width, norm) for before, width in zip((channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            _pair(deep + width, width, norm) for deep, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.classify = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → logits (N, K, H, W)."""
        # Convolutions of few channels train twice as fast on CPUs where channels lie together.
        values = image.contiguous(memory_format=torch.channels_last) if self.training else image
        kept: list[torch.Tensor] = []
        for stage in self.down:
            values = stage(F.max_pool2d(values, 2) if kept else values)
            kept.append(values)
        for stage, skip in zip(self.up, kept[-2::-1], strict=True):
            larger = F.interpolate(values, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            values = stage(torch.cat([larger, skip], 1))
        logits: torch.Tensor = self.classify(values)
        return logits


def _pair(before: int, width: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        layers += [make_norm(norm, width, groups=math.gcd(width, 8)), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
