# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters of Processing in short, and what several algorithms ask in the same words."""

from __future__ import annotations

from typing import Optional, Sequence

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterBand,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterNumber,
    QgsProcessingParameterString,
)

from .model_use import OUTPUT_KINDS, PROVIDERS, RESAMPLINGS, STITCHES, VIEWS
from .words import tr

Described = tuple[QgsProcessingParameterDefinition, str]
"""A parameter, and the help that its tooltip shows."""
POLYGONS = [QgsProcessing.TypeVectorPolygon]


def number(
    name: str, label: str, default: Optional[float] = None, *, lowest: float, highest: Optional[float] = None,
    whole: bool = True,
) -> QgsProcessingParameterNumber:  # fmt: skip
    """A number, optional where it has no default."""
    kinds = QgsProcessingParameterNumber.Type
    limits = (lowest,) if highest is None else (lowest, highest)
    kind = kinds.Integer if whole else kinds.Double
    return QgsProcessingParameterNumber(name, label, kind, default, default is None, *limits)


def choice(name: str, label: str, options: Sequence[str]) -> QgsProcessingParameterEnum:
    """One of several words of the engine; the first by default. Stored as that word, so that more may follow."""
    return QgsProcessingParameterEnum(name, label, list(options), False, options[0], False, True)


def text(name: str, label: str) -> QgsProcessingParameterString:
    """An optional text."""
    return QgsProcessingParameterString(name, label, None, False, True)


def polygons(name: str, label: str, *, optional: bool = True) -> QgsProcessingParameterFeatureSource:
    """Polygons of a layer."""
    return QgsProcessingParameterFeatureSource(name, label, POLYGONS, None, optional)


def page(name: str, label: str, pattern: str, *, by_default: bool) -> QgsProcessingParameterFileDestination:
    """An optional file for what was found."""
    return QgsProcessingParameterFileDestination(name, label, pattern, None, True, by_default)


def model(label: str) -> QgsProcessingParameterFile:
    """An optional model file."""
    return QgsProcessingParameterFile("MODEL", label, optional=True, fileFilter=model_filter())


def model_filter() -> str:
    """Of dialogs that look for a model."""
    return f"{tr('Models')} (*.onnx *.emd *.json);;{tr('All files')} (*)"


def model_or_demo() -> Described:
    """The model, the demo model by default."""
    return model(tr("Model (empty: the demo model)")), tr(
        "An ONNX file of cegate-geo, Deepness, GeoDeep or geoai, an .emd of ArcGIS (ONNX only), or a STAC item of a "
        "model. The help says more."
    )


def bands() -> Described:
    """Bands of INPUT for the model."""
    label = tr("Bands (empty: as the model says)")
    return QgsProcessingParameterBand("BANDS", label, None, "INPUT", True, True), tr(
        "Bands of the scene in the order that the model wants, for example red, green, blue."
    )


def nodata() -> Described:
    """Value of holes."""
    return text("NODATA", tr("Nodata value (where the file has none)")), tr(
        "Value of pixels without data, for scenes whose holes carry no flag: 255, or one a band: 255,255,255."
    )


def resample() -> Described:
    """Whether the model sees the scene at its own pixel size."""
    return choice("RESAMPLE", tr("Resample the scene"), RESAMPLINGS), tr(
        "Whether the model sees the scene at its own pixel size. 'auto': where the scene's is outside its range."
    )


def force() -> Described:
    """Whether to use a scene whose pixels are far off."""
    label = tr("Run even if the pixel size is far from the model's")
    return QgsProcessingParameterBoolean("FORCE", label, False), tr(
        "The engine refuses scenes whose pixels are more than 8 times too large or too small for the model."
    )


def tiling() -> list[Described]:
    """How a scene is cut into tiles and put together."""
    return [
        (
            number("TILE_SIZE", tr("Tile size [px]"), lowest=16),
            tr(
                "Pixels along each side of what the model sees at once, where the model leaves it free. Empty: its own."
            ),
        ),
        (
            number("HALO", tr("Halo [px]"), lowest=0),
            tr("Context on each side of a tile. More is smoother and slower. Empty: the model's own."),
        ),
        (
            choice("STITCH", tr("Seams of tiles"), STITCHES),
            tr(
                "'blend' fades the probabilities of neighbouring tiles into each other; 'crop' cuts between them, "
                "faster, with seams."
            ),
        ),
        (
            choice("TTA", tr("Views of each tile"), VIEWS),
            tr(
                "'flips' takes the mean of 4 mirrored views of each tile, 'd4' of 8 mirrored and turned ones: "
                "smoother, "
                "and 4 or 8 times slower."
            ),
        ),
    ]


def computing() -> list[Described]:
    """What computes."""
    return [
        (
            choice("PROVIDER", tr("Run on"), PROVIDERS),
            tr("What computes: 'auto' takes the best that is there, and the log says which one ran."),
        ),
        (
            QgsProcessingParameterBoolean("REQUIRE_GPU", tr("Fail rather than run on the CPU"), False),
            tr("Without it a GPU that can't be used is left out, and the log says why."),
        ),
        (number("THREADS", tr("Threads"), lowest=1), tr("Threads of the model. Empty: all cores.")),
    ]


def contract() -> list[Described]:
    """What a bare ONNX file does not say of itself."""
    return [
        (
            text("CLASSES", tr("Bare model: names of its classes")),
            tr("For an ONNX file that says nothing of itself: names with commas between, in the order of its output."),
        ),
        *scaling(),
    ]


def scaling() -> list[Described]:
    """The same but for the names of the classes."""
    return [
        (
            text("SCALE", tr("Bare model: divide values by")),
            tr(
                "For an ONNX file that says nothing of itself: one number, or one a band with commas between; for 8 "
                "bits mostly 255."
            ),
        ),
        (
            text("MEAN", tr("Bare model: then subtract")),
            tr("The same: mean of each band in the training of the model, for instance 0.485,0.456,0.406."),
        ),
        (
            text("STD", tr("Bare model: then divide by")),
            tr("The same: standard deviation of each band, for instance 0.229,0.224,0.225."),
        ),
        (
            number("MODEL_GSD", tr("Bare model: metres per pixel"), lowest=0.0001, whole=False),
            tr("The same: pixel size that it was trained at. Empty: the scene is used as it is."),
        ),
        (
            choice("OUTPUT_KIND", tr("Bare model: what it gives"), OUTPUT_KINDS),
            tr("The same: probabilities, logits or class ids. 'auto': as its values show."),
        ),
        (
            number("THRESHOLD", tr("Least probability"), lowest=0, highest=1, whole=False),
            tr("What any class but the first needs to win. Empty: as the model says, else the most probable class."),
        ),
    ]
