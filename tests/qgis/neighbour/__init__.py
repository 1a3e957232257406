"""Another plugin of the user's, with an algorithm that says how the world of QGIS' plugins looks.

Also in the middle of a run of Segment raster, and after it: a plugin that changes it for others is seen.
"""

# ruff: noqa: N802, the names are QGIS'

from __future__ import annotations

import hashlib
import json
import locale
import os
import signal
import sys
import time
from pathlib import Path

import processing
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsPointXY,
    QgsProcessingAlgorithm,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterString,
    QgsProcessingProvider,
    QgsProject,
)
from qgis.PyQt.QtCore import QCoreApplication

SEGMENT = "cegate_geo:segment_raster"


def look(scene: str) -> dict:
    """What other plugins see and use: Python, numpy, GDAL with its arrays, PROJ, Processing."""
    import numpy
    from osgeo import gdal, gdal_array, osr

    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32618)
    change = QgsCoordinateTransform(
        QgsCoordinateReferenceSystem("EPSG:4326"), QgsCoordinateReferenceSystem("EPSG:32618"), QgsProject.instance()
    )
    there = change.transform(QgsPointXY(-76.0, 24.5))
    statistics = processing.run("native:rasterlayerstatistics", {"INPUT": scene, "BAND": 1})
    copied = processing.run("gdal:translate", {"INPUT": scene, "OUTPUT": "TEMPORARY_OUTPUT"})["OUTPUT"]
    values = gdal_array.LoadFile(scene)
    return {
        "python": [sys.executable, sys.version, list(sys.path), sys.getswitchinterval()],
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [str(signal.getsignal(kind)) for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "numpy": [numpy.__version__, numpy.__file__, str(numpy.geterr())],
        "gdal": [gdal.VersionInfo(), gdal.__file__, gdal.GetCacheMax(), gdal.GetUseExceptions(), gdal.GetDriverCount()],
        "settings": [gdal.GetConfigOption(name) for name in ("GDAL_DATA", "GDAL_CACHEMAX", "PROJ_LIB", "CPL_DEBUG")],
        "array": [str(values.dtype), values.shape, hashlib.sha256(values.tobytes()).hexdigest()],
        "proj": [reference.GetAuthorityCode(None), osr.GetPROJSearchPaths(), there.x(), there.y()],
        "native": [statistics["MEAN"], statistics["MAX"]],
        "copied": hashlib.sha256(gdal_array.LoadFile(copied).tobytes()).hexdigest(),
        "strangers": sorted(
            name for name in sys.modules if name.partition(".")[0] in ("rasterio", "onnxruntime", "torch")
        ),
    }


class Look(QgsProcessingAlgorithm):
    """`neighbour:look`."""

    def name(self):
        return "look"

    def displayName(self):
        return "Look"

    def group(self):
        return ""

    def groupId(self):
        return ""

    def createInstance(self):
        return Look()

    def initAlgorithm(self, configuration=None):
        for name in ("SCENE", "REPORT", "LARGE", "MODEL", "MASK"):
            self.addParameter(QgsProcessingParameterString(name, name, "", False, True))

    def processAlgorithm(self, parameters, context, feedback):
        given = {name: self.parameterAsString(parameters, name, context) for name in parameters}
        seen = {"before": look(given["SCENE"])}
        if given.get("LARGE"):
            large = {"INPUT": given["LARGE"], "MODEL": given["MODEL"], "OUTPUT": given["MASK"]}
            seen["during"] = while_it_runs(large, lambda: look(given["SCENE"]))
            seen["after"] = look(given["SCENE"])
        Path(given["REPORT"]).write_text(json.dumps(seen))
        return {}


def while_it_runs(parameters, act):
    """Start Segment raster in the background, do something in the middle, and cancel it."""
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(SEGMENT)
    context, feedback = QgsProcessingContext(), QgsProcessingFeedback()
    task = QgsProcessingAlgRunnerTask(algorithm, parameters, context, feedback)
    QgsApplication.taskManager().addTask(task)
    begun = Path(parameters["OUTPUT"]).parent
    wait(lambda: not task.isActive() or any(begun.iterdir()))
    seen = act()
    if not task.isActive():
        raise QgsProcessingException(f"It had ended before: {feedback.textLog()}")
    task.cancel()
    wait(lambda: not task.isActive())
    return seen


def wait(until):
    end = time.monotonic() + 120
    while not until():
        if time.monotonic() > end:
            raise QgsProcessingException("it never came to this")
        QCoreApplication.processEvents()
        time.sleep(0.02)


class Provider(QgsProcessingProvider):
    """`neighbour`."""

    def id(self):
        return "neighbour"

    def name(self):
        return "Neighbour"

    def loadAlgorithms(self):
        self.addAlgorithm(Look())


class Plugin:
    """Adds the provider."""

    def __init__(self):
        self.provider = None

    def initProcessing(self):
        self.provider = Provider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self):
        self.initProcessing()

    def unload(self):
        QgsApplication.processingRegistry().removeProvider(self.provider)


def classFactory(iface):
    return Plugin()
