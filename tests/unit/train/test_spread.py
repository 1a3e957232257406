"""Means, spreads and paired intervals against hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cegate_geo.train.spread import Difference, Spread, t_quantile


def test_a_spread_is_mean_and_sample_deviation() -> None:
    spread = Spread.of([0.5, 0.6, 0.7])
    assert spread.mean == pytest.approx(0.6)
    assert spread.deviation == pytest.approx(0.1)
    assert Spread.of([0.4]).deviation is None


def test_the_interval_is_that_of_the_paired_differences() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, half width 4.303 / sqrt 3."""
    difference = Difference.of({0: 11.0, 1: 22.0, 2: 33.0, 7: 0.0}, {2: 30.0, 0: 10.0, 1: 20.0, 9: 5.0})
    assert difference is not None
    assert (difference.mean, difference.count) == (pytest.approx(2), 3)
    assert difference.high == pytest.approx(2 + 4.303 / math.sqrt(3))
    assert difference.low == pytest.approx(2 - 4.303 / math.sqrt(3))


def test_pairing_removes_what_seeds_have_in_common() -> None:
    seeds = {n: float(v) for n, v in enumerate(np.random.default_rng(0).normal(50, 10, 5))}
    difference = Difference.of({n: v + 1 for n, v in seeds.items()}, seeds)
    assert difference is not None
    assert difference.low == pytest.approx(1)
    assert difference.high == pytest.approx(1)


def test_one_pair_gives_no_interval_and_none_no_difference() -> None:
    single = Difference.of({0: 2.0}, {0: 1.0})
    assert single is not None
    assert (single.mean, single.low, single.high) == (1.0, None, None)
    assert Difference.of({0: 2.0}, {1: 1.0}) is None


@pytest.mark.parametrize("degrees", [1, 2, 5, 12, 30, 31, 60, 120, 1000])
def test_quantiles_leave_a_fortieth_of_students_t_above(degrees: int) -> None:
    """The density integrated from 0 to the quantile is 0.475."""
    x = np.linspace(0, t_quantile(degrees), 200_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    density = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    assert np.trapezoid(density, x) == pytest.approx(0.475, abs=3e-5)
