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
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSource,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QCoreApplication, QThread
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QApplication, QWidget

from .ask import TIMEOUT_S, ask_engine
from .engine import SETTING, EngineCommand, clean_environment, find_engine
from .model_use import ModelUse
from .outcome import EngineError
from .parameters import Described
from .predict_job import EVENTS, describe_command, nodata_problem
from .protocol import Done, Result
from .runtime import Patience, run_engine
from .words import tr

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

    def checkParameterValues(self, parameters: Parameters, context: QgsProcessingContext) -> tuple[bool, Optional[str]]:
        """What the dialog shows before anything runs."""
        ok, message = super().checkParameterValues(parameters, context)
        if not ok:
            return ok, message
        try:
            self.check_values(parameters, context)
        except (EngineError, QgsProcessingException) as error:
            return False, str(error)
        return True, ""

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """Raise EngineError or QgsProcessingException, in words for the user, where values can't work."""

    def add(self, parameter: QgsProcessingParameterDefinition, text: str, *, advanced: bool = False) -> None:
        """Add a parameter with the help that its tooltip shows; an advanced one is folded away."""
        if advanced:
            parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        parameter.setHelp(text)
        self.addParameter(parameter)

    def declare(self, described: Sequence[Described], *, advanced: bool = False) -> None:
        """Add several parameters."""
        for parameter, text in described:
            self.add(parameter, text, advanced=advanced)

    def help_text(self, marked: str) -> str:
        """A help text that was marked, without line ends: QGIS 3.22 makes a paragraph of each."""
        return tr(marked).replace("\n", " ").strip()

    def given_raster(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> QgsRasterLayer:
        """The raster layer of a parameter.

        Raises:
            QgsProcessingException: If there is none.
        """
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, name))
        return layer

    def given_rasters(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> list[QgsRasterLayer]:
        """The raster layers of a parameter that takes several.

        Raises:
            QgsProcessingException: If one of them is no raster.
        """
        layers = self.parameterAsLayerList(parameters, name, context) if parameters.get(name) else []
        for layer in layers:
            if not isinstance(layer, QgsRasterLayer):
                raise QgsProcessingException(tr("The layer '{name}' is no raster.").format(name=layer.name()))
        return [layer for layer in layers if isinstance(layer, QgsRasterLayer)]

    def given_polygons(
        self, parameters: Parameters, name: str, context: QgsProcessingContext
    ) -> QgsProcessingFeatureSource:
        """The polygons of a parameter.

        Raises:
            QgsProcessingException: If there are none.
        """
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        return source

    def given_file(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> str:
        """A file of a parameter; empty for none.

        Raises:
            QgsProcessingException: If it does not exist.
        """
        path = self.parameterAsFile(parameters, name, context)
        if path and not Path(path).is_file():
            definition = self.parameterDefinition(name)
            label = definition.description() if definition is not None else name
            raise QgsProcessingException(tr("{label}: {path} does not exist.").format(label=label, path=path))
        return path

    def given_number(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> Optional[float]:
        """A number that may be left out."""
        return None if parameters.get(name) is None else self.parameterAsDouble(parameters, name, context)

    def given_whole(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> Optional[int]:
        """A whole number that may be left out."""
        return None if parameters.get(name) is None else self.parameterAsInt(parameters, name, context)

    def check_nodata(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """Raise QgsProcessingException where NODATA is no number."""
        problem = nodata_problem(self.parameterAsString(parameters, "NODATA", context))
        if problem:
            raise QgsProcessingException(problem)

    def check_bands(self, parameters: Parameters, layer: QgsRasterLayer, context: QgsProcessingContext) -> None:
        """Raise QgsProcessingException where BANDS names one that the layer does not have."""
        strange = [b for b in self.parameterAsInts(parameters, "BANDS", context) if not 1 <= b <= layer.bandCount()]
        if strange:
            raise QgsProcessingException(
                tr("Band {band} does not exist: the scene has {count}.").format(
                    band=strange[0], count=layer.bandCount()
                )
            )

    def model_use(self, parameters: Parameters, context: QgsProcessingContext) -> ModelUse:
        """How the model is to be used, by those of its parameters that this algorithm has."""

        def plain(name: str) -> str:
            return self.parameterAsString(parameters, name, context).strip() if self._has(name) else ""

        def numbers(name: str) -> str:
            return plain(name).replace(" ", "")

        def chosen(name: str, default: str) -> str:
            return self.parameterAsEnumString(parameters, name, context) if self._has(name) else default

        return ModelUse(
            model=self.parameterAsFile(parameters, "MODEL", context),
            bands=tuple(self.parameterAsInts(parameters, "BANDS", context)),
            nodata=numbers("NODATA"),
            resample=chosen("RESAMPLE", "auto"),
            tile_size=self.given_whole(parameters, "TILE_SIZE", context),
            halo=self.given_whole(parameters, "HALO", context),
            stitch=chosen("STITCH", "blend"),
            views=chosen("TTA", "none"),
            provider=chosen("PROVIDER", "auto"),
            require_gpu=self._has("REQUIRE_GPU") and self.parameterAsBool(parameters, "REQUIRE_GPU", context),
            threads=self.given_whole(parameters, "THREADS", context),
            classes=",".join(part.strip() for part in plain("CLASSES").split(",") if part.strip()),
            scale=numbers("SCALE"),
            mean=numbers("MEAN"),
            std=numbers("STD"),
            gsd_m=self.given_number(parameters, "MODEL_GSD", context),
            output_kind=chosen("OUTPUT_KIND", "auto"),
            threshold=self.given_number(parameters, "THRESHOLD", context),
        )

    def _has(self, name: str) -> bool:
        return self.parameterDefinition(name) is not None

    def ask(
        self, arguments: Sequence[str], feedback: QgsProcessingFeedback, *, accepted: Sequence[int] = (0,),
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:  # fmt: skip
        """What a command of the engine prints as one JSON object; the command is logged as one would type it.

        Raises:
            QgsProcessingException: If there is no engine, it failed, or the user cancelled.
        """
        try:
            command = current_engine()
            _log_command(command, arguments, feedback)
            return ask_engine(
                command, arguments, engine_environment(), is_cancelled=feedback.isCanceled, accepted=accepted,
                timeout_s=timeout_s,
            )  # fmt: skip
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
            _log_command(command, arguments, feedback)
            return run_engine(
                command, [*arguments, *EVENTS], engine_environment(), feedback,
                after_crash=after_crash, while_waiting=let_dialog_live, patience=patience,
            )  # fmt: skip
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error


def let_dialog_live() -> None:
    """Let a dialog that runs an algorithm in the window's own thread draw itself, and hear Cancel.

    QGIS 3.22's batch window is one. It processes events itself, but only where progress changes by a tenth of a
    percent, and an engine is silent while it loads, trains a step, exports.
    """
    application = QCoreApplication.instance()
    if application is None or QThread.currentThread() != application.thread():
        return
    if any(_can_be_cancelled(widget) for widget in QApplication.topLevelWidgets()):
        QCoreApplication.processEvents()


def _can_be_cancelled(widget: QWidget) -> bool:
    """Whether this is a dialog of Processing with a run that its Cancel would stop; QGIS 4 has another class."""
    button = getattr(widget, "cancelButton", None)
    return callable(button) and widget.isVisible() and button().isEnabled()


def _log_command(command: EngineCommand, arguments: Sequence[str], feedback: QgsProcessingFeedback) -> None:
    feedback.pushInfo(tr("Equivalent command line:"))
    feedback.pushCommandInfo(describe_command(command, arguments))


def write_page(path: str, text: str) -> str:
    """Write a page and give its path.

    Raises:
        QgsProcessingException: If it can't be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        why = tr("{path} can't be written: {why}.").format(path=path, why=error.strerror)
        raise QgsProcessingException(why) from error
    return path
