# SPDX-License-Identifier: GPL-2.0-or-later
"""Adapt model: a model for one's own classes and scenes from labelled polygons, by the engine's `adapt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSource,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingOutputFile,
    QgsProcessingOutputHtml,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QDesktopServices

from .adapt_job import (
    AREA,
    CONFIG,
    DEVICES,
    HEADS,
    LABELS,
    SHIPPED,
    AdaptJob,
    LabelClass,
    can_resume,
    holds_run,
    make_legend,
)
from .engine import READY
from .engine_algorithm import EngineAlgorithm, Parameters, current_engine, managed_environment
from .label_classes import class_style
from .outcome import TRAIN_HINT, EngineCancelledError, EngineError
from .predict_job import nodata_problem
from .protocol import Done
from .runtime import Patience
from .sources import plain_raster_file, text_of, write_labels

SAVING = Patience(saving_s=90.0, terminate_s=10.0)
"""A step of a large model on a slow computer takes long, and the state is saved after it."""
HELP = """
<p>Makes a model for your own classes from polygons that you have drawn on one or several scenes: the base model
learns them, tries itself on parts that it has not seen, and is exported as one ONNX file for <i>Segment
raster</i>.</p>
<h3>Labels</h3>
<p>A polygon layer with a field that names the class. By default only what was drawn counts, so draw examples of
<b>every</b> class, also of the ground in between; some dozens of each, spread over the scene, are a good start. Where
all objects of an area are drawn, name the class of what is left as <b>Background</b>, and give the area that you have
worked through. Class names and colours of a categorised layer become those of the model.</p>
<h3>Time</h3>
<p>With the small base and the defaults some minutes to a quarter of an hour on a usual computer. The log shows loss
and validation. <b>Cancel</b> keeps what was learned: run it again with the same folder and <b>Resume</b>.</p>
<h3>Results</h3>
<p>In the folder of the run: <b>model.onnx</b>; <b>report.html</b>, with curves and pictures of what it says beside
the labels; and all that Resume needs.</p>
<h3>Target scenes</h3>
<p>Unlabelled scenes of other places, seasons or sensors that the model is meant for: their looks are put on what it
learns from.</p>
<h3>Engine</h3>
<p>Needs the variant 'train' of the engine: <i>Set up the engine</i> installs it (9 GB).</p>
""".replace("\n", " ").strip()


class AdaptModel(EngineAlgorithm):
    """`cegate_geo:adapt_model`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "adapt_model"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return self.tr("Adapt model")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return [
            "train",
            "training",
            "fine-tune",
            "learn",
            "deep learning",
            "polygons",
            "labels",
            "samples",
            "onnx",
            "fisher",
        ]

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return self.tr("A model for your own classes, from polygons drawn on your scenes.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return HELP

    def createInstance(self) -> AdaptModel:
        """A fresh one for each run."""
        return AdaptModel()

    def canExecute(self) -> tuple[bool, Optional[str]]:
        """False with a message where there is no engine, or the plugin's own one is known to predict only."""
        ok, message = super().canExecute()
        return (False, TRAIN_HINT) if ok and _lacks_training() else (ok, message)

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        polygons = [QgsProcessing.TypeVectorPolygon]
        self.add(
            QgsProcessingParameterMultipleLayers("IMAGES", self.tr("Scenes"), QgsProcessing.TypeRaster),
            self.tr("Raster files of 8 bits, with the bands that the model shall take."),
        )
        self.add(
            QgsProcessingParameterFeatureSource("LABELS", self.tr("Labels"), polygons),
            self.tr("Polygons drawn on the scenes, in any CRS. A selection, a filter and unsaved edits count."),
        )
        self.add(
            QgsProcessingParameterField("FIELD", self.tr("Field with the class"), None, "LABELS"),
            self.tr("Class names, or whole numbers that become the ids of the classes."),
        )
        self.add(
            QgsProcessingParameterString(
                "BACKGROUND", self.tr("Background: class where no polygon is"), None, False, True
            ),
            self.tr("Empty: only what was drawn counts. A name, for instance 'other': all the rest is of this class."),
        )
        self.add(
            QgsProcessingParameterFeatureSource("AREA", self.tr("Area that is labelled"), polygons, None, True),
            self.tr("Polygons: the rest of the scenes is not learned from. Goes with Background."),
        )
        self.add(
            QgsProcessingParameterMultipleLayers(
                "TARGETS", self.tr("Target scenes"), QgsProcessing.TypeRaster, None, True
            ),
            self.tr("Unlabelled raster files of what the model is meant for: other places, seasons, sensors."),
        )
        self.add(
            self._number("STEPS", self.tr("Steps"), 1000, lowest=1),
            self.tr("How long it learns. 200 give a first idea, 1000 a model, more helps with many labels."),
        )
        self._add_advanced()
        self.add(
            QgsProcessingParameterFolderDestination("RUN", self.tr("Folder of the run")),
            self.tr("Gets model.onnx, report.html and what Resume needs. Choose one that stays."),
        )
        self.addOutput(QgsProcessingOutputFile("MODEL", self.tr("Model")))
        self.addOutput(QgsProcessingOutputHtml("REPORT", self.tr("Report")))
        self.addOutput(QgsProcessingOutputNumber("MIOU", self.tr("Mean IoU on validation")))

    def _number(
        self, name: str, label: str, default: Optional[float], *, lowest: float, highest: Optional[float] = None,
        whole: bool = True,
    ) -> QgsProcessingParameterNumber:  # fmt: skip
        kinds = QgsProcessingParameterNumber.Type
        limits = (lowest,) if highest is None else (lowest, highest)
        kind = kinds.Integer if whole else kinds.Double
        return QgsProcessingParameterNumber(name, label, kind, default, default is None, *limits)

    def _add_advanced(self) -> None:
        number = self._number
        added: list[tuple[QgsProcessingParameterDefinition, str]] = [
            (
                QgsProcessingParameterString("BANDS", self.tr("Bands"), None, False, True),
                self.tr("Three bands from 1, with commas between, as red, green, blue. Empty: 1,2,3."),
            ),
            (
                QgsProcessingParameterString("NODATA", self.tr("Nodata value"), None, False, True),
                self.tr("Value of holes in the scenes that carry no flag: 255, or one a band: 255,255,255."),
            ),
            (
                QgsProcessingParameterString("BACKBONE", self.tr("Base model"), SHIPPED),
                self.tr(
                    "'shipped': the small base of the engine. Else a name of timm, for instance "
                    "vit_small_patch14_dinov2.lvd142m, fetched from its hub."
                ),
            ),
            (
                QgsProcessingParameterFile("WEIGHTS", self.tr("Weights of the base model"), optional=True),
                self.tr("A file with the weights of a base model of timm, instead of the hub."),
            ),
            (
                QgsProcessingParameterEnum("HEAD", self.tr("Head"), HEADS, False, HEADS[0], False, True),
                self.tr("'dpt-detail' draws the finest outlines, 'dpt' is for large backbones, 'linear' the fastest."),
            ),
            (
                number("TILE_SIZE", self.tr("Tile size [px]"), 384, lowest=64),
                self.tr("Pixels along each side of what the model sees at once, in training and later."),
            ),
            (
                number("BUDGET", self.tr("Budget"), 0.25, lowest=0.01, highest=1.0, whole=False),
                self.tr("Share of the modules that may learn at a time; Fisher information chooses which."),
            ),
            (number("BATCH_SIZE", self.tr("Chips in a step"), 4, lowest=1), self.tr("Fewer need less memory.")),
            (
                number("LR", self.tr("Learning rate of the modules"), None, lowest=0.0, whole=False),
                self.tr("Empty: 0.001 for the small base, 0.00005 for others."),
            ),
            (
                number("HEAD_LR", self.tr("Learning rate of the head"), None, lowest=0.0, whole=False),
                self.tr("Empty: 0.002 for the small base, else as the modules'."),
            ),
            (
                number("VALIDATION", self.tr("Share held out"), 0.15, lowest=0.0, highest=0.9, whole=False),
                self.tr("Part of the labelled area, in blocks, that the model is only tried on."),
            ),
            (number("SEED", self.tr("Seed"), 0, lowest=0), self.tr("The same seed gives the same model.")),
            (
                QgsProcessingParameterEnum("DEVICE", self.tr("Train on"), DEVICES, False, "auto", False, True),
                self.tr("'auto' takes a GPU where torch finds one."),
            ),
            (
                QgsProcessingParameterBoolean("RESUME", self.tr("Resume the run in the folder"), False),
                self.tr("Goes on where it was cancelled, with that run's own labels and settings."),
            ),
            (
                QgsProcessingParameterBoolean("OPEN_REPORT", self.tr("Open the report at the end"), True),
                self.tr("In the browser; only where there is a window."),
            ),
        ]
        for parameter, text in added:
            self.add(parameter, text, advanced=True)

    def checkParameterValues(self, parameters: Parameters, context: QgsProcessingContext) -> tuple[bool, Optional[str]]:
        """What the dialog shows before anything runs."""
        ok, message = super().checkParameterValues(parameters, context)
        if not ok:
            return ok, message
        try:
            self._check(parameters, context)
        except QgsProcessingException as error:
            return False, str(error)
        return True, ""

    def _check(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        self._rasters(parameters, "IMAGES", context)
        self._rasters(parameters, "TARGETS", context)
        self._bands(parameters, context)
        weights = self.parameterAsFile(parameters, "WEIGHTS", context)
        if weights and not Path(weights).is_file():
            raise QgsProcessingException(f"The weights {weights} do not exist.")
        if weights and self.parameterAsString(parameters, "BACKBONE", context) == SHIPPED:
            raise QgsProcessingException(
                "The small base has its weights: name the base model that the weights belong to."
            )
        problem = nodata_problem(self.parameterAsString(parameters, "NODATA", context))
        if problem:
            raise QgsProcessingException(problem)
        given = parameters.get("RUN")
        folder = Path(given) if isinstance(given, str) and given != QgsProcessing.TEMPORARY_OUTPUT else None
        resume = self.parameterAsBool(parameters, "RESUME", context)
        if resume and (folder is None or not can_resume(folder)):
            raise QgsProcessingException(f"{folder or 'A temporary folder'} holds no run of this plugin to resume.")
        if folder is not None and not resume and holds_run(folder):
            raise QgsProcessingException(f"{folder} holds a run already: tick Resume, or choose another folder.")

    def _rasters(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> list[str]:
        layers = self.parameterAsLayerList(parameters, name, context) if parameters.get(name) else []
        strange = [layer for layer in layers if not isinstance(layer, QgsRasterLayer)]
        if strange:
            raise QgsProcessingException(f"The layer '{strange[0].name()}' is no raster.")
        return [plain_raster_file(layer) for layer in layers if isinstance(layer, QgsRasterLayer)]

    def _bands(self, parameters: Parameters, context: QgsProcessingContext) -> tuple[int, ...]:
        text = self.parameterAsString(parameters, "BANDS", context)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) not in (0, 3):
            raise QgsProcessingException(f"Bands {text!r} are not three numbers from 1: write them as 1,2,3.")
        return tuple(int(part) for part in parts)

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the layers, in the thread that they belong to; nothing has been checked when a script calls."""
        del feedback
        self._check(parameters, context)
        self._images = tuple(self._rasters(parameters, "IMAGES", context))
        self._targets = tuple(self._rasters(parameters, "TARGETS", context))
        layer = label_layer(parameters.get("LABELS"), context)
        self._names, self._colors = class_style(layer, self.parameterAsString(parameters, "FIELD", context))
        self._report = ""
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Write what the engine needs into the folder of the run, and run it."""
        feedback = feedback or QgsProcessingFeedback()
        try:
            if _lacks_training():
                raise QgsProcessingException(TRAIN_HINT)
            run = Path(self.parameterAsFileOutput(parameters, "RUN", context))
            if str(run).startswith(QgsProcessingUtils.tempFolder()):
                feedback.pushWarning(f"The run lies in a temporary folder, {run}, which QGIS removes when it closes.")
            job = self._job(parameters, context, run, feedback)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        try:
            done = self.run_command(job.arguments(), feedback, patience=SAVING)
        except QgsProcessingException as error:
            if isinstance(error.__cause__, EngineCancelledError):
                raise QgsProcessingException(_cancelled(run)) from error
            raise
        if not isinstance(done, Done) or "model" not in done.values:
            raise QgsProcessingException("The engine gave no model. Update it.")
        values = done.values
        self._report = str(values.get("report") or "")
        miou = values.get("miou")
        feedback.pushInfo(f"Model: {values['model']}")
        if miou is None:
            feedback.pushWarning("Too little was labelled to hold a part out: nothing is known of the model's quality.")
        else:
            feedback.pushInfo(f"Mean IoU {miou:.3f} on the parts held out, at step {values.get('best_step')}")
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
            feedback.pushInfo(f"Going on with {run}, with its own labels and settings.")
            return AdaptJob(run=run, images=(), legend=(), device=device, resume=True)
        legend, background = self._legend(parameters, context)
        feedback.pushInfo("Classes: " + ", ".join(f"{c.id} {c.name}" for c in legend))

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
            self._write(parameters, "LABELS", context, feedback, run / LABELS, self._names)
            if job.has_area:
                self._write(parameters, "AREA", context, feedback, run / AREA, {})
            (run / CONFIG).write_text(job.config(), encoding="utf-8")
        except OSError as error:
            raise QgsProcessingException(f"The folder {run} can't be written: {error.strerror}.") from error
        return job

    def _source(self, parameters: Parameters, name: str, context: QgsProcessingContext) -> QgsProcessingFeatureSource:
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        return source

    def _legend(self, parameters: Parameters, context: QgsProcessingContext) -> tuple[tuple[LabelClass, ...], str]:
        """The classes, and the name of the background class (empty: what was not drawn does not count)."""
        field = self.parameterAsString(parameters, "FIELD", context)
        source = self._source(parameters, "LABELS", context)
        index = source.fields().lookupField(field)
        if index < 0:
            raise QgsProcessingException(f"The labels have no field {field!r}.")
        values = sorted({text_of(feature.attribute(index)) for feature in source.getFeatures()} - {""})
        background = self.parameterAsString(parameters, "BACKGROUND", context).strip()
        background = "" if background.lower() == "ignore" else self._names.get(background, background)
        return make_legend(values, background=background, names=self._names, colors=self._colors), background

    def _write(
        self, parameters: Parameters, name: str, context: QgsProcessingContext, feedback: QgsProcessingFeedback,
        path: Path, names: dict[str, str],
    ) -> None:  # fmt: skip
        field = self.parameterAsString(parameters, "FIELD", context) if name == "LABELS" else ""
        count = write_labels(self._source(parameters, name, context), path, context, feedback, field=field, names=names)
        if not count:
            raise QgsProcessingException(f"{name} holds no polygon (or none is selected, or none has a class).")
        if name == "LABELS":
            feedback.pushInfo(f"{count} labelled polygons")


def label_layer(value: Any, context: QgsProcessingContext) -> Optional[QgsVectorLayer]:
    """The layer behind a feature source, whose style names the classes; None where there is none."""
    if isinstance(value, QgsProcessingFeatureSourceDefinition):
        value = value.source.staticValue()
    layer = QgsProcessingUtils.mapLayerFromString(value, context) if isinstance(value, str) else value
    return layer if isinstance(layer, QgsVectorLayer) else None


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
        return f"Cancelled. What was learned is saved in {run}: run again with the same folder and 'Resume' to go on."
    if holds_run(run):
        return f"Cancelled before anything was saved. 'Resume' with {run} begins at the first step."
    return f"Cancelled before training began. {run} can be used again as it is."
