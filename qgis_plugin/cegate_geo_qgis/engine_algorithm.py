# SPDX-License-Identifier: GPL-2.0-or-later
"""What all algorithms have in common: they run one command of the engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Optional, Sequence

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
)
from qgis.PyQt.QtGui import QIcon

from .engine import SETTING, EngineCommand, clean_environment, find_engine
from .outcome import EngineError
from .predict_job import EVENTS, describe_command
from .protocol import Result
from .runtime import run_engine


def managed_environment() -> Path:
    """The virtual environment that belongs to the plugin, in the user's profile."""
    return Path(QgsApplication.qgisSettingsDirPath()) / "cegate_geo" / "engine"


def current_engine() -> EngineCommand:
    """The engine as the settings and this process' environment say.

    Raises:
        EngineError: If there is none.
    """
    setting = ProcessingConfig.getSetting(SETTING)
    return find_engine(setting=str(setting or ""), environ=os.environ, managed=managed_environment())


class EngineAlgorithm(QgsProcessingAlgorithm):
    """Base of the algorithms: finds the engine, runs it, turns its words into Processing's."""

    def icon(self) -> QIcon:
        """The plugin's own picture."""
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def group(self) -> str:
        """Directly below the provider."""
        return ""

    def groupId(self) -> str:
        """Directly below the provider."""
        return ""

    def canExecute(self) -> tuple[bool, Optional[str]]:
        """False with a message where there is no engine. `qgis_process` does not ask: `run` checks again."""
        try:
            current_engine()
        except EngineError as error:
            return False, str(error)
        return True, ""

    def add(self, parameter: QgsProcessingParameterDefinition, text: str) -> None:
        """Add a parameter with the help that its tooltip shows."""
        parameter.setHelp(text)
        self.addParameter(parameter)

    def run_command(
        self, arguments: Sequence[str], feedback: QgsProcessingFeedback, *, after_crash: Callable[[int], None]
    ) -> Result:
        """Run a command of the engine and log it as one would type it; `after_crash` as in `run_engine`.

        Raises:
            QgsProcessingException: If there is no engine, it failed, or the user cancelled.
        """
        try:
            command = current_engine()
            feedback.pushInfo("Equivalent command line:")
            feedback.pushCommandInfo(describe_command(command, arguments))
            hosts = (QgsApplication.prefixPath(), os.environ.get("OSGEO4W_ROOT", ""))
            environment = clean_environment(os.environ, host_folders=hosts)
            return run_engine(command, [*arguments, *EVENTS], environment, feedback, after_crash=after_crash)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
