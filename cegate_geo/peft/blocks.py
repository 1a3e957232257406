"""How modules enter the forward pass of timm's blocks.

A block (and its qkv layer) keeps its identity, its parameters and their names; only its class is exchanged for a
subclass that also computes the modules registered on it, as `torch.nn.utils.parametrize` does. Taking the modules off
gives the class back, and with it timm's own forward:

    x = x + drop(ls1(attn(norm1(x))))                      spatial: inside attn.qkv
    y = x + drop(ls2(mlp(norm2(x)))) + semantic(x)
    y[:, P:] = y[:, P:] + frequency(y[:, P:], (h, w))      P prefix tokens stay as they are
    y[:, P:] = y[:, P:] + rein(y[:, P:])

Deep prompts stand between prefix and patch tokens within the block only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cegate_geo.errors import SiteError
from cegate_geo.peft.fuse import FusedFrequency
from cegate_geo.peft.modules import FrequencyModule, LowRank, SemanticModule, SiteModule, SpatialModule
from cegate_geo.peft.rivals import PromptModule, ReinModule
from cegate_geo.peft.sites import BlockFamily, qkv_layers


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


class AdaptedProjection(nn.Linear):
    """A q or v layer of its own with its part of a spatial module, which is registered once, on the q layer."""

    spatial: SpatialModule
    part: str
    """Name of the part: "q" or "v"."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., d) to (..., d_attn)."""
        own = super().forward(input)
        module = self.__dict__.get("borrowed") or self.spatial
        if module.is_bypassed:
            return own
        update: LowRank = getattr(module, self.part)
        return own + update(input)


class _AdaptedBlock:
    """What adapted blocks share. Mixed in before timm's class, so that attributes are timm's (hence Any)."""

    token_grid: TokenGrid
    semantic: SemanticModule | None
    frequency: FrequencyModule | FusedFrequency | None
    rein: ReinModule | None
    prompt: PromptModule | None

    def _enter(self, x: Tensor, attention: dict[str, Any]) -> Tensor:
        """The block's input with its prompts; `attention` is changed to suit."""
        if self.prompt is None or self.prompt.is_bypassed:
            return x
        if attention.get("attn_mask") is not None:
            raise SiteError("Prompts and an attention mask do not go together.", hint="Call the ViT without a mask.")
        if attention.get("rope") is not None:
            attention["rope"] = self.prompt.extend(attention["rope"])
        return self.prompt.insert(x, self.token_grid.prefix)

    def _adapt(self, x: Tensor, mlp: Tensor) -> Tensor:
        P = self.token_grid.prefix
        y = x + mlp
        if self.prompt is not None and not self.prompt.is_bypassed:
            x, y = self.prompt.drop(x, P), self.prompt.drop(y, P)
        if self.semantic is not None and not self.semantic.is_bypassed:
            y = y + self.semantic(x)
        if self.frequency is not None and not self.frequency.is_bypassed:
            y = self.frequency.add_to(y, P, self.token_grid.shape)
        if self.rein is not None and not self.rein.is_bypassed:
            patches = y[:, P:] + self.rein(y[:, P:])
            y = torch.cat((y[:, :P], patches), dim=1) if P else patches
        return y


class _AdaptedVitBlock(_AdaptedBlock):
    def forward(self: Any, x: Tensor, **attention: Any) -> Tensor:
        x = self._enter(x, attention)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **attention)))
        return self._adapt(x, self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class _AdaptedEvaBlock(_AdaptedBlock):
    def forward(self: Any, x: Tensor, **attention: Any) -> Tensor:
        x = self._enter(x, attention)
        attended = self.attn(self.norm1(x), **attention)
        if self.gamma_1 is not None:
            attended = self.gamma_1 * attended
        x = x + self.drop_path1(attended)
        mlp = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            mlp = self.gamma_2 * mlp
        return self._adapt(x, self.drop_path2(mlp))


_FORWARDS: dict[BlockFamily, type[_AdaptedBlock]] = {"vit": _AdaptedVitBlock, "eva": _AdaptedEvaBlock}


_IN_BLOCK = ("semantic", "frequency", "rein", "prompt")
"""Modules that are registered on the block itself; spatial ones are on its qkv layers."""


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
    for name in _IN_BLOCK:
        setattr(block, name, None)


def restore_block(block: Any) -> None:
    """Give a block its own class back once it carries no module; undoes `adapt_block`.

    Args:
        block: An adapted block.
    """
    for name in ("token_grid", *_IN_BLOCK):
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
    if "q_proj" in qkv_layers(attn):
        attn.q_proj.__class__ = attn.v_proj.__class__ = AdaptedProjection
        attn.q_proj.part, attn.v_proj.part = "q", "v"
        attn.q_proj.spatial = module
        attn.v_proj.__dict__["borrowed"] = module  # registered twice, its weights would have two names
        return
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
    if "q_proj" in qkv_layers(attn):
        del attn.q_proj.spatial, attn.q_proj.part, attn.v_proj.borrowed, attn.v_proj.part
        attn.q_proj.__class__ = attn.v_proj.__class__ = nn.Linear
        return
    del attn.qkv.spatial
    attn.qkv.__class__ = nn.Linear
    if hasattr(attn, "qkv_bias_was_fused"):
        attn.qkv_bias_separate = False
        del attn.qkv_bias_was_fused


@torch.no_grad()
def fold(block: Any, module: SpatialModule) -> None:
    """Add what a spatial module adds to the weights of the layers that it sits on; it stays in place.

    The sum is taken in float64 and rounded once to the weight's dtype.

    Args:
        block: An adapted block.
        module: The spatial module that it carries.
    """
    for name, layer in qkv_layers(block.attn).items():
        delta = module.weight_delta() if name == "qkv" else getattr(module, layer.part).weight_delta()
        layer.weight.copy_(layer.weight.double() + delta)
