# SPDX-License-Identifier: GPL-2.0-or-later
"""The parameters of Adapt model, with their help. Names never change: saved models and scripts hold them."""

from __future__ import annotations

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterString,
)

from . import parameters as ask
from .adapt_job import DEVICES, HEADS, SHIPPED
from .parameters import Described
from .words import mark, tr

HELP = mark("""
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
""")


def inputs() -> list[Described]:
    """What everybody looks at."""
    return [
        (
            QgsProcessingParameterMultipleLayers("IMAGES", tr("Scenes"), QgsProcessing.TypeRaster),
            tr("Raster files with the bands that the model shall take; all of one type of values."),
        ),
        (
            ask.polygons("LABELS", tr("Labels"), optional=False),
            tr("Polygons drawn on the scenes, in any CRS. A selection, a filter and unsaved edits count."),
        ),
        (
            QgsProcessingParameterField("FIELD", tr("Field with the class"), None, "LABELS"),
            tr("Class names, or whole numbers that become the ids of the classes."),
        ),
        (
            ask.text("BACKGROUND", tr("Background: class where no polygon is")),
            tr("Empty: only what was drawn counts. A name, for instance 'other': all the rest is of this class."),
        ),
        (
            ask.polygons("AREA", tr("Area that is labelled")),
            tr("Polygons: the rest of the scenes is not learned from. Goes with Background."),
        ),
        (
            QgsProcessingParameterMultipleLayers("TARGETS", tr("Target scenes"), QgsProcessing.TypeRaster, None, True),
            tr("Unlabelled raster files of what the model is meant for: other places, seasons, sensors."),
        ),
        (
            ask.number("STEPS", tr("Steps"), 1000, lowest=1),
            tr("How long it learns. 200 give a first idea, 1000 a model, more helps with many labels."),
        ),
    ]


def advanced() -> list[Described]:
    """What is folded away."""
    return [
        (
            ask.text("BANDS", tr("Bands")),
            tr(
                "Numbers from 1, or names, with commas between: 1,2,3,4 or B4,B3,B2,B8. Three numbers are red, green, "
                "blue. Empty: 1,2,3."
            ),
        ),
        (
            ask.text("NODATA", tr("Nodata value")),
            tr("Value of holes in the scenes that carry no flag: 255, or one a band: 255,255,255."),
        ),
        *_base(),
        *_training(),
        (
            ask.choice("DEVICE", tr("Train on"), DEVICES),
            tr("'auto' takes a GPU where torch finds one."),
        ),
        (
            QgsProcessingParameterBoolean("RESUME", tr("Resume the run in the folder"), False),
            tr("Goes on where it was cancelled, with that run's own labels and settings."),
        ),
        (
            QgsProcessingParameterBoolean("OPEN_REPORT", tr("Open the report at the end"), True),
            tr("In the browser; only where there is a window."),
        ),
    ]


def _base() -> list[Described]:
    return [
        (
            QgsProcessingParameterString("BACKBONE", tr("Base model"), SHIPPED),
            tr(
                "'shipped': the small base of the engine. Else a name of timm, for instance "
                "vit_small_patch14_dinov2.lvd142m, fetched from its hub."
            ),
        ),
        (
            QgsProcessingParameterFile("WEIGHTS", tr("Weights of the base model"), optional=True),
            tr("A file with the weights of a base model of timm, instead of the hub."),
        ),
        (
            ask.choice("HEAD", tr("Head"), HEADS),
            tr(
                "'dpt-detail' draws the finest outlines with the small base; 'dpt-unet' looks at fine detail with a "
                "network of its own; 'dpt' and 'upernet' are for large backbones; 'linear' is the fastest."
            ),
        ),
        (
            ask.number("TILE_SIZE", tr("Tile size [px]"), 384, lowest=64),
            tr("Pixels along each side of what the model sees at once, in training and later."),
        ),
    ]


def _training() -> list[Described]:
    return [
        (
            ask.number("BUDGET", tr("Budget"), 1.0, lowest=0.01, highest=1.0, whole=False),
            tr("Share of the modules that may learn at a time; below 1 Fisher information chooses which."),
        ),
        (ask.number("BATCH_SIZE", tr("Chips in a step"), 4, lowest=1), tr("Fewer need less memory.")),
        (
            ask.number("LR", tr("Learning rate of the modules"), None, lowest=0.0, whole=False),
            tr("Empty: 0.001 for the small base, 0.00005 for others."),
        ),
        (
            ask.number("HEAD_LR", tr("Learning rate of the head"), None, lowest=0.0, whole=False),
            tr("Empty: 0.002 for the small base, else as the modules'."),
        ),
        (
            ask.number("VALIDATION", tr("Share held out"), 0.15, lowest=0.0, highest=0.9, whole=False),
            tr("Part of the labelled area, in blocks, that the model is only tried on."),
        ),
        (ask.number("SEED", tr("Seed"), 0, lowest=0), tr("The same seed gives the same model.")),
    ]


def results() -> list[Described]:
    """Where the run goes."""
    return [
        (
            QgsProcessingParameterFolderDestination("RUN", tr("Folder of the run")),
            tr("Gets model.onnx, report.html and what Resume needs. Choose one that stays."),
        )
    ]
