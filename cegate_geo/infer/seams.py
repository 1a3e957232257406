"""How much of a step between neighbouring pixels comes from joining tiles, and not from the model.

A blended probability is B(p) = sum of w_i(p) P_i(p) over the tiles i. Between neighbouring pixels p and q it steps by

    B(q) - B(p) = sum w_i(p) (P_i(q) - P_i(p))  +  sum (w_i(q) - w_i(p)) P_i(q)

The first sum is what the tiles themselves say of the scene: edges of roofs and fields. The second exists only because
the weights change, and is the seam. Cropping is the case of weights of 0 and 1: there it is the whole disagreement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.infer.tiles import Tile, TilePlan

FloatArray = npt.NDArray[np.float32]
USUAL = 0.99
"""Share of the model's own steps that are smaller than `Seams.usual`."""


@dataclass(frozen=True, slots=True)
class Seams:
    """Steps of probabilities between neighbouring pixels, 0 to 1."""

    largest: float
    """That joining tiles adds, at most."""
    usual: float
    """That the model makes within single tiles: only one in a hundred is larger."""


def measure_seams(
    plan: TilePlan, tiles: Mapping[tuple[int, int], FloatArray], *, frame: Window, valid: npt.NDArray[np.bool_]
) -> Seams:
    """Measure where some tiles of a plan meet.

    Args:
        plan: The tile plan.
        tiles: (tile row, tile column) → probabilities (K, H, W) over the tile's window; used are the pixels that these
            tiles alone make up.
        frame: Part of the raster that holds their windows, as far as they lie within the raster.
        valid: (H, W) over `frame`; what holds no data has no seams that anybody sees.
    """
    placed = [(_weights(plan, plan.tile(*key), frame), plan.tile(*key).window, maps) for key, maps in tiles.items()]
    complete = valid & (np.sum([weights for weights, _, _ in placed], axis=0) > 1 - 1e-6)
    largest, steps = 0.0, []
    for channel in range(len(placed[0][2])):
        for axis in (0, 1):
            added = np.zeros(tuple(n - (at == axis) for at, n in enumerate(frame.shape)), np.float32)
            for weights, window, maps in placed:
                after = np.delete(_over_frame(maps[channel], window, frame), 0, axis=axis)
                added += np.diff(weights, axis=axis) * after
                sparse = maps[channel][:, ::4] if axis == 0 else maps[channel][::4]
                steps.append(np.abs(np.diff(sparse, axis=axis)).ravel())
            both = np.delete(complete, 0, axis=axis) & np.delete(complete, -1, axis=axis)
            if both.any():
                largest = max(largest, float(np.abs(added[both]).max()))
    return Seams(largest, float(np.quantile(np.concatenate(steps), USUAL)))


def _weights(plan: TilePlan, tile: Tile, frame: Window) -> FloatArray:
    """Weight (H, W) of a tile over the frame."""
    weights = np.zeros(frame.shape, np.float32)
    inside = tile.support.intersection(frame)
    if inside is not None:
        product = np.outer(plan.rows.weights(tile.row), plan.cols.weights(tile.col))
        weights[inside.slices(frame)] = product[inside.slices(tile.support)]
    return weights


def _over_frame(values: FloatArray, window: Window, frame: Window) -> FloatArray:
    """A tile's (H, W) over the frame, its edge repeated beyond its window: tiles that only touch count in full."""
    rows = np.clip(np.arange(frame.row_off, frame.row_end) - window.row_off, 0, window.height - 1)
    cols = np.clip(np.arange(frame.col_off, frame.col_end) - window.col_off, 0, window.width - 1)
    return values[np.ix_(rows, cols)]
