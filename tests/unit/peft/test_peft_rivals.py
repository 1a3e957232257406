"""Rein and deep prompts: counts, starts, what they compute, gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from peft_toys import TOYS, build, features, randomise, scene, task_loss
from torch import nn

from cegate_geo.errors import ConfigError, SiteError
from cegate_geo.peft import ModuleKey, ReinModule, ToolboxConfig, attach, build_toolbox, fisher_scores, prune
from cegate_geo.peft.rivals import published_query_link

REIN = ToolboxConfig(kinds=("rein",), rein_tokens=7, rein_rank=3)
PROMPT = ToolboxConfig(kinds=("prompt",), prompt_tokens=4)


@pytest.fixture(params=[REIN, PROMPT], ids=["rein", "prompt"])
def config(request) -> ToolboxConfig:
    return request.param


def large() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_large_patch14_dinov2", pretrained=False, num_classes=0)


@pytest.mark.parametrize(("rank", "published", "millions"), [(16, 2_990_081, 2.99), (0, 5_016_065, 5.02)])
def test_rein_has_the_published_count_but_for_the_query_link_and_the_scale(rank, published, millions):
    toolbox = build_toolbox(large(), "rein", ToolboxConfig(rein_rank=rank))
    assert round(published / 1e6, 2) == millions
    assert toolbox.count_parameters() + published_query_link(1024) + 1 == published
    assert sum(p.numel() for p in toolbox.parameters()) == toolbox.count_parameters()


def test_vpt_has_the_published_count():
    assert build_toolbox(large(), "vpt").count_parameters() == 24 * 100 * 1024 == 2_457_600


def test_rein_starts_as_the_frozen_backbone_and_prompts_do_not(vit):
    x = scene(vit)
    before = features(vit, x)
    toolbox = attach(vit, REIN)
    assert torch.equal(features(vit, x), before)
    randomise(toolbox)
    assert (features(vit, x) - before).abs().max() > 1e-2
    toolbox.detach()
    attach(vit, PROMPT)
    moved = features(vit, x)
    assert moved.shape == before.shape
    assert (moved - before).abs().max() > 1e-6


def test_random_starts_lie_in_the_published_ranges():
    torch.manual_seed(0)
    toolbox = build_toolbox(timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0), "rein")
    limit = (6 / (3 * 16**2 + (192 * 16) ** 0.5)) ** 0.5
    for factor in toolbox.modules[ModuleKey(1, "rein")].factors:
        assert 0.98 * limit < factor.abs().max() <= limit
    toolbox.detach()
    toolbox = build_toolbox(toolbox.vit, "vpt")
    limit = (6 / (3 * 16**2 + 192)) ** 0.5
    assert 0.98 * limit < toolbox.modules[ModuleKey(0, "prompt")].tokens.abs().max() <= limit


def test_rein_computes_its_published_formula():
    torch.manual_seed(0)
    toolbox = attach(build("dinov2"), REIN)
    randomise(toolbox)
    module = toolbox.modules[ModuleKey(1, "rein")]
    f = torch.randn(2, 9, 48)
    tokens = module.factors[0] @ module.factors[1]
    attn = torch.einsum("bnc,mc->bnm", f, tokens) * 48**-0.5
    attn = torch.softmax(attn, dim=-1)
    w_t, w_f = module.shared.token, module.shared.delta
    found = torch.einsum("bnm,mc->bnc", attn[:, :, 1:], tokens[1:] @ w_t.weight.T + w_t.bias)
    expected = (found + f) @ w_f.weight.T + w_f.bias
    torch.testing.assert_close(module(f), expected, atol=1e-5, rtol=1e-5)


def test_layers_of_rein_share_their_projections_and_nothing_else():
    toolbox = attach(build("vit"), REIN)
    first, last = (toolbox.modules[ModuleKey(layer, "rein")] for layer in (0, 2))
    assert first.shared is last.shared
    assert first.factors[0] is not last.factors[0]
    names = [name for name, _ in toolbox.named_parameters()]
    assert sum("shared" in name for name in names) == 4
    other_vit, other = copy.deepcopy((toolbox.vit, toolbox))
    assert other.modules[ModuleKey(0, "rein")].shared is other.modules[ModuleKey(2, "rein")].shared
    assert other.modules[ModuleKey(0, "rein")].shared is not first.shared
    assert other_vit is other.vit


def test_an_active_layer_of_rein_keeps_the_gradient_of_what_it_shares():
    toolbox = attach(build("vit"), REIN)
    randomise(toolbox)
    toolbox.set_active([ModuleKey(1, "rein")])
    task_loss(toolbox.vit, scene(toolbox.vit)).backward()
    toolbox.mask_gradients()
    shared = toolbox.modules[ModuleKey(0, "rein")].shared
    assert shared.delta.weight.grad is not None
    assert toolbox.modules[ModuleKey(0, "rein")].factors[0].grad is None
    assert toolbox.modules[ModuleKey(1, "rein")].factors[0].grad is not None
    toolbox.set_active([ModuleKey(1, "rein")], gradients="skip")
    assert shared.delta.weight.requires_grad
    assert not toolbox.modules[ModuleKey(0, "rein")].factors[0].requires_grad


def prompted_by_hand(vit: nn.Module, toolbox, x: torch.Tensor) -> list[torch.Tensor]:
    """Tokens behind each block of a plain ViT, with prompts in the sequence all the way, replaced before each block."""
    P, n = vit.num_prefix_tokens, 4
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))
    behind = []
    for layer, block in enumerate(vit.blocks):
        prompts = toolbox.modules[ModuleKey(layer, "prompt")].tokens.expand(len(x), -1, -1)
        rest = tokens[:, P:] if layer == 0 else tokens[:, P + n :]
        tokens = torch.cat((tokens[:, :P], prompts, rest), dim=1)
        tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        behind.append(torch.cat((tokens[:, :P], tokens[:, P + n :]), dim=1))
    return behind


@pytest.mark.parametrize("name", ["vit", "dinov2-registers", "vit-nobias-nocls"])
def test_prompts_are_those_of_deep_vpt(name):
    vit = build(name)
    toolbox = attach(vit, PROMPT)
    x = scene(vit)
    seen: list[torch.Tensor] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        vit.forward_features(x)
        for found, expected in zip(seen, prompted_by_hand(vit, toolbox, x), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dinov3", "eva-bias-in-call"])
def test_rotary_positions_turn_patches_as_before_and_prompts_not_at_all(name):
    """Two token grids that hold the same tokens in another place differ; the prompts' keys do not."""
    vit = build(name)
    toolbox = attach(vit, PROMPT, keys=[ModuleKey(0, "prompt")])
    x = scene(vit)
    ropes: list[torch.Tensor] = []
    vit.blocks[0].attn.register_forward_pre_hook(
        lambda module, inputs, options: ropes.append(options["rope"]), with_kwargs=True
    )
    with torch.no_grad():
        vit.forward_features(x)
        toolbox.detach()
        vit.forward_features(x)
    extended, plain = ropes
    torch.testing.assert_close(extended[..., 4:, :], plain)
    sines, cosines = extended[..., :4, :].chunk(2, dim=-1)
    assert torch.count_nonzero(sines) == 0
    assert torch.equal(cosines, torch.ones_like(cosines))


