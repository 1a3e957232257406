"""A few neighbouring tiles of a scene that hold data: what `check` runs a model on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.infer.feed import Feed, InputForm
from cegate_geo.infer.reader import Strip
from cegate_geo.infer.rescaled import RescaledScene
from cegate_geo.infer.settle import Run
from cegate_geo.infer.tiles import Tile, TilePlan
from cegate_geo.infer.view import Shard, View

TILE_ROWS, TILE_COLS = 2, 3
"""Tiles that are run, at most: enough for edges in both directions."""
NEAR, SPREAD = 16, 48
"""Tiles that are looked at for data: so many around the middle, then so many all over the scene."""


@dataclass(frozen=True, slots=True)
class NeighbouringTiles:
    """A few neighbouring tiles that hold data."""

    inputs: Mapping[tuple[int, int], npt.NDArray[np.generic]]
    """(tile row, tile column) → (1, C, H, W); those without data are left out."""
    strip: Strip
    """The scene around them, on the grid of the tiles."""

    @classmethod
    def take(cls, run: Run) -> NeighbouringTiles | None:
        """The tiles around the first one that holds data; None where none is found."""
        view, plan, form = replace(run.view, restores=False, asked=None), run.plan, run.form
        first = next((t for t in _candidates(plan) if _input(view, plan, form, t) is not None), None)
        if first is None:
            return None
        rows, cols = (
            _around(n, len(axis), most)
            for n, axis, most in ((first.row, plan.rows, TILE_ROWS), (first.col, plan.cols, TILE_COLS))
        )
        found = {(r, c): _input(view, plan, form, plan.tile(r, c)) for r in rows for c in cols}
        inputs = {key: values for key, values in found.items() if values is not None}
        inputs = {(first.row, first.col): inputs.pop((first.row, first.col)), **inputs}
        return cls(inputs, _strip(view, plan, rows, cols))


def _candidates(plan: TilePlan) -> Iterator[Tile]:
    """Tiles around the middle, then some from all over."""
    rows, cols = len(plan.rows), len(plan.cols)
    middle = (rows // 2, cols // 2)
    around = sorted(
        ((r, c) for r in range(rows) for c in range(cols) if max(abs(r - middle[0]), abs(c - middle[1])) <= NEAR // 8),
        key=lambda at: abs(at[0] - middle[0]) + abs(at[1] - middle[1]),
    )
    step = max(1, rows * cols // SPREAD)
    spread = [divmod(n, cols) for n in range(step // 2, rows * cols, step)]
    seen: set[tuple[int, int]] = set()
    for at in (*around[:NEAR], *spread):
        if at not in seen:
            seen.add(at)
            yield plan.tile(*at)


def _around(number: int, count: int, most: int) -> range:
    """At most so many neighbours, with `number` among them."""
    start = max(0, min(number - (most - 1) // 2, count - most))
    return range(start, min(count, start + most))


def _input(view: View, plan: TilePlan, form: InputForm, tile: Tile) -> npt.NDArray[np.generic] | None:
    """Input (1, C, H, W) of a tile; None where it holds no data."""
    core = tile.core
    middle = Window(col_off=core.col_off + core.width // 2, row_off=core.row_off + core.height // 2, width=1, height=1)
    single = replace(form, batch_size=1)
    for batch in Feed(view, plan, Shard(target=middle, region=middle), form=single):
        if batch.tiles and any(isinstance(s, Tile) and (s.row, s.col) == (tile.row, tile.col) for s in batch.steps):
            return batch.inputs[:1]
    return None


def _strip(view: View, plan: TilePlan, rows: range, cols: range) -> Strip:
    """The raster under some tiles."""
    first, last = plan.tile(rows[0], cols[0]).window, plan.tile(rows[-1], cols[-1]).window
    whole = Window.of_shape(plan.shape)
    frame = whole.intersection(
        Window(
            col_off=first.col_off,
            row_off=first.row_off,
            width=last.col_end - first.col_off,
            height=last.row_end - first.row_off,
        )
    )
    frame = frame or whole
    if view.resampling is None:
        return view.scene.read(frame)
    return RescaledScene(view.scene, view.resampling, (frame.col_off, frame.col_end)).read(frame)
