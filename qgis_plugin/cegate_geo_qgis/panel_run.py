# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one algorithm at a time beside the window, for the panel: progress, words, cancelling, loading of results."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Optional

from processing.gui.Postprocessing import handleAlgorithmResults
from processing.tools import dataobjects
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgorithm,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
)
from qgis.PyQt.QtCore import QCoreApplication, QObject, pyqtSignal

from .engine_algorithm import Parameters
from .words import tr

PATIENCE_S = 3.0
"""How long the end of the plugin waits for a run that it has cancelled."""


class Words(QgsProcessingFeedback):
    """Feedback whose words reach the window's thread as signals."""

    said = pyqtSignal(str)
    stepped = pyqtSignal(str)
    """Where a run is, in words."""

    def __init__(self) -> None:
        super().__init__(False)
        self.problem = ""
        """The last error."""

    def pushInfo(self, info: Optional[str]) -> None:
        """A line for the log."""
        self.said.emit(info or "")

    def setProgressText(self, text: Optional[str]) -> None:
        """Where the run is, also for the log."""
        self.said.emit(text or "")
        self.stepped.emit(text or "")

    def pushCommandInfo(self, info: Optional[str]) -> None:
        """A command line for the log."""
        self.said.emit(info or "")

    def pushWarning(self, warning: Optional[str]) -> None:
        """A warning for the log."""
        self.said.emit(tr("Warning: {warning}").format(warning=warning))

    def reportError(self, error: Optional[str], fatalError: bool = False) -> None:
        """What went wrong."""
        del fatalError
        self.problem = error or ""
        self.said.emit(self.problem)


@dataclass
class _Running:
    """What has to live as long as a task does."""

    algorithm: QgsProcessingAlgorithm
    parameters: Parameters
    context: QgsProcessingContext
    feedback: Words
    when_done: Callable[[dict[str, Any]], None]
    is_welcome: bool = True
    """Whether the project is still the one that it was started in."""
    task: Optional[QgsProcessingAlgRunnerTask] = None


_left_behind: list[_Running] = []
"""Runs that outlived the plugin: their tasks still look at these."""


class PanelRun(QObject):
    """One run at a time; results are loaded into the project in which it was started, if that is still open."""

    began = pyqtSignal(str)
    """Name of the algorithm."""
    moved = pyqtSignal(float)
    """Percent."""
    said = pyqtSignal(str)
    """A line for the log."""
    stepped = pyqtSignal(str)
    """Where the run is, in words."""
    ended = pyqtSignal(bool, str)
    """Whether it went well, and why not."""

    def __init__(self, parent: Optional[QObject] = None) -> None:
        super().__init__(parent)
        self._running: Optional[_Running] = None
        project = QgsProject.instance()
        if project is not None:
            project.cleared.connect(self._project_closed)

    def is_running(self) -> bool:
        """Whether a run is under way."""
        return self._running is not None

    def start(self, algorithm_id: str, parameters: Parameters, when_done: Callable[[dict[str, Any]], None]) -> str:
        """Start an algorithm; gives why it can't be, or an empty text.

        Args:
            algorithm_id: For instance 'cegate_geo:segment_raster'.
            parameters: Its parameters; layers to load are output definitions with a project.
            when_done: Called in the window's thread with the results, after layers were loaded.
        """
        if self._running is not None:
            return tr("Something is running already.")
        registry = QgsApplication.processingRegistry()
        algorithm = registry.createAlgorithmById(algorithm_id) if registry is not None else None
        tasks = QgsApplication.taskManager()
        if algorithm is None or tasks is None:
            return tr("The Processing provider CEGate-Geo is not active.")
        feedback = Words()
        context = dataobjects.createContext(feedback)
        for ok, why in (algorithm.canExecute(), algorithm.checkParameterValues(parameters, context)):
            if not ok:
                return str(why)
        running = _Running(algorithm, parameters, context, feedback, when_done)
        feedback.said.connect(self.said)
        feedback.stepped.connect(self.stepped)
        feedback.progressChanged.connect(self.moved)
        running.task = QgsProcessingAlgRunnerTask(algorithm, parameters, context, feedback)
        if running.task.isCanceled():  # what it prepares has failed: it would never be executed, and never end
            return feedback.problem or tr("It failed, and left no message.")
        running.task.executed.connect(self._executed)
        self._running = running
        self.began.emit(algorithm.displayName())
        tasks.addTask(running.task)
        return ""

    def cancel(self) -> None:
        """Ask the run to stop; `ended` follows."""
        if self._running is not None and self._running.task is not None:
            self._running.task.cancel()

    def close(self) -> None:
        """Stop the run without a word, and wait a moment for its process to go; called when the plugin is unloaded."""
        project = QgsProject.instance()
        if project is not None:
            project.cleared.disconnect(self._project_closed)
        running, self._running = self._running, None
        if running is None or running.task is None:
            return
        running.task.executed.disconnect(self._executed)
        running.feedback.said.disconnect(self.said)
        running.feedback.stepped.disconnect(self.stepped)
        running.feedback.progressChanged.disconnect(self.moved)
        _left_behind.append(running)
        task = running.task
        task.cancel()
        end = time.monotonic() + PATIENCE_S
        while task.isActive() and time.monotonic() < end:
            time.sleep(0.02)  # not waitForFinished: that would hold the interpreter's lock, which the run needs
            QCoreApplication.sendPostedEvents(task, 0)  # a task learns of its end by an event in this thread

    def _project_closed(self) -> None:
        if self._running is not None:
            self._running.is_welcome = False

    def _executed(self, ok: bool, results: dict[str, Any]) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        if not ok:
            cancelled = running.feedback.isCanceled()
            usual = tr("Cancelled.") if cancelled else tr("It failed, and left no message.")
            self.ended.emit(False, running.feedback.problem or usual)
            return
        if not running.is_welcome:
            places = ", ".join(str(value) for value in results.values() if isinstance(value, str))
            text = tr("The project was closed meanwhile, so nothing was loaded. Results:")
            self.ended.emit(True, f"{text} {places}")
            return
        # By name: newer QGIS has one parameter less.
        handleAlgorithmResults(running.algorithm, running.context, running.feedback, parameters=running.parameters)
        self.ended.emit(True, "")
        running.when_done(results)
