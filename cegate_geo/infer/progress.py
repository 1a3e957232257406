"""Progress and cancelling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cegate_geo.errors import CancelledError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    fraction: float
    """0 to 1 of the whole job, finishing the files included."""
    done: int
    """Tiles done, skipped ones included."""
    total: int
    """All tiles."""
    eta_s: float | None
    """Seconds left, by what was needed so far; None as long as nothing is known."""


T = TypeVar("T")
LEFT_BEHIND = "cegate-finish"
"""Name of the threads that may outlive a cancelled job."""
FINISHING = 0.05
"""Part of the job, by `Progress.fraction`, that comes after the last tile."""


class Monitor:
    """Passes progress on, and asks whether to go on.

    Args:
        progress: Called from the thread that runs the job.
        cancel: Asked often; True cancels.
    """

    def __init__(
        self, progress: Callable[[Progress], None] | None = None, cancel: Callable[[], bool] | None = None
    ) -> None:
        self._progress, self._cancel = progress, cancel
        self._started = time.monotonic()
        self._total = 0
        self._done = 0
        self._run = 0

    def start(self, total: int) -> None:
        """Say how many tiles there are."""
        self._total, self._started = total, time.monotonic()
        self._report(0.0)

    def advance(self, *, run: int, skipped: int) -> None:
        """Say that so many more tiles were run, and skipped."""
        self._run += run
        self._done += run + skipped
        self.check()
        self._report((1 - FINISHING) * self._done / max(self._total, 1))

    def at(self, done: int, total: int) -> None:
        """Say how many tiles are done, and how many there are: of work whose parts may be lost and cut anew."""
        self._run, self._done, self._total = done, done, total
        self.check()
        self._report((1 - FINISHING) * min(done / max(total, 1), 1.0))

    def finish(self) -> None:
        """Say that the job is complete."""
        self._done = self._total
        self._report(1.0)

    def check(self) -> None:
        """Raise CancelledError if the job is to stop."""
        if self._cancel is not None and self._cancel():
            raise CancelledError("Cancelled.", hint="Nothing was written.")

    def wait(self, work: Callable[[], T]) -> T:
        """Run `work`, which can't be interrupted, in another thread, and leave it behind if the job is cancelled.

        What is left behind goes on to its end and is then forgotten; it may write to the job's folder only.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def guarded() -> None:
            try:
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=guarded, name=LEFT_BEHIND, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            self.check()
        if failure:
            raise failure[0]
        return result[0]

    def _report(self, fraction: float) -> None:
        if self._progress is None:
            return
        spent = time.monotonic() - self._started
        eta = None if fraction <= 0 or (self._run == 0 and fraction < 1) else spent * (1 - fraction) / fraction
        self._progress(Progress(fraction=fraction, done=self._done, total=self._total, eta_s=eta))
