"""How wide a shard may be so that the buffers of a run fit into the memory that it is given."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cegate_geo.domain.contract import Margin
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateWarning, InputError
from cegate_geo.infer.assemble import RESTORED_ROWS
from cegate_geo.infer.heap import BASE_BYTES
from cegate_geo.infer.job import DEFAULT_MEMORY_MB
from cegate_geo.infer.rescaled import CHUNK_ROWS
from cegate_geo.infer.strip_reader import MAX_BLOCK_ROWS
from cegate_geo.infer.tiles import TilePlan
from cegate_geo.infer.view import View
from cegate_geo.infer.writer import (
    BLOCK_SIZE,
    COG_CACHE_BYTES,
    OVERVIEW_PIXELS,
    RasterKind,
    cog_block_size,
    overview_levels,
)

QUEUE_DEPTH = 2
"""Batches ahead of the session, outputs behind it: each so many at most."""
BANDS_WAITING = 1
"""Bands before the writer, at most: they are large, and one is enough to keep it busy."""
CACHE_MB = 32
"""GDAL's block cache, whose default of 5 % of the machine's memory would look like a leak."""
MAX_WIDTH = 22 * BLOCK_SIZE
"""Columns of a shard at most, whatever the memory: so a wider scene takes no more than one of some 10,000 columns. What
two neighbours both compute is a few per cent then."""
MEGABYTE = 2**20
SPARE_MB = 32
"""What is seen of a session may be so much more the next time."""
COG_BLOCKS, COG_LEVEL_BLOCKS = 8, 4
"""Blocks with all bands that GDAL holds while it makes a COG, and those for each level of overviews."""
CHUNK_BYTES = 4
"""Bytes that it takes for each byte of a chunk that overviews are made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bytes that a run needs: some whatever the width, some for each column of a shard."""

    fixed: int
    per_column: int
    finish: int = 0
    """At the end, while COGs are made."""

    def width_for(self, memory_mb: int) -> int:
        """Columns that fit into `memory_mb`; may be 0 or less."""
        given = memory_mb * MEGABYTE
        return 0 if self.finish > given else (given - self.fixed) // self.per_column

    def needed_mb(self, width: int) -> int:
        """Megabytes that shards of so many columns take, the rest of the run included."""
        return -(-max(self.fixed + self.per_column * width, self.finish) // MEGABYTE)


def estimate(
    plan: TilePlan,
    view: View,
    *,
    classes: int,
    batch_size: int,
    session_bytes: int,
    layers: Collection[RasterKind],
    margin: Margin | None = None,
) -> Budget:
    """Estimate a run's buffers, by columns of the outputs.

    Args:
        plan: The tile plan.
        view: The scene as the model sees it.
        classes: Channels of the model's output.
        batch_size: Tiles in a session call.
        session_bytes: What the model takes, and a call of it beside its inputs and outputs.
        layers: The rasters that are written.
        margin: What the model sees around a tile.
    """
    height, width = plan.tile_shape
    scene = view.scene
    seen = (margin or Margin()).around(Window.of_shape(plan.tile_shape))
    inputs = batch_size * scene.channels * seen.area * 4
    outputs = batch_size * classes * height * width * 4
    extra_channels = sum(kind.count for kind in layers) - 1
    base = BASE_BYTES + session_bytes
    fixed = base + _cache(view, layers) + (QUEUE_DEPTH + 2) * (inputs + outputs)
    finish = base + max(_cog(view, kind) for kind in layers)
    block_rows = scene.block_rows if scene.block_rows <= MAX_BLOCK_ROWS else 0
    core = int(max(np.diff([0, *plan.rows.cuts, plan.shape[0]])))
    carried = classes * plan.rows.ramp * 4
    if view.resampling is None:
        rows_held = min(seen.height + block_rows, plan.shape[0])
        strip = rows_held * (scene.channels * scene.dtype.itemsize + 2) * 2
        bands = core * (2 + extra_channels) * (BANDS_WAITING + 2)
        return Budget(fixed=fixed, finish=finish, per_column=strip + bands + carried)
    tile_columns, scene_columns = (grid[1] / view.output_grid[1] for grid in (view.tile_grid, scene.shape))
    read = (CHUNK_ROWS + block_rows) * (scene.channels * scene.dtype.itemsize + 2) * 2 * scene_columns
    read += CHUNK_ROWS * scene.channels * 4 * 3 * max(scene_columns, tile_columns)
    held = min(seen.height, plan.shape[0]) * (scene.channels * 4 + 2) * 2 * tile_columns
    written = (BLOCK_SIZE if view.restores else core) * (2 + extra_channels) * (BANDS_WAITING + 2)
    per_column = read + held + written + carried * tile_columns
    if view.restores:
        rows = scene.shape[0] / plan.shape[0]
        per_column += 2 * core * classes * 4 * tile_columns  # probabilities of a band, and while rows are put below
        per_column += RESTORED_ROWS * classes * 4 * 4 * max(1, tile_columns)  # and on the way back
        per_column += plan.rows.size * rows * (QUEUE_DEPTH + 3)  # which of the scene's pixels are valid
    return Budget(fixed=fixed, finish=finish, per_column=int(per_column))


def allowed(memory_mb: int | None, before: int | None) -> int | None:
    """Bytes that the process may hold, where that is limited.

    Args:
        memory_mb: What the user says.
        before: Bytes that the process held before the model was loaded; what of it is not ours comes on top.
    """
    if memory_mb is None:
        return None
    return memory_mb * MEGABYTE + max(0, (before or 0) - BASE_BYTES)


def _cache(view: View, layers: Collection[RasterKind]) -> int:
    """What GDAL's block cache can hold of a scene and the rasters that it becomes."""
    scene, grid = view.scene, view.output_grid
    read = scene.shape[0] * scene.shape[1] * (scene.channels * scene.dtype.itemsize + 1)
    written = grid[0] * grid[1] * sum(kind.count for kind in layers)
    return min(CACHE_MB * MEGABYTE, read + written)


