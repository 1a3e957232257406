# SPDX-License-Identifier: GPL-2.0-or-later
"""Model information: the card of a model, by the engine's `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
)

from .engine_algorithm import EngineAlgorithm, Parameters
from .model_card import card_html, card_lines, read_card
from .outcome import EngineError

DEMO_MODEL = "buildings-drone-15cm"
"""Name of the model that comes with the engine."""
MODEL_FILTER = "Models (*.onnx *.emd *.json);;All files (*)"
HELP = """
<p>Shows what a model is: its classes with colours, the pixel size and the bands that it was made for, its licence and
whom to name.</p>
<p>Any model that <i>Segment raster</i> takes can be asked: those of cegate-geo, Deepness, GeoDeep, geoai, an ArcGIS
definition (.emd) or a STAC item of the MLM extension. Of a model of another tool the card says where each part was
found.</p>
""".replace("\n", " ").strip()


class ModelInformation(EngineAlgorithm):
    """`cegate_geo:model_information`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "model_information"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return self.tr("Model information")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return ["model", "card", "onnx", "classes", "legend", "licence", "info", "metadata", "stac", "mlm"]

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return self.tr("Classes, pixel size, bands, licence and attribution of a model.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return HELP

    def createInstance(self) -> ModelInformation:
        """A fresh one for each run."""
        return ModelInformation()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        self.add(
            QgsProcessingParameterFile(
                "MODEL", self.tr("Model (empty: the demo model)"), optional=True, fileFilter=MODEL_FILTER
            ),
            self.tr("An ONNX file of cegate-geo, Deepness, GeoDeep or geoai, an .emd of ArcGIS, or a STAC item."),
        )
        self.add(
            QgsProcessingParameterFileDestination("HTML", self.tr("Card"), "HTML (*.html)", None, True, True),
            self.tr("The card as a page, shown in the Results Viewer."),
        )
        for name, label in (("NAME", "Name"), ("CLASSES", "Classes"), ("BANDS", "Bands"), ("LICENCE", "Licence")):
            self.addOutput(QgsProcessingOutputString(name, self.tr(label)))
        self.addOutput(QgsProcessingOutputNumber("GSD", self.tr("Metres per pixel")))

    def checkParameterValues(self, parameters: Parameters, context: QgsProcessingContext) -> tuple[bool, Optional[str]]:
        """What the dialog shows before anything runs."""
        ok, message = super().checkParameterValues(parameters, context)
        model = self.parameterAsFile(parameters, "MODEL", context)
        if ok and model and not Path(model).is_file():
            return False, f"The model {model} does not exist."
        return ok, message

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Ask the engine."""
        feedback = feedback or QgsProcessingFeedback()
        model = self.parameterAsFile(parameters, "MODEL", context) or DEMO_MODEL
        told = self.ask(["info", model, "--json"], feedback)
        try:
            card = read_card(told)
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        for line in card_lines(card):
            feedback.pushInfo(line)
        outputs: dict[str, Any] = {
            "NAME": card.name,
            "CLASSES": ",".join(c.name for c in card.classes),
            "BANDS": ",".join(card.bands),
            "LICENCE": card.licence,
            "GSD": card.gsd_m,
        }
        page = self.parameterAsFileOutput(parameters, "HTML", context) if parameters.get("HTML") else ""
        return {**outputs, "HTML": write_page(page, card_html(card))} if page else outputs


def write_page(path: str, text: str) -> str:
    """Write a page and give its path.

    Raises:
        QgsProcessingException: If it can't be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise QgsProcessingException(f"{path} can't be written: {error.strerror}.") from error
    return path
