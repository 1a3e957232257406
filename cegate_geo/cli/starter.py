"""Whoever started this process, as standard input tells of it. Loaded before anything that takes time to load."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

VARIABLE = "CEGATE_GEO_WATCH_STDIN"
"""Set to anything by a program that keeps standard input open as long as it wants an answer, whatever the command."""
GRACE_S = 0.6
"""Between the end of standard input and that of the process."""
CANCELLED = 130


def is_watched(words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether standard input means something: with events, or where the variable says so.

    Of the processes of one training the first listens: they share standard input.
    """
    asked = bool(environ.get(VARIABLE)) or any("jsonl" in word for word in words)
    return asked and environ.get("RANK", "0") == "0"


class Starter:
    """Listens to a file descriptor in a thread: the line `cancel`, and its end, are the wish to cancel.

    After an end without that line nobody waits for what is left: a program that was killed leaves no process behind.
    What does not end by itself within the grace is given up: its scratch files are removed, and the process ends with
    exit code 130. Who said `cancel` may wait for what a job saves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._listeners: list[Callable[[], None]] = []
        self.is_listening = False

    def listen(self, descriptor: int, *, give_up: Callable[[], None] | None = None) -> None:
        """Start to listen.

        Args:
            descriptor: What to read.
            give_up: Called once the grace after the end is over; None for nothing.
        """
        self.is_listening = True
        threading.Thread(target=self._read, args=(descriptor, give_up), name="cegate-stdin", daemon=True).start()

    def tell(self, listener: Callable[[], None]) -> None:
        """Call `listener` when there is the wish to cancel: at once where there was one already."""
        with self._lock:
            if not self._is_cancelled:
                self._listeners.append(listener)
                return
        listener()

    def forget(self, listener: Callable[[], None]) -> None:
        """Tell this listener no more."""
        with self._lock:
            self._listeners = [one for one in self._listeners if one != listener]

    def _read(self, descriptor: int, give_up: Callable[[], None] | None) -> None:
        rest = b""
        while True:
            try:
                # Not sys.stdin: a daemon thread inside its lock would break the interpreter's end.
                data = os.read(descriptor, 4096)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            if any(line.strip() == b"cancel" for line in lines):
                self._cancel()
                return
        self._cancel()
        if give_up is not None:
            time.sleep(GRACE_S)
            give_up()

    def _cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()


STARTER = Starter()
"""That of this process; it listens where the process was started as a program that is_watched."""


def give_up() -> None:
    """End this process at once, with nothing half-written left behind."""
    atomic = sys.modules.get("cegate_geo.infer.atomic")
    if atomic is not None:
        atomic.abandon()
    os._exit(CANCELLED)
