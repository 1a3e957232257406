from __future__ import annotations

import pytest
import timm
import torch
from peft_toys import build, features, scene

from cegate_geo.errors import ConfigError
from cegate_geo.peft import KINDS, METHODS, GateConfig, ToolboxConfig, build_gate, build_toolbox

LARGE = {
    "gate": 24 * (262_144 + 132_160 + 202_852),
    "all": 24 * (262_144 + 132_160 + 202_852),
    "lora": 24 * 262_144,
    "adaptformer": 24 * 132_160,
    "earth-adapter": 24 * 202_852,
    "rein": 24 * (100 * 16 + 16 * 1024) + 2 * (1024 * 1024 + 1024),
    "vpt": 24 * 100 * 1024,
    "frozen": 0,
}


@pytest.mark.parametrize("model", ["vit_large_patch14_dinov2", "vit_large_patch16_dinov3"])
def test_methods_have_the_published_parameter_counts_on_vit_large(model):
    with torch.device("meta"):
        vit = timm.create_model(model, pretrained=False, num_classes=0)
    for method, count in LARGE.items():
        toolbox = build_toolbox(vit, method)
        assert toolbox.count_parameters() == count
        assert build_gate(toolbox, method).count == {"gate": 18, "all": 18, "frozen": 0}.get(method, 6)
        toolbox.detach()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "vpt"])  # prompts have no zero start
def test_every_method_starts_as_the_frozen_backbone(method, config):
    vit = build("dinov2")
    x = scene(vit)
    before = features(vit, x)
    toolbox = build_toolbox(vit, method, config)
    gate = build_gate(toolbox, method, seed=3)
    assert torch.equal(features(vit, x), before)
    assert {key.kind for key in toolbox.keys} == set(METHODS[method].kinds)
    assert gate.policy == METHODS[method].policy


@pytest.mark.parametrize("method", ["all", "lora", "adaptformer", "earth-adapter", "rein", "vpt"])
def test_a_baseline_trains_all_that_it_places(method, config):
    toolbox = build_toolbox(build("vit"), method, config)
    gate = build_gate(toolbox, method)
    assert gate.active == toolbox.keys != ()
    assert not gate.due(0)


def test_kinds_of_the_config_limit_those_of_the_method(config):
    toolbox = build_toolbox(build("vit"), "gate", ToolboxConfig(kinds=("frequency", "spatial")))
    assert {key.kind for key in toolbox.keys} == {"spatial", "frequency"}
    with pytest.raises(ConfigError, match="'adaptformer' places semantic"):
        build_toolbox(build("vit"), "adaptformer", ToolboxConfig(kinds=("spatial",)))


def test_the_default_gate_follows_the_toolbox_on_inactive_modules():
    toolbox = build_toolbox(build("vit"), "gate", ToolboxConfig(inactive="bypass"))
    assert build_gate(toolbox, "gate").config.inactive == "bypass"
    with pytest.raises(ConfigError, match="inactive"):
        build_gate(toolbox, "gate", GateConfig())


def test_training_the_whole_backbone_needs_no_toolbox():
    with pytest.raises(ConfigError, match="'full' has no modules"):
        build_toolbox(build("vit"), "full")


def test_an_unknown_method_is_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="'gates' is not known"):
        build_toolbox(build("vit"), "gates")
    assert METHODS["gate"].kinds == KINDS
