"""How missing shards are shared out among workers, so that few tiles are computed twice and nobody waits long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from cegate_geo.domain.windows import Window
from cegate_geo.infer.settle import SHARD_ROWS, Run, stacks, union
from cegate_geo.infer.writer import BLOCK_SIZE

Stack = tuple[Window, ...]
"""Shards that follow one below the other."""

SHARDS_EACH = 16
"""Shards for each worker, where rows allow it: what can be given away, or is lost."""
GAIN = 0.8
"""Shards are only taken from a worker where that leaves at most so much of its work."""
LEAST = 3
"""Shards that a worker still has to have, if some are to be taken from it."""


def cut_for(run: Run, workers: int) -> Run:
    """The run with its shards cut for so many workers: lower than usual where else there were few for each."""
    height, width = run.shard_shape
    rows = run.region.height * -(-run.region.width // width) // (workers * SHARDS_EACH)
    return replace(run, shard_shape=(min(max(rows // BLOCK_SIZE, 1) * BLOCK_SIZE, height, SHARD_ROWS), width))


class Shares:
    """The shards that nobody computes yet.

    Args:
        run: Says how many tiles shards take.
        missing: All of them.
    """

    def __init__(self, run: Run, missing: Sequence[Stack]) -> None:
        self._run, self._missing = run, list(missing)
        self._sizes: dict[tuple[Window, Window], int] = {}

    def __bool__(self) -> bool:
        return bool(self._missing)

    @property
    def tiles(self) -> int:
        """What is missing, in tiles."""
        return sum(map(self.tiles_of, self._missing))

    def tiles_of(self, stack: Stack) -> int:
        """Tiles of shards that are computed in one go."""
        if not stack:
            return 0
        ends = stack[0], stack[-1]
        if ends not in self._sizes:
            self._sizes[ends] = self._run.tiles_of(self._run.view.shard(union(stack)))
        return self._sizes[ends]

    def put_back(self, windows: Iterable[Window]) -> None:
        """Some shards are missing again."""
        self._missing += stacks(tuple(windows))

    def take(self, takers: int) -> Stack:
        """What one of so many workers is to compute: about as much as each of the others will get."""
        if not self._missing:
            return ()
        largest = max(self._missing, key=self.tiles_of)
        parts = min(round(self.tiles_of(largest) * takers / self.tiles), len(largest))
        self._missing.remove(largest)
        if parts > 1:
            cut = self._cut(largest, parts)
            self._missing.append(largest[cut:])
            largest = largest[:cut]
        return largest

    def halved(self, stack: Stack) -> int:
        """How many shards a worker keeps if another one helps it; all of them where that gains too little."""
        if len(stack) < LEAST:
            return len(stack)
        cut = self._cut(stack, 2)
        longest = max(self.tiles_of(stack[:cut]), self.tiles_of(stack[cut:]))
        return cut if longest <= GAIN * self.tiles_of(stack) else len(stack)

    def _cut(self, stack: Stack, parts: int) -> int:
        """Number of shards of the first of so many parts, of which the largest is to be as small as it can be."""
        low, high = -(-self.tiles_of(stack) // parts), self.tiles_of(stack)
        while low < high:
            middle = (low + high) // 2
            if len(self._parts(stack, middle)) <= parts:
                high = middle
            else:
                low = middle + 1
        return self._parts(stack, low)[0]

    def _parts(self, stack: Stack, most: int) -> list[int]:
        """Where parts of so many tiles end that take as much as they can; at least one shard each."""
        ends, first = [], 0
        for number in range(1, len(stack)):
            if self.tiles_of((stack[first], stack[number])) > most:
                ends.append(number)
                first = number
        return [*ends, len(stack)]
