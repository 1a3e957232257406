"""Progress and cancelling."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cegate_geo.errors import CancelledError


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    fraction: float
    """0 to 1 of the whole job, finishing the files included."""
    done: int
    """Tiles done, skipped ones included; of a merge shards."""
    total: int
    """All tiles, or shards."""
    eta_s: float | None
    """Seconds left, by what was needed so far; None as long as nothing is known."""


T = TypeVar("T")
LEFT_BEHIND = "cegate-finish"
"""Name of the threads that may outlive a cancelled job."""
FINISHING = 0.05
"""Part of the job, by `Progress.fraction`, that comes after the last tile."""
POLL_S = 0.1
"""So often somebody who waits looks whether to go on."""
Work = queue.SimpleQueue[Callable[[], Any] | None]
Outcome = queue.SimpleQueue[tuple[Any, BaseException | None]]


class _Caller:
    """A thread that makes one call after the other for another thread. It ends with its owner.

    Args:
        owner: Whoever waits for the calls.
    """

    def __init__(self, owner: object) -> None:
        self.work: Work = queue.SimpleQueue()
        self.outcome: Outcome = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=_make_calls, args=(self.work, self.outcome), name="cegate-call", daemon=True
        )
        self.thread.start()
        weakref.finalize(owner, self.work.put, None)


def _make_calls(work: Work, outcome: Outcome) -> None:
    while (call := work.get()) is not None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))
        del call  # what it holds may be large, and the next may be far


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
        self._finishing = FINISHING
        self._caller: _Caller | None = None

    def start(self, total: int, *, finishing: float = FINISHING) -> None:
        """Say how many tiles there are, and which part of the job comes after the last of them."""
        self._total, self._started, self._finishing = total, time.monotonic(), finishing
        self._report(0.0)

    def advance(self, *, run: int, skipped: int) -> None:
        """Say that so many more tiles were run, and skipped."""
        self._run += run
        self._done += run + skipped
        self.check()
        self._report((1 - self._finishing) * self._done / max(self._total, 1))

    def finishing(self, share: float) -> None:
        """Say how much is done of what comes after the last tile, 0 to 1."""
        self._report(1 - self._finishing * (1 - share))

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
        if self._caller is None:
            self._caller = _Caller(self)
        caller = self._caller
        caller.work.put(work)
        while True:
            try:
                result, error = caller.outcome.get(timeout=POLL_S)
            except queue.Empty:
                self._check_or_leave(caller)
                continue
            self._check_or_leave(None)
            if error is not None:
                raise error
            made: T = result
            return made

    def _check_or_leave(self, caller: _Caller | None) -> None:
        """Raise CancelledError if the job is to stop; a call that is being made is left behind then."""
        try:
            self.check()
        except BaseException:
            if caller is not None:
                self._caller, caller.thread.name = None, LEFT_BEHIND
                caller.work.put(None)
            raise

    def _report(self, fraction: float) -> None:
        if self._progress is None:
            return
        spent = time.monotonic() - self._started
        eta = None if fraction <= 0 or (self._run == 0 and fraction < 1) else spent * (1 - fraction) / fraction
        self._progress(Progress(fraction=fraction, done=self._done, total=self._total, eta_s=eta))
