"""Whether two forms of a model compute the same: eager torch beside onnxruntime, before beside after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from cegate_geo.train.onnx_graph import INPUT, WithProbabilities

MAX_ABS = 1e-3
"""Largest difference of a probability that passes: half a step of a confidence of 8 bits. Sums of float32 in another
order differ by 1e-6 to 1e-5; a wrong kernel, axis or weight by far more."""
MAX_DISAGREEMENT = 1e-3
"""Largest share of pixels with another class that passes: ties between classes may fall either way."""

Probabilities = npt.NDArray[np.float32]
"""(N, K, S, S), 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far two sets of probabilities of the same tiles lie apart."""

    max_abs: float
    """Largest absolute difference, 0 to 1."""
    mean_abs: float
    """Mean absolute difference."""
    disagreement: float
    """Share of pixels with another most probable class."""
    tiles: int
    """Tiles that were compared."""

    @classmethod
    def of(cls, expected: Probabilities, computed: Probabilities) -> Parity:
        """Compare the probabilities of two forms of a model."""
        difference = np.abs(expected - computed)
        return cls(
            max_abs=float(difference.max()),
            mean_abs=float(difference.mean()),
            disagreement=float((expected.argmax(1) != computed.argmax(1)).mean()),
            tiles=len(expected),
        )

    @property
    def passes(self) -> bool:
        """Whether both are the same model; false where anything is no number."""
        return self.max_abs <= MAX_ABS and self.disagreement <= MAX_DISAGREEMENT

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "max_abs": self.max_abs,
            "mean_abs": self.mean_abs,
            "disagreement": self.disagreement,
            "tiles": self.tiles,
        }

    def __str__(self) -> str:
        return (
            f"max_abs={self.max_abs:.1e}, mean_abs={self.mean_abs:.1e}, "
            f"disagreement={100 * self.disagreement:.4f} % over {self.tiles} tiles"
        )


@torch.no_grad()
def run_eager(segmenter: nn.Module, tiles: torch.Tensor) -> tuple[Probabilities, float]:
    """What torch computes.

    Args:
        segmenter: Images to logits, in evaluation mode.
        tiles: (N, C, S, S) as the model takes them.

    Returns:
        Probabilities of all tiles, each computed alone, and the seconds of the fastest.
    """
    model = WithProbabilities(segmenter)
    outputs, seconds = [], float("inf")
    for tile in tiles.float():
        began = time.perf_counter()
        outputs.append(model(tile[None]).numpy())
        seconds = min(seconds, time.perf_counter() - began)
    return np.concatenate(outputs), seconds


def run_onnx(content: bytes, tiles: torch.Tensor) -> tuple[Probabilities, float]:
    """What onnxruntime computes on the CPU.

    Args:
        content: An ONNX file.
        tiles: (N, C, S, S) as the model takes them, or raster values where the file takes whole numbers.

    Returns:
        Probabilities of all tiles, the first computed alone, the others in batches of two; and seconds for one tile.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: nothing that it warns of changes a result
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    images = tiles.float().numpy() if tiles.is_floating_point() else tiles.numpy()
    starts = [0, *range(1, len(images), 2), len(images)]
    batches = [images[a:b] for a, b in pairwise(starts)]
    outputs = [session.run(None, {INPUT: batch})[0] for batch in batches]
    began = time.perf_counter()
    session.run(None, {INPUT: batches[0]})
    return np.concatenate(outputs), time.perf_counter() - began
