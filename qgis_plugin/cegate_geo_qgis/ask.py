# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks the engine for what it says at once, as one JSON object: `info --json`. No qgis."""

from __future__ import annotations

import json
import os
import subprocess  # nosec B404: the engine is another program, never run through a shell
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from .engine import EngineCommand
from .outcome import EngineCancelledError, EngineError, tail
from .words import tr

POLL_S = 0.1
TIMEOUT_S = 120.0
"""Of what is told at once. A first start on a slow disk compiles all modules."""
WORK_S = 3600.0
"""Of what computes first."""


def ask_engine(
    command: EngineCommand,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    timeout_s: float = TIMEOUT_S,
    accepted: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run a command of the engine that prints one JSON object, and give that.

    Args:
        command: How the engine is started.
        arguments: Its arguments, `--json` among them.
        environ: Its whole environment.
        is_cancelled: Asked several times a second.
        timeout_s: After this time it is killed.
        accepted: Exit codes with which an answer counts.

    Raises:
        EngineCancelledError: If it was cancelled.
        EngineError: If it can't be started, fails (in its own words), is silent for too long, or prints something else.
    """
    with _started(command, arguments, environ) as child:
        said, complained = _listen(child, is_cancelled, timeout_s)
    found = _last_object(said) if child.returncode in accepted else None
    if found is not None:
        return found
    if child.returncode:
        words_of_it = tail(complained.decode("utf-8", "replace"), lines=5).replace("cegate-geo: ", "")
        failed = tr("The engine failed with exit code {code} and left no message.").format(code=child.returncode)
        raise EngineError(words_of_it or failed)
    raise EngineError(
        tr(
            "{program!r}, named by {origin}, gave no answer that is one of the engine's. Check the engine's setting."
        ).format(program=command.program, origin=command.origin)
    )


@contextmanager
def _started(
    command: EngineCommand, arguments: Sequence[str], environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The child, which is ended on leaving, and by the end of its standard input if this process is killed."""
    words = [command.program, *command.arguments, *arguments]
    theirs, ours = os.pipe()  # one of Popen's own would be closed by `communicate`
    with os.fdopen(ours, "wb"):
        try:
            with os.fdopen(theirs, "rb"):
                child = subprocess.Popen(  # nosec B603
                    words, env=dict(environ), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0) if os.name == "nt" else 0,
                )  # fmt: skip
        except (OSError, ValueError) as error:
            raise EngineError(
                tr("The engine {program!r}, named by {origin}, can't be started: {error}.").format(
                    program=command.program, origin=command.origin, error=error
                )
            ) from error
        with child:
            try:
                yield child
            finally:
                child.kill()


def _listen(child: subprocess.Popen[bytes], is_cancelled: Callable[[], bool], timeout_s: float) -> tuple[bytes, bytes]:
    begun = time.monotonic()
    while True:
        try:
            return child.communicate(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            if is_cancelled():
                raise EngineCancelledError(tr("Cancelled.")) from None
            if time.monotonic() - begun > timeout_s:
                raise EngineError(
                    tr("The engine has not answered within {timeout_s:.0f} s.").format(timeout_s=timeout_s)
                ) from None


def _last_object(said: bytes) -> Optional[dict[str, Any]]:
    for line in reversed(said.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None
