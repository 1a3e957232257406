"""Connected areas of a class map, numbered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]


def label_areas(ids: npt.NDArray[np.generic], *, nodata: float) -> tuple[Labels, int]:
    """Number the 4-connected areas of equal value in (H, W) from 1, in the order of their first pixel; 0 = nodata.

    Works on runs of equal pixels: runs of neighbouring rows that overlap are linked, and the links resolved by passing
    the smallest number around (FastSV: Zhang, Azad, Buluç 2020, arXiv:1910.05971).

    Returns:
        Labels (H, W) int32, and how many areas there are.
    """
    if (ids == nodata).all():
        return np.zeros(ids.shape, np.int32), 0
    starts = np.ones(ids.shape, np.bool_)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    runs = (np.cumsum(starts.ravel(), dtype=np.int32) - 1).reshape(ids.shape)
    linked = (ids[1:] == ids[:-1]) & (starts[1:] | starts[:-1])
    root = smallest_linked(int(runs[-1, -1]) + 1, runs[:-1][linked], runs[1:][linked])
    root[ids[starts] == nodata] = -1
    kept = np.unique(root[root >= 0])
    number = np.zeros(len(root) + 1, np.int32)
    number[kept] = np.arange(1, len(kept) + 1, dtype=np.int32)
    return number[root][runs], len(kept)


def smallest_linked(count: int, left: Labels, right: Labels) -> npt.NDArray[np.intp]:
    """For nodes 0..count and links between them, the smallest node that each is connected with."""
    parent = np.arange(count)
    while True:
        grand = parent[parent]
        following = grand.copy()
        from_left, from_right = grand[left], grand[right]
        np.minimum.at(following, parent[left], from_right)
        np.minimum.at(following, parent[right], from_left)
        np.minimum.at(following, left, from_right)
        np.minimum.at(following, right, from_left)
        if np.array_equal(following, parent):
            return parent
        parent = following