def test_a_mask_of_the_attention_is_refused_beside_prompts():
    vit = build("vit")
    attach(vit, PROMPT)
    with pytest.raises(SiteError, match="attention mask"):
        vit.forward_features(scene(vit), attn_mask=torch.zeros(1, 1, 16, 16))


def test_gradients_reach_every_layer_and_detaching_restores_the_base(vit, config):
    x = scene(vit)
    before = features(vit, x)
    toolbox = attach(vit, config)
    randomise(toolbox)
    scores = fisher_scores(toolbox, [scene(vit, batch=1)], lambda images: task_loss(vit, images))
    assert len(scores) == 3
    assert all(score > 0 for score in scores.values())
    toolbox.detach()
    assert torch.equal(features(vit, x), before)


def test_prompts_and_the_toolbox_go_together(make_vit):
    """Modules see the tokens of the scene only."""
    vit = make_vit("dinov2-registers")
    config = replace(PROMPT, kinds=("spatial", "semantic", "frequency", "rein", "prompt"), rein_tokens=5)
    toolbox = attach(vit, config)
    x = scene(vit, 4, 6)
    alone = features(vit, x)
    randomise(toolbox)
    assert (features(vit, x) - alone).abs().max() > 1e-2
    prune(toolbox, [key for key in toolbox.keys if key.kind != "prompt"])
    assert features(vit, x).shape == alone.shape


@pytest.mark.parametrize("drop", [0, 1])
def test_weights_survive_a_round_trip_also_without_the_layer_that_names_what_is_shared(drop, config):
    vit = build("dinov3")
    toolbox = attach(vit, config)
    randomise(toolbox)
    keys = toolbox.keys[drop:]
    prune(toolbox, keys)
    x = scene(vit)
    expected, state = features(vit, x), {k: v.clone() for k, v in toolbox.state_dict().items()}
    toolbox.detach()
    fresh = attach(vit, config, keys=keys)
    fresh.load_state_dict(state)
    assert torch.equal(features(vit, x), expected)


def test_bypassed_rivals_leave_no_trace(config):
    vit = build("dinov2")
    x = scene(vit)
    before = features(vit, x)
    toolbox = attach(vit, replace(config, inactive="bypass"))
    randomise(toolbox)
    toolbox.set_active(())
    assert torch.equal(features(vit, x), before)


@pytest.mark.parametrize("wrong", [{"rein_tokens": 1}, {"rein_rank": -1}, {"prompt_tokens": 0}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="not allowed"):
        ToolboxConfig(**wrong)


def test_the_toys_cover_what_the_design_names():
    assert {"vit", "dinov2", "dinov2-registers", "dinov2-16-px", "dinov3", "eva-split", "eva-bias-in-call"} <= set(TOYS)
    assert ReinModule.kind == "rein"
