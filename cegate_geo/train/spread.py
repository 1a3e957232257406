"""Means, spreads and paired intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Quantiles of Student's t at 0.975 for 1 to 30 degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and standard deviation of some values."""

    mean: float
    deviation: float | None
    """Of the sample (n - 1); None for one value."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), deviation=deviation, count=len(values))

    def to_json(self) -> dict[str, Any]:
        """As numbers by name."""
        return {"mean": self.mean, "deviation": self.deviation, "count": self.count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far a method lies from the reference, over the seeds that both have."""

    mean: float
    low: float | None
    """Lower end of the 95 % interval by Student's t for paired values; None for fewer than two pairs."""
    high: float | None
    count: int
    """Pairs."""

    @classmethod
    def of(cls, values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
        """Values minus reference by seed; None where they share no seed."""
        pairs = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
        if not pairs:
            return None
        mean = statistics.fmean(pairs)
        if len(pairs) == 1:
            return cls(mean=mean, low=None, high=None, count=1)
        half = t_quantile(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
        return cls(mean=mean, low=mean - half, high=mean + half, count=len(pairs))

    def to_json(self) -> dict[str, Any]:
        """As numbers by name."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}


def t_quantile(degrees: int) -> float:
    """The quantile at 0.975 of Student's t.

    Args:
        degrees: Degrees of freedom, 1 or more.
    """
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)  # Cornish-Fisher, right to 0.0001 beyond 30 degrees
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
