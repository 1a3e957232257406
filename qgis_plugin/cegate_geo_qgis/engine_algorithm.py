# SPDX-License-Identifier: GPL-2.0-or-later
"""What all algorithms have in common: they run one command of the engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, Union

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
)
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtGui import QIcon

from .ask import ask_engine
from .engine import SETTING, EngineCommand, clean_environment, find_engine
from .outcome import EngineError
from .predict_job import EVENTS, describe_command
from .protocol import Done, Result
from .runtime import Patience, run_engine

HELP_URL = "https://github.com/cegate-geo/cegate-geo/blob/main/qgis_plugin/README.md"
USUAL = Patience()
Parameters = dict[Optional[str], Any]
"""Values by name, as Processing passes them."""


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


def engine_environment() -> dict[str, str]:
    """This process' environment without what QGIS set for itself."""
    hosts = (QgsApplication.prefixPath(), os.environ.get("OSGEO4W_ROOT", ""))
    return clean_environment(os.environ, host_folders=hosts)


class EngineAlgorithm(QgsProcessingAlgorithm):
    """Base of the algorithms: finds the engine, runs it, turns its words into Processing's."""

    def tr(self, text: str) -> str:
        """The text in the user's language, where there is a translation."""
        return QCoreApplication.translate("CegateGeo", text)

    def helpUrl(self) -> str:
        """Behind the button Help."""
        return HELP_URL

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

    def add(self, parameter: QgsProcessingParameterDefinition, text: str, *, advanced: bool = False) -> None:
        """Add a parameter with the help that its tooltip shows; an advanced one is folded away."""
        if advanced:
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        parameter.setHelp(text)
        self.addParameter(parameter)

    def ask(self, arguments: Sequence[str], feedback: QgsProcessingFeedback) -> dict[str, Any]:
        """What a command of the engine prints as one JSON object; the command is logged as one would type it.

        Raises:
            QgsProcessingException: If there is no engine, it failed, or the user cancelled.
        """
        try:
            command = current_engine()
            feedback.pushInfo("Equivalent command line:")
            feedback.pushCommandInfo(describe_command(command, arguments))
            return ask_engine(command, arguments, engine_environment(), is_cancelled=feedback.isCanceled)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error

    def run_command(
        self,
        arguments: Sequence[str],
        feedback: QgsProcessingFeedback,
        *,
        after_crash: Optional[Callable[[int], None]] = None,
        patience: Patience = USUAL,
    ) -> Union[Result, Done]:
        """Run a command of the engine and log it as one would type it; other arguments as in `run_engine`.

        Raises:
            QgsProcessingException: If there is no engine, it failed, or the user cancelled.
        """
        try:
            command = current_engine()
            feedback.pushInfo("Equivalent command line:")
            feedback.pushCommandInfo(describe_command(command, arguments))
            return run_engine(
                command, [*arguments, *EVENTS], engine_environment(), feedback,
                after_crash=after_crash, patience=patience,
            )  # fmt: skip
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
