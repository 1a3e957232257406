"""Backbone, modules and head as one segmentation model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cegate_geo.train.backbone import BackboneSpec, patch_size
from cegate_geo.train.band_projection import fold_bands
from cegate_geo.train.config import QueryConfig
from cegate_geo.train.heads import make_head
from cegate_geo.train.mask2former import Mask2FormerHead, QueryPredictions
from cegate_geo.train.norms import Norm


class Segmenter(nn.Module):
    """Images in 0-1 units in, logits at full size out. Normalisation is part of it, so it is part of the export.

    Of bands that are not of 8 bits, the raster value `RasterInput.scale` is the unit, and values may lie beyond 0 to 1.

    Args:
        backbone: timm ViT.
        spec: How the backbone wants its input; one mean and one deviation for each band.
        head: Name of a head, see `heads`.
        head_dim: Width of the head.
        classes: Number of classes K.
        norm: What the head normalises by.
        queries: Sizes of the head "mask2former".
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        spec: BackboneSpec,
        *,
        head: str,
        head_dim: int,
        classes: int,
        norm: Norm = "batch",
        queries: QueryConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = len(spec.mean)
        self.patch = patch_size(backbone)
        self.indices = feature_indices(len(cast(Sequence[nn.Module], backbone.blocks)))
        dim = cast(int, backbone.embed_dim)
        self.head = make_head(
            head,
            in_dim=dim,
            levels=len(self.indices),
            dim=head_dim,
            classes=classes,
            norm=norm,
            queries=queries,
            channels=self.channels,
        )
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in 0-1 units → logits (N, K, H, W), the mean of all branches; H, W: multiples of the patch."""
        first, *others = self.branches(images)
        return sum(others, first) / (1 + len(others)) if others else first

    def branches(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, H, W) in 0-1 units → logits (N, K, H, W) of each branch of the head; most heads have one."""
        normalised, features = self._features(images)
        found = self.head(features, normalised)
        maps = found if isinstance(found, tuple) else (found,)
        size = images.shape[-2:]
        return [
            m if m.shape[-2:] == size else F.interpolate(m, size=size, mode="bilinear", align_corners=False)
            for m in maps
        ]

    def learn_from(self, images: torch.Tensor) -> list[torch.Tensor] | QueryPredictions:
        """(N, C, H, W) in 0-1 units → what the loss is computed from: `branches`, or what the queries of a head say."""
        if isinstance(self.head, Mask2FormerHead):
            return self.head.predictions(self._features(images)[1])
        return self.branches(images)

    def _features(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Normalised images, and token maps (N, D, h, w) of the levels."""
        normalised = (images - self.mean) / self.std
        features = self.backbone.forward_intermediates(  # type: ignore[operator]
            normalised, indices=self.indices, intermediates_only=True, norm=False
        )
        return normalised, features

    def fix_size(self, side: int) -> None:
        """Bind the model to square images of one size, for export.

        timm resamples position embeddings at each call while a graph is traced, also where nothing changes, and with an
        operator that opset 17 does not have. Here it is done once.
        """
        vit = self.backbone
        if getattr(vit, "pos_embed", None) is None or getattr(vit, "rope", None) is not None:
            return
        vit.set_input_size(img_size=side)  # type: ignore[operator]
        vit.dynamic_img_size = False  # type: ignore[assignment]
        vit.patch_embed.flatten = True  # type: ignore[assignment]

    def fold_bands(self) -> None:
        """Make one plain convolution of the patch embedding, in place."""
        fold_bands(self.backbone)

    def fold_norms(self) -> None:
        """Fold each batch normalisation into the convolution right before it, in place.

        The exporter would do it, too, but after weights were rounded: the products do not fit into half precision.
        """
        for parts in [m for m in self.modules() if isinstance(m, nn.Sequential)]:
            for index in range(len(parts) - 1):
                convolution, norm = parts[index], parts[index + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parts[index], parts[index + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def feature_indices(depth: int) -> list[int]:
    """Blocks whose outputs the head reads: the ends of the four quarters, as in 7, 11, 15, 23 of 24.

    Shallow models repeat none: fewer than four blocks give fewer levels.
    """
    return sorted({max(0, round(depth * part) - 1) for part in (1 / 3, 1 / 2, 2 / 3, 1.0)})
