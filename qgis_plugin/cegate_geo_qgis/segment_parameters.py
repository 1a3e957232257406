# SPDX-License-Identifier: GPL-2.0-or-later
"""The parameters of Segment raster, with their help. Names never change: saved models and scripts hold them."""

from __future__ import annotations

from qgis.core import (
    QgsProcessingParameterBoolean,
    QgsProcessingParameterExtent,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorDestination,
)

from . import parameters as ask
from .parameters import POLYGONS, Described
from .predict_job import GRIDS
from .words import mark, tr

HELP = mark("""
<p>Gives each pixel of a scene a class, by an ONNX model. The scene may be of any size: it is read in tiles whose seams
are blended, with bounded memory. Pixels that are too large or too small for the model are resampled as they are read.
The result lies on the scene's own grid, unless asked otherwise. A cancelled or failed run leaves no result
behind.</p>
<h3>Model</h3>
<p>A model that cegate-geo exported carries what it needs: classes with colours, bands, pixel size, tile size.
Segmentation models of Deepness, GeoDeep and geoai run too, by what their files say, and so do an ArcGIS definition
(.emd, ONNX only) and a STAC item of the MLM extension that lies beside its ONNX file. What such a file leaves open is
assumed, and the log says so. An ONNX file that says nothing of itself needs the parameters <b>Bare model</b>: the names
of its classes and its scaling at least. Left empty, the engine's demo model is used: building footprints in drone
imagery of 13 to 15 cm. <i>Check model</i> tells on a few tiles whether a model suits a scene.</p>
<h3>Results</h3>
<p><b>Class map</b>: a GeoTIFF with class names and colours; 255 is nodata.<br>
<b>Polygons</b>: one for each connected area, with class, name, area in m² and mean confidence.<br>
<b>Confidence</b>: 0 to 255 for a probability of the winning class of 0 to 1.<br>
<b>Probabilities</b>: the same for each class, a band each.</p>
<h3>Engine</h3>
<p>The work is done by <i>cegate-geo</i> in a process of its own, installed apart from QGIS by <b>Set up the engine</b>.
Another one is named under Settings &gt; Options &gt; Processing &gt; Providers &gt; CEGate-Geo.</p>
""")


def inputs() -> list[Described]:
    """What everybody looks at."""
    return [
        (
            QgsProcessingParameterRasterLayer("INPUT", tr("Scene")),
            tr("A raster file, also a virtual raster or a file in the cloud, or a web map with an extent."),
        ),
        ask.model_or_demo(),
        ask.bands(),
        (
            ask.polygons("AOI", tr("Area of interest")),
            tr("Polygons, in any CRS: only what lies inside is segmented, the rest becomes nodata."),
        ),
        (
            QgsProcessingParameterExtent("EXTENT", tr("Extent"), None, True),
            tr("Only this part of the scene, and a result of that size. Web maps (XYZ, WMS) are fetched for it."),
        ),
        ask.nodata(),
    ]


def advanced() -> list[Described]:
    """What is folded away."""
    return [
        *ask.computing(),
        (
            ask.choice("GSD", tr("Grid of the results"), GRIDS),
            tr("'source': the scene's own pixels; 'model': pixels of the size that the model was made for."),
        ),
        ask.resample(),
        *ask.tiling(),
        (
            QgsProcessingParameterBoolean("INVERT_AOI", tr("Segment outside of the area of interest"), False),
            tr("What lies inside of the polygons becomes nodata instead: clouds, for instance, or water."),
        ),
        (
            ask.number("PIXEL_SIZE", tr("Pixel size of a web map [m]"), lowest=0.001, whole=False),
            tr(
                "Metres on the ground for a pixel of a web map, which has none of its own. Empty: what the model wants."
            ),
        ),
        (
            ask.number("BATCH_SIZE", tr("Tiles at a time"), lowest=1),
            tr("Tiles for one call of the model. Empty: chosen by the engine."),
        ),
        (
            ask.number("MAX_MEMORY", tr("Memory limit [MB]"), lowest=64),
            tr("What the engine's buffers may take. Empty: 512 MB."),
        ),
        *_polygons(),
        *ask.contract(),
        ask.force(),
        (
            QgsProcessingParameterBoolean("OVERWRITE", tr("Overwrite existing files"), True),
            tr("Otherwise the engine refuses to write where a file is already."),
        ),
        (
            ask.text("EXTRA", tr("Further options")),
            tr(
                "Options of 'cegate-geo predict' that have no parameter here, as they would be typed: --shard-rows 8192"
            ),
        ),
    ]


def _polygons() -> list[Described]:
    return [
        (
            ask.number("MIN_AREA", tr("Merge polygons smaller than [m²]"), lowest=0, whole=False),
            tr("Smaller ones go to the neighbour with the longest shared edge. The class map stays as it is."),
        ),
        (
            ask.number("SIMPLIFY", tr("Simplify polygons by [m]"), lowest=0, whole=False),
            tr(
                "How far outlines may move to have fewer points. Neighbours still share their edges. Metres; pixels "
                "where the scene does not say how large they are."
            ),
        ),
        (
            ask.text("VECTOR_CLASSES", tr("Classes of the polygons")),
            tr("Names or ids with commas between, for example: building. Empty: all."),
        ),
    ]


def results() -> list[Described]:
    """Where results go."""
    return [
        (
            QgsProcessingParameterRasterDestination("OUTPUT", tr("Class map")),
            tr("A cloud-optimised GeoTIFF on the scene's grid, with class colours and names."),
        ),
        (
            QgsProcessingParameterVectorDestination("VECTOR", tr("Polygons"), POLYGONS[0], None, True, False),
            tr("GeoPackage or FlatGeobuf."),
        ),
        (
            QgsProcessingParameterRasterDestination("CONFIDENCE", tr("Confidence"), None, True, False),
            tr("How sure the model is of the winning class."),
        ),
        (
            QgsProcessingParameterRasterDestination("PROBABILITIES", tr("Probabilities"), None, True, False),
            tr("The probability of each class, a band each, from 0 to 255."),
        ),
    ]
