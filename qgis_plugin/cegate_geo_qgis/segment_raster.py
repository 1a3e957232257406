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
    QgsRasterLayer,
    QgsRectangle,
)

from . import segment_parameters
from .engine_algorithm import EngineAlgorithm, Parameters
from .layers import ClassMapStyler, LevelStyler, PolygonStyler, style_when_loaded
from .model_card import read_card
from .model_information import DEMO_MODEL
from .outcome import EngineError
from .predict_job import RASTER_SUFFIXES, VECTOR_SUFFIXES, PredictJob, further_options, remove_remains
from .protocol import Result
from .raster_export import Snapshot, is_web_map, needs_export
from .sources import pixel_window, polygon_file, raster_source, raster_warnings, window_source, write_polygons
from .words import tr

RESULTS = ("OUTPUT", "VECTOR", "CONFIDENCE", "PROBABILITIES")


class SegmentRaster(EngineAlgorithm):
    """`cegate_geo:segment_raster`."""

    def name(self) -> str:
        """Never changes: saved models and scripts hold it."""
        return "segment_raster"

    def displayName(self) -> str:
        """Shown in the toolbox."""
        return tr("Segment raster")

    def tags(self) -> list[str]:
        """Words that find the algorithm in the toolbox."""
        return tr("segmentation,classification,land cover,buildings,deep learning,onnx,predict,mask").split(",")

    def shortDescription(self) -> str:
        """Shown as a tooltip."""
        return tr("Class map, polygons and confidence of a scene of any size, by an ONNX model.")

    def shortHelpString(self) -> str:
        """Shown beside the parameters."""
        return self.help_text(segment_parameters.HELP)

    def createInstance(self) -> SegmentRaster:
        """A fresh one for each run."""
        return SegmentRaster()

    def initAlgorithm(self, configuration: Optional[Parameters] = None) -> None:
        """Declare the parameters."""
        del configuration
        self.declare(segment_parameters.inputs())
        self.declare(segment_parameters.advanced(), advanced=True)
        self.declare(segment_parameters.results())

    def check_values(self, parameters: Parameters, context: QgsProcessingContext) -> None:
        """What can't work, before anything runs."""
        layer = self.given_raster(parameters, "INPUT", context)
        source = layer.source() if needs_export(layer, None) else raster_source(layer)
        if is_web_map(layer) and not parameters.get("EXTENT"):
            raise QgsProcessingException(
                tr(
                    "The layer '{name}' is a web map without an end: choose an Extent, for instance that of the map "
                    "canvas. Or save it first: right click on the layer, Export, Save As."
                ).format(name=layer.name())
            )
        extent = self._extent(parameters, layer, context)
        if extent is not None and not is_web_map(layer):
            pixel_window(layer, extent) if needs_export(layer, extent) else window_source(layer, extent)
        self.given_file(parameters, "MODEL", context)
        self.check_bands(parameters, layer, context)
        self.check_nodata(parameters, context)
        further_options(self.parameterAsString(parameters, "EXTRA", context))
        _check_places(parameters, source)

    def prepareAlgorithm(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> bool:
        """Read the layers, in the thread that they belong to; nothing has been checked when a script calls."""
        self.check_values(parameters, context)
        layer = self.given_raster(parameters, "INPUT", context)
        self._scene_name = layer.name()
        self._snapshot: Optional[Snapshot] = None
        extent = self._extent(parameters, layer, context)
        if needs_export(layer, extent):
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
            raise QgsProcessingException(
                tr("The engine answered as if to {command!r}. Update it.").format(command=result.command)
            )
        _report(result, feedback)
        return self._give(job, result, context)

    def _give(self, job: PredictJob, result: Result, context: QgsProcessingContext) -> dict[str, Any]:
        """The results, to be styled when QGIS loads them."""
        outputs = dict(zip(RESULTS, (job.output, job.vector, job.confidence, job.probabilities)))  # noqa: B905, 3.9
        group = f"{self._scene_name}, {_short_name(job.use.model)}"
        classes = result.classes
        stylers = {
            "OUTPUT": ClassMapStyler(classes, group=group),
            "VECTOR": PolygonStyler(classes, group=group),
            "CONFIDENCE": LevelStyler(classes, group=group),
            "PROBABILITIES": LevelStyler(classes, group=group, band=len(classes)),
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
        def place(name: str) -> str:
            return self.parameterAsOutputLayer(parameters, name, context) if parameters.get(name) else ""

        vector = place("VECTOR")

        def metres(name: str) -> Optional[float]:
            return self.parameterAsDouble(parameters, name, context) if vector and parameters.get(name) else None

        return PredictJob(
            scene=self._scene,
            output=place("OUTPUT"),
            use=self.model_use(parameters, context),
            vector=vector,
            confidence=place("CONFIDENCE"),
            probabilities=place("PROBABILITIES"),
            aoi=self._aoi or self._written_aoi(parameters, context, feedback),
            invert_aoi=self.parameterAsBool(parameters, "INVERT_AOI", context),
            min_area_m2=metres("MIN_AREA"),
            simplify_m=metres("SIMPLIFY"),
            vector_classes=self.parameterAsString(parameters, "VECTOR_CLASSES", context).strip() if vector else "",
            gsd=self.parameterAsEnumString(parameters, "GSD", context),
            batch_size=self.given_whole(parameters, "BATCH_SIZE", context),
            max_memory_mb=self.given_whole(parameters, "MAX_MEMORY", context),
            overwrite=self.parameterAsBool(parameters, "OVERWRITE", context),
            force=self.parameterAsBool(parameters, "FORCE", context),
            extra=further_options(self.parameterAsString(parameters, "EXTRA", context)),
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
                tr("The model does not say what pixels it wants: give the pixel size of the web map.")
            )
        return wanted

    def _written_aoi(
        self, parameters: Parameters, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> str:
        if not parameters.get("AOI"):
            return ""
        source = self.given_polygons(parameters, "AOI", context)
        if source.featureCount() == 0:
            raise QgsProcessingException(tr("The area of interest holds no polygon (or none is selected)."))
        return write_polygons(source, context, feedback)


def _check_places(parameters: Parameters, source: str) -> None:
    """Refuse results that the engine can't write, or that would lie on each other or on the scene."""
    places: dict[str, str] = {os.path.realpath(source): tr("the scene")}
    for name in RESULTS:
        given = _destination(parameters.get(name))
        suffixes = VECTOR_SUFFIXES if name == "VECTOR" else RASTER_SUFFIXES
        if given and Path(given).suffix.lower()[1:] not in suffixes:
            written = ", ".join(f".{suffix}" for suffix in suffixes)
            raise QgsProcessingException(
                tr("{name} {path}: the engine writes {suffixes} only.").format(name=name, path=given, suffixes=written)
            )
        place = os.path.realpath(given or name)
        if place in places:
            raise QgsProcessingException(
                tr("{name} would overwrite {other}: choose another file.").format(name=name, other=places[place])
            )
        places[place] = name


def _report(result: Result, feedback: QgsProcessingFeedback) -> None:
    feedback.pushInfo(
        tr("{tiles} tiles, {skipped} skipped as empty, {seconds:.1f} s on {provider}").format(
            tiles=result.tiles, skipped=result.skipped_tiles, seconds=result.seconds, provider=result.provider
        )
    )
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
    given = value if isinstance(value, str) else ""
    return "" if given == QgsProcessing.TEMPORARY_OUTPUT else given
