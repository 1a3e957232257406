"""How modules enter the forward pass of timm's blocks.

A block (and its qkv layer) keeps its identity, its parameters and their names; only its class is exchanged for a
subclass that also computes the modules registered on it, as `torch.nn.utils.parametrize` does. Taking the modules off
gives the class back, and with it timm's own forward:

    x = x + drop(ls1(attn(norm1(x))))                      spatial: inside attn.qkv
    y = x + drop(ls2(mlp(norm2(x)))) + semantic(x)
    y[:, P:] = y[:, P:] + frequency(y[:, P:], (h, w))      P prefix tokens stay as they are
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cegate_geo.errors import SiteError
from cegate_geo.peft.modules import FrequencyModule, SemanticModule, SiteModule, SpatialModule
from cegate_geo.peft.sites import BlockFamily


class TokenGrid:
    """Shape of the token grid of the forward pass that is running, for blocks, which see a flat sequence only.

    The patch embedding tells it through a forward hook (`observe`), so that every way into the ViT works. It belongs
    to one ViT, and one ViT runs one forward pass at a time. With gradient checkpointing, run backward before the next
    forward pass of another aspect ratio.

    Args:
        prefix: Number of class and register tokens before the patch tokens.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self._shape: tuple[int, int] | None = None

    def observe(self, patch_embed: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002 a hook's form
        """Forward hook of the patch embedding: remember the grid of its input of shape (B, C, H, W)."""
        height, width = patch_embed.dynamic_feat_size(tuple(inputs[0].shape[-2:]))
        self._shape = (height, width)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        if self._shape is None:
            raise SiteError(
                "The blocks were called before the patch embedding: the token grid is unknown.",
                hint="Call the ViT through forward_features or forward_intermediates.",
            )
        return self._shape


class AdaptedQkv(nn.Linear):
    """A fused qkv layer with a spatial module."""

    spatial: SpatialModule

    def forward(self, input: Tensor) -> Tensor:
        """(..., d) to (..., 3 * d_attn)."""
        qkv = super().forward(input)
        if self.spatial.is_bypassed:
            return qkv
        return qkv + self.spatial(input)


class _AdaptedBlock:
    """What adapted blocks share. Mixed in before timm's class, so that attributes are timm's (hence Any)."""

    token_grid: TokenGrid
    semantic: SemanticModule | None
    frequency: FrequencyModule | None

    def _adapt(self, x: Tensor, mlp: Tensor) -> Tensor:
        y = x + mlp
        if self.semantic is not None and not self.semantic.is_bypassed:
            y = y + self.semantic(x)
        if self.frequency is not None and not self.frequency.is_bypassed:
            P = self.token_grid.prefix
            patches = y[:, P:] + self.frequency(y[:, P:], self.token_grid.shape)
            y = torch.cat((y[:, :P], patches), dim=1) if P else patches
        return y


class _AdaptedVitBlock(_AdaptedBlock):
    def forward(self: Any, x: Tensor, **attention: Any) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **attention)))
        return self._adapt(x, self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class _AdaptedEvaBlock(_AdaptedBlock):
    def forward(self: Any, x: Tensor, **attention: Any) -> Tensor:
        attended = self.attn(self.norm1(x), **attention)
        if self.gamma_1 is not None:
            attended = self.gamma_1 * attended
        x = x + self.drop_path1(attended)
        mlp = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            mlp = self.gamma_2 * mlp
        return self._adapt(x, self.drop_path2(mlp))


_FORWARDS: dict[BlockFamily, type[_AdaptedBlock]] = {"vit": _AdaptedVitBlock, "eva": _AdaptedEvaBlock}


@cache
def _adapted_class(base: type, family: BlockFamily) -> type:
    return type(f"Adapted{base.__name__}", (_FORWARDS[family], base), {"__module__": __name__})


def adapt_block(block: Any, family: BlockFamily, grid: TokenGrid) -> None:
    """Make a timm block compute the modules that are going to be registered on it.

    Args:
        block: timm's `Block` or `EvaBlock`, not adapted yet.
        family: Which forward it computes.
        grid: Shape of the token grid, shared by all blocks of the ViT.
    """
    base: type = type(block)
    block.__class__ = _adapted_class(base, family)
    block.token_grid = grid
    block.semantic = None
    block.frequency = None


def restore_block(block: Any) -> None:
    """Give a block its own class back once it carries no module; undoes `adapt_block`.

    Args:
        block: An adapted block.
    """
    for name in ("token_grid", "semantic", "frequency"):
        delattr(block, name)
    block.__class__ = type(block).__bases__[1]


def place(block: Any, module: SiteModule) -> None:
    """Register a module at its site in an adapted block.

    timm's EVA attention with a qkv bias does not call its qkv layer but uses the layer's weight, so that a module there
    would be bypassed; its switch `qkv_bias_separate` makes it call the layer and add the bias afterwards.

    Args:
        block: An adapted block.
        module: The module for it.
    """
    if not isinstance(module, SpatialModule):
        setattr(block, module.kind, module)
        return
    attn = block.attn
    if getattr(attn, "q_bias", None) is not None and not attn.qkv_bias_separate:
        attn.qkv_bias_separate = True
        attn.qkv_bias_was_fused = True
    attn.qkv.__class__ = AdaptedQkv
    attn.qkv.spatial = module


def remove(block: Any, module: SiteModule) -> None:
    """Take a module off its site; undoes `place`.

    Args:
        block: An adapted block.
        module: The module that it carries.
    """
    if not isinstance(module, SpatialModule):
        delattr(block, module.kind)  # first, or None would keep its name in the module tree
        setattr(block, module.kind, None)
        return
    attn = block.attn
    del attn.qkv.spatial
    attn.qkv.__class__ = nn.Linear
    if hasattr(attn, "qkv_bias_was_fused"):
        attn.qkv_bias_separate = False
        del attn.qkv_bias_was_fused
