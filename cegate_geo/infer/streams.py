"""Threads with bounded queues: the reader before the session, stitch and writer behind it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_POLL_S = 0.05


class Prefetch(Generic[T]):
    """Iterates over something in its own thread, at most `depth` items ahead.

    Use it as a context: leaving it stops the thread, whatever happened. An error of the source is raised to whoever
    iterates.
    """

    def __init__(self, source: Iterable[T], *, depth: int) -> None:
        self._source = source
        self._queue: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cegate-read", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error, is_last = self._queue.get()
            if error is not None:
                raise error
            if is_last:
                return
            yield item  # type: ignore[misc]  # None only when last or failed

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._offer((item, None, False)):
                    return
            self._offer((None, None, True))
        except BaseException as error:
            self._offer((None, error, True))

    def _offer(self, item: tuple[T | None, BaseException | None, bool]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class Worker(Generic[T]):
    """Applies a function to items in its own thread, in order, at most `depth` items behind.

    Use it as a context: leaving it without an error waits until all is done, with one it drops what is left. An error
    of the function is raised to whoever puts the next item, or on leaving.
    """

    def __init__(self, function: Callable[[T], None], *, depth: int, name: str) -> None:
        self._function = function
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"cegate-{name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        """Hand over an item; waits while the queue is full."""
        self._offer((item,))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
            self._thread.join()
            return
        self._offer(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _offer(self, item: tuple[T] | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                self._function(item[0])
            except BaseException as error:
                self._error = error
                return
