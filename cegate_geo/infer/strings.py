"""Linked lists in arrays, put in order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.intp]


def put_in_order(following: IntArray, rank: IntArray) -> tuple[IntArray, IntArray]:
    """The elements of linked lists, list by list, each from its first to its last element.

    By pointer doubling (Wyllie 1979): as many passes over arrays as the longest list's length has bits.

    Args:
        following: The element after each one, -1 for none. None is the follower of two.
        rank: Different for all elements of a list. A list without end begins with its lowest.

    Returns:
        All elements in order, and where each list begins in it, with the total at the end.
    """
    count = len(following)
    last, distance = _run_to_the_end(following, np.arange(count))
    endless = np.flatnonzero(following[last] >= 0)
    if len(endless):
        lowest = _lowest(following, rank, endless)
        cut = following.copy()
        cut[endless[rank[following[endless]] == lowest]] = -1
        last[endless], distance[endless] = _run_to_the_end(cut, endless)
    order = np.lexsort((-distance, last))
    begins = np.flatnonzero(np.diff(last[order], prepend=-1))
    return order, np.append(begins, count)


def _run_to_the_end(following: IntArray, which: IntArray) -> tuple[IntArray, IntArray]:
    """For some elements, closed under `following`, the last of their list and the steps to it.

    Elements of lists without end get whatever was reached when all others were done.
    """
    is_last = following < 0
    last = np.where(is_last, np.arange(len(following)), following)
    distance = (~is_last).astype(np.intp)
    open_ = which[~is_last[last[which]]]
    while len(open_):
        distance[open_] += distance[last[open_]]
        last[open_] = last[last[open_]]
        still = open_[~is_last[last[open_]]]
        if len(still) == len(open_):
            break
        open_ = still
    return last[which], distance[which]


def _lowest(following: IntArray, rank: IntArray, endless: IntArray) -> IntArray:
    """The lowest rank in the list of each of some elements of lists without end."""
    lowest, reached = rank.copy(), following.copy()
    while True:
        lower = np.minimum(lowest[endless], lowest[reached[endless]])
        if np.array_equal(lower, lowest[endless]):
            return lower
        lowest[endless], reached[endless] = lower, reached[reached[endless]]
