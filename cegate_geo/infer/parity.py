"""Whether two ways to run a model give the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

MAX_DIFFERENCE = 0.05
"""Largest difference of a probability. bf16 keeps 8 bits: the shipped ViT gives up to 0.010 in it, and a bound of five
times that leaves room for deeper models. A broken kernel is off by far more."""
MAX_DISAGREEMENT = 0.005
"""Largest share of pixels with another class. Rounding moves those between two classes: in
the shipped ViT bf16 moves 0.0004 of all."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two results of the same input are apart."""

    max_difference: float
    """Of any probability; infinite where one of them is no number."""
    disagreement: float
    """Share of pixels whose most probable class differs, 0 to 1."""

    @classmethod
    def between(cls, first: FloatArray, second: FloatArray) -> Parity:
        """Compare probabilities (N, K, H, W) of equal shape."""
        if first.shape != second.shape or not (np.isfinite(first).all() and np.isfinite(second).all()):
            return cls(float("inf"), 1.0)
        differs = first.argmax(axis=1) != second.argmax(axis=1)
        return cls(float(np.abs(first - second).max()), float(differs.mean()))

    @property
    def is_good(self) -> bool:
        """Whether both may stand for each other."""
        return self.max_difference <= MAX_DIFFERENCE and self.disagreement <= MAX_DISAGREEMENT

    def __str__(self) -> str:
        largest, share = self.max_difference, self.disagreement
        return f"probabilities differ by {largest:.2g} at most, the class of {share:.2%} of pixels"
