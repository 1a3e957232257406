# SPDX-License-Identifier: GPL-2.0-or-later
"""Evaluate: class maps, or what a model says of scenes, beside labels, by the engine's `evaluate`."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingUtils,
)

from . import evaluate_parameters
from .engine_algorithm import EngineAlgorithm, Parameters, write_page
from .figures import check_figures, figure_lines, figures_html
from .model_use import as_words
from .outcome import EngineError
from .protocol import Done
from .sources import LABEL_FIELD, plain_raster_file, write_labels
from .words import tr


class Evaluate(EngineAlgorithm):
    """`cegate_geo:evaluate`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "evaluate"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return tr("Evaluate")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return tr("accuracy,assessment,iou,miou,f1,confusion matrix,validation,labels,ground truth").split(",")

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return tr("IoU, F1, precision and recall of a class map or a model, against labels.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return self.help_text(evaluate_parameters.HELP)

    def createInstance(self) -> Evaluate:
        """A fresh one for each run."""
        return Evaluate()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        self.declare(evaluate_parameters.inputs())
        self.declare(evaluate_parameters.advanced(), advanced=True)
        self.declare(evaluate_parameters.results())
        self.addOutput(QgsProcessingOutputNumber("MIOU", tr("Mean IoU")))
        self.addOutput(QgsProcessingOutputNumber("ACCURACY", tr("Accuracy")))

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """What can't work, before anything runs."""
        rasters = self._rasters(parameters, context)
        if parameters.get("LABEL_RASTER"):
            plain_raster_file(self.given_raster(parameters, "LABEL_RASTER", context))
        if bool(parameters.get("LABELS")) == bool(parameters.get("LABEL_RASTER")):
            raise QgsProcessingException(tr("Give labels either as polygons or as a class raster."))
        if len(rasters) > 1 and parameters.get("LABEL_RASTER"):
            raise QgsProcessingException(
                tr("A class raster is the labels of one raster: evaluate the others one by one, or give polygons.")
            )
        self.given_file(parameters, "MODEL", context)
        self.check_nodata(parameters, context)
        _remaps(self.parameterAsString(parameters, "REMAP", context))

    def _rasters(self, parameters: Parameters, context: QgsProcessingContext) -> list[str]:
        """The files of all that is evaluated, each once."""
        layers = [self.given_raster(parameters, "INPUT", context), *self.given_rasters(parameters, "MORE", context)]
        return list(dict.fromkeys(plain_raster_file(layer) for layer in layers))

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the rasters' places, in the thread that they belong to; nothing has been checked when a script calls."""
        del feedback
        self.check_values(parameters, context)
        self._files = self._rasters(parameters, context)
        self._title = self.given_raster(parameters, "INPUT", context).name()
        truth = self.parameterAsRasterLayer(parameters, "LABEL_RASTER", context)
        self._truth = plain_raster_file(truth) if truth is not None else ""
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Run the engine."""
        feedback = feedback or QgsProcessingFeedback()
        done = self.run_command(self._words(parameters, context, feedback), feedback)
        if not isinstance(done, Done):
            raise QgsProcessingException(tr("The engine gave no figures. Update it."))
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
        others = len(self._files) - 1
        what = tr("{name} and {count} more").format(name=self._title, count=others) if others else self._title
        subtitle = tr("{model} on {scene}").format(model=Path(model).name, scene=what) if model else what
        return figures_html(done.values, title=tr("Evaluation"), subtitle=subtitle)

    def _words(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> list[str]:
        def text(name: str) -> str:
            return self.parameterAsString(parameters, name, context).strip()

        use, field = self.model_use(parameters, context), text("FIELD")
        words = ["evaluate", *use.arguments()] if use.model else ["evaluate", *self._files]
        words += [f"--images={glob.escape(path)}" for path in self._files] if use.model else []
        words += as_words(
            [
                ("--labels", self._truth or self._polygons(parameters, "LABELS", context, feedback, field=field)),
                ("--label-field", LABEL_FIELD if field and not self._truth else ""),
                ("--label-class", text("LABEL_CLASS") if not field else ""),
                ("--background", text("BACKGROUND")),
                ("--aoi", self._polygons(parameters, "AREA", context, feedback) if parameters.get("AREA") else ""),
                *(("--remap", entry) for entry in _remaps(text("REMAP"))),
                *(("--class", name) for name in use.classes.split(",") if not use.model),
            ]
        )
        return words + (["--force"] if use.model and self.parameterAsBool(parameters, "FORCE", context) else [])

    def _polygons(
        self, parameters: Parameters, name: str, context: QgsProcessingContext, feedback: QgsProcessingFeedback,
        *, field: str = "",
    ) -> str:  # fmt: skip
        source = self.given_polygons(parameters, name, context)
        path = Path(QgsProcessingUtils.generateTempFilename(f"{name.lower()}.gpkg"))
        if not write_labels(source, path, context, feedback, field=field):
            if field:
                raise QgsProcessingException(
                    tr("{name} holds no polygon with a value in '{field}'.").format(name=name, field=field)
                )
            raise QgsProcessingException(tr("{name} holds no polygon, or none is selected.").format(name=name))
        return str(path)


def _remaps(text: str) -> list[str]:
    """'VALUE=CLASS' of each entry."""
    pairs = [entry.partition("=") for entry in text.split(",") if entry.strip()]
    if not all(value.strip() and name.strip() for value, _, name in pairs):
        raise QgsProcessingException(
            tr("{text!r} can't be read: write house=building, cloud=ignore.").format(text=text)
        )
    return [f"{value.strip()}={name.strip()}" for value, _, name in pairs]
