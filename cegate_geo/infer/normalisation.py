"""What a model of another tool wants done to raster values; our own exports do it in their graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """What is done to raster values beyond a division: `(clip(x, low, high) / divisor - mean) / std`.

    Each is (C, 1, 1) float32.
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    @classmethod
    def of(cls, manifest: Manifest) -> Normalisation | None:
        """As a manifest says it; None where the graph does it all."""
        if not (manifest.clip or manifest.mean or manifest.std):
            return None
        count = len(manifest.bands)
        clip = manifest.clip or ((-np.inf, np.inf),) * count
        low, high, mean, std = (
            np.array(values, np.float32).reshape(count, 1, 1)
            for values in (*zip(*clip, strict=True), manifest.mean or (0.0,) * count, manifest.std or (1.0,) * count)
        )
        return cls(low=low, high=high, mean=mean, std=std)

    def apply(self, values: npt.NDArray[np.generic], divisor: float) -> npt.NDArray[np.float32]:
        """Raster values (C, H, W) as the model wants them, float32."""
        scaled = np.clip(values.astype(np.float32), self.low, self.high) / np.float32(divisor)
        result: npt.NDArray[np.float32] = (scaled - self.mean) / self.std
        return result
