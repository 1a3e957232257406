# SPDX-License-Identifier: GPL-2.0-or-later
"""Segment raster: a class map of a scene, by the engine's `predict`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Optional

from qgis.core import (
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterBand,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsRasterLayer,
    QgsRectangle,
)

from .engine_algorithm import EngineAlgorithm, Parameters
from .layers import ClassMapStyler, ConfidenceStyler, PolygonStyler, style_when_loaded
from .model_card import read_card
from .model_information import DEMO_MODEL
from .outcome import EngineError
from .predict_job import (
    GRIDS,
    PROVIDERS,
    RASTER_SUFFIXES,
    RESAMPLINGS,
    STITCHES,
    VECTOR_SUFFIXES,
    PredictJob,
    nodata_problem,
    remove_remains,
)
from .protocol import Result
from .raster_export import Snapshot, is_web_map, needs_export
from .sources import pixel_window, polygon_file, raster_source, raster_warnings, window_source, write_polygons

Definition = QgsProcessingParameterDefinition
HELP = """
<p>Gives each pixel of a scene a class, by an ONNX model. The scene may be of any size: it is read in tiles whose seams
are blended, with bounded memory. Pixels that are too large or too small for the model are resampled as they are read.
The result lies on the scene's own grid, unless asked otherwise. A cancelled or failed run leaves no result
behind.</p>
<h3>Model</h3>
<p>A model that cegate-geo exported carries what it needs: classes with colours, bands, pixel size, tile size.
Segmentation models of Deepness, GeoDeep and geoai run too, by what their files say, and so do an ArcGIS definition
(.emd, ONNX only) and a STAC item of the MLM extension that lies beside its ONNX file. What such a file leaves open is
assumed, and the log says so. An ONNX file that says nothing of itself is refused here: run it with cegate-geo predict,
whose options state its classes and its scaling. Left empty, the engine's demo model is used: building footprints in
drone imagery of 13 to 15 cm.</p>
<h3>Results</h3>
<p><b>Class map</b>: a GeoTIFF with class names and colours; 255 is nodata.<br>
<b>Polygons</b>: one for each connected area, with class, name, area in m² and mean confidence.<br>
<b>Confidence</b>: 0 to 255 for a probability of the winning class of 0 to 1.</p>
<h3>Engine</h3>
<p>The work is done by <i>cegate-geo</i> in a process of its own, installed apart from QGIS by <b>Set up the engine</b>.
Another one is named under Settings &gt; Options &gt; Processing &gt; Providers &gt; CEGate-Geo.</p>
""".replace("\n", " ").strip()
"""Without line ends: QGIS 3.22 makes a paragraph of each."""


def _number(name: str, label: str, *, lowest: float, whole: bool = True) -> QgsProcessingParameterNumber:
    kinds = QgsProcessingParameterNumber.Type
    kind = kinds.Integer if whole else kinds.Double
    return QgsProcessingParameterNumber(name, label, kind, None, True, lowest)


def _advanced() -> list[tuple[Definition, str]]:
    """The parameters that are folded away, with their help."""
    return [
        (
            QgsProcessingParameterEnum("PROVIDER", "Run on", PROVIDERS, False, "auto", False, True),
            "What computes: 'auto' takes the best that is there, and the log says which one ran.",
        ),
        (
            QgsProcessingParameterEnum("GSD", "Grid of the results", GRIDS, False, "source", False, True),
            "'source': the scene's own pixels; 'model': pixels of the size that the model was made for.",
        ),
        (
            QgsProcessingParameterEnum("RESAMPLE", "Resample the scene", RESAMPLINGS, False, "auto", False, True),
            "Whether the model sees the scene at its own pixel size. 'auto': where the scene's is outside its range.",
        ),
        (
            _number("TILE_SIZE", "Tile size [px]", lowest=16),
            "Pixels along each side of what the model sees at once, where the model leaves it free. Empty: its own.",
        ),
        (
            _number("HALO", "Halo [px]", lowest=0),
            "Context on each side of a tile. More is smoother and slower. Empty: the model's own.",
        ),
        (
            QgsProcessingParameterEnum("STITCH", "Seams of tiles", STITCHES, False, "blend", False, True),
            "'blend' fades the probabilities of neighbouring tiles into each other; 'crop' cuts between them, faster, "
            "with seams.",
        ),
        (
            _number("PIXEL_SIZE", "Pixel size of a web map [m]", lowest=0.001, whole=False),
            "Metres on the ground for a pixel of a web map, which has none of its own. Empty: what the model wants.",
        ),
        (
            _number("BATCH_SIZE", "Tiles at a time", lowest=1),
            "Tiles for one call of the model. Empty: chosen by the engine.",
        ),
        (_number("THREADS", "Threads", lowest=1), "Threads of the model. Empty: all cores."),
        (
            _number("MAX_MEMORY", "Memory limit [MB]", lowest=64),
            "What the engine's buffers may take. Empty: 512 MB.",
        ),
        (
            _number("MIN_AREA", "Merge polygons smaller than [m²]", lowest=0, whole=False),
            "Smaller ones go to the neighbour with the longest shared edge. The class map stays as it is.",
        ),
        (
            _number("SIMPLIFY", "Simplify polygons by [m]", lowest=0, whole=False),
            "How far outlines may move to have fewer points. Neighbours still share their edges. Metres; pixels where "
            "the scene does not say how large they are.",
        ),
        (
            QgsProcessingParameterString("VECTOR_CLASSES", "Classes of the polygons", "", False, True),
            "Names or ids with commas between, for example: building. Empty: all.",
        ),
        (
            QgsProcessingParameterBoolean("FORCE", "Run even if the pixel size is far from the model's", False),
            "The engine refuses scenes whose pixels are more than 8 times too large or too small for the model.",
        ),
        (
            QgsProcessingParameterBoolean("OVERWRITE", "Overwrite existing files", True),
            "Otherwise the engine refuses to write where a file is already.",
        ),
    ]


class SegmentRaster(EngineAlgorithm):
    """`cegate_geo:segment_raster`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "segment_raster"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return "Segment raster"

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return ["segmentation", "classification", "land cover", "buildings", "deep learning", "onnx", "predict", "mask"]

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return "Class map, polygons and confidence of a scene of any size, by an ONNX model."

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return HELP

    def createInstance(self) -> SegmentRaster:
        """A fresh one for each run."""
        return SegmentRaster()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        self.add(
            QgsProcessingParameterRasterLayer("INPUT", "Scene"),
            "A raster file, also a virtual raster or a file in the cloud, or a web map with an extent.",
        )
        self.add(
            QgsProcessingParameterFile(
                "MODEL",
                "Model (empty: the demo model)",
                optional=True,
                fileFilter="Models (*.onnx *.emd *.json);;All files (*)",
            ),
            "An ONNX file of cegate-geo, Deepness, GeoDeep or geoai, an .emd of ArcGIS (ONNX only), or a STAC item "
            "of a model. The help says more.",
        )
        self.add(
            QgsProcessingParameterBand("BANDS", "Bands (empty: as the model says)", None, "INPUT", True, True),
            "Bands of the scene in the order that the model wants, for example red, green, blue.",
        )
        polygons = QgsProcessing.TypeVectorPolygon
        self.add(
            QgsProcessingParameterFeatureSource("AOI", "Area of interest", [polygons], None, True),
            "Polygons, in any CRS: only what lies inside is segmented, the rest becomes nodata.",
        )
        self.add(
            QgsProcessingParameterExtent("EXTENT", "Extent", None, True),
            "Only this part of the scene, and a result of that size. Web maps (XYZ, WMS) are fetched for it.",
        )
        self.add(
            QgsProcessingParameterString("NODATA", "Nodata value (where the file has none)", None, False, True),
            "Value of pixels without data, for scenes whose holes carry no flag: 255, or one a band: 255,255,255.",
        )
        for parameter, text in _advanced():
            parameter.setFlags(parameter.flags() | Definition.FlagAdvanced)
            self.add(parameter, text)
        self.add(
            QgsProcessingParameterRasterDestination("OUTPUT", "Class map"),
            "A cloud-optimised GeoTIFF on the scene's grid, with class colours and names.",
        )
        self.add(
            QgsProcessingParameterVectorDestination("VECTOR", "Polygons", polygons, None, True, False),
            "GeoPackage or FlatGeobuf.",
        )
        self.add(
            QgsProcessingParameterRasterDestination("CONFIDENCE", "Confidence", None, True, False),
            "How sure the model is of the winning class.",
        )

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
        layer = self.parameterAsRasterLayer(parameters, "INPUT", context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, "INPUT"))
        source = layer.source() if needs_export(layer) else raster_source(layer)
        if is_web_map(layer) and not parameters.get("EXTENT"):
            raise QgsProcessingException(
                f"The layer '{layer.name()}' is a web map without an end: choose an Extent, for instance that of the "
                "map canvas. Or save it first: right click on the layer, Export, Save As."
            )
        extent = self._extent(parameters, layer, context)
        if extent is not None and not is_web_map(layer):
            pixel_window(layer, extent) if needs_export(layer) else window_source(layer, extent)
        model = self.parameterAsFile(parameters, "MODEL", context)
        if model and not Path(model).is_file():
            raise QgsProcessingException(f"The model {model} does not exist.")
        strange = [b for b in self.parameterAsInts(parameters, "BANDS", context) if not 1 <= b <= layer.bandCount()]
        if strange:
            raise QgsProcessingException(f"Band {strange[0]} does not exist: the scene has {layer.bandCount()}.")
        problem = nodata_problem(self.parameterAsString(parameters, "NODATA", context))
        if problem:
            raise QgsProcessingException(problem)
        places: dict[str, str] = {os.path.realpath(source): "the scene"}
        for name in ("OUTPUT", "VECTOR", "CONFIDENCE"):
            given = _destination(parameters.get(name))
            suffixes = VECTOR_SUFFIXES if name == "VECTOR" else RASTER_SUFFIXES
            if given and Path(given).suffix.lower()[1:] not in suffixes:
                raise QgsProcessingException(f"{name} {given}: the engine writes .{' and .'.join(suffixes)} only.")
            place = os.path.realpath(given or name)
            if place in places:
                raise QgsProcessingException(f"{name} would overwrite {places[place]}: choose another file.")
            places[place] = name

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the layers, in the thread that they belong to; nothing has been checked when a script calls."""
        self._check(parameters, context)
        layer = self.parameterAsRasterLayer(parameters, "INPUT", context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, "INPUT"))
        self._scene_name = layer.name()
        self._snapshot: Optional[Snapshot] = None
        extent = self._extent(parameters, layer, context)
        if needs_export(layer):
            self._snapshot = Snapshot(layer, extent)
        else:
            self._scene = raster_source(layer) if extent is None else window_source(layer, extent)
        if feedback is not None:
            for warning in raster_warnings(layer):
                feedback.pushWarning(warning)
        polygons = self.parameterAsVectorLayer(parameters, "AOI", context)
        self._aoi = polygon_file(parameters.get("AOI"), polygons)
        return True

    def processAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> dict[str, Any]:
        """Run the engine."""
        feedback = feedback or QgsProcessingFeedback()
        if self._snapshot is not None:
            size = self._web_pixel_size(parameters, context, feedback) if self._snapshot.is_web_map else None
            self._scene = self._snapshot.save(size, context, feedback)
        job = self._job(parameters, context, feedback)
        result = self.run_command(job.arguments(), feedback, after_crash=partial(remove_remains, job.output))
        if not isinstance(result, Result):
            raise QgsProcessingException(f"The engine answered as if to {result.command!r}. Update it.")
        self._report(result, feedback)
        outputs = {"OUTPUT": job.output, "VECTOR": job.vector, "CONFIDENCE": job.confidence}
        group = f"{self._scene_name}, {_short_name(job.model)}"
        stylers = {
            "OUTPUT": ClassMapStyler(result.classes, group=group),
            "VECTOR": PolygonStyler(result.classes, group=group),
            "CONFIDENCE": ConfidenceStyler(result.classes, group=group),
        }
        for name, path in outputs.items():
            definition = self.parameterDefinition(name)
            if path and definition is not None:
                label = definition.description()
                title = f"{self._scene_name}: {label.lower()}"
                style_when_loaded(context, path, stylers[name], name=title, default=label)
        return {name: path for name, path in outputs.items() if path}

    def _job(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> PredictJob:
        def whole(name: str) -> Optional[int]:
            return None if parameters.get(name) is None else self.parameterAsInt(parameters, name, context)

        def place(name: str) -> str:
            return self.parameterAsOutputLayer(parameters, name, context) if parameters.get(name) else ""

        vector = place("VECTOR")

        def metres(name: str) -> Optional[float]:
            return self.parameterAsDouble(parameters, name, context) if vector and parameters.get(name) else None

        return PredictJob(
            scene=self._scene,
            output=place("OUTPUT"),
            model=self.parameterAsFile(parameters, "MODEL", context),
            vector=vector,
            confidence=place("CONFIDENCE"),
            aoi=self._aoi or self._written_aoi(parameters, context, feedback),
            bands=tuple(self.parameterAsInts(parameters, "BANDS", context)),
            nodata=self.parameterAsString(parameters, "NODATA", context).replace(" ", ""),
            min_area_m2=metres("MIN_AREA"),
            simplify_m=metres("SIMPLIFY"),
            vector_classes=self.parameterAsString(parameters, "VECTOR_CLASSES", context).strip() if vector else "",
            provider=self.parameterAsEnumString(parameters, "PROVIDER", context),
            stitch=self.parameterAsEnumString(parameters, "STITCH", context),
            gsd=self.parameterAsEnumString(parameters, "GSD", context),
            resample=self.parameterAsEnumString(parameters, "RESAMPLE", context),
            tile_size=whole("TILE_SIZE"),
            halo=whole("HALO"),
            batch_size=whole("BATCH_SIZE"),
            threads=whole("THREADS"),
            max_memory_mb=whole("MAX_MEMORY"),
            overwrite=self.parameterAsBool(parameters, "OVERWRITE", context),
            force=self.parameterAsBool(parameters, "FORCE", context),
        )

    def _extent(
        self, parameters: Parameters, layer: QgsRasterLayer, context: QgsProcessingContext
    ) -> Optional[QgsRectangle]:
        """The extent in the layer's coordinates; None where none is given."""
        if not parameters.get("EXTENT"):
            return None
        return self.parameterAsExtent(parameters, "EXTENT", context, layer.crs())

    def _web_pixel_size(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> float:
        """Metres for a pixel of a web map: as given, else as the model wants."""
        if parameters.get("PIXEL_SIZE"):
            return self.parameterAsDouble(parameters, "PIXEL_SIZE", context)
        model = self.parameterAsFile(parameters, "MODEL", context) or DEMO_MODEL
        try:
            wanted = read_card(self.ask(["info", model, "--json"], feedback)).gsd_m
        except EngineError as error:
            raise QgsProcessingException(str(error)) from error
        if wanted is None:
            raise QgsProcessingException(
                "The model does not say what pixels it wants: give the pixel size of the web map."
            )
        return wanted

    def _written_aoi(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> str:
        if not parameters.get("AOI"):
            return ""
        source = self.parameterAsSource(parameters, "AOI", context)
        if source is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, "AOI"))
        if source.featureCount() == 0:
            raise QgsProcessingException("The area of interest holds no polygon (or none is selected).")
        return write_polygons(source, context, feedback)

    def _report(self, result: Result, feedback: QgsProcessingFeedback) -> None:
        skipped = f", {result.skipped_tiles} skipped as empty" if result.skipped_tiles else ""
        feedback.pushInfo(f"{result.tiles} tiles{skipped}, {result.seconds:.1f} s on {result.provider}")
        for item in result.classes:
            area = "" if item.area_m2 is None else f", {item.area_m2:,.0f} m²"
            feedback.pushInfo(f"  {item.id} {item.name}: {item.pixels:,} px{area}")


def _short_name(model: str) -> str:
    """A model's name for people: of 'model.onnx' in the folder of a run the folder's."""
    path = Path(model)
    if not model:
        return DEMO_MODEL
    return path.parent.name if path.stem == "model" and path.parent.name else path.stem


def _destination(value: Any) -> str:
    """The file that a destination names; empty for none and for a temporary one."""
    if isinstance(value, QgsProcessingOutputLayerDefinition):
        value = value.sink.staticValue()
    text = value if isinstance(value, str) else ""
    return "" if text == QgsProcessing.TEMPORARY_OUTPUT else text
