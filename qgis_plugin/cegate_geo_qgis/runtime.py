# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the engine as a child process: reads its events, shows progress, cancels, and never waits without an end.

`waitForReadyRead` in a loop needs no event loop, so the same code serves QGIS' background thread, the Python console
and `qgis_process`. Standard input stays open while the engine runs: its end tells the engine that QGIS is gone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Mapping, Optional, Protocol, Sequence, Union

from qgis.PyQt.QtCore import QProcess, QProcessEnvironment

from .engine import EngineCommand
from .outcome import Ending, EngineError, check_hello, conclude
from .protocol import CREEP, Conversation, Done, Event, Hello, Notice, Progress, Result
from .runtime_words import ToldSteps, describe_seconds
from .words import tr

STDERR_KEPT = 64 * 1024
"""Bytes of standard error that are kept, from its end."""


class Feedback(Protocol):
    """What is needed of QgsProcessingFeedback."""

    def isCanceled(self) -> bool:
        """Whether the user wants to stop."""

    def setProgress(self, progress: float) -> None:
        """Percent, 0 to 100."""

    def setProgressText(self, text: Optional[str]) -> None:
        """Where the run is, in words; goes to the log, too."""

    def pushInfo(self, info: Optional[str]) -> None:
        """A line for the log."""

    def pushWarning(self, warning: Optional[str]) -> None:
        """A warning for the log."""

    def pushDebugInfo(self, info: Optional[str]) -> None:
        """A line for the log, of little interest."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds. Cancelling ends within half a second, also where the engine is deaf."""

    start_s: float = 10.0
    """Until the system has started the process."""
    hello_s: float = 120.0
    """Until the engine has said hello: a first start on a slow disk compiles all its modules."""
    poll_s: float = 0.05
    cancel_s: float = 0.2
    """After the line `cancel`, before it is asked to terminate."""
    saving_s: float = 0.2
    """The same once it has told progress: training needs the rest of a step, and saves its state."""
    terminate_s: float = 0.1
    """After that, before it is killed."""


def run_engine(
    command: EngineCommand,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    feedback: Feedback,
    *,
    after_crash: Optional[Callable[[int], None]] = None,
    while_waiting: Callable[[], None] = lambda: None,
    patience: Patience = Patience(),
) -> Union[Result, Done]:
    """Run the engine to its end.

    Args:
        command: How it is started.
        arguments: Its arguments, `--events jsonl` among them.
        environment: Its whole environment.
        feedback: Where progress goes and cancelling comes from.
        after_crash: Called with the process id of an engine that was killed or crashed: it could not tidy up.
        while_waiting: Called every `patience.poll_s`, in this thread.
        patience: How long to wait for what.

    Raises:
        EngineCancelledError: If the user cancelled. The process is gone by then.
        EngineError: If it can't be started, speaks another protocol, crashed or failed.
    """
    run = _Run(feedback, patience)
    try:
        run.start(command, arguments, environment)
        while run.is_running():
            run.read(patience.poll_s)
            while_waiting()
            run.keep_time()
        run.read(0.0)
        return conclude(run.said, run.ending())
    finally:
        run.close(after_crash)


class _Run:
    """One process and what is known of it."""

    def __init__(self, feedback: Feedback, patience: Patience) -> None:
        self.said = Conversation()
        self._process = QProcess()
        self._feedback = feedback
        self._patience = patience
        self._pid = 0
        self._stderr = b""
        self._percent = 0.0
        self._shown = 0.0
        self._begun = time.monotonic()
        self._cancelled: Optional[float] = None
        self._terminated = False
        self._killed = False
        self._announced = False
        self._has_begun = False
        self._told = ToldSteps()

    def start(self, command: EngineCommand, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        variables = QProcessEnvironment()
        for key, value in environment.items():
            variables.insert(key, value)
        self._process.setProcessEnvironment(variables)
        self._process.start(command.program, [*command.arguments, *arguments])
        if not self._process.waitForStarted(round(self._patience.start_s * 1000)):
            raise EngineError(
                tr("The engine {program!r}, named by {origin}, can't be started: {error}.").format(
                    program=command.program, origin=command.origin, error=self._process.errorString()
                )
            )
        self._pid = self._process.processId()  # 0 once the process has ended

    def is_running(self) -> bool:
        return self._process.state() != QProcess.ProcessState.NotRunning

    def read(self, wait_s: float) -> None:
        """Wait a moment for output and take in what there is."""
        if wait_s and self.is_running():
            self._process.waitForReadyRead(round(wait_s * 1000))
        self._stderr = (self._stderr + self._process.readAllStandardError().data())[-STDERR_KEPT:]
        events = self.said.feed(self._process.readAllStandardOutput().data())
        if not wait_s:
            events += self.said.end()
        for event in events:
            self._show(event)
        self._shown = max(self._percent, min(self._shown + CREEP, 99.9))
        self._feedback.setProgress(self._shown)

    def _show(self, event: Event) -> None:
        if isinstance(event, Hello):
            check_hello(event)
            self._feedback.pushInfo(tr("CEGate-Geo engine {version}").format(version=event.version))
        elif isinstance(event, Progress):
            self._percent = max(self._percent, 100.0 * event.fraction)
            self._has_begun = True
            if event.loss is not None:
                line = self._told.line(event)
                if line:
                    self._feedback.setProgressText(line)
            elif not self._announced and event.eta_s is not None:
                self._announced = True
                self._feedback.pushInfo(
                    tr("{total} tiles, about {time} left").format(total=event.total, time=describe_seconds(event.eta_s))
                )
        elif isinstance(event, Notice):
            self._feedback.pushWarning(event.message)

    def keep_time(self) -> None:
        """Cancel where asked to, by steps; give up on what never says hello."""
        now = time.monotonic()
        if self._cancelled is None:
            if self._feedback.isCanceled():
                self._cancelled = now
                self._process.write(b"cancel\n")
                self._process.waitForBytesWritten(round(self._patience.poll_s * 1000))
            elif self.said.hello is None and now - self._begun > self._patience.hello_s:
                raise EngineError(
                    tr("The engine has not said hello within {time}. Check the engine's setting.").format(
                        time=describe_seconds(self._patience.hello_s)
                    )
                )
            return
        waited = now - self._cancelled
        grace = self._patience.saving_s if self._has_begun else self._patience.cancel_s
        if waited > grace and not self._terminated:
            self._terminated = True
            self._process.terminate()
        elif waited > grace + self._patience.terminate_s and not self._killed:
            self._killed = True
            self._process.kill()

    def ending(self) -> Ending:
        return Ending(
            exit_code=self._process.exitCode(),
            crashed=self._process.exitStatus() == QProcess.ExitStatus.CrashExit,
            cancelled=self._cancelled is not None,
            stderr=self._stderr.decode("utf-8", "replace"),
        )

    def close(self, after_crash: Optional[Callable[[int], None]]) -> None:
        """Leave no process behind, whatever happened."""
        if self.is_running():
            self._process.kill()
            self._process.waitForFinished(5000)
        if after_crash is not None and self._pid and self._process.exitStatus() == QProcess.ExitStatus.CrashExit:
            after_crash(self._pid)
        for line in self.said.strays:
            self._feedback.pushDebugInfo(tr("engine: {line}").format(line=line))
