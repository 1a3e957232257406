"""Probabilities or logits: decided from one real tile, where nothing says which."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.manifest import OutputKind
from cegate_geo.errors import ModelError

TOLERANCE = 1e-3
"""Half-precision probabilities may leave 0 to 1 by as much."""


def kind_of(values: npt.NDArray[np.generic], *, name: str) -> OutputKind:
    """What the output of one tile, (N, C, h, w), looks like.

    Raises:
        ModelError: If a single channel seems to hold ids of more than two classes.
    """
    low, high = float(np.min(values)), float(np.max(values))
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return "probabilities"
    if values.shape[1] == 1 and low >= 0 and bool((values == np.rint(values)).all()):
        raise ModelError(
            f"{name} seems to give class ids: whole numbers from {low:g} to {high:g} in one channel.",
            hint="State all of its classes in order: --classes NAME,NAME --output-kind class-map.",
        )
    return "logits"
