"""Masked image modelling: pre-train a ViT on unlabelled rasters.

The encoder sees only the visible patches; a small decoder reconstructs the hidden ones, normalised per patch
(Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377). The loss is 2 MSE + 1 L1 as in CrossEarth's
multi-task training (arXiv 2410.22629).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

from cegate_geo.errors import ConfigError
from cegate_geo.train.backbone import patch_size, sincos_positions


class MaskedAutoencoder(nn.Module):
    """A timm `VisionTransformer` as encoder with a light decoder.

    Args:
        encoder: ViT with additive position embeddings and `dynamic_img_size=True`.
        decoder_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
    """

    def __init__(self, encoder: nn.Module, *, decoder_dim: int = 128, decoder_depth: int = 2) -> None:
        super().__init__()
        if getattr(encoder, "pos_embed", None) is None:
            raise ConfigError(
                f"{type(encoder).__name__} has no additive position embedding.",
                hint="Pre-train a plain ViT, for example vit_tiny_patch16_224.",
            )
        self.encoder = encoder
        self.patch = patch_size(encoder)
        dim = cast(int, encoder.embed_dim)
        self.prefix = cast(int, encoder.num_prefix_tokens)
        self.embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.blocks = nn.Sequential(*[Block(decoder_dim, num_heads=4, qkv_bias=True) for _ in range(decoder_depth)])
        self.norm = nn.LayerNorm(decoder_dim)
        self.predict = nn.Linear(decoder_dim, self.patch**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: torch.Tensor, order: torch.Tensor, visible: int) -> torch.Tensor:
        """Reconstruct the hidden patches.

        Args:
            images: (N, 3, H, W), normalised for the encoder.
            order: (N, T) a permutation of the T patches of each image; the first `visible` are shown.
            visible: Number of patches that the encoder sees.

        Returns:
            (N, T - visible, 3 * patch * patch) predicted patches, in the order of `order[:, visible:]`.
        """
        latent = self.embed(encode_visible(self.encoder, images, order[:, :visible]))
        prefix, shown = latent[:, : self.prefix], latent[:, self.prefix :]
        hidden = self.mask_token.expand(len(images), order.shape[1] - visible, -1).to(shown.dtype)
        grid = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        positions = sincos_positions(grid, shown.shape[2]).to(shown)[order]  # attention does not care for the order
        tokens = torch.cat([prefix, torch.cat([shown, hidden], 1) + positions], 1)
        return self.predict(self.norm(self.blocks(tokens)[:, self.prefix + visible :]))


def encode_visible(vit: nn.Module, images: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Run a timm `VisionTransformer` on some patches only.

    Args:
        vit: The encoder.
        images: (N, 3, H, W).
        keep: (N, V) indices of the patches to keep, in raster order of the grid.

    Returns:
        (N, prefix + V, D) normalised tokens.
    """
    tokens = vit._pos_embed(vit.patch_embed(images))  # type: ignore[operator]
    prefix = cast(int, vit.num_prefix_tokens)
    index = keep[:, :, None].expand(-1, -1, tokens.shape[2])
    tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, index)], 1)
    return vit.norm(vit.blocks(vit.norm_pre(tokens)))  # type: ignore[operator]


def patchify(images: torch.Tensor, patch: int) -> torch.Tensor:
    """(N, C, H, W) → (N, T, C * patch * patch), patches in raster order."""
    n, c, h, w = images.shape
    cut = images.reshape(n, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(patches: torch.Tensor, patch: int, shape: tuple[int, int]) -> torch.Tensor:
    """The inverse of `patchify` for images of `shape` = (height, width)."""
    n, _, length = patches.shape
    rows, cols, channels = shape[0] // patch, shape[1] // patch, length // patch**2
    cut = patches.reshape(n, rows, cols, channels, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, *shape)


def reconstruction_loss(
    predicted: torch.Tensor, images: torch.Tensor, order: torch.Tensor, visible: int
) -> torch.Tensor:
    """2 MSE + 1 L1 over the hidden patches, each normalised by its own mean and deviation."""
    patches = patchify(images, math.isqrt(predicted.shape[2] // images.shape[1]))
    target = patches.gather(1, order[:, visible:, None].expand(-1, -1, patches.shape[2]))
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    return 2 * F.mse_loss(predicted.float(), target) + F.l1_loss(predicted.float(), target)


def fix_positions(vit: nn.Module) -> None:
    """Give a ViT fixed sine-cosine position embeddings: they need no training and resample well to other sizes."""
    grid = cast(tuple[int, int], vit.patch_embed.grid_size)  # type: ignore[union-attr]
    position = cast(nn.Parameter, vit.pos_embed)
    table = sincos_positions(grid, position.shape[2])
    with torch.no_grad():
        position.zero_()
        position[0, position.shape[1] - len(table) :] = table
    position.requires_grad_(False)
