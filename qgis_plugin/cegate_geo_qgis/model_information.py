# SPDX-License-Identifier: GPL-2.0-or-later
"""Model information: the card of a model, by the engine's `info`."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
)

from . import parameters as ask
from .engine_algorithm import EngineAlgorithm, Parameters, write_page
from .model_card import card_html, card_lines, read_card
from .outcome import EngineError
from .words import mark, tr

DEMO_MODEL = "buildings-drone-15cm"
"""Name of the model that comes with the engine."""
HELP = mark("""
<p>Shows what a model is: its classes with colours, the pixel size and the bands that it was made for, its licence and
whom to name.</p>
<p>Any model that <i>Segment raster</i> takes can be asked: those of cegate-geo, Deepness, GeoDeep, geoai, an ArcGIS
definition (.emd) or a STAC item of the MLM extension. Of a model of another tool the card says where each part was
found.</p>
""")


class ModelInformation(EngineAlgorithm):
    """`cegate_geo:model_information`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "model_information"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return tr("Model information")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return tr("model,card,onnx,classes,legend,licence,info,metadata,stac,mlm").split(",")

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return tr("Classes, pixel size, bands, licence and attribution of a model.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return self.help_text(HELP)

    def createInstance(self) -> ModelInformation:
        """A fresh one for each run."""
        return ModelInformation()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        self.declare(
            [
                ask.model_or_demo(),
                (
                    ask.page("HTML", tr("Card"), "HTML (*.html)", by_default=True),
                    tr("The card as a page, shown in the Results Viewer."),
                ),
            ]
        )
        for name, label in (
            ("NAME", tr("Name")), ("CLASSES", tr("Classes")), ("BANDS", tr("Bands")), ("LICENCE", tr("Licence")),
        ):  # fmt: skip
            self.addOutput(QgsProcessingOutputString(name, label))
        self.addOutput(QgsProcessingOutputNumber("GSD", tr("Metres per pixel")))

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """What can't work, before anything runs."""
        self.given_file(parameters, "MODEL", context)

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
