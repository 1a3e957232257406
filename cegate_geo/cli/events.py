"""Talking with the process that started this one: JSON lines out on stdout, `cancel` in on stdin, signals."""

from __future__ import annotations

import itertools
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol, TextIO

import click

from cegate_geo import __version__
from cegate_geo.cli.starter import STARTER, Starter
from cegate_geo.infer.progress import Progress

PROTOCOL = 1
"""Raised when an event changes its meaning."""
PROGRESS_EVERY_S = 0.2
"""At most so often is progress reported."""


def wants_events(words: Sequence[str]) -> bool:
    """Whether a command line asks for events, before it is parsed: errors of parsing are events too."""
    return "--events=jsonl" in words or ("--events", "jsonl") in itertools.pairwise(words)


class EventStream:
    """Writes one JSON object a line; a reader that went away counts as a wish to cancel."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.is_broken = False
        """Whether nobody reads any more."""

    def send(self, event: str, **values: Any) -> None:
        """Write an event with its values."""
        line = json.dumps({"event": event, **_finite(values)}, allow_nan=False)  # ASCII: any pipe can take it
        with self._lock:
            if self.is_broken:
                return
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError, OSError):
                self.is_broken = True

    def hello(self, command: str) -> None:
        """The first event."""
        self.send("hello", protocol=PROTOCOL, version=__version__, command=command)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None for both."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Step(Protocol):
    """What is needed of a training's progress."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def loss(self) -> float:
        """Of the last step."""

    @property
    def miou(self) -> float | None:
        """Last mean IoU on validation."""


class ProgressEvents:
    """Turns progress into events, the first and the last always, those between at most every 0.2 s."""

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._last = -math.inf

    def __call__(self, progress: Progress) -> None:
        """Report progress."""
        now = time.monotonic()
        if now - self._last < PROGRESS_EVERY_S and progress.fraction < 1:
            return
        self._last = now
        self._events.send(
            "progress",
            fraction=round(progress.fraction, 4),
            done=progress.done,
            total=progress.total,
            eta_s=None if progress.eta_s is None else round(progress.eta_s, 1),
        )


class StepEvents:
    """Turns the steps of a training into progress events: at most every 0.2 s, and always after a validation.

    Beside what all progress has, they carry `loss` and `miou`, the last mean IoU on validation (null before the first).
    """

    def __init__(self, events: EventStream, total: int) -> None:
        self._events, self._total = events, total
        self._last = -math.inf
        self._began: tuple[float, int] | None = None
        self._miou: float | None = None

    def __call__(self, at: Step) -> None:
        """Report a step."""
        now = time.monotonic()
        began, first = self._began = self._began or (now, at.step)
        if now - self._last < PROGRESS_EVERY_S and at.step < self._total and at.miou == self._miou:
            return
        self._last, self._miou = now, at.miou
        pace = (now - began) / (at.step - first) if at.step > first else None
        self._events.send(
            "progress",
            fraction=round(at.step / self._total, 4),
            done=at.step,
            total=self._total,
            eta_s=None if pace is None else round(pace * (self._total - at.step), 1),
            loss=at.loss,
            miou=at.miou,
        )


class CancelWatch:
    """Whether somebody wants this job to stop."""

    def __init__(self, events: EventStream | None = None) -> None:
        self._wish = threading.Event()
        self._events = events

    def __call__(self) -> bool:
        """True once cancelling is wanted."""
        return self._wish.is_set() or (self._events is not None and self._events.is_broken)

    def cancel(self) -> None:
        """Wish to cancel."""
        self._wish.set()

    def watch_input(self, descriptor: int) -> None:
        """Cancel on the line `cancel` or the end of a file descriptor, watched in a thread of its own."""
        starter = Starter()
        starter.tell(self.cancel)
        starter.listen(descriptor)


@contextmanager
def watch_cancel(events: EventStream | None) -> Iterator[CancelWatch]:
    """Watch SIGINT and SIGTERM, and with events standard input; a second signal ends the process at once."""
    watch = CancelWatch(events)
    if STARTER.is_listening:
        STARTER.tell(watch.cancel)
    elif events is not None:
        watch.watch_input(0)
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, _: FrameType | None) -> None:
        watch.cancel()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for kind in (signal.SIGINT, signal.SIGTERM):
            previous[kind] = signal.signal(kind, handle)
    try:
        yield watch
    finally:
        STARTER.forget(watch.cancel)
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def progress_bar(unit: str) -> tuple[Callable[[Progress], None], Callable[[], None]]:
    """A bar on stderr, if that is a terminal: a function that takes progress, and one that closes the bar."""
    from tqdm import tqdm

    bar = tqdm(total=0, unit=unit, disable=not sys.stderr.isatty(), file=sys.stderr)

    def show(progress: Progress) -> None:
        bar.total = progress.total
        bar.update(progress.done - bar.n)

    return show, bar.close


@contextmanager
def step_bar(total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar over the steps of a training on stderr: takes steps done, and what to say of them.

    It appears with the first step: until then the configuration may turn out wrong. Where stderr is no terminal, a line
    for each tenth of the steps stands for it, so that a log of a job tells how far it is.
    """
    from tqdm import tqdm

    bars: list[tqdm[Any]] = []

    def show(done: int, text: str) -> None:
        if not sys.stderr.isatty():
            if done * 10 // total > (done - 1) * 10 // total:
                click.echo(f"step {done} of {total}: {text}", err=True)
            return
        if not bars:
            bars.append(tqdm(total=total, unit="step", initial=done - 1, mininterval=1))
        bars[0].set_postfix_str(text, refresh=False)
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()
