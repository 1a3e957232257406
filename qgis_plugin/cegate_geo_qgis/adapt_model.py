# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapt model: a model for one's own classes and scenes from labelled polygons, by the engine's `adapt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional, Union

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputNumber,
    QgsProcessingUtils,
)
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QDesktopServices

from . import adapt_parameters
from .adapt_job import CONFIG, SHIPPED, AdaptJob, can_resume, holds_run
from .adapt_labels import Labels, layer_style, write_area
from .engine import READY
from .engine_algorithm import EngineAlgorithm, Parameters, current_engine, managed_environment
from .outcome import EngineCancelledError, EngineError, train_hint
from .protocol import Done
from .runtime import Patience
from .sources import plain_raster_file
from .words import tr

SAVING = Patience(saving_s=90.0, terminate_s=10.0)
"""A step of a large model on a slow computer takes long, and the state is saved after it."""


class AdaptModel(EngineAlgorithm):
    """`cegate_geo:adapt_model`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "adapt_model"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return tr("Adapt model")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return tr("train,training,fine-tune,learn,deep learning,polygons,labels,samples,onnx,fisher").split(",")

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return tr("A model for your own classes, from polygons drawn on your scenes.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return self.help_text(adapt_parameters.HELP)

    def createInstance(self) -> AdaptModel:
        """A fresh one for each run."""
        return AdaptModel()

    def canExecute(self) -> tuple[bool, Optional[str]]:
        """False with a message where there is no engine, or the plugin's own one is known to predict only."""
        ok, message = super().canExecute()
        return (False, train_hint()) if ok and _lacks_training() else (ok, message)

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        self.declare(adapt_parameters.inputs())
        self.declare(adapt_parameters.advanced(), advanced=True)
        self.declare(adapt_parameters.results())
        self.addOutput(QgsProcessingOutputFile("MODEL", tr("Model")))
        # No QgsProcessingOutputHtml: QGIS 3.22's batch window fails over each (qgis/QGIS#47884), and stays blocked.
        self.addOutput(QgsProcessingOutputFile("REPORT", tr("Report")))
        self.addOutput(QgsProcessingOutputNumber("MIOU", tr("Mean IoU on validation")))

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """What can't work, before anything runs."""
        self._files(parameters, "IMAGES", context)
        self._files(parameters, "TARGETS", context)
        self._bands(parameters, context)
        weights = self.given_file(parameters, "WEIGHTS", context)
        if weights and self.parameterAsString(parameters, "BACKBONE", context) == SHIPPED:
            raise QgsProcessingException(
                tr("The small base has its weights: name the base model that the weights belong to.")
            )
        self.check_nodata(parameters, context)
        given = parameters.get("RUN")
        folder = Path(given) if isinstance(given, str) and given != QgsProcessing.TEMPORARY_OUTPUT else None
        resume = self.parameterAsBool(parameters, "RESUME", context)
        if resume and (folder is None or not can_resume(folder)):
            where = folder or tr("A temporary folder")
            raise QgsProcessingException(tr("{folder} holds no run of this plugin to resume.").format(folder=where))
        if folder is not None and not resume and holds_run(folder):
            raise QgsProcessingException(
                tr("{folder} holds a run already: tick Resume, or choose another folder.").format(folder=folder)
            )

    def _files(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> tuple[str, ...]:
        return tuple(plain_raster_file(layer) for layer in self.given_rasters(parameters, name, context))

    def _bands(self, parameters: Parameters, context: QgsProcessingContext) -> tuple[Union[int, str], ...]:
        text = self.parameterAsString(parameters, "BANDS", context)
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        if not all(parts) or any(part.isdecimal() and int(part) < 1 for part in parts):
            raise QgsProcessingException(
                tr("Bands {text!r} are no list: write numbers from 1, or names, as 1,2,3 or B4,B3,B2,B8.").format(
                    text=text
                )
            )
        return tuple(int(part) if part.isdecimal() else part for part in parts)

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the layers, in the thread that they belong to; nothing has been checked when a script calls."""
        del feedback
        self.check_values(parameters, context)
        self._images = self._files(parameters, "IMAGES", context)
        self._targets = self._files(parameters, "TARGETS", context)
        field = self.parameterAsString(parameters, "FIELD", context)
        self._names, self._colors = layer_style(parameters.get("LABELS"), field, context)
        self._report = ""
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Write what the engine needs into the folder of the run, and run it."""
        feedback = feedback or QgsProcessingFeedback()
        try:
            if _lacks_training():
                raise QgsProcessingException(train_hint())
            run = Path(self.parameterAsFileOutput(parameters, "RUN", context))
            if str(run).startswith(QgsProcessingUtils.tempFolder()):
                feedback.pushWarning(
                    tr("The run lies in a temporary folder, {run}, which QGIS removes when it closes.").format(run=run)
                )
            job = self._job(parameters, context, run, feedback)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        try:
            done = self.run_command(job.arguments(), feedback, patience=SAVING)
        except QgsProcessingException as error:
            if isinstance(error.__cause__, EngineCancelledError):
                raise QgsProcessingException(_cancelled(run)) from error
            raise
        return self._told(done, run, feedback)

    def _told(self, done: object, run: Path, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        """What came of it."""
        if not isinstance(done, Done) or "model" not in done.values:
            raise QgsProcessingException(tr("The engine gave no model. Update it."))
        values = done.values
        self._report = str(values.get("report") or "")
        miou = values.get("miou")
        feedback.pushInfo(tr("Model: {model}").format(model=values["model"]))
        if miou is None:
            feedback.pushWarning(
                tr("Too little was labelled to hold a part out: nothing is known of the model's quality.")
            )
        else:
            feedback.pushInfo(
                tr("Mean IoU {miou:.3f} on the parts held out, at step {step}").format(
                    miou=miou, step=values.get("best_step")
                )
            )
        return {"RUN": str(run), "MODEL": values["model"], "REPORT": self._report, "MIOU": miou}

    def postProcessAlgorithm(
        self, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Open the report, where there is a window; called in the main thread."""
        del context, feedback
        if self._report and self._open_report and has_window():
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._report))
        return {}

    def _job(
        self, parameters: Parameters, context: QgsProcessingContext, run: Path, feedback: QgsProcessingFeedback
    ) -> AdaptJob:
        """The job, with its files written; nothing but the folder changes where it is resumed."""
        self._open_report = self.parameterAsBool(parameters, "OPEN_REPORT", context)
        device = self.parameterAsEnumString(parameters, "DEVICE", context)
        if self.parameterAsBool(parameters, "RESUME", context):
            feedback.pushInfo(tr("Going on with {run}, with its own labels and settings.").format(run=run))
            return AdaptJob(run=run, images=(), legend=(), device=device, resume=True)
        field = self.parameterAsString(parameters, "FIELD", context)
        labels = Labels(self.given_polygons(parameters, "LABELS", context), field, self._names, self._colors)
        legend, background = labels.legend(self.parameterAsString(parameters, "BACKGROUND", context).strip())
        feedback.pushInfo(tr("Classes: {names}").format(names=", ".join(f"{c.id} {c.name}" for c in legend)))

        def rate(name: str) -> Optional[float]:
            return self.parameterAsDouble(parameters, name, context) if parameters.get(name) else None

        nodata = self.parameterAsString(parameters, "NODATA", context)
        job = AdaptJob(
            run=run,
            images=self._images,
            legend=legend,
            background=background,
            has_area=bool(parameters.get("AREA")),
            targets=self._targets,
            bands=self._bands(parameters, context),
            nodata=tuple(float(v) for v in nodata.split(",") if v.strip()),
            name=run.name or "model",
            backbone=self.parameterAsString(parameters, "BACKBONE", context).strip() or SHIPPED,
            weights=self.parameterAsFile(parameters, "WEIGHTS", context),
            head=self.parameterAsEnumString(parameters, "HEAD", context),
            tile_size=self.parameterAsInt(parameters, "TILE_SIZE", context),
            budget=self.parameterAsDouble(parameters, "BUDGET", context),
            steps=self.parameterAsInt(parameters, "STEPS", context),
            batch_size=self.parameterAsInt(parameters, "BATCH_SIZE", context),
            lr=rate("LR"),
            head_lr=rate("HEAD_LR"),
            validation=self.parameterAsDouble(parameters, "VALIDATION", context),
            seed=self.parameterAsInt(parameters, "SEED", context),
            device=device,
        )
        try:
            run.mkdir(parents=True, exist_ok=True)
            labels.write(run, context, feedback)
            if job.has_area:
                write_area(self.given_polygons(parameters, "AREA", context), run, context, feedback)
            (run / CONFIG).write_text(job.config(), encoding="utf-8")
        except OSError as error:
            raise QgsProcessingException(
                tr("The folder {run} can't be written: {why}.").format(run=run, why=error.strerror)
            ) from error
        return job


def has_window() -> bool:
    """Whether this is the desktop."""
    from qgis.utils import iface  # bound when the desktop has started

    return iface is not None


def _lacks_training() -> bool:
    """Whether the plugin's own engine is the one that runs, and can only predict; others tell when they run."""
    try:
        engine = current_engine()
        told = json.loads((managed_environment() / READY).read_text(encoding="utf-8"))
    except (EngineError, OSError, ValueError):
        return False
    is_managed = Path(engine.program).is_relative_to(managed_environment())
    return is_managed and isinstance(told, dict) and told.get("variant", "train") != "train"


def _cancelled(run: Path) -> str:
    if (run / "state" / "state.json").is_file():
        text = tr(
            "Cancelled. What was learned is saved in {run}: run again with the same folder and 'Resume' to go on."
        )
    elif holds_run(run):
        text = tr("Cancelled before anything was saved. 'Resume' with {run} begins at the first step.")
    else:
        text = tr("Cancelled before training began. {run} can be used again as it is.")
    return text.format(run=run)
