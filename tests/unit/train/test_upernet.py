"""Laws of the UPerNet head: its pooling is adaptive average pooling, and its bins follow the crop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cegate_geo.errors import ConfigError
from cegate_geo.train.heads import make_head
from cegate_geo.train.upernet import BINS, REFERENCE, bins_for, pool


@given(h=st.integers(1, 40), w=st.integers(1, 40), rows=st.integers(1, 40), cols=st.integers(1, 40))
@settings(deadline=None)
def test_pooling_by_matrices_is_adaptive_average_pooling(h: int, w: int, rows: int, cols: int) -> None:
    shape = (min(rows, h), min(cols, w))
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h * 41 + w))
    torch.testing.assert_close(pool(x, shape), F.adaptive_avg_pool2d(x, shape), atol=1e-5, rtol=1e-5)


def test_bins_are_the_published_ones_at_the_published_crop() -> None:
    assert tuple(bins_for(REFERENCE, b) for b in BINS) == BINS == (1, 2, 3, 6)


@given(size=st.integers(1, 200), bins=st.sampled_from(BINS))
@settings(deadline=None)
def test_a_bin_covers_about_the_same_cells_at_any_crop(size: int, bins: int) -> None:
    count = bins_for(size, bins)
    assert 1 <= count <= size
    assert abs(count - bins * size / REFERENCE) <= max(0.5, 1 - bins * size / REFERENCE)


@pytest.mark.parametrize(("levels", "finer"), [(4, 4), (3, 2), (2, 1)])
def test_the_logits_lie_on_the_finest_grid_also_of_odd_and_oblong_crops(levels: int, finer: int) -> None:
    torch.manual_seed(0)
    head = make_head("upernet", in_dim=12, levels=levels, dim=16, classes=3)
    for h, w in ((4, 4), (5, 7), (9, 3)):
        maps = [torch.randn(2, 12, h, w) for _ in range(levels)]
        assert head(maps, torch.zeros(2, 3, 16 * h, 16 * w)).shape == (2, 3, finer * h, finer * w)


def test_every_level_and_every_bin_has_a_say() -> None:
    torch.manual_seed(0)
    head = make_head("upernet", in_dim=12, levels=4, dim=16, classes=3)
    maps = [torch.randn(1, 12, 32, 32, requires_grad=True) for _ in range(4)]
    head(maps, torch.zeros(1, 3, 512, 512)).square().mean().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)
    silent = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_a_corner_sees_the_other_one_through_the_bins() -> None:
    """Without pyramid pooling the convolutions of the head do not reach across 32 x 32 tokens."""
    torch.manual_seed(0)
    head = make_head("upernet", in_dim=12, levels=4, dim=16, classes=3)
    for norm in head.norms:
        norm.forward = lambda x: x  # its mean over the map reaches everywhere by itself
    for module in head.modules():
        if isinstance(module, torch.nn.Sequential) and len(module) == 3:
            module[1].forward = lambda x: x
    maps = [torch.randn(1, 12, 32, 32, requires_grad=True) for _ in range(4)]
    head(maps, torch.zeros(1, 3, 512, 512))[0, :, 0, 0].sum().backward()
    assert maps[-1].grad is not None
    assert maps[-1].grad[0, :, -1, -1].abs().max() > 0


def test_widths_and_names_that_can_not_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no head 'upper'"):
        make_head("upper", in_dim=12, levels=4, dim=16, classes=3)
    with pytest.raises(ConfigError, match="multiple of 8"):
        make_head("upernet", in_dim=12, levels=4, dim=20, classes=3)
