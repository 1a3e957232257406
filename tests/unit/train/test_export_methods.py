"""Every method, head and family of ViTs goes the same way to ONNX, and computes there what it computes here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.peft import Kind, Toolbox, ToolboxConfig, attach, merge
from cegate_geo.train.backbone import BackboneSpec
from cegate_geo.train.export import export_model
from cegate_geo.train.norms import Norm
from cegate_geo.train.segmenter import Segmenter

SIDE = 96
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": SIDE, "dynamic_img_size": True}),
    "dinov2-16-px": ("vit_small_patch14_reg4_dinov2", {"img_size": SIDE, "patch_size": 16, "dynamic_img_size": True}),
    "dinov3": ("vit_small_patch16_dinov3", {"dynamic_img_size": True}),
    "eva-split": ("eva02_tiny_patch14_224", {"img_size": SIDE, "patch_size": 16, "qkv_fused": False}),
}


def segmenter(family: str, kinds: tuple[Kind, ...], head: str, norm: Norm) -> tuple[Segmenter, Toolbox]:
    """A toy of depth 2, far from its start."""
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    vit = timm.create_model(name, pretrained=False, num_classes=0, depth=2, embed_dim=32, num_heads=2, **options)
    sizes = ToolboxConfig(kinds=kinds, spatial_rank=4, semantic_dim=4, frequency_dim=4, rein_tokens=6, prompt_tokens=5)
    toolbox = attach(vit, sizes)
    model = Segmenter(vit, BackboneSpec(architecture="toy"), head=head, head_dim=16, classes=3, norm=norm)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if ".attn." in name else 0.1 if name.startswith("backbone") or ".unet." in name else 0.2
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        for _ in range(30):  # the statistics that normalisation keeps
            model.train()(torch.rand(2, 3, SIDE, SIDE, generator=generator))
    return model.eval(), toolbox


def probabilities(model: nn.Module, tiles: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(model(tiles), dim=1).numpy()


@pytest.mark.parametrize(
    ("family", "kinds", "head", "norm"),
    [
        ("vit", ("rein",), "linear", "batch"),
        ("vit", ("prompt",), "linear", "group"),
        ("dinov3", ("rein", "prompt"), "linear", "batch"),
        ("dinov2-16-px", ("prompt",), "dpt", "batch"),
        ("vit", ("frequency",), "upernet", "batch"),
        ("vit", ("semantic",), "dpt-unet", "batch"),
        ("vit", ("semantic",), "dpt-unet", "group"),
        ("eva-split", ("spatial", "semantic"), "upernet", "group"),
    ],
)
def test_onnxruntime_computes_what_torch_computes(
    tmp_path: Path, family: str, kinds: tuple[Kind, ...], head: str, norm: Norm
) -> None:
    model, toolbox = segmenter(family, kinds, head, norm)
    tiles = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    expected = probabilities(model, tiles)
    kept = tuple(str(key) for key in toolbox.keys)
    merge(toolbox)
    manifest = Manifest(
        name="toy",
        legend=Legend.from_names(["a", "b", "c"]),
        bands=("red", "green", "blue"),
        gsd_m=0.5,
        gsd_range_m=(0.4, 0.6),
        tile_size=SIDE,
        halo=16,
        modules_kept=kept,
        modules_total=len(kept),
    )
    report = export_model(model, manifest, tmp_path / "model.onnx", sample=tiles[:2])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"image": tiles.numpy()})[0], expected, atol=2e-4)
    assert expected.argmax(1).std() > 0.1
    for other in toolbox.modules.values():  # the modules matter
        other.is_bypassed = True
    if toolbox.keys:
        assert np.abs(probabilities(model, tiles) - expected).max() > 5e-3
    graph = onnx.load(report.path)
    pools = {"AveragePool", "GlobalAveragePool", "AdaptiveAvgPool"}
    assert not pools & {node.op_type for node in graph.graph.node}
