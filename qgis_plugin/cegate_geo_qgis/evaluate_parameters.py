# SPDX-License-Identifier: GPL-2.0-or-later
"""The parameters of Evaluate, with their help. Names never change: saved models and scripts hold them."""

from __future__ import annotations

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterField,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterRasterLayer,
)

from . import parameters as ask
from .parameters import Described
from .words import mark, tr

HELP = mark("""
<p>Compares a class map with labels, pixel by pixel, and gives the figures of the field: intersection over union, F1,
precision and recall of each class, their mean IoU, accuracy, and which class was taken for which.</p>
<h3>What is evaluated</h3>
<p><b>Without a model</b>, the raster is a class map, for instance of <i>Segment raster</i>. <b>With a model</b>, it is
a scene: it is segmented first, only where it has to be, and nothing of that is kept. Further rasters count into the
same figures.</p>
<h3>Labels</h3>
<p>Polygons in any CRS with a field of class names or ids, or a class raster on exactly the same grid. Pixels without
label or prediction do not count. Where no polygon is, the ground is <b>background</b>; "ignore" leaves it out, for
labels that are only examples.</p>
<p>A few polygons of your own, drawn where the model was not trained, tell more than any figure in its card.</p>
""")


def inputs() -> list[Described]:
    """What everybody looks at."""
    return [
        (
            QgsProcessingParameterRasterLayer("INPUT", tr("Class map, or with a model the scene")),
            tr("A raster file. With a model it is segmented first; without, it holds class ids already."),
        ),
        (
            ask.model(tr("Model")),
            tr("Evaluate what this model says of the scene. Empty: the raster is a class map."),
        ),
        (
            ask.polygons("LABELS", tr("Labels: polygons")),
            tr("Polygons of what is really there, in any CRS. A selection or a filter counts."),
        ),
        (
            QgsProcessingParameterField("FIELD", tr("Field with the class"), None, "LABELS", optional=True),
            tr("Class names or ids. Empty: every polygon is of one class."),
        ),
        (
            QgsProcessingParameterRasterLayer("LABEL_RASTER", tr("Labels: class raster"), None, True),
            tr("Instead of polygons: class ids on exactly the same grid."),
        ),
        (
            ask.text("BACKGROUND", tr("Class where no polygon is")),
            tr("Name or id of a class, or 'ignore' where the polygons are only examples. Empty: the first class."),
        ),
        (
            ask.polygons("AREA", tr("Area that is labelled")),
            tr("Polygons: what lies outside of them does not count."),
        ),
    ]


def advanced() -> list[Described]:
    """What is folded away."""
    return [
        (
            QgsProcessingParameterMultipleLayers(
                "MORE", tr("Further class maps or scenes"), QgsProcessing.TypeRaster, None, True
            ),
            tr("Raster files that count into the same figures, with the same polygons as labels."),
        ),
        (
            ask.text("LABEL_CLASS", tr("Class of the polygons")),
            tr("For polygons without a field. Empty: the last class."),
        ),
        (
            ask.text("REMAP", tr("Values of the labels that mean another class")),
            tr("VALUE=CLASS with commas between: house=building, cloud=ignore."),
        ),
        (
            ask.text("CLASSES", tr("Names of the classes")),
            tr("For a class map or a model that does not name them: names with commas between, for 0, 1, 2 and so on."),
        ),
        ask.bands(),
        ask.nodata(),
        ask.resample(),
        ask.force(),
        *ask.scaling(),
    ]


def results() -> list[Described]:
    """Where the figures go."""
    return [
        (
            ask.page("HTML", tr("Report"), "HTML (*.html)", by_default=True),
            tr("The figures as a page, shown in the Results Viewer."),
        ),
        (
            ask.page("JSON", tr("Figures"), "JSON (*.json)", by_default=False),
            tr("The figures as a file for programs."),
        ),
    ]
