# SPDX-License-Identifier: GPL-2.0-or-later
"""Evaluate: a class map, or what a model says of a scene, beside labels, by the engine's `evaluate`."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingParameterBand,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingUtils,
)

from .engine_algorithm import EngineAlgorithm, Parameters
from .figures import check_figures, figure_lines, figures_html
from .model_information import MODEL_FILTER, write_page
from .outcome import EngineError
from .predict_job import RESAMPLINGS, nodata_problem
from .protocol import Done
from .sources import LABEL_FIELD, plain_raster_file, write_labels

HELP = """
<p>Compares a class map with labels, pixel by pixel, and gives the figures of the field: intersection over union, F1,
precision and recall of each class, their mean IoU, accuracy, and which class was taken for which.</p>
<h3>What is evaluated</h3>
<p><b>Without a model</b>, the raster is a class map, for instance of <i>Segment raster</i>. <b>With a model</b>, it is
a scene: it is segmented first, only where it has to be, and nothing of that is kept.</p>
<h3>Labels</h3>
<p>Polygons in any CRS with a field of class names or ids, or a class raster on exactly the same grid. Pixels without
label or prediction do not count. Where no polygon is, the ground is <b>background</b>; "ignore" leaves it out, for
labels that are only examples.</p>
<p>A few polygons of your own, drawn where the model was not trained, tell more than any figure in its card.</p>
""".replace("\n", " ").strip()


class Evaluate(EngineAlgorithm):
    """`cegate_geo:evaluate`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "evaluate"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return self.tr("Evaluate")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return [
            "accuracy",
            "assessment",
            "iou",
            "miou",
            "f1",
            "confusion matrix",
            "validation",
            "labels",
            "ground truth",
        ]

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return self.tr("IoU, F1, precision and recall of a class map or a model, against labels.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return HELP

    def createInstance(self) -> Evaluate:
        """A fresh one for each run."""
        return Evaluate()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        polygons = [QgsProcessing.TypeVectorPolygon]
        self.add(
            QgsProcessingParameterRasterLayer("INPUT", self.tr("Class map, or with a model the scene")),
            self.tr("A raster file. With a model it is segmented first; without, it holds class ids already."),
        )
        self.add(
            QgsProcessingParameterFile("MODEL", self.tr("Model"), optional=True, fileFilter=MODEL_FILTER),
            self.tr("Evaluate what this model says of the scene. Empty: the raster is a class map."),
        )
        self.add(
            QgsProcessingParameterFeatureSource("LABELS", self.tr("Labels: polygons"), polygons, None, True),
            self.tr("Polygons of what is really there, in any CRS. A selection or a filter counts."),
        )
        self.add(
            QgsProcessingParameterField("FIELD", self.tr("Field with the class"), None, "LABELS", optional=True),
            self.tr("Class names or ids. Empty: every polygon is of one class."),
        )
        self.add(
            QgsProcessingParameterRasterLayer("LABEL_RASTER", self.tr("Labels: class raster"), None, True),
            self.tr("Instead of polygons: class ids on exactly the same grid."),
        )
        self.add(
            QgsProcessingParameterString("BACKGROUND", self.tr("Class where no polygon is"), None, False, True),
            self.tr("Name or id of a class, or 'ignore' where the polygons are only examples. Empty: the first class."),
        )
        self.add(
            QgsProcessingParameterFeatureSource("AREA", self.tr("Area that is labelled"), polygons, None, True),
            self.tr("Polygons: what lies outside of them does not count."),
        )
        self._add_advanced()
        self.add(
            QgsProcessingParameterFileDestination("HTML", self.tr("Report"), "HTML (*.html)", None, True, True),
            self.tr("The figures as a page, shown in the Results Viewer."),
        )
        self.add(
            QgsProcessingParameterFileDestination("JSON", self.tr("Figures"), "JSON (*.json)", None, True, False),
            self.tr("The figures as a file for programs."),
        )
        self.addOutput(QgsProcessingOutputNumber("MIOU", self.tr("Mean IoU")))
        self.addOutput(QgsProcessingOutputNumber("ACCURACY", self.tr("Accuracy")))

    def _add_advanced(self) -> None:
        for parameter, text in (
            (
                QgsProcessingParameterString("LABEL_CLASS", self.tr("Class of the polygons"), None, False, True),
                self.tr("For polygons without a field. Empty: the last class."),
            ),
            (
                QgsProcessingParameterString("CLASSES", self.tr("Names of the classes"), None, False, True),
                self.tr("For a class map that does not name them: names with commas between, for 0, 1, 2 and so on."),
            ),
            (
                QgsProcessingParameterBand(
                    "BANDS", self.tr("Bands (empty: as the model says)"), None, "INPUT", True, True
                ),
                self.tr("With a model: bands of the scene in the order that the model wants."),
            ),
            (
                QgsProcessingParameterString("NODATA", self.tr("Nodata value"), None, False, True),
                self.tr("With a model: value of holes that carry no flag, 255, or one a band: 255,255,255."),
            ),
            (
                QgsProcessingParameterEnum(
                    "RESAMPLE", self.tr("Resample the scene"), RESAMPLINGS, False, "auto", False, True
                ),
                self.tr("With a model: whether it sees the scene at its own pixel size."),
            ),
            (
                QgsProcessingParameterBoolean("FORCE", self.tr("Run even if the pixel size is far off"), False),
                self.tr("With a model: the engine refuses pixels more than 8 times too large or too small."),
            ),
        ):
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
        for name in ("INPUT", "LABEL_RASTER"):
            if name == "LABEL_RASTER" and not parameters.get(name):
                continue
            layer = self.parameterAsRasterLayer(parameters, name, context)
            if layer is None:
                raise QgsProcessingException(self.invalidRasterError(parameters, name))
            plain_raster_file(layer)
        if bool(parameters.get("LABELS")) == bool(parameters.get("LABEL_RASTER")):
            raise QgsProcessingException("Give labels either as polygons or as a class raster.")
        model = self.parameterAsFile(parameters, "MODEL", context)
        if model and not Path(model).is_file():
            raise QgsProcessingException(f"The model {model} does not exist.")
        problem = nodata_problem(self.parameterAsString(parameters, "NODATA", context))
        if problem:
            raise QgsProcessingException(problem)

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the rasters' places, in the thread that they belong to; nothing has been checked when a script calls."""
        del feedback
        self._check(parameters, context)
        raster = self.parameterAsRasterLayer(parameters, "INPUT", context)
        truth = self.parameterAsRasterLayer(parameters, "LABEL_RASTER", context)
        if raster is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, "INPUT"))
        self._raster, self._raster_name = plain_raster_file(raster), raster.name()
        self._truth = plain_raster_file(truth) if truth is not None else ""
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Run the engine."""
        feedback = feedback or QgsProcessingFeedback()
        done = self.run_command(self._words(parameters, context, feedback), feedback)
        if not isinstance(done, Done):
            raise QgsProcessingException("The engine gave no figures. Update it.")
        try:
            check_figures(done.values)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        for line in figure_lines(done.values):
            feedback.pushInfo(line)
        outputs: dict[str, Any] = {"MIOU": done.values["miou"], "ACCURACY": done.values["accuracy"]}
        for name in ("HTML", "JSON"):
            path = self.parameterAsFileOutput(parameters, name, context) if parameters.get(name) else ""
            if path:
                outputs[name] = write_page(path, self._page(parameters, context, done, is_html=name == "HTML"))
        return outputs

    def _page(self, parameters: Parameters, context: QgsProcessingContext, done: Done, *, is_html: bool) -> str:
        if not is_html:
            return json.dumps(dict(done.values), indent=2, ensure_ascii=False) + "\n"
        model = self.parameterAsFile(parameters, "MODEL", context)
        subtitle = f"{Path(model).name} on {self._raster_name}" if model else self._raster_name
        return figures_html(done.values, title=self.tr("Evaluation"), subtitle=subtitle)

    def _words(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> list[str]:
        def text(name: str) -> str:
            return self.parameterAsString(parameters, name, context).strip()

        model = self.parameterAsFile(parameters, "MODEL", context)
        words = ["evaluate", self._raster] if not model else ["evaluate"]
        field = text("FIELD")
        labels = self._truth or self._polygons(parameters, "LABELS", context, feedback, field=field)
        bands = ",".join(str(b) for b in self.parameterAsInts(parameters, "BANDS", context)) if model else ""
        resample = self.parameterAsEnumString(parameters, "RESAMPLE", context)
        for name, value in (
            ("--model", model),
            ("--images", glob.escape(self._raster) if model else ""),
            ("--labels", labels),
            ("--label-field", LABEL_FIELD if field and not self._truth else ""),
            ("--label-class", text("LABEL_CLASS") if not field else ""),
            ("--background", text("BACKGROUND")),
            ("--aoi", self._polygons(parameters, "AREA", context, feedback) if parameters.get("AREA") else ""),
            ("--bands", bands),
            ("--nodata", text("NODATA").replace(" ", "") if model else ""),
            ("--resample", resample if model and resample != "auto" else ""),
        ):
            words += [f"{name}={value}"] if value else []
        words += [f"--class={part.strip()}" for part in text("CLASSES").split(",") if part.strip() and not model]
        return words + (["--force"] if model and self.parameterAsBool(parameters, "FORCE", context) else [])

    def _polygons(
        self, parameters: Parameters, name: str, context: QgsProcessingContext, feedback: QgsProcessingFeedback,
        *, field: str = "",
    ) -> str:  # fmt: skip
        source = self.parameterAsSource(parameters, name, context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        path = Path(QgsProcessingUtils.generateTempFilename(f"{name.lower()}.gpkg"))
        if not write_labels(source, path, context, feedback, field=field):
            what = f"with a value in '{field}'" if field else "or none is selected"
            raise QgsProcessingException(f"{name} holds no polygon {what}.")
        return str(path)
