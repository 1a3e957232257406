"""Fixtures of the peft tests; the models are made in peft_toys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from peft_toys import TOYS, build
from torch import nn

from cegate_geo.peft import ToolboxConfig


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    return build


@pytest.fixture(params=list(TOYS))
def vit(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture
def config() -> ToolboxConfig:
    return ToolboxConfig(spatial_rank=4, semantic_dim=5, frequency_dim=6, frequency_cutoff=0.9)
