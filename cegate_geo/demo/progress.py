"""How the demo tells where it stands, and how it takes its own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from cegate_geo.errors import CancelledError


class Listener(Protocol):
    """Is told what the demo does."""

    def begin(self, title: str, total: int) -> None:
        """A step starts; it has `total` parts, 0 where they can't be counted."""

    def advance(self, done: int, note: str) -> None:
        """`done` parts of the step are done."""

    def end(self, seconds: float) -> None:
        """The step is complete."""


class Silence:
    """A listener that says nothing."""

    def begin(self, title: str, total: int) -> None:
        """Nothing."""

    def advance(self, done: int, note: str) -> None:
        """Nothing."""

    def end(self, seconds: float) -> None:
        """Nothing."""


class Clock:
    """Times the steps of a run, and asks between them whether to go on.

    Args:
        listener: Is told what happens.
        cancelled: True to stop.
    """

    def __init__(self, listener: Listener, cancelled: Callable[[], bool]) -> None:
        self.listener = listener
        self.cancelled = cancelled
        self.timings: list[tuple[str, float]] = []
        """Name and seconds of each step that is complete."""

    @contextmanager
    def step(self, name: str, title: str, total: int = 0) -> Iterator[None]:
        """Time what happens inside, under `name`; the listener is told `title`.

        Raises:
            CancelledError: If the run is to stop.
        """
        if self.cancelled():
            raise CancelledError("Cancelled.", hint="Run it again; it starts anew.")
        self.listener.begin(title, total)
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.timings.append((name, seconds))
        self.listener.end(seconds)
