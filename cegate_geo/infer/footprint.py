"""What models take of the process' memory: by their weights before they ran, then as it was seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cegate_geo.infer.heap import BASE_BYTES, resident_bytes
from cegate_geo.infer.providers import ACCELERATORS

SMALL_SESSION = 24 * 2**20
"""Bytes that sessions of a small model take beside its weights."""
LOOK_S = 10.0
"""A call that takes longer is not repeated to see what it takes."""
SEEN_STEP = 32 * 2**20
"""What is seen of memory is rounded up to it: small differences between runs are to change nothing."""


class Session(Protocol):
    """What is looked at."""

    @property
    def provider(self) -> str:
        """What runs, by our name."""

    @property
    def input_type(self) -> np.dtype[np.generic]:
        """What its inputs are made of."""

    def call(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        """What the graph gives for inputs (N, C, H, W)."""


@dataclass(slots=True)
class Footprint:
    """What a model takes of the process' memory."""

    before: int | None = None
    """Bytes that the process held before it was loaded; None where nothing tells it."""
    session: int | None = None
    """Bytes that it was seen to take; None before it was looked at."""

    def session_bytes(self, by_weights: int) -> int:
        """As it was seen, in steps of SEEN_STEP, where that is more than what the weights say."""
        seen = self.session
        return by_weights if seen is None or seen <= by_weights else -(-seen // SEEN_STEP) * SEEN_STEP

    def look(self, models: Sequence[Session], shape: tuple[int, ...]) -> None:
        """See what the sessions of models that run one after the other take on inputs of `shape` (N, C, H, W); once.

        An output lies in the session's own memory: while it waits, the next call finds no room there and takes more. So
        there are two calls, unless that takes long.
        """
        loaded = resident_bytes()
        if self.before is None or self.session is not None or loaded is None:
            return
        more = 0
        waiting: list[npt.NDArray[Any]] = []
        for model in models:
            if model.provider in ACCELERATORS:  # those compute in a memory of their own
                continue
            waiting = waiting[:1]  # the sum of those before, as it were
            unused, started = resident_bytes() or loaded, time.monotonic()
            inputs = np.zeros(shape, model.input_type)
            waiting.append(model.call(inputs))
            if time.monotonic() - started < LOOK_S:
                waiting.append(model.call(inputs))
            else:
                more += max(0, (resident_bytes() or unused) - unused) // 2
        self.session = max(0, (resident_bytes() or loaded) + more - max(self.before, BASE_BYTES))
