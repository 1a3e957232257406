"""Laws of the short form of frequency modules: it computes the same, and nothing else of the model changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft_toys import build, features, randomise, scene
from torch import nn

from cegate_geo.peft import ToolboxConfig, attach, fuse
from cegate_geo.peft.fuse import FusedFrequency, low_pass
from cegate_geo.peft.modules import FrequencyModule
from cegate_geo.peft.spectrum import split_frequencies


@pytest.mark.parametrize("cutoff", [0.2, 0.9])  # at 0.2 nothing is low on this grid
@pytest.mark.parametrize("name", ["vit", "vit-nobias-nocls", "dinov2-registers", "dinov3"])
def test_the_short_form_computes_what_the_long_form_computes(name, cutoff):
    vit = build(name)
    toolbox = attach(vit, ToolboxConfig(kinds=("semantic", "frequency"), frequency_dim=6, frequency_cutoff=cutoff))
    randomise(toolbox)
    x = scene(vit)
    plain = [key for key in toolbox.keys if key.kind == "semantic"]
    expected = features(vit, x)
    assert fuse(vit) == 3
    assert not [m for m in vit.modules() if isinstance(m, FrequencyModule)]
    torch.testing.assert_close(features(vit, x), expected, atol=2e-5, rtol=1e-5)
    assert all(getattr(vit.blocks[key.layer], key.kind) is toolbox.modules[key] for key in plain)


def test_prefix_tokens_stay_bit_for_bit():
    torch.manual_seed(0)
    module = FrequencyModule(24, 4, 0.6)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 5 + 4 * 7, 24)
    after = FusedFrequency(module).add_to(tokens, 5, (4, 7))
    assert torch.equal(after[:, :5], tokens[:, :5])
    assert (after[:, 5:] - tokens[:, 5:]).abs().mean() > 0.1


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (12, 7), (1, 1)])
def test_two_products_give_the_low_part(shape):
    tokens = torch.randn(2, shape[0] * shape[1], 3, generator=torch.Generator().manual_seed(4))
    low, _ = split_frequencies(tokens, shape, 0.7)
    np.testing.assert_allclose(low_pass(tokens, shape, 0.7), low, atol=1e-6)


def test_a_bypassed_module_stays_bypassed(make_vit):
    vit = make_vit("vit")
    toolbox = attach(vit, ToolboxConfig(kinds=("frequency",)))
    randomise(toolbox)
    toolbox.modules[toolbox.keys[1]].is_bypassed = True
    expected = features(vit, scene(vit))
    fuse(vit)
    torch.testing.assert_close(features(vit, scene(vit)), expected, atol=2e-5, rtol=1e-5)
