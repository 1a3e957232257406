"""Test-time augmentation: a tile is shown flipped and turned, and the mean of what comes back is taken.

The views are elements of the square's symmetry group D4, each written as: transpose first, then flip rows, then flip
columns. Probabilities are averaged, so that of a model that gives class ids (shares of 0 and 1) the mean is a vote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Margin

TtaMode = Literal["none", "flips", "d4"]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOfTile:
    """One way to show a tile. Law: `undo(apply(x)) == x`."""

    transposes: bool = False
    flips_rows: bool = False
    flips_cols: bool = False

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., H, W) as it is shown."""
        shown = values.swapaxes(-1, -2) if self.transposes else values
        shown = shown[..., ::-1, :] if self.flips_rows else shown
        return shown[..., ::-1] if self.flips_cols else shown

    def undo(self, shown: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `apply` was given."""
        values = shown[..., ::-1] if self.flips_cols else shown
        values = values[..., ::-1, :] if self.flips_rows else values
        return values.swapaxes(-1, -2) if self.transposes else values

    def shift(self, margin: Margin) -> tuple[int, int]:
        """How far, in rows and columns, an output that is brought back lies below and right of that of the first view.

        Not 0 where the model's margins are uneven: a flip shows it the wider one on the other side.
        """
        row = margin.bottom if self.flips_rows else margin.top
        col = margin.right if self.flips_cols else margin.left
        if self.transposes:
            row, col = col, row
        return row - margin.top, col - margin.left


FLIPS = tuple(ViewOfTile(flips_rows=rows, flips_cols=cols) for rows in (False, True) for cols in (False, True))
D4 = FLIPS + tuple(
    ViewOfTile(transposes=True, flips_rows=rows, flips_cols=cols) for rows in (False, True) for cols in (False, True)
)
VIEWS: dict[str, tuple[ViewOfTile, ...]] = {"none": FLIPS[:1], "flips": FLIPS, "d4": D4}
"""Mode → its views; the tile as it is comes first."""


def mean_of_views(
    run: Callable[[npt.NDArray[np.generic]], FloatArray],
    inputs: npt.NDArray[np.generic],
    *,
    mode: TtaMode,
    margin: Margin,
) -> FloatArray:
    """Mean over the views of probabilities (N, K, h, w) float32, each pixel over the views that give it.

    Args:
        run: Gives probabilities (N, K, h, w) of inputs (N, C, H, W), without `margin`; one call for each view.
        inputs: (N, C, H, W). For "d4" H = W, unless the model takes any sides.
        mode: Which views.
        margin: Pixels of an input, on each side, for which `run` gives nothing.
    """
    total = run(inputs).astype(np.float32)  # a copy: it is added to
    counts = np.ones(total.shape[-2:], np.float32)
    for view in VIEWS[mode][1:]:
        back = view.undo(run(np.ascontiguousarray(view.apply(inputs))))
        down, right = view.shift(margin)
        rows, from_rows = _overlap(total.shape[2], down)
        cols, from_cols = _overlap(total.shape[3], right)
        total[..., rows, cols] += back[..., from_rows, from_cols]
        counts[rows, cols] += 1
    total /= counts
    return total


def _overlap(length: int, moved: int) -> tuple[slice, slice]:
    """Where something of `length` that is moved lies on what is not, and which part of it that is."""
    here = slice(max(0, moved), length + min(0, moved))
    return here, slice(here.start - moved, here.stop - moved)
