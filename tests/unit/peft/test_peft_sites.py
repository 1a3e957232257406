from __future__ import annotations

import random

import pytest
import timm
import torch
from peft_toys import SMALL, build, features, scene, task_loss
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn

from cegate_geo.errors import InputError, SiteError
from cegate_geo.peft import KINDS, ModuleKey, ToolboxConfig, attach, fisher_scores


def test_keys_are_ordered_by_layer_then_by_the_order_of_kinds():
    keys = [ModuleKey(layer, kind) for layer in (0, 1, 2, 10) for kind in ("spatial", "semantic", "frequency")]
    shuffled = list(keys)
    random.Random(1).shuffle(shuffled)
    assert sorted(shuffled) == keys


def test_a_key_reads_back_from_its_text_and_from_its_parameters():
    key = ModuleKey(11, "frequency")
    assert ModuleKey.parse(str(key)) == key
    assert ModuleKey.parse("blocks.11.frequency.low.down.weight") == key


@pytest.mark.parametrize(
    "text", ["blocks.3", "blocks.x.spatial", "blocks.-1.spatial", "layers.3.spatial", "blocks.3.mlp", ""]
)
def test_a_text_that_names_no_module_is_refused(text):
    with pytest.raises(InputError, match="names no module"):
        ModuleKey.parse(text)


def test_sites_are_timm_names_of_objects_in_the_model(vit):
    toolbox = attach(vit, ToolboxConfig(spatial_rank=2, semantic_dim=2, frequency_dim=2))
    for key in toolbox.keys:
        block = vit.blocks[key.layer]
        if key.kind == "spatial" and block.attn.qkv is None:
            assert block.attn.q_proj.spatial is toolbox.modules[key]
            continue
        at = vit.get_submodule(key.site)
        assert at is {"spatial": block.attn.qkv, "semantic": block.mlp, "frequency": block}[key.kind]


def test_a_gradient_reaches_every_module(vit, config):
    toolbox = attach(vit, config)
    scores = fisher_scores(toolbox, [scene(vit, batch=1)], lambda x: task_loss(vit, x))
    assert len(scores) == 9
    assert all(score > 0 for score in scores.values())


class OtherAttention(Attention):
    def forward(self, x, **kwargs):
        return nn.functional.linear(x, self.qkv.weight[: x.shape[-1]])


class OtherBlock(Block):
    def forward(self, x, **kwargs):
        return x


def _with_drop():
    return timm.create_model("vit_tiny_patch16_224", img_size=64, patch_drop_rate=0.5, **SMALL)


def _with_other_attention():
    vit = build("vit")
    vit.blocks[1].attn.__class__ = OtherAttention
    return vit


def _with_other_block():
    vit = build("vit")
    vit.blocks[1].__class__ = OtherBlock
    return vit


def _with_wrapped_qkv():
    vit = build("vit")
    vit.blocks[2].attn.qkv = nn.Sequential(vit.blocks[2].attn.qkv)
    return vit


def _with_wrapped_v():
    vit = build("eva-split")
    vit.blocks[2].attn.v_proj = nn.Sequential(vit.blocks[2].attn.v_proj)
    return vit


def _grouped_queries():
    options = {"qkv_fused": False, "attn_type": "rope", "num_kv_heads": 1}
    return timm.create_model("vit_small_patch16_dinov3", **options, **SMALL)


def _post_norm():
    return timm.create_model("eva02_tiny_patch14_224", use_post_norm=True, img_size=56, **SMALL)


def _convnet():
    return timm.create_model("resnet18", num_classes=0)


@pytest.mark.parametrize(
    ("make", "kinds", "words"),
    [
        (_with_other_block, ("frequency",), r"blocks\.1 .*OtherBlock"),
        (_with_other_attention, ("spatial",), r"blocks\.1\.attn .*OtherAttention"),
        (_with_wrapped_qkv, ("spatial",), r"blocks\.2\.attn\.qkv is Sequential"),
        (_with_wrapped_v, ("spatial",), r"blocks\.2\.attn\.v_proj is Sequential"),
        (_grouped_queries, ("spatial",), r"blocks\.0\.attn\.q_proj, v_proj has \[48, 16\] outputs"),
        (_post_norm, ("semantic",), "EvaBlockPostNorm"),
        (_with_drop, ("frequency",), "drops patches"),
        (_convnet, KINDS, "no list of transformer blocks"),
    ],
)
def test_a_site_that_cannot_be_reached_is_refused_and_nothing_changes(make, kinds, words):
    vit = make()
    before = [(module, type(module), dict(vars(module))) for module in vit.modules()]
    with pytest.raises(SiteError, match=words):
        attach(vit, ToolboxConfig(kinds=kinds))
    assert all(type(module) is cls and vars(module).keys() == own.keys() for module, cls, own in before)
    assert all(parameter.requires_grad for parameter in vit.parameters())


@pytest.mark.parametrize("make", [_with_other_attention, _with_wrapped_qkv, _grouped_queries])
def test_an_unknown_attention_does_not_hinder_the_other_kinds(make):
    toolbox = attach(make(), ToolboxConfig(kinds=("semantic", "frequency")))
    assert len(toolbox.keys) == 6


def test_a_second_toolbox_on_the_same_blocks_is_refused(vit, config):
    attach(vit, config)
    with pytest.raises(SiteError, match="already carries modules"):
        attach(vit, config)


def test_timm_attribute_gate_of_attention_stays(make_vit, config):
    vit = make_vit("dinov3")
    for block in vit.blocks:
        block.attn.gate = nn.Linear(48, 48)
    x = scene(vit)
    before = features(vit, x)
    gates = [block.attn.gate for block in vit.blocks]
    toolbox = attach(vit, config)
    assert torch.equal(features(vit, x), before)
    toolbox.detach()
    assert all(block.attn.gate is one for block, one in zip(vit.blocks, gates, strict=True))
