# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the engine for what it says at once, as one JSON object: `info --json`. No qgis."""

from __future__ import annotations

import json
import os
import subprocess  # nosec B404: the engine is another program, never run through a shell
import time
from typing import Any, Callable, Mapping, Sequence

from .engine import EngineCommand
from .outcome import EngineCancelledError, EngineError, tail

POLL_S = 0.1
TIMEOUT_S = 120.0
"""A first start on a slow disk compiles all modules."""


def ask_engine(
    command: EngineCommand,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Run a command of the engine that prints one JSON object, and give that.

    Args:
        command: How the engine is started.
        arguments: Its arguments, `--json` among them.
        environ: Its whole environment.
        is_cancelled: Asked several times a second.
        timeout_s: After this time it is killed.

    Raises:
        EngineCancelledError: If it was cancelled.
        EngineError: If it can't be started, fails (in its own words), is silent for too long, or prints something else.
    """
    words = [command.program, *command.arguments, *arguments]
    try:
        child = subprocess.Popen(  # nosec B603
            words, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0) if os.name == "nt" else 0,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise EngineError(
            f"The engine {command.program!r}, named by {command.origin}, can't be started: {error}."
        ) from error
    with child:
        try:
            said, complained = _listen(child, is_cancelled, timeout_s)
        finally:
            child.kill()
    if child.returncode:
        words_of_it = tail(complained.decode("utf-8", "replace"), lines=5).replace("cegate-geo: ", "")
        raise EngineError(words_of_it or f"The engine failed with exit code {child.returncode} and left no message.")
    return _parse(said, command)


def _listen(child: subprocess.Popen[bytes], is_cancelled: Callable[[], bool], timeout_s: float) -> tuple[bytes, bytes]:
    begun = time.monotonic()
    while True:
        try:
            return child.communicate(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            if is_cancelled():
                raise EngineCancelledError("Cancelled.") from None
            if time.monotonic() - begun > timeout_s:
                raise EngineError(f"The engine has not answered within {timeout_s:.0f} s.") from None


def _parse(said: bytes, command: EngineCommand) -> dict[str, Any]:
    for line in reversed(said.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    raise EngineError(
        f"{command.program!r}, named by {command.origin}, gave no answer that is one of the engine's. "
        "Check the engine's setting."
    )
