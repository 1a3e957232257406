"""Which class a pixel gets of its probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Contract
from cegate_geo.infer.stitch import winners


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRule:
    """The most probable class, unless the model's contract sets a threshold."""

    threshold: float | None = None
    """A winner below it becomes the first class."""
    is_single: bool = False
    """The model finds one class; it is there where its probability reaches the threshold."""

    @classmethod
    def of(cls, contract: Contract) -> ClassRule:
        """As a contract says it."""
        form, manifest = contract.form, contract.manifest
        is_single = form is not None and form.channels == 1 and manifest.output != "class-map"
        return cls(threshold=manifest.threshold, is_single=is_single)

    def choose(
        self, probabilities: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.float32]]:
        """Channel (H, W) and its probability (H, W) of (K, H, W)."""
        if self.threshold is None:
            return winners(probabilities)
        limit = np.float32(self.threshold)
        if self.is_single:
            found = (probabilities[1] >= limit) & (probabilities[1] > 0)
            return found.astype(np.uint8), np.where(found, probabilities[1], probabilities[0])
        channels, best = winners(probabilities)
        unsure = best < limit
        channels[unsure] = 0
        return channels, np.where(unsure, probabilities[0], best)
