from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft_toys import build, scene
from torch import nn

from cegate_geo.errors import InputError
from cegate_geo.peft import FrequencyModule, ModuleKey, SemanticModule, SpatialModule, ToolboxConfig, attach
from cegate_geo.peft.spectrum import half_side, split_frequencies

GRIDS = [(32, 32), (37, 37), (18, 25), (8, 5), (1, 7), (4, 4)]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fft_split(tokens: np.ndarray, shape: tuple[int, int], cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """The published form: shifted spectrum, square mask around its centre, real part of the inverse."""
    h, w = shape
    grid = tokens.astype(np.float64).reshape(len(tokens), h, w, -1)
    spectrum = np.fft.fftshift(np.fft.fft2(grid, axes=(1, 2), norm="ortho"), axes=(1, 2))
    half = int(min(h, w) * cutoff // 2)
    mask = np.zeros((h, w))
    mask[h // 2 - half : h // 2 + half, w // 2 - half : w // 2 + half] = 1
    parts = []
    for part in (mask, 1 - mask):
        kept = np.fft.ifftshift(spectrum * part[None, :, :, None], axes=(1, 2))
        parts.append(np.fft.ifft2(kept, axes=(1, 2), norm="ortho").real.reshape(tokens.shape))
    return parts[0], parts[1]


def tokens_of(shape: tuple[int, int], d: int = 6) -> torch.Tensor:
    return torch.randn(2, shape[0] * shape[1], d, generator=torch.Generator().manual_seed(1))


def test_parameter_counts_of_vit_large_are_exact():
    assert count(SpatialModule(1024, 1024, 64)) == 262_144
    assert count(SemanticModule(1024, 64)) == 132_160
    assert count(FrequencyModule(1024, 32, 0.3)) == 202_852
    assert 24 * sum((262_144, 132_160, 202_852)) == 14_331_744


@pytest.mark.parametrize(("rank", "logged"), [(16, 2_557_152), (24, 3_737_376), (32, 4_917_600), (64, 9_638_496)])
def test_frequency_module_has_the_logged_count_without_its_layer_norms(rank, logged):
    assert 24 * count(FrequencyModule(1024, rank, 0.3)) == logged - 49_152


@pytest.mark.parametrize(("rank", "millions"), [(8, 0.79), (16, 1.57), (32, 3.15), (64, 6.29)])
def test_lora_on_q_and_v_has_the_published_count(rank, millions):
    assert round(24 * count(SpatialModule(1024, 1024, rank)) / 1e6, 2) == millions


@pytest.mark.parametrize("module", [SpatialModule(48, 48, 4), SemanticModule(48, 4), FrequencyModule(48, 4, 0.3)])
def test_every_module_gives_exact_zeros_at_its_start(module):
    x = tokens_of((4, 5), 48) * 100
    out = module(x, (4, 5)) if isinstance(module, FrequencyModule) else module(x)
    assert torch.count_nonzero(out) == 0
    assert all(torch.count_nonzero(p) > 0 for name, p in module.named_parameters() if name.endswith("down.weight"))


def test_the_half_side_follows_the_shorter_side():
    assert half_side((32, 32), 0.3) == 4
    assert half_side((32, 32), 0.2) == 3
    assert half_side((64, 32), 0.3) == half_side((32, 64), 0.3) == 4


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("cutoff", [0.1, 0.3, 1.0])
def test_the_split_equals_its_fourier_form(shape, cutoff):
    tokens = tokens_of(shape)
    low, high = split_frequencies(tokens, shape, cutoff)
    expected_low, expected_high = fft_split(tokens.numpy(), shape, cutoff)
    np.testing.assert_allclose(low.numpy(), expected_low, atol=1e-5)
    np.testing.assert_allclose(high.numpy(), expected_high, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", GRIDS)
def test_low_and_high_sum_to_the_input_with_and_without_autocast(shape, autocast):
    tokens = tokens_of(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        low, high = split_frequencies(tokens, shape, 0.6)
    torch.testing.assert_close(low + high, tokens, atol=1e-5, rtol=0)
    assert low.dtype == torch.float32


def test_the_split_is_computed_in_float32_under_autocast_and_for_bfloat16_tokens():
    tokens = tokens_of((16, 16))
    exact = split_frequencies(tokens, (16, 16), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = split_frequencies(tokens, (16, 16), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(exact, inside, strict=True))
    halved = tokens.bfloat16()
    rounded_once = split_frequencies(halved.float(), (16, 16), 0.5)
    for part, expected in zip(split_frequencies(halved, (16, 16), 0.5), rounded_once, strict=True):
        assert part.dtype == torch.bfloat16
        assert torch.equal(part, expected.bfloat16())


def test_the_frequency_module_mixes_three_experts_per_token_as_published():
    torch.manual_seed(0)
    shape = (6, 9)
    module = FrequencyModule(8, 5, 0.7).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 54, 8, dtype=torch.float64)
    low, high = (torch.from_numpy(part) for part in fft_split(x.numpy(), shape, 0.7))
    w = torch.softmax(x @ module.router.weight.T + module.router.bias, dim=2)
    parts = []
    for expert, part in ((module.all, x), (module.low, low), (module.high, high)):
        inner = torch.clamp(part @ expert.down.weight.T + expert.down.bias, min=0)
        parts.append(inner @ expert.up.weight.T + expert.up.bias)
    expected = module.alpha * sum(w[:, :, i : i + 1] * part for i, part in enumerate(parts))
    torch.testing.assert_close(module(x, shape), expected, atol=1e-4, rtol=1e-4)  # the split is in float32
    assert FrequencyModule(8, 5, 0.7).alpha.item() == pytest.approx(0.1)


def test_a_grid_that_the_tokens_do_not_fill_is_refused():
    with pytest.raises(InputError, match="20 patch tokens do not fill a grid of 3 x 7"):
        FrequencyModule(8, 2, 0.3)(torch.zeros(1, 20, 8), (3, 7))


def test_the_spatial_module_changes_q_and_v_and_leaves_k():
    module = SpatialModule(6, 4, 2)
    nn.init.normal_(module.q.up.weight)
    nn.init.normal_(module.v.up.weight)
    x = torch.randn(3, 6)
    q, k, v = module(x).chunk(3, dim=-1)
    torch.testing.assert_close(q, x @ module.q.down.weight.T @ module.q.up.weight.T)
    torch.testing.assert_close(v, x @ module.v.down.weight.T @ module.v.up.weight.T)
    assert torch.count_nonzero(k) == 0
    torch.testing.assert_close(module(x).double(), x.double() @ module.weight_delta().T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit-layerscale", "dinov3"])
def test_the_semantic_module_reads_the_stream_after_attention_and_skips_layer_scale_and_drop_path(name):
    vit = build(name, drop_path_rate=0.5).train()
    base = copy.deepcopy(vit)
    toolbox = attach(vit, ToolboxConfig(kinds=("semantic",), semantic_dim=3), keys=[ModuleKey(1, "semantic")])
    adapter = toolbox.modules[ModuleKey(1, "semantic")]
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    stream: dict[str, torch.Tensor] = {}
    base.blocks[1].norm2.register_forward_pre_hook(lambda module, inputs: stream.update(after_attention=inputs[0]))
    base.blocks[1].register_forward_hook(lambda module, inputs, output: stream.update(output=output))
    vit.blocks[1].register_forward_hook(lambda module, inputs, output: stream.update(adapted=output))
    x = scene(vit, batch=8)
    for model in (base, vit):
        torch.manual_seed(5)  # the same paths are dropped in both
        model.forward_features(x)
    inner = nn.functional.gelu(stream["after_attention"] @ adapter.down.weight.T + adapter.down.bias)
    expected = stream["output"] + inner @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(stream["adapted"], expected)


@pytest.mark.parametrize("name", ["vit", "dinov2-registers", "dinov3"])
def test_the_frequency_module_leaves_prefix_tokens_as_they_are(name):
    vit = build(name)
    x = scene(vit)
    before = vit.forward_intermediates(x, indices=[2], intermediates_only=True, return_prefix_tokens=True)[0]
    last = ModuleKey(2, "frequency")
    toolbox = attach(vit, ToolboxConfig(kinds=("frequency",), frequency_dim=3), keys=[last])
    for parameter in toolbox.parameters():
        nn.init.normal_(parameter)
    after = vit.forward_intermediates(x, indices=[2], intermediates_only=True, return_prefix_tokens=True)[0]
    assert before[1].shape[1] == vit.num_prefix_tokens
    assert torch.equal(before[1], after[1])
    delta = toolbox.modules[last](before[0].flatten(2).transpose(1, 2), (5, 3))
    torch.testing.assert_close(after[0], before[0] + delta.transpose(1, 2).reshape(before[0].shape))
