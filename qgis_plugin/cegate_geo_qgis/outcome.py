# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end of an engine's run means: a result, or an error in words that help. No qgis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from .protocol import PROTOCOL, Conversation, Done, Hello, Result
from .words import mark, tr

EXIT_CANCELLED = 130
TRAIN_HINT = mark(
    "This needs an engine with torch: run 'Set up the engine' in the Processing Toolbox with the variant 'train', or, "
    'where you installed the engine yourself, pip install "cegate-geo[cpu,train]".'
)


def train_hint() -> str:
    """What to say where an engine can only predict."""
    return tr(TRAIN_HINT)


class EngineError(Exception):
    """The engine could not be started, crashed, or failed. The text is meant for the user."""


class EngineCancelledError(EngineError):
    """The run was cancelled; nothing was written."""


@dataclass(frozen=True)
class Ending:
    """How the process ended."""

    exit_code: int
    crashed: bool
    """Ended by a signal or an exception of the system, not by itself."""
    cancelled: bool
    """Whether cancelling had been asked for."""
    stderr: str
    """The last part of its standard error."""


def tail(text: str, *, lines: int = 15) -> str:
    """The last lines of a text that are not empty."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def check_hello(hello: Hello) -> None:
    """Refuse an engine that speaks another protocol version.

    Raises:
        EngineError: Naming both versions and what to install.
    """
    if hello.protocol == PROTOCOL:
        return
    engine = tr(
        "the engine: run 'Set up the engine' in the Processing Toolbox, or, where you installed "
        'it yourself, pip install --upgrade "cegate-geo[cpu]"'
    )
    update = (
        engine if hello.protocol < PROTOCOL else tr("the plugin to version {version}").format(version=hello.version)
    )
    raise EngineError(
        tr(
            "The engine (version {version}) speaks protocol {protocol}, this plugin protocol {own}. Update {update}."
        ).format(version=hello.version, protocol=hello.protocol, own=PROTOCOL, update=update)
    )


def conclude(said: Conversation, ending: Ending) -> Union[Result, Done]:
    """The result of a run that has ended.

    Raises:
        EngineCancelledError: If it was cancelled before it was done.
        EngineError: In the engine's own words where it left any, else with the end of its standard error.
    """
    if said.result is not None and said.hello is not None and ending.exit_code == 0 and not ending.crashed:
        return said.result
    if ending.cancelled:
        raise EngineCancelledError(tr("Cancelled. Nothing was written."))
    if said.failure is not None:
        lacks = said.failure.code == "runtime-missing" and "cegate-geo[train]" in said.failure.hint
        raise EngineError(f"{said.failure.message} {train_hint()}" if lacks else str(said.failure))
    what = _what_happened(said, ending)
    words = tail(ending.stderr) or "\n".join(said.strays)
    raise EngineError(
        tr("{what} Its last words:\n{words}").format(what=what, words=words)
        if words
        else tr("{what} It left no message.").format(what=what)
    )


def _what_happened(said: Conversation, ending: Ending) -> str:
    if ending.crashed:
        return tr("The engine crashed, or was ended from outside (too little memory?). QGIS itself is unharmed.")
    if ending.exit_code == EXIT_CANCELLED:
        return tr("The engine was cancelled from outside of QGIS.")
    if ending.exit_code != 0:
        return tr("The engine failed with exit code {code}.").format(code=ending.exit_code)
    if said.hello is None:
        return tr("What was started is not the engine: it never said hello. Check the engine's setting.")
    return tr("The engine ended without a result.")
