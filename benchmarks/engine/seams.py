"""How each contestant lays and joins its tiles, and the largest step that this adds between neighbouring pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from made import TILE
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.windows import Window
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.predictor import SessionOptions
from cegate_geo.infer.seams import measure_seams
from cegate_geo.infer.tiles import Axis, TilePlan

AROUND = 3
"""Tile rows and tile columns that are looked at, in the middle of the scene."""


def engine_plan(size: int, overlap: int) -> TilePlan:
    """Tiles spread evenly, blended by cosine ramps."""
    return TilePlan.of_shape((size, size), tile_shape=(TILE, TILE), halo=overlap // 2)


def geodeep_plan(size: int, overlap: int) -> TilePlan:
    """Tiles at every step and one at the end; each is cropped by half of the overlap and put over those before."""
    last = size - TILE
    offsets = sorted({*range(0, last + 1, TILE - overlap), last})
    return _hard(size, offsets, [offset + overlap // 2 for offset in offsets[1:]])


def loop_plan(size: int, overlap: int) -> TilePlan:
    """Cores at every step, the first one at the scene's corner; margins may lie outside of the scene."""
    step = TILE - overlap
    cores = range(0, size, step)
    return _hard(size, [core - overlap // 2 for core in cores], list(cores[1:]))


def _hard(size: int, offsets: list[int], cuts: list[int]) -> TilePlan:
    axis = Axis(length=size, size=TILE, offsets=tuple(offsets), cuts=tuple(cuts), ramp=0)
    return TilePlan(rows=axis, cols=axis)


def largest_step(model: Path, scene: Path, plan: TilePlan) -> float:
    """The largest step of a probability, 0 to 1, that comes from joining the tiles in the scene's middle."""
    predictor = load_predictor(model, SessionOptions(provider="cpu"))
    rows, cols = (_middle(axis) for axis in (plan.rows, plan.cols))
    maps = {}
    with rasterio.open(scene) as dataset:
        for row in rows:
            for col in cols:
                window = plan.tile(row, col).window
                area = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
                tile = dataset.read(window=area, boundless=True, fill_value=0)[None] / np.float32(255)
                maps[row, col] = predictor.run(tile)[0]
    first, last = plan.tile(rows[0], cols[0]).window, plan.tile(rows[-1], cols[-1]).window
    frame = Window(
        col_off=first.col_off, row_off=first.row_off,
        width=last.col_end - first.col_off, height=last.row_end - first.row_off,
    ).intersection(Window.of_shape(plan.shape))  # fmt: skip
    if frame is None:
        raise RuntimeError(f"The tiles in the middle of {scene} lie outside of it.")
    return measure_seams(plan, maps, frame=frame, valid=np.ones(frame.shape, np.bool_)).largest


def _middle(axis: Axis) -> range:
    count = min(AROUND, len(axis))
    start = (len(axis) - count) // 2
    return range(start, start + count)
