"""Toy ViTs of every family, with LayerScale large enough that what happens inside attention can be seen."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from cegate_geo.peft import Toolbox

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 3, "num_classes": 0, "pretrained": False}
TOYS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 64, "dynamic_img_size": True}),
    "vit-layerscale": ("vit_tiny_patch16_224", {"img_size": 64, "dynamic_img_size": True, "init_values": 1e-5}),
    "vit-nobias-nocls": (
        "vit_tiny_patch16_224",
        {"img_size": 64, "dynamic_img_size": True, "qkv_bias": False, "class_token": False, "global_pool": "avg"},
    ),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 56, "dynamic_img_size": True}),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "dynamic_img_size": True}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3-swiglu": ("vit_small_plus_patch16_dinov3", {}),
    "dinov3-qkvb": ("vit_small_patch16_dinov3_qkvb", {}),
    "dinov2-giant-swiglu": ("vit_giant_patch14_dinov2", {"img_size": 56, "dynamic_img_size": True}),
    "dinov2-16-px": ("vit_small_patch14_reg4_dinov2", {"img_size": 64, "patch_size": 16, "dynamic_img_size": True}),
    "eva-bias-in-call": ("eva02_tiny_patch14_224", {"img_size": 56, "dynamic_img_size": True}),
    "eva-split": ("eva02_tiny_patch14_224", {"img_size": 56, "dynamic_img_size": True, "qkv_fused": False}),
    "eva-separate-bias": ("eva02_tiny_patch14_224", {"img_size": 56, "dynamic_img_size": True}),
}


def build(name: str, **overrides: Any) -> nn.Module:
    model_name, options = TOYS[name]
    torch.manual_seed(7)
    vit = timm.create_model(model_name, **{**SMALL, **options, **overrides}).eval()
    with torch.no_grad():
        for parameter_name, parameter in vit.named_parameters():
            if "gamma" in parameter_name:
                parameter.uniform_(0.2, 0.8)
            elif parameter_name.endswith("bias"):
                parameter.normal_(std=0.1)
    if name == "eva-separate-bias":
        for block in vit.blocks:
            block.attn.qkv_bias_separate = True
    return vit


def qkv_layers(vit: nn.Module, layer: int) -> list[nn.Linear]:
    """The one fused qkv layer of a block, or its q, k and v."""
    attn = vit.blocks[layer].attn
    return [attn.qkv] if attn.qkv is not None else [attn.q_proj, attn.k_proj, attn.v_proj]


def qkv_weight(vit: nn.Module, layer: int) -> Tensor:
    return torch.cat([linear.weight.detach() for linear in qkv_layers(vit, layer)])


def randomise(toolbox: Toolbox) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in toolbox.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def scene(vit: nn.Module, rows: int = 5, cols: int = 3, batch: int = 2, seed: int = 0) -> Tensor:
    patch = vit.patch_embed.patch_size[0]
    return torch.randn(batch, 3, rows * patch, cols * patch, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def features(vit: nn.Module, x: Tensor) -> Tensor:
    """Intermediates, normed intermediates and final tokens in one flat tensor."""
    parts = [
        *vit.forward_intermediates(x, indices=[0, 2], intermediates_only=True, norm=False),
        *vit.forward_intermediates(x, indices=[1], intermediates_only=True, norm=True),
        vit.forward_features(x),
    ]
    return torch.cat([part.flatten() for part in parts])


def probed(vit: nn.Module, x: Tensor) -> Tensor:
    """One number for each final token; not their mean or norm, which the last LayerNorm makes constant."""
    tokens = vit.forward_features(x)
    return tokens @ torch.linspace(-1, 2, tokens.shape[-1]).cos()


def task_loss(vit: nn.Module, x: Tensor) -> Tensor:
    return probed(vit, x).square().mean()
