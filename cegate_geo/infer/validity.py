"""What is data and what is not, and how the model is kept from seeing what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]

LOSSY = frozenset({"jpeg", "webp", "jpeg2000", "jp2", "jxl", "ojpeg"})
"""Compressions after which a hole's value is no longer exact."""
LOSSY_TOLERANCE = 4
"""How far a lossy codec moves the value of an even area, in grey levels."""
HOLE_SIDE = 16
"""A hole in a lossy scene holds a square of this many pixels: bright roofs and sunlit tins have smaller specks."""
HOLE_REGROW = 8
"""So far from such squares the ragged edge of a hole still belongs to it, in pixels."""
RIM_TOLERANCE = 24
"""How far from the hole's value pixels of that edge may be: there the codec mixes hole and imagery."""
HOLE_MARGIN = HOLE_SIDE - 1 + HOLE_REGROW
"""Pixels around a window that decide which of its pixels are holes."""


def equals_nodata(values: npt.NDArray[np.generic], nodata: npt.ArrayLike, *, tolerance: float = 0) -> BoolArray:
    """Where all channels of (C, H, W) equal their nodata value (one for all, or one for each), within `tolerance`.

    A value that the numbers of a channel can't hold equals none of them. Floats are compared as GDAL does: headers give
    few digits, so that -3.40282e+38 stands for the smallest float.
    """
    wanted = np.broadcast_to(np.asarray(nodata, np.float64), (values.shape[0],))
    hit: BoolArray = np.ones(values.shape[1:], np.bool_)
    for channel, value in zip(values, wanted, strict=True):
        if tolerance:
            hit &= (channel >= value - tolerance) & (channel <= value + tolerance)
        elif np.isnan(value):
            hit &= np.isnan(channel)
        elif can_hold(channel.dtype, value):
            hit &= _equals(channel, value.astype(channel.dtype))
        else:
            hit[:] = False
    return hit


def _equals(channel: npt.NDArray[Any], value: Any) -> BoolArray:
    """As GDAL's ARE_REAL_EQUAL, overflow included: it lets the largest floats equal what was rounded for text."""
    same: BoolArray = channel == value
    if not np.issubdtype(channel.dtype, np.floating):
        return same
    with np.errstate(over="ignore", invalid="ignore"):
        limit = np.finfo(channel.dtype).eps * np.abs(channel + value) * 2
        near: BoolArray = np.abs(channel - value) < limit
    return same | near


def can_hold(dtype: np.dtype[Any], value: float) -> bool:
    """Whether pixels of a type can have a value: casts to integers wrap around, so that -9999 becomes 241."""
    if not np.issubdtype(dtype, np.integer):
        return True
    limits = np.iinfo(dtype)
    return bool(np.isfinite(value)) and float(value).is_integer() and limits.min <= value <= limits.max


def holes(candidates: BoolArray, rim: BoolArray) -> BoolArray:
    """The pixels of `rim` (H, W) that belong to a real hole, in scenes where compression blurred its value.

    A hole holds a square of HOLE_SIDE pixels that are all in `candidates` (H, W), the strict choice; pixels of `rim`,
    the wider choice, within HOLE_REGROW of such a square belong to it. Nothing farther than HOLE_MARGIN away has a say,
    so that tiles and strips can't disturb it. Beyond the array all is taken for hole: pass HOLE_MARGIN more pixels on
    every side that is not the raster's edge.
    """
    if not candidates.any():
        return candidates
    reach = HOLE_SIDE + 2 * HOLE_REGROW
    mask = np.pad(candidates, HOLE_SIDE - 1, constant_values=True)
    for axis in (0, 1):
        mask = _slide(mask, HOLE_SIDE, axis=axis, erode=True)
    # Now each True is the lower right corner of a square; one within `reach` from x - HOLE_REGROW on is near x.
    mask = np.pad(mask, HOLE_REGROW)
    for axis in (0, 1):
        mask = _slide(mask, reach, axis=axis, erode=False)
    return rim & mask


def _slide(mask: BoolArray, length: int, *, axis: int, erode: bool) -> BoolArray:
    """All (erode) or any of `length` neighbours from each pixel on; the axis gets shorter by length - 1."""
    done = 1
    while done < length:
        step = min(done, length - done)
        head, tail = [slice(None)] * 2, [slice(None)] * 2
        head[axis], tail[axis] = slice(0, mask.shape[axis] - step), slice(step, None)
        mask = mask[tuple(head)] & mask[tuple(tail)] if erode else mask[tuple(head)] | mask[tuple(tail)]
        done += step
    return mask


def fill_invalid(values: npt.NDArray[np.generic], valid: BoolArray) -> None:
    """Replace what is not valid in (C, H, W) by the nearest valid pixel of its row, in place.

    Rows without any take the nearest row that has some. Depends on valid pixels only; with none at all it gives 0.
    """
    if valid.all():
        return
    rows = np.flatnonzero(valid.any(axis=1))
    if not len(rows):
        values[:] = 0
        return
    columns = _nearest(valid[rows])
    filled = np.take_along_axis(values[:, rows], np.broadcast_to(columns, (len(values), *columns.shape)), axis=2)
    has = np.zeros((1, valid.shape[0]), np.bool_)
    has[0, rows] = True
    position = np.cumsum(has[0]) - 1
    values[:] = filled[:, position[_nearest(has)[0]]]


def _nearest(valid: BoolArray) -> npt.NDArray[np.intp]:
    """For each pixel of (H, W), the column of the nearest valid one in its row; of two equally near the left."""
    width = valid.shape[1]
    here = np.arange(width)
    left = np.maximum.accumulate(np.where(valid, here, -1), axis=1)
    right = np.minimum.accumulate(np.where(valid, here, 2 * width)[:, ::-1], axis=1)[:, ::-1]
    use_left = (left >= 0) & ((right >= 2 * width) | (here - left <= right - here))
    return np.where(use_left, left, right)
