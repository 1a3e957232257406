# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a program that installs: its lines as they come, cancelled with all that it started. No qgis.

A child watches its standard input, which stays open as long as QGIS lives: a QGIS that is killed leaves no installer.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess  # nosec B404: other programs are what this plugin runs, never through a shell
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Sequence

from .outcome import EngineCancelledError, EngineError
from .words import tr

WATCHED = """
import os, runpy, sys, threading
def watch():
    while os.read(0, 4096):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, 9)
    os._exit(130)
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Python code: runs the module that is named by the first argument, and ends with its standard input."""
KEPT = 64 * 1024
"""Characters of output that are kept, from its end."""
POLL_S = 0.1
TERMINATE_S = 0.5
"""Between asking to end and killing."""


@dataclass(frozen=True)
class Ended:
    """A child that has ended by itself."""

    code: int
    text: str
    """The last part of what it said, on both outputs."""


def module_words(python: str, module: str, *arguments: str) -> list[str]:
    """The words that run a module of a Python, apart from the user's own packages, watched."""
    return [python, "-I", "-u", "-X", "utf8", "-c", WATCHED, module, *arguments]


def typed_words(words: Sequence[str]) -> list[str]:
    """The same as one would type it: `python -m pip` for what is run watched."""
    if WATCHED not in words:
        return list(words)
    return [words[0], "-m", *words[list(words).index(WATCHED) + 1 :]]


def run_child(
    words: Sequence[str],
    environ: Mapping[str, str],
    *,
    listen: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    timeout_s: float = 0.0,
) -> Ended:
    """Run a program to its end.

    Args:
        words: Program and arguments.
        environ: Its whole environment.
        listen: Takes each line of both its outputs, without the line's end; an empty string several times a second.
        is_cancelled: Asked several times a second.
        timeout_s: After this time it is ended; 0 for never.

    Raises:
        EngineCancelledError: If it was cancelled; it is gone by then, and what it had started.
        EngineError: If it can't be started, or did not end in time.
    """
    try:
        child = subprocess.Popen(  # nosec B603
            list(words), env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=os.name != "nt", creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise EngineError(tr("{program} can't be started: {error}.").format(program=words[0], error=error)) from error
    lines: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    begun, text = time.monotonic(), ""
    try:
        while True:
            done = child.poll() is not None and not reader.is_alive()
            text = (text + _drain(lines, listen, 0.0 if done else POLL_S))[-KEPT:]
            if done:
                return Ended(child.returncode, text)
            if is_cancelled():
                raise EngineCancelledError(tr("Cancelled."))
            if timeout_s and time.monotonic() - begun > timeout_s:
                raise EngineError(
                    tr("{program} has not ended within {timeout_s:.0f} s.").format(
                        program=words[0], timeout_s=timeout_s
                    )
                )
    finally:
        end_tree(child)
        reader.join(2.0)


def _read(child: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    assert child.stdout is not None  # nosec B101: for the type checker; it was asked for
    with child.stdout:
        for line in iter(lambda: child.stdout.readline(KEPT) if child.stdout else b"", b""):
            lines.put(line)


def _drain(lines: queue.Queue[bytes], listen: Callable[[str], None], wait_s: float) -> str:
    """Pass on what has come, waiting a moment for the first line; gives it as one text."""
    got = []
    try:
        got.append(lines.get(timeout=wait_s) if wait_s else lines.get_nowait())
        while True:
            got.append(lines.get_nowait())
    except queue.Empty:
        pass
    text = b"".join(got).decode("utf-8", "replace")
    for line in text.splitlines():
        listen(line)
    listen("")
    return text


def end_tree(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started, if it still runs; then reap it."""
    if child.poll() is None:
        _end(child)
    if child.stdin is not None:
        with suppress(OSError):  # it has gone, with something still unwritten
            child.stdin.close()
    child.wait()


def _end(child: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        words = [str(Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "taskkill.exe"))]
        words += ["/T", "/F", "/PID", str(child.pid)]
        subprocess.run(words, capture_output=True, check=False, creationflags=0x08000000)  # nosec B603
        child.kill()
        return
    for kind, patience_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, kind)  # it leads a group of its own
            child.wait(patience_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
