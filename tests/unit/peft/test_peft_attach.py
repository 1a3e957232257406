from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from peft_toys import build, features, qkv_layers, randomise, scene, task_loss

from cegate_geo.errors import ConfigError, InputError, ModelError
from cegate_geo.peft import KINDS, ModuleKey, ToolboxConfig, attach, keys_of


def test_attaching_is_an_exact_no_op(vit, config):
    scenes = [scene(vit, 4, 4), scene(vit, 5, 3), scene(vit, 3, 6), scene(vit, 8, 10)]  # 8 x 10: 128 x 160 pixels
    before = [features(vit, x) for x in scenes]
    attach(vit, config)
    for x, expected in zip(scenes, before, strict=True):
        torch.testing.assert_close(features(vit, x), expected, atol=1e-5, rtol=0)


def test_attaching_changes_no_bit_where_the_bias_is_part_of_qkv(make_vit, config):
    for name in ("vit", "dinov2-registers", "dinov3", "eva-separate-bias"):
        vit = make_vit(name)
        x = scene(vit)
        before = features(vit, x)
        attach(vit, config)
        assert torch.equal(features(vit, x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_the_output_once_it_is_trained(vit, config, kind):
    x = scene(vit)
    before = features(vit, x)
    randomise(attach(vit, replace(config, kinds=(kind,))))
    assert (features(vit, x) - before).abs().max() > 1e-2


def test_detaching_restores_the_base_bit_for_bit(vit, config):
    vit.pos_drop.requires_grad_(False)
    next(vit.parameters()).requires_grad_(False)
    x = scene(vit)
    output, state = features(vit, x), {name: value.clone() for name, value in vit.state_dict().items()}
    anatomy = [(name, module, type(module), set(vars(module))) for name, module in vit.named_modules()]
    children = [(module, list(module._modules)) for module in vit.modules()]
    flags = [parameter.requires_grad for parameter in vit.parameters()]
    toolbox = attach(vit, config)
    randomise(toolbox)
    features(vit, x)
    toolbox.detach()
    assert [(name, module, type(module), set(vars(module))) for name, module in vit.named_modules()] == anatomy
    assert [(module, list(module._modules)) for module in vit.modules()] == children
    assert all(not module._forward_hooks for module in vit.modules())
    assert [parameter.requires_grad for parameter in vit.parameters()] == flags
    assert list(vit.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in vit.state_dict().items())
    assert torch.equal(features(vit, x), output)
    assert toolbox.keys == ()
    attach(vit, config)


def test_base_parameters_keep_timm_names_while_modules_are_attached(vit, config):
    before = set(vit.state_dict())
    toolbox = attach(vit, config)
    assert before < set(vit.state_dict())
    own = {id(parameter) for parameter in toolbox.parameters()}
    assert {name for name, parameter in vit.named_parameters() if id(parameter) not in own} <= before


def test_only_modules_are_trained(vit, config):
    toolbox = attach(vit, config)
    randomise(toolbox)
    own = dict(toolbox.named_parameters())
    base = {name: p.clone() for name, p in vit.named_parameters() if not any(p is one for one in own.values())}
    start = {name: parameter.detach().clone() for name, parameter in own.items()}
    optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-2, weight_decay=0.1)
    vit.train()
    task_loss(vit, scene(vit)).backward()
    optimizer.step()
    assert all(torch.equal(vit.get_parameter(name), value) for name, value in base.items())
    assert all(not torch.equal(parameter, start[name]) for name, parameter in own.items())


def test_weights_survive_a_round_trip_into_another_model(vit, config):
    toolbox = attach(vit, config)
    randomise(toolbox)
    state = {name: value.clone() for name, value in toolbox.state_dict().items()}
    x = scene(vit)
    expected = features(vit, x)
    toolbox.detach()
    fresh = attach(vit, config)
    assert (features(vit, x) - expected).abs().max() > 1e-2
    fresh.load_state_dict(state)
    assert torch.equal(features(vit, x), expected)
    assert state.keys() == fresh.state_dict().keys()
    assert "blocks.1.spatial.q.down.weight" in state


def test_a_pruned_adapter_loads_into_the_modules_that_it_holds(make_vit, config):
    toolbox = attach(make_vit("dinov2"), config)
    randomise(toolbox)
    toolbox.remove([key for key in toolbox.keys if key.layer != 1 and key.kind != "frequency"])
    fresh = attach(make_vit("dinov2"), config, keys=keys_of(toolbox.state_dict()))
    fresh.load_state_dict(toolbox.state_dict())
    assert fresh.keys == toolbox.keys
    x = scene(fresh.vit)
    assert torch.equal(features(fresh.vit, x), features(toolbox.vit, x))


def test_weights_that_do_not_fit_are_refused_and_nothing_is_copied(make_vit, config):
    toolbox = attach(make_vit("vit"), config)
    randomise(toolbox)
    before = {name: value.clone() for name, value in toolbox.state_dict().items()}
    name = "blocks.2.semantic.up.bias"
    zeros = {key: torch.zeros_like(value) for key, value in before.items()}
    wrong = [
        ({key: value for key, value in zeros.items() if key != name}, "1 missing .*blocks.2.semantic.up.bias"),
        ({**zeros, "blocks.9.spatial.x": torch.zeros(1)}, "1 unknown .*blocks.9.spatial.x"),
        ({**zeros, name: torch.zeros(7)}, r"blocks.2.semantic.up.bias \(7,\), not \(48,\)"),
    ]
    for state, words in wrong:
        with pytest.raises(ModelError, match=words):
            toolbox.load_state_dict(state)
    with pytest.raises(ModelError, match="another shape"):
        toolbox.load_state_dict({name: torch.zeros(7)}, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in toolbox.state_dict().items())
    toolbox.load_state_dict({name: torch.ones(48)}, strict=False)
    assert torch.equal(toolbox.state_dict()[name], torch.ones(48))


def test_a_deep_copy_is_independent(vit, config):
    toolbox = attach(vit, config)
    randomise(toolbox)
    x = scene(vit)
    expected = features(vit, x)
    other_vit, other = copy.deepcopy((vit, toolbox))
    assert torch.equal(features(other_vit, x), expected)
    features(other_vit, scene(other_vit, 2, 7))  # its token grid is its own
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(features(vit, x), expected)
    other.detach()
    assert torch.equal(features(vit, x), expected)


def test_lora_on_q_and_v_of_their_own_is_that_on_a_fused_layer(config):
    fused, split = build("eva-bias-in-call"), build("eva-split")
    with torch.no_grad():
        shared = {name: value for name, value in fused.state_dict().items() if name in split.state_dict()}
        assert not split.load_state_dict(shared, strict=False).unexpected_keys
        for layer, block in enumerate(fused.blocks):
            q, k, v = (part.weight for part in qkv_layers(split, layer))
            for own, weight in zip((q, k, v), block.attn.qkv.weight.chunk(3), strict=True):
                own.copy_(weight)
            split.blocks[layer].attn.q_proj.bias.copy_(block.attn.q_bias)
            split.blocks[layer].attn.v_proj.bias.copy_(block.attn.v_bias)
    x = scene(fused)
    base = features(fused, x)
    torch.testing.assert_close(features(split, x), base, atol=1e-4, rtol=1e-4)
    toolboxes = [attach(vit, replace(config, kinds=("spatial",))) for vit in (fused, split)]
    randomise(toolboxes[0])
    toolboxes[1].load_state_dict(toolboxes[0].state_dict())
    assert (features(fused, x) - base).abs().max() > 1e-2
    torch.testing.assert_close(features(split, x), features(fused, x), atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(vit, config):
    toolbox = attach(vit, config)
    randomise(toolbox)
    gradients = []
    for enabled in (False, True):
        vit.set_grad_checkpointing(enabled)
        loss = task_loss(vit, scene(vit))
        gradients.append(torch.autograd.grad(loss, list(toolbox.parameters())))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_follows_float32(vit, config, autocast):
    toolbox = attach(vit, config)
    randomise(toolbox)
    x = scene(vit)
    exact = features(vit, x)
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = features(vit, x)
    else:
        vit.bfloat16()
        assert {parameter.dtype for parameter in toolbox.parameters()} == {torch.bfloat16}
        rounded = features(vit, x.bfloat16())
    assert torch.linalg.norm(rounded.float() - exact) < 0.05 * torch.linalg.norm(exact)


def test_modules_take_the_dtype_of_their_block(make_vit, config):
    toolbox = attach(make_vit("dinov3").double(), config)
    assert {parameter.dtype for parameter in toolbox.parameters()} == {torch.float64}


def test_a_frozen_module_stays_in_the_forward_pass_and_a_bypassed_one_leaves_it(vit, config):
    x = scene(vit)
    base = features(vit, x)
    some = [ModuleKey(0, "semantic"), ModuleKey(1, "spatial"), ModuleKey(2, "frequency")]
    frozen = attach(vit, config)
    randomise(frozen)
    trained = features(vit, x)
    frozen.set_active(some)
    assert torch.equal(features(vit, x), trained)
    weights = frozen.state_dict()
    frozen.detach()
    bypass = attach(vit, replace(config, inactive="bypass"))
    bypass.load_state_dict(weights)
    bypass.set_active(())
    torch.testing.assert_close(features(vit, x), base, atol=1e-5, rtol=0)
    bypass.set_active(some)
    with_some = features(vit, x)
    bypass.detach()
    attach(vit, config, keys=some).load_state_dict({n: w for n, w in weights.items() if keys_of({n: w})[0] in some})
    assert torch.equal(features(vit, x), with_some)


def test_skipped_modules_let_backward_stop_at_the_shallowest_active_one(make_vit, config):
    toolbox = attach(make_vit("vit"), config)
    randomise(toolbox)
    vit = toolbox.vit
    seen: list[int] = []

    def watch(layer):
        def on_forward(module, inputs, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: seen.append(layer))

        return on_forward

    for layer, block in enumerate(vit.blocks):
        block.norm1.register_forward_hook(watch(layer))
    toolbox.set_active([ModuleKey(1, "frequency")], gradients="skip")
    task_loss(vit, scene(vit)).backward()
    assert seen == [2]
    assert {key for key, m in toolbox.modules.items() if m.parameters().__next__().grad is not None} == {
        ModuleKey(1, "frequency")
    }
    toolbox.set_active([ModuleKey(1, "frequency")], gradients="mask")
    assert all(parameter.requires_grad for parameter in toolbox.parameters())


def test_keys_counts_and_order_agree(vit, config):
    toolbox = attach(vit, config)
    assert list(toolbox.keys) == [ModuleKey(layer, kind) for layer in range(3) for kind in KINDS]
    assert list(toolbox.modules) == list(toolbox.keys)
    assert toolbox.count_parameters() == sum(parameter.numel() for parameter in toolbox.parameters())
    assert toolbox.count_parameters([ModuleKey(0, "semantic")]) == 48 * 5 * 2 + 48 + 5
    assert list(toolbox.state_dict()) == [name for name, _ in toolbox.named_parameters()]
    with pytest.raises(TypeError):
        toolbox.modules[ModuleKey(0, "spatial")] = None


def test_a_frozen_backbone_has_an_empty_toolbox(vit):
    x = scene(vit)
    before = features(vit, x)
    toolbox = attach(vit, ToolboxConfig(kinds=()))
    assert toolbox.keys == ()
    assert toolbox.count_parameters() == 0
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    assert torch.equal(features(vit, x), before)
    toolbox.detach()
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_modules_outside_the_model_or_the_config_are_refused(make_vit, config):
    vit = make_vit("vit")
    for key in (ModuleKey(3, "spatial"), ModuleKey(0, "frequency")):
        with pytest.raises(InputError, match=r"can't be placed"):
            attach(vit, replace(config, kinds=("spatial",)), keys=[key])
    toolbox = attach(vit, replace(config, kinds=("spatial",)))
    with pytest.raises(InputError, match="not in the toolbox"):
        toolbox.set_active([ModuleKey(0, "semantic")])
    with pytest.raises(InputError, match="not in the toolbox"):
        toolbox.remove([ModuleKey(0, "semantic")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": ("spatial", "spatial")},
        {"kinds": ("texture",)},
        {"spatial_rank": 0},
        {"semantic_dim": -1},
        {"frequency_dim": 0},
        {"frequency_cutoff": 0.0},
        {"frequency_cutoff": 1.5},
        {"inactive": "removed"},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="not allowed"):
        ToolboxConfig(**wrong)


def test_defaults_are_the_published_ones():
    config = ToolboxConfig()
    assert (config.spatial_rank, config.semantic_dim, config.frequency_dim, config.frequency_cutoff) == (
        64,
        64,
        32,
        0.3,
    )
    assert config.inactive == "frozen"


def test_changing_the_input_size_of_a_fixed_size_model_moves_the_token_grid(config):
    vit = build("vit", dynamic_img_size=False)
    toolbox = attach(vit, config)
    randomise(toolbox)
    square = vit.forward_features(torch.zeros(1, 3, 64, 64))
    vit.set_input_size((32, 96))
    wide = vit.forward_features(torch.zeros(1, 3, 32, 96))
    assert (square.shape[1], wide.shape[1]) == (17, 13)
