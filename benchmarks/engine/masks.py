"""What contestants wrote, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio


def agreement(mask: Path, engines: Path) -> float:
    """Share of pixels with the same class, of two masks of one shape."""
    same = 0
    with rasterio.open(mask) as left, rasterio.open(engines) as right:
        if left.shape != right.shape:
            raise RuntimeError(f"{mask.name} has shape {left.shape}, the engine's mask {right.shape}.")
        for _, window in right.block_windows(1):
            same += np.count_nonzero(left.read(1, window=window) == right.read(1, window=window))
        return same / (right.height * right.width)
