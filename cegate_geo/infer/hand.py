"""A Dask worker, as the client knows it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cegate_geo.infer.cluster import Call
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.shares import Stack


@dataclass(slots=True)
class Hand:
    """A worker: what it is at, and what it has for us."""

    address: str
    call: Call | None = None
    """What it is at."""
    is_ready: bool = False
    """Whether it can do the job."""
    carries: bool = False
    """Whether its shards have to be fetched, as it does not see the folder."""
    offered: deque[Entry] = field(default_factory=deque)
    """Its finished shards that are still to be fetched."""
    fetch_after: float = 0.0
    """When to try again where one could not be fetched."""
    stack: Stack = ()
    """What it computes."""
    done: int = 0
    """Tiles of its stack, as it last said."""
    finished: int = 0
    """Shards of its stack, as it last said."""
    asked: float = 0.0
    """When shards were last taken from it."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for shards."""
        return self.is_ready and self.call is None
