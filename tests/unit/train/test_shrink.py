"""The smallest set of modules within a loss, on a model whose mean IoU is known for every set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm

from cegate_geo.errors import InputError
from cegate_geo.peft import ModuleKey, Toolbox, ToolboxConfig, attach
from cegate_geo.train.shrink import shrink

WORTH = {
    "blocks.0.semantic": 0.00,
    "blocks.0.frequency": 0.10,
    "blocks.1.semantic": 0.04,
    "blocks.1.frequency": -0.02,  # does harm
}


@pytest.fixture
def toolbox() -> Toolbox:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=0)
    return attach(vit, ToolboxConfig(kinds=("semantic", "frequency"), semantic_dim=2, frequency_dim=2))


def miou_of(toolbox: Toolbox) -> Callable[[], float]:
    return lambda: 0.5 + sum(WORTH[str(k)] for k, m in toolbox.modules.items() if not m.is_bypassed)


@pytest.mark.parametrize(
    ("allowed", "kept"),
    [
        (0.0, {"blocks.0.frequency", "blocks.1.semantic"}),
        (0.03, {"blocks.0.frequency"}),
        (0.11, {"blocks.0.frequency"}),
        (0.13, set()),
    ],
)
def test_the_smallest_set_within_the_loss_is_kept(toolbox: Toolbox, allowed: float, kept: set[str]) -> None:
    found, curve = shrink(toolbox, allowed=allowed, miou=miou_of(toolbox), seconds=lambda: 1.0)
    assert {str(k) for k in found} == kept
    assert [len(p.kept) for p in curve] == [4, 3, 2, 1, 0]
    assert curve[0].miou == pytest.approx(0.62)
    assert curve[-1].miou == pytest.approx(0.5)
    assert not any(m.is_bypassed for m in toolbox.modules.values())


def test_points_tell_what_their_set_costs(toolbox: Toolbox) -> None:
    clock = iter(range(100))
    _, curve = shrink(toolbox, allowed=0.0, miou=miou_of(toolbox), seconds=lambda: float(next(clock)))
    for point in curve:
        keys = [ModuleKey.parse(name) for name in point.kept]
        assert point.parameters == toolbox.count_parameters(keys) == point.bytes // 4
    assert [p.seconds for p in curve] == [0, 5, 6, 7, 8]  # four in between measure modules alone


def test_of_modules_that_are_worth_the_same_the_larger_goes_first(toolbox: Toolbox) -> None:
    _, curve = shrink(toolbox, allowed=0.0, miou=lambda: 0.5, seconds=lambda: 1.0)
    assert curve[1].kept == ("blocks.0.semantic", "blocks.1.semantic", "blocks.1.frequency")


def test_modules_are_back_after_a_failure(toolbox: Toolbox) -> None:
    calls = iter([0.5, 0.4])
    with pytest.raises(StopIteration):
        shrink(toolbox, allowed=0.0, miou=lambda: next(calls), seconds=lambda: 1.0)
    assert not any(m.is_bypassed for m in toolbox.modules.values())
    with pytest.raises(InputError, match="no share"):
        shrink(toolbox, allowed=1.0, miou=lambda: 0.5, seconds=lambda: 1.0)
