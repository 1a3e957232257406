"""What an export keeps where nothing is said, on a model whose answers and mean IoU are known for every set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch

from cegate_geo.peft import ModuleKey, Toolbox, ToolboxConfig, attach
from cegate_geo.train.afford import AFFORDED, SLOWNESS, afford, choose, costs
from cegate_geo.train.backbone import BackboneSpec
from cegate_geo.train.segmenter import Segmenter

COST = {
    "blocks.0.semantic": 0.02,
    "blocks.0.frequency": 0.03,
    "blocks.1.semantic": 0.02,
    "blocks.1.frequency": 0.03,
}
CHANGE = {
    "blocks.0.semantic": 0.001,
    "blocks.0.frequency": 0.09,
    "blocks.1.semantic": 0.05,
    "blocks.1.frequency": 0.06,
}


def keyed(values: dict[str, float]) -> dict[ModuleKey, float]:
    return {ModuleKey.parse(name): value for name, value in values.items()}


@pytest.fixture
def toolbox() -> Toolbox:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=0)
    return attach(vit, ToolboxConfig(kinds=("semantic", "frequency"), semantic_dim=2, frequency_dim=2))


def answers(toolbox: Toolbox) -> Callable[[], np.ndarray]:
    def give() -> np.ndarray:
        present = sum(CHANGE[str(k)] for k, m in toolbox.modules.items() if not m.is_bypassed)
        return np.full((1, 2, 4, 4), present, np.float32)

    return give


@pytest.mark.parametrize(("lost", "is_cheap"), [(0.0, True), (0.0019, True), (0.0021, False), (-0.1, True)])
def test_the_best_that_are_cheap_enough_are_kept_where_nothing_is_lost(
    toolbox: Toolbox, lost: float, *, is_cheap: bool
) -> None:
    def miou() -> float:
        return 0.6 - (lost if any(m.is_bypassed for m in toolbox.modules.values()) else 0)

    found, curve = afford(toolbox, cost=keyed(COST), answers=answers(toolbox), miou=miou, seconds=lambda: 1.0)
    best = {"blocks.0.frequency", "blocks.1.semantic"}  # 0.05 together; the worth of each for its cost decides
    assert {str(k) for k in found} == (best if is_cheap else set(COST))
    assert [set(p.kept) for p in curve] == [set(COST), best]
    assert curve[0].miou - curve[1].miou == pytest.approx(lost)
    assert not any(m.is_bypassed for m in toolbox.modules.values())


def test_what_does_not_fit_makes_room_for_what_does() -> None:
    worth = keyed({"blocks.0.semantic": 1.0, "blocks.1.frequency": 5.0, "blocks.1.semantic": 0.1})
    assert [str(k) for k in choose(worth, keyed(COST), 0.045)] == ["blocks.1.frequency"]
    assert [str(k) for k in choose(worth, keyed(COST), 0.042)] == ["blocks.1.frequency"]
    small = keyed({"blocks.0.semantic": 1.0, "blocks.0.frequency": 1.6, "blocks.1.frequency": 0.5})
    assert [str(k) for k in choose(small, keyed(COST), 0.04)] == ["blocks.0.frequency"]
    assert choose(small, keyed(COST), 0.0) == ()


def test_costs_are_products_beside_those_of_the_model_without_modules(toolbox: Toolbox) -> None:
    segmenter = Segmenter(toolbox.vit, BackboneSpec(architecture="x"), head="linear", head_dim=8, classes=2).eval()
    found = costs(segmenter, toolbox, 32)
    assert not any(m.is_bypassed for m in toolbox.modules.values())
    dim, tokens, prefix = 32, 4, 1
    block = 12 * dim * dim * (tokens + prefix) + 2 * (tokens + prefix) ** 2 * dim
    backbone = 2 * block + 3 * 16 * 16 * dim * tokens
    for key, cost in found.items():
        own = SLOWNESS[key.kind] * tokens * toolbox.count_parameters([key])
        assert own / cost == pytest.approx(backbone, rel=0.02)  # the head's product comes to it
    assert sum(found.values()) > AFFORDED


def test_modules_are_back_after_a_failure(toolbox: Toolbox) -> None:
    def fail() -> float:
        raise RuntimeError("the disk")

    with pytest.raises(RuntimeError, match="the disk"):
        afford(toolbox, cost=keyed(COST), answers=answers(toolbox), miou=fail, seconds=lambda: 1.0)
    assert not any(m.is_bypassed for m in toolbox.modules.values())
    assert torch.is_tensor(next(toolbox.parameters()))
