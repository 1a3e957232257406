from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft_toys import build, features, qkv_layers, qkv_weight, randomise, scene
from torch import nn

from cegate_geo.errors import InputError
from cegate_geo.peft import ModuleKey, attach, merge, prune

KEEP = [ModuleKey(0, "frequency"), ModuleKey(1, "spatial"), ModuleKey(1, "semantic")]


def test_pruning_leaves_no_trace_of_the_pruned(vit, config):
    names = set(vit.state_dict())
    classes = [type(block) for block in vit.blocks]
    toolbox = attach(vit, config)
    kept = {
        name
        for name in vit.state_dict()
        if name not in names and ModuleKey.parse(name.replace(".attn.qkv", "").replace(".attn.q_proj", "")) in KEEP
    }
    removed = prune(toolbox, KEEP)
    assert sorted((*removed, *KEEP)) == [ModuleKey(layer, kind) for layer in range(3) for kind in toolbox.config.kinds]
    assert toolbox.keys == tuple(sorted(KEEP))
    assert set(vit.state_dict()) == names | kept
    children = {f"{name}.{child}" for name, module in vit.named_modules() for child in module._modules}
    qkv = "qkv" if vit.blocks[0].attn.qkv is not None else "q_proj"
    at = {"blocks.0.frequency", f"blocks.1.attn.{qkv}.spatial", "blocks.1.semantic"}
    assert {name for name in children if name.rpartition(".")[2] in ("spatial", "semantic", "frequency")} == at
    assert type(vit.blocks[2]) is classes[2]
    assert not hasattr(vit.blocks[2], "token_grid")
    assert all(type(linear) is nn.Linear for linear in qkv_layers(vit, 0))


def test_pruning_what_is_identity_leaves_the_output_as_it_was(vit, config):
    toolbox = attach(vit, config)
    start = {name: value.clone() for name, value in toolbox.state_dict().items()}
    randomise(toolbox)
    toolbox.load_state_dict({n: v for n, v in start.items() if ModuleKey.parse(n) not in KEEP}, strict=False)
    x = scene(vit)
    before = features(vit, x)
    prune(toolbox, KEEP)
    torch.testing.assert_close(features(vit, x), before, atol=1e-5, rtol=0)


def test_pruning_equals_attaching_only_what_is_kept(vit, config):
    toolbox = attach(vit, config)
    randomise(toolbox)
    prune(toolbox, KEEP)
    x = scene(vit)
    expected = features(vit, x)
    weights = toolbox.state_dict()
    toolbox.detach()
    attach(vit, config, keys=KEEP).load_state_dict(weights)
    assert torch.equal(features(vit, x), expected)


def test_pruning_all_restores_the_base_and_its_hooks(vit, config):
    x = scene(vit)
    before, names = features(vit, x), list(vit.state_dict())
    toolbox = attach(vit, config)
    randomise(toolbox)
    prune(toolbox, ())
    assert torch.equal(features(vit, x), before)
    assert list(vit.state_dict()) == names
    assert all(not module._forward_hooks for module in vit.modules())


def test_a_keep_set_from_elsewhere_is_refused(make_vit, config):
    toolbox = attach(make_vit("vit"), replace(config, kinds=("spatial",)))
    with pytest.raises(InputError, match=r"blocks\.0\.frequency"):
        prune(toolbox, KEEP)
    assert len(toolbox.keys) == 3


def test_kept_modules_that_were_bypassed_compute_again(make_vit, config):
    toolbox = attach(make_vit("vit"), replace(config, inactive="bypass"))
    randomise(toolbox)
    x = scene(toolbox.vit)
    expected = features(toolbox.vit, x)
    toolbox.set_active(())
    prune(toolbox, toolbox.keys)
    assert torch.equal(features(toolbox.vit, x), expected)


