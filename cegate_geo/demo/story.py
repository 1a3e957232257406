"""What happened in a run of the demo: everything that its page tells, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cegate_geo.demo.regions import Region
from cegate_geo.domain.confusion import Metrics
from cegate_geo.domain.legend import Legend


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One model on the unseen region."""

    title: str
    class_map: npt.NDArray[np.integer]
    """(H, W) class ids of the legend; 255 = nodata."""
    metrics: Metrics | None
    """Against the exact truth; None where the model's classes have no counterpart there."""
    train_seconds: float = 0.0
    trained_parameters: int = 0
    """Weights that training could change, the head included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateView:
    """What the gate chose."""

    layers: int
    kinds: tuple[str, ...]
    """Module types, in the order in which a block computes them."""
    scores: Mapping[tuple[int, str], float]
    """Normalised Fisher score of the last selection, by (layer, type); they sum to 1 within each type."""
    active: frozenset[tuple[int, str]]
    """Active in the last selection."""
    kept: frozenset[tuple[int, str]]
    """In the exported model."""
    selections: int
    """How often the gate chose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that the page tells."""

    legend: Legend
    unseen: Region
    """The region that was predicted."""
    adapted: Outcome
    """Of the model that was adapted, or of the shipped one."""
    labelled: Region | None = None
    """The region that was trained on; None where nothing was trained."""
    frozen: Outcome | None = None
    """The same head for the same steps on a frozen backbone; None where nothing was trained."""
    gate: GateView | None = None
    backbone: str = ""
    """What was adapted, in words."""
    steps: int = 0
    model_bytes: int = 0
    model_parameters: int = 0
    parity: float | None = None
    """Largest difference of a probability between torch and the ONNX file."""
    polygons: int | None = None
    """Polygons that were written."""
    timings: tuple[tuple[str, float], ...] = ()
    """Seconds by step, in order."""
    files: tuple[tuple[str, str], ...] = ()
    """Path in the folder, and what it is."""
    commands: tuple[tuple[str, str], ...] = ()
    """What it does, and the command that does it on one's own data."""
    notes: tuple[str, ...] = field(default=())
    """Plain sentences that a reader must know to judge the figures."""
