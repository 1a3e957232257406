"""A call of a Dask worker at work: the shards that it computes, where they go, and what it tells of them."""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cegate_geo.domain.windows import Window
from cegate_geo.errors import CancelledError
from cegate_geo.infer.carry import Desk
from cegate_geo.infer.cluster import WorkerView
from cegate_geo.infer.journal import Entry, Journal
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.shard_store import shard_file

SAY_EVERY_S = 0.5


class EnoughError(Exception):
    """The shards that are left were given to another worker."""


class Shift:
    """A call at work: shards that follow one below the other, of which the lower ones may be taken away."""

    def __init__(self, stack: tuple[Window, ...]) -> None:
        self.stack = stack
        self.entries: list[Entry] = []
        """Of those that are finished."""
        self._keep = len(stack)
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """A shard is finished."""
        with self._lock:
            self.entries.append(entry)

    def shorten(self, keep: int) -> int:
        """Leave out what comes after the first `keep` shards; gives how many it will compute."""
        with self._lock:
            self._keep = max(min(self._keep, keep), min(len(self.entries) + 1, len(self.stack)))
            return self._keep

    @property
    def is_enough(self) -> bool:
        """Whether all that it is to compute is finished, and there was more."""
        return len(self.entries) >= self._keep < len(self.stack)


@functools.cache
def name_of(pid: int) -> str:
    """Tells this process from all others that ever write into a folder; a fork of it, too."""
    return f"{socket.gethostname().split('.')[0] or 'host'}-{pid}-{uuid.uuid4().hex[:8]}"


class Tray:
    """A desk, as a sink of shards sees it."""

    def __init__(self, desk: Desk, shift: Shift) -> None:
        self._desk, self._shift = desk, shift

    def file(self, window: Window) -> Path:
        """Where a shard lies."""
        return self._desk.file(window)

    def add(self, entry: Entry) -> None:
        """Let the client fetch a finished shard."""
        self._desk.offer(entry)
        self._shift.add(entry)

    def close(self) -> None:
        """Nothing to do: what was not fetched stays for that."""


class Shelf:
    """The job's folder, as a sink of shards sees it; `header` is that of its journals."""

    def __init__(self, folder: Path, header: Mapping[str, Any], shift: Shift) -> None:
        self._folder, self._header, self._shift = folder, header, shift
        self._journal: Journal | None = None

    def file(self, window: Window) -> Path:
        """Where a shard lies."""
        return shard_file(self._folder, window)

    def add(self, entry: Entry) -> None:
        """Enter a finished shard into this process' own journal."""
        if self._journal is None:
            self._journal = Journal(self._folder / f"journal-{name_of(os.getpid())}.jsonl", self._header)
        self._journal.add(entry)
        self._shift.add(entry)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()


class Teller(Monitor):
    """Counts what a shift has done, tells the client, and ends it when nobody wants it, or no more of it."""

    def __init__(self, shift: Shift, view: WorkerView) -> None:
        super().__init__()
        self._shift, self._view = shift, view
        self._last, self._told = 0.0, 0
        self.done = 0
        """Tiles, skipped ones included."""
        self.skipped = 0

    def advance(self, *, run: int, skipped: int) -> None:
        """Say that so many more tiles were run, and skipped."""
        self.done, self.skipped = self.done + run + skipped, self.skipped + skipped
        if time.monotonic() - self._last >= SAY_EVERY_S:
            self.tell()
        self.check()

    def tell(self) -> None:
        """Tell how far it is."""
        self._last = time.monotonic()
        new = self._shift.entries[self._told :]
        self._told += len(new)
        # As text: Dask's messages hold no whole numbers as large as areas may be.
        lines = json.dumps([entry.to_json() for entry in new])
        self._view.say(done=self.done, finished=self._told, entries=lines)

    def check(self) -> None:
        """Raise what ends the shift."""
        if self._shift.is_enough:
            raise EnoughError
        if not self._view.is_wanted():
            raise CancelledError("Cancelled.")