def test_merged_equals_unmerged_and_leaves_plain_linear_layers(vit, config):
    names = list(vit.state_dict())
    switches = [getattr(block.attn, "qkv_bias_separate", None) for block in vit.blocks]
    before = [qkv_weight(vit, layer).clone() for layer in range(3)]
    toolbox = attach(vit, replace(config, kinds=("spatial",)))
    randomise(toolbox)
    x = scene(vit)
    unmerged = features(vit, x)
    assert merge(toolbox) == tuple(ModuleKey(layer, "spatial") for layer in range(3))
    merged = features(vit, x)
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    assert toolbox.keys == ()
    assert list(vit.state_dict()) == names
    assert [getattr(block.attn, "qkv_bias_separate", None) for block in vit.blocks] == switches
    for layer, weight in enumerate(before):
        assert all(type(linear) is nn.Linear for linear in qkv_layers(vit, layer))
        q, k, v = ((a - b).abs().max() for a, b in zip(qkv_weight(vit, layer).chunk(3), weight.chunk(3), strict=True))
        assert k == 0
        assert min(q, v) > 1e-2


def test_merging_leaves_the_other_kinds_in_place(vit, config):
    toolbox = attach(vit, config)
    randomise(toolbox)
    x = scene(vit)
    unmerged = features(vit, x)
    merge(toolbox)
    assert {key.kind for key in toolbox.keys} == {"semantic", "frequency"}
    torch.testing.assert_close(features(vit, x), unmerged, atol=1e-4, rtol=1e-4)
    assert merge(toolbox) == ()


def test_merging_a_bypassed_module_is_refused(make_vit, config):
    toolbox = attach(make_vit("vit"), replace(config, inactive="bypass"))
    toolbox.set_active([ModuleKey(0, "spatial")])
    with pytest.raises(InputError, match=r"2 spatial modules are bypassed: blocks\.1\.spatial"):
        merge(toolbox)
    prune(toolbox, toolbox.active)
    assert merge(toolbox) == (ModuleKey(0, "spatial"),)


class LastFeatures(nn.Module):
    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vit.forward_intermediates(x, indices=[2], intermediates_only=True, norm=False)[0]


def exported(vit: nn.Module, x: torch.Tensor, path: Path) -> onnx.ModelProto:
    program = torch.onnx.export(
        LastFeatures(vit).eval(), (x,), dynamo=True, opset_version=18, input_names=["x"], verbose=False
    )
    program.save(path)
    return onnx.load(path)


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def weights(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter's own code
def test_an_exported_graph_has_no_fourier_operator_and_equals_the_eager_model(config, tmp_path):
    vit = build("dinov3")
    randomise(attach(vit, config))
    x, other = scene(vit, 4, 5), scene(vit, 3, 6)
    before = features(vit, other)
    with torch.no_grad():
        eager = LastFeatures(vit)(x).numpy()
    model = exported(vit, x, tmp_path / "model.onnx")
    found = set(operators(model.graph)) | {op for function in model.functions for op in operators(function)}
    assert "MatMul" in found
    assert not {op for op in found if "DFT" in op or "FFT" in op.upper() or "complex" in op.lower()}
    result = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(result, eager, atol=1e-4, rtol=1e-4)
    assert torch.equal(features(vit, other), before)  # tracing left nothing behind


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_exported_graph_holds_the_kept_modules_and_no_trace_of_the_pruned(config, tmp_path):
    vit = build("vit")
    x = scene(vit, 4, 5)
    toolbox = attach(vit, config)
    randomise(toolbox)
    prune(toolbox, KEEP)
    merge(toolbox)
    kept = sum(parameter.numel() for parameter in toolbox.parameters())
    model = exported(vit, x, tmp_path / "model.onnx")
    prune(toolbox, ())
    plain = exported(vit, x, tmp_path / "plain.onnx")
    matrices = 2 * (4 * 4 + 5 * 5)  # real and imaginary part for each axis of the grid
    assert weights(model) - weights(plain) == pytest.approx(kept + matrices, abs=16)  # and scalars, shapes