def _cog(view: View, kind: RasterKind) -> int:
    """What it takes to make a COG of one raster: GDAL's cache, a chunk of one band, and blocks of all bands."""
    levels, pixel = overview_levels(view.output_grid, cog_block_size(kind)), np.dtype(kind.dtype).itemsize
    block = cog_block_size(kind) ** 2 * kind.count * pixel
    chunk = min(OVERVIEW_PIXELS, view.output_grid[1] * min(BLOCK_SIZE, view.output_grid[0]))
    cache = min(COG_CACHE_BYTES, _cache(view, [kind]))
    return cache + CHUNK_BYTES * chunk * pixel + (COG_BLOCKS + COG_LEVEL_BLOCKS * levels) * block


def shard_width(budget: Budget, memory_mb: int | None, *, least: int) -> int:
    """Columns of a shard, at least `least`, at most `MAX_WIDTH`.

    Where nothing is said of memory, and the usual does not suffice, it warns of how much that takes.

    Raises:
        InputError: If `memory_mb` does not suffice.
    """
    width = min(budget.width_for(DEFAULT_MEMORY_MB if memory_mb is None else memory_mb), MAX_WIDTH)
    if width >= least:
        return width
    needed = budget.needed_mb(least)
    if memory_mb is not None:
        raise InputError(
            f"--max-memory {memory_mb}M does not suffice: with this model and scene a run takes about {needed} MB in "
            f"shards of {least} px of width, the narrowest.",
            hint=f"Give --max-memory {needed + SPARE_MB}M, or use a smaller --tile-size or --batch-size.",
        )
    warnings.warn(
        f"With this model and scene a run takes about {needed} MB, more than the usual {DEFAULT_MEMORY_MB} MB. "
        "--max-memory sets a limit, a smaller --tile-size or --batch-size takes less.",
        CegateWarning,
        stacklevel=2,
    )
    return least
