"""Laws of the comparison that every export has to pass."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from cegate_geo.train.parity import MAX_ABS, MAX_DISAGREEMENT, Parity, run_eager


def test_parity_of_a_case_computed_by_hand() -> None:
    expected = np.array([[[[0.9, 0.4]], [[0.1, 0.6]]]], np.float32)  # (1, 2, 1, 2): classes 0 and 1
    computed = np.array([[[[0.8, 0.6]], [[0.2, 0.4]]]], np.float32)
    parity = Parity.of(expected, computed)
    assert parity.max_abs == pytest.approx(0.2, abs=1e-6)
    assert parity.mean_abs == pytest.approx(0.15, abs=1e-6)
    assert parity.disagreement == 0.5
    assert parity.tiles == 1
    assert not parity.passes
    same = Parity.of(expected, expected)
    assert (same.max_abs, same.mean_abs, same.disagreement) == (0, 0, 0)
    assert same.passes


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({"max_abs": MAX_ABS}, True),
        ({"max_abs": 1.01 * MAX_ABS}, False),
        ({"disagreement": MAX_DISAGREEMENT}, True),
        ({"disagreement": 1.01 * MAX_DISAGREEMENT}, False),
        ({"max_abs": math.nan}, False),
    ],
)
def test_each_bound_counts_and_no_number_never_passes(change: dict[str, float], passes: bool) -> None:
    within = Parity(max_abs=0.0, mean_abs=0.0, disagreement=0.0, tiles=1)
    assert dataclasses.replace(within, **change).passes is passes


def test_eager_probabilities_are_a_softmax_also_of_large_logits() -> None:
    tiles = torch.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    logits = nn.Conv2d(3, 5, 1)
    with torch.no_grad():
        logits.weight.mul_(1e4)  # exp of it would overflow
    computed, seconds = run_eager(logits, tiles)
    np.testing.assert_allclose(computed, torch.softmax(logits(tiles), 1).detach().numpy(), atol=1e-6)
    assert math.isfinite(seconds)
