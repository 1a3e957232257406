"""What heads normalise by."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["batch", "group"]
"""batch: statistics of the training data, kept while training (arXiv 1502.03167). group: those of each image's own
groups of channels (arXiv 1803.08494)."""


def make_norm(norm: Norm, dim: int, *, groups: int) -> nn.Module:
    """A normalisation of maps (N, dim, h, w).

    Args:
        norm: By what.
        dim: Channels.
        groups: Groups of channels, a divisor of `dim`; of no account for "batch".
    """
    return nn.BatchNorm2d(dim) if norm == "batch" else nn.GroupNorm(groups, dim)
