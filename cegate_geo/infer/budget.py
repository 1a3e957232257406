"""How wide a shard may be so that the buffers of a run fit into the memory that it is given."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from cegate_geo.domain.contract import Margin
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateWarning
from cegate_geo.infer.assemble import RESTORED_ROWS
from cegate_geo.infer.reader import MAX_BLOCK_ROWS
from cegate_geo.infer.rescaled import CHUNK_ROWS
from cegate_geo.infer.tiles import TilePlan
from cegate_geo.infer.view import View
from cegate_geo.infer.writer import BLOCK_SIZE

QUEUE_DEPTH = 2
"""Batches ahead of the session, outputs behind it, bands before the writer: each so many at most."""
BASE_MB = 170
"""Interpreter, libraries and an idle session."""
CACHE_MB = 64
"""GDAL's block cache, whose default of 5 % of the machine's memory would look like a leak."""
MAX_WIDTH = 22 * BLOCK_SIZE
"""Columns of a shard at most, whatever the memory: so a wider scene takes no more than one of some 10,000 columns. What
two neighbours both compute is a few per cent then."""
MEGABYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes that a run needs: some whatever the width, some for each column of a shard."""

    fixed: int
    per_column: int

    def width_for(self, memory_mb: int) -> int:
        """Columns that fit into `memory_mb`; may be 0 or less."""
        return (memory_mb * MEGABYTE - self.fixed) // self.per_column


def estimate(
    plan: TilePlan,
    view: View,
    *,
    classes: int,
    batch_size: int,
    model_bytes: int,
    extra_channels: int,
    margin: Margin | None = None,
) -> Budget:
    """Estimate a run's buffers, by columns of the outputs.

    Args:
        plan: The tile plan.
        view: The scene as the model sees it.
        classes: Channels of the model's output.
        batch_size: Tiles in a session call.
        model_bytes: Size of the model file; a session holds its weights about twice.
        extra_channels: Bytes a pixel that are written beside the class.
        margin: What the model sees around a tile.
    """
    height, width = plan.tile_shape
    scene = view.scene
    seen = (margin or Margin()).around(Window.of_shape(plan.tile_shape))
    inputs = batch_size * scene.channels * seen.area * 4
    outputs = batch_size * classes * height * width * 4
    fixed = (BASE_MB + CACHE_MB) * MEGABYTE + 2 * model_bytes + (QUEUE_DEPTH + 2) * (inputs + outputs)
    block_rows = scene.block_rows if scene.block_rows <= MAX_BLOCK_ROWS else 0
    core = int(max(np.diff([0, *plan.rows.cuts, plan.shape[0]])))
    carried = classes * plan.rows.ramp * 4
    if view.resampling is None:
        rows_held = min(seen.height + block_rows, plan.shape[0])
        strip = rows_held * (scene.channels * scene.dtype.itemsize + 2) * 2
        return Budget(fixed=fixed, per_column=int(strip + core * (2 + extra_channels) * (QUEUE_DEPTH + 2) + carried))
    tile_columns, scene_columns = (grid[1] / view.output_grid[1] for grid in (view.tile_grid, scene.shape))
    read = (CHUNK_ROWS + block_rows) * (scene.channels * scene.dtype.itemsize + 2) * 2 * scene_columns
    read += CHUNK_ROWS * scene.channels * 4 * 3 * max(scene_columns, tile_columns)
    held = min(seen.height, plan.shape[0]) * (scene.channels * 4 + 2) * 2 * tile_columns
    written = (BLOCK_SIZE if view.restores else core) * (2 + extra_channels) * (QUEUE_DEPTH + 2)
    per_column = read + held + written + carried * tile_columns
    if view.restores:
        rows = scene.shape[0] / plan.shape[0]
        per_column += 2 * core * classes * 4 * tile_columns  # probabilities of a band, and while rows are put below
        per_column += RESTORED_ROWS * classes * 4 * 4 * max(1, tile_columns)  # and on the way back
        per_column += plan.rows.size * rows * (QUEUE_DEPTH + 3)  # which of the scene's pixels are valid
    return Budget(fixed=fixed, per_column=int(per_column))


def shard_width(budget: Budget, memory_mb: int, *, least: int) -> int:
    """Columns of a shard, at least `least`, at most `MAX_WIDTH`; warns where that needs more memory than is given."""
    width = min(budget.width_for(memory_mb), MAX_WIDTH)
    if width >= least:
        return width
    needed = (budget.fixed + budget.per_column * least) // MEGABYTE + 1
    warnings.warn(
        f"{memory_mb} MB are planned for, but this model and scene need about {needed} MB. Use a smaller --tile-size "
        "or --batch-size, or raise --max-memory.",
        CegateWarning,
        stacklevel=2,
    )
    return least
