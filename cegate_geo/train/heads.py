"""Segmentation heads on the token maps of a ViT.

Every head maps a list of feature maps (N, D, h, w), one per level, all on the token grid, and the image that they were
made from, to logits (N, K, H', W') on a finer grid, or to a tuple of such; `Segmenter` resamples them to the image.

By default they normalise by statistics of the training data, kept while training. Normalised by its own statistics (by
groups), a tile of nothing but bare ground has its faint contrast stretched until something in it looks like a roof.
Mask2Former normalises by groups and layers, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from cegate_geo.errors import ConfigError
from cegate_geo.train.config import QueryConfig
from cegate_geo.train.mask2former import Mask2FormerHead
from cegate_geo.train.norms import Norm, make_norm
from cegate_geo.train.unet import UNet
from cegate_geo.train.upernet import UPerNetHead, reassemble

HEADS = ("linear", "dpt", "dpt-detail", "dpt-unet", "upernet")
"""Heads that need nothing beside torch and timm."""


def make_head(
    name: str,
    *,
    in_dim: int,
    levels: int,
    dim: int,
    classes: int,
    norm: Norm = "batch",
    queries: QueryConfig | None = None,
    channels: int = 3,
) -> nn.Module:
    """A head by name: one of `HEADS`, which normalise by `norm`, or "mask2former", whose sizes `queries` gives.

    Those that look at the image itself take it with `channels` bands.

    Raises:
        ConfigError: If there is no such head, or it can't have this width.
        RuntimeMissingError: If packages that it needs are not installed.
    """
    if name == "linear":
        return LinearHead(in_dim=in_dim, classes=classes, norm=norm)
    if name == "dpt":
        return DptHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, norm=norm)
    if name == "dpt-detail":
        return DetailHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, norm=norm, channels=channels)
    if name == "dpt-unet":
        return LateFusionHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, norm=norm, channels=channels)
    if name == "upernet":
        return UPerNetHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, norm=norm)
    if name == "mask2former":
        return Mask2FormerHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, sizes=queries)
    raise ConfigError(f"There is no head {name!r}.", hint=f"Use one of {', '.join(HEADS)}, mask2former.")


class LinearHead(nn.Module):
    """Normalisation and a 1x1 convolution on the last level: by batches, DINOv2's plain probe (arXiv 2304.07193)."""

    def __init__(self, *, in_dim: int, classes: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.norm = make_norm(norm, in_dim, groups=1)
        self.classify = nn.Conv2d(in_dim, classes, 1)

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Levels (N, D, h, w) → (N, K, h, w); the image is not looked at."""
        return self.classify(self.norm(features[-1]))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around an identity."""

    def __init__(self, dim: int, norm: Norm) -> None:
        super().__init__()
        self.norm = make_norm(norm, dim, groups=8)
        self.first = nn.Conv2d(dim, dim, 3, padding=1)
        self.second = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D, h, w) → the same shape."""
        return x + self.second(F.relu(self.first(F.relu(self.norm(x)))))


class DptHead(nn.Module):
    """Dense prediction head: shallow levels become fine maps, deep ones coarse, fused from coarse to fine.

    Source: Vision Transformers for Dense Prediction, arXiv 2103.13413. With a patch of 16 pixels and four levels the
    maps have strides 4, 8, 16, 32, and the logits stride 4.

    Args:
        in_dim: Width D of the tokens.
        levels: Number of feature maps.
        dim: Width of the head, a multiple of 8.
        classes: Number of classes K.
        norm: What it normalises by.
    """

    def __init__(self, *, in_dim: int, levels: int, dim: int, classes: int, norm: Norm = "batch") -> None:
        super().__init__()
        if dim % 8:
            raise ConfigError(f"model.head_dim = {dim} is no multiple of 8.", hint="Use 64, 96, 128, 256, ...")
        self.norms = nn.ModuleList([make_norm(norm, in_dim, groups=1) for _ in range(levels)])
        self.reassemble = nn.ModuleList([reassemble(in_dim, dim, level - (levels - 2)) for level in range(levels)])
        self.units = nn.ModuleList([ResidualUnit(dim, norm) for _ in range(levels)])
        self.out = nn.Sequential(nn.Conv2d(dim, dim // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(dim // 2, classes, 1))

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Levels (N, D, h, w), shallow to deep → (N, K, 4h, 4w) for four levels; the image is not looked at."""
        return self.out(self.fuse(features))

    def fuse(self, features: Sequence[torch.Tensor], beside: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """Levels (N, D, h, w), shallow to deep → (N, dim, 4h, 4w) for four levels.

        Args:
            features: Token maps.
            beside: Maps to add to the reassembled ones, of their shapes; none by default.
        """
        maps = [r(n(f)) for r, n, f in zip(self.reassemble, self.norms, features, strict=True)]
        if beside:
            maps = [own + other for own, other in zip(maps, beside, strict=True)]
        fused = self.units[-1](maps[-1])
        for unit, finer in zip(reversed(self.units[:-1]), reversed(maps[:-1]), strict=True):
            fused = unit(finer + F.interpolate(fused, size=finer.shape[-2:], mode="bilinear", align_corners=False))
        return fused


class DetailHead(nn.Module):
    """A `DptHead` beside a light convolutional pyramid of the image, as the spatial prior of ViT-Adapter.

    A patch of 16 pixels blurs outlines, and a small backbone knows little texture; convolutions at strides 2 to 32
    bring both (arXiv 2205.08534, section 3.2, without its attention). The logits have stride 2.

    Args:
        in_dim: Width D of the tokens.
        levels: Number of feature maps.
        dim: Width of the head, a multiple of 8.
        classes: Number of classes K.
        norm: What it normalises by.
        channels: Bands C of the image.
    """

    def __init__(
        self, *, in_dim: int, levels: int, dim: int, classes: int, norm: Norm = "batch", channels: int = 3
    ) -> None:
        super().__init__()
        self.dpt = DptHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, norm=norm)
        half = dim // 2
        self.stem = _downsample(channels, half, norm)
        # The finest map of four levels has stride 4; each level less begins one octave coarser.
        steps = [[half] + [dim] * (4 - levels)] + [[dim]] * (levels - 1)
        self.pyramid = nn.ModuleList(
            [nn.Sequential(*(_downsample(w, dim, norm) for w in widths), ResidualUnit(dim, norm)) for widths in steps]
        )
        self.narrow = nn.Conv2d(dim, half, 1)
        self.dpt.out = nn.Sequential(
            nn.Conv2d(2 * half, half, 3, padding=1),
            make_norm(norm, half, groups=4),
            nn.ReLU(),
            nn.Conv2d(half, classes, 1),
        )

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Levels (N, D, h, w), shallow to deep, and the image (N, C, H, W) → (N, K, H / 2, W / 2)."""
        fine = self.stem(image)
        maps: list[torch.Tensor] = []
        for stage in self.pyramid:
            maps.append(stage(maps[-1] if maps else fine))
        joined = self.narrow(self.dpt.fuse(features, maps))
        joined = F.interpolate(joined, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.dpt.out(torch.cat([joined, fine], 1))


class LateFusionHead(nn.Module):
    """A `DetailHead` beside a small U-Net on the image, each trained with a loss of its own; their logits are averaged.

    The two fail in different places: a ViT on ground that its features do not tell apart, a U-Net on roofs of a
    make that it has not seen. Trained on the average alone, the one would learn to lean on the other.

    Args:
        in_dim: Width D of the tokens.
        levels: Number of feature maps.
        dim: Width of the head, a multiple of 8.
        classes: Number of classes K.
        norm: What it normalises by.
        channels: Bands C of the image.
    """

    def __init__(
        self, *, in_dim: int, levels: int, dim: int, classes: int, norm: Norm = "batch", channels: int = 3
    ) -> None:
        super().__init__()
        self.detail = DetailHead(in_dim=in_dim, levels=levels, dim=dim, classes=classes, norm=norm, channels=channels)
        self.unet = UNet(classes, norm=norm, channels=channels)

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels (N, D, h, w) and the image (N, C, H, W) → (N, K, H / 2, W / 2) and (N, K, H, W)."""
        return self.detail(features, image), self.unet(image)


def _downsample(channels: int, dim: int, norm: Norm) -> nn.Module:
    convolve = nn.Conv2d(channels, dim, 3, stride=2, padding=1)
    return nn.Sequential(convolve, make_norm(norm, dim, groups=4), nn.ReLU())
