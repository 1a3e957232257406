# SPDX-License-Identifier: GPL-2.0-or-later
"""Check model: whether a model, a scene and this computer suit each other, by the engine's `check`."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputBoolean,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterRasterLayer,
    QgsProcessingUtils,
)

from . import parameters as ask
from .ask import WORK_S
from .check_report import check_verdicts, forecast_line, report_html, summary, verdict_lines
from .engine_algorithm import EngineAlgorithm, Parameters, write_page
from .outcome import EngineError
from .predict_job import PredictJob
from .protocol import Done
from .sources import raster_source, raster_warnings
from .words import mark, tr

REPORTED = (0, 1)
"""Exit codes of `check` with a report: all is well, or a test failed."""
HELP = mark("""
<p>Tests on six tiles at most, in seconds, whether a model suits a scene and this computer, before hours go into a
large run: bands and values, pixel size, whether the chosen provider computes what the CPU does, whether the same run
gives the same result, the seams of tiles, georeference, and holes without a flag. Nothing is written but the
report.</p>
<p>Each test tells the number that it found and its limit, and what to do where it is not good. Attach the report where
you ask for help.</p>
<p>The <b>forecast</b> says how many tiles all of the scene has, and about how long they take with how much memory.</p>
""")


class CheckModel(EngineAlgorithm):
    """`cegate_geo:check_model`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "check_model"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return tr("Check model")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return tr("test,self-test,diagnose,compatibility,seams,parity,gpu,forecast,time,memory,onnx").split(",")

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return tr(
            "Whether a model suits a scene and this computer, in seconds, with numbers; and how long a run takes."
        )

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return self.help_text(HELP)

    def createInstance(self) -> CheckModel:
        """A fresh one for each run."""
        return CheckModel()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        scene = QgsProcessingParameterRasterLayer("INPUT", tr("Scene"))
        self.add(scene, tr("A raster file, also a virtual raster or a file in the cloud."))
        self.declare([ask.model_or_demo(), ask.bands(), ask.nodata()])
        self.add(
            QgsProcessingParameterBoolean("FORECAST", tr("Forecast of a run on all of the scene"), True),
            tr("How many tiles it has, and about how long they take with how much memory."),
        )
        self.declare([*ask.computing(), ask.resample(), *ask.tiling(), *ask.contract()], advanced=True)
        self.add(
            ask.page("HTML", tr("Report"), "HTML (*.html)", by_default=True),
            tr("What was found as a page, shown in the Results Viewer."),
        )
        self.addOutput(QgsProcessingOutputBoolean("OK", tr("No test failed")))
        self.addOutput(QgsProcessingOutputNumber("SECONDS", tr("Forecast of seconds for all of the scene")))

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """What can't work, before anything runs."""
        layer = self.given_raster(parameters, "INPUT", context)
        raster_source(layer)
        self.given_file(parameters, "MODEL", context)
        self.check_bands(parameters, layer, context)
        self.check_nodata(parameters, context)

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the raster's place, in the thread that it belongs to; nothing has been checked when a script calls."""
        self.check_values(parameters, context)
        layer = self.given_raster(parameters, "INPUT", context)
        self._scene = raster_source(layer)
        if feedback is not None:
            for warning in raster_warnings(layer):
                feedback.pushWarning(warning)
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Ask the engine, and for a forecast where the model runs."""
        feedback = feedback or QgsProcessingFeedback()
        use = self.model_use(parameters, context)
        words = ["check", self._scene, *use.arguments(), "--json"]
        told = self.ask(words, feedback, accepted=REPORTED, timeout_s=WORK_S)
        try:
            check_verdicts(told)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        for line in verdict_lines(told):
            feedback.pushInfo(line)
        plan = None
        if told["ok"] and self.parameterAsBool(parameters, "FORECAST", context):
            plan = self._forecast(
                PredictJob(self._scene, QgsProcessingUtils.generateTempFilename("m.tif"), use), feedback
            )
            feedback.pushInfo(forecast_line(plan))
        (feedback.pushInfo if told["ok"] else feedback.pushWarning)(summary(told))
        outputs: dict[str, Any] = {"OK": bool(told["ok"]), "SECONDS": (plan or {}).get("seconds")}
        page = self.parameterAsFileOutput(parameters, "HTML", context) if parameters.get("HTML") else ""
        return {**outputs, "HTML": write_page(page, report_html(told, plan))} if page else outputs

    def _forecast(self, job: PredictJob, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        done = self.run_command([*job.arguments(), "--dry-run"], feedback)
        if not isinstance(done, Done):
            raise QgsProcessingException(tr("The engine gave no forecast. Update it."))
        return dict(done.values)
