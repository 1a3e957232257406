# SPDX-License-Identifier: GPL-2.0-or-later
"""QGIS layers as files for the engine: what is passed on as it is, written first, or refused."""

from __future__ import annotations

from math import ceil, floor
from pathlib import Path
from typing import Any, Mapping, Optional

from qgis.core import (
    QgsFeature,
    QgsFeatureRequest,
    QgsField,
    QgsFields,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSource,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QVariant

from .words import tr

EDGE = 1e-6
"""Share of a pixel by which an extent may miss its edge through rounding."""
LABEL_FIELD = "class"
"""Field with the class in the labels that are written for the engine."""
PLAIN_VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb")


def _decode(provider: str, uri: str) -> dict[str, Any]:
    registry = QgsProviderRegistry.instance()
    if registry is None:
        return {}
    return {key: value for key, value in registry.decodeUri(provider, uri).items() if key is not None}


def raster_source(layer: QgsRasterLayer) -> str:
    """What GDAL opens for this layer: a path, a `/vsi` path, a subdataset.

    Raises:
        QgsProcessingException: If the layer is no file, or is opened with options that a path can't carry.
    """
    provider = layer.providerType()
    if provider != "gdal":
        what = (
            tr("comes from the web or a database")
            if provider in ("wms", "wcs", "postgresraster")
            else tr("is made by QGIS")
        )
        raise QgsProcessingException(
            tr(
                "The layer '{name}' {what} (provider '{provider}'): the engine reads raster files. Save "
                "it first: right click on the layer, Export, Save As, and use the file."
            ).format(name=layer.name(), what=what, provider=provider)
        )
    source = layer.source()
    if "/vsimem/" in source or source.startswith("MEM:::"):
        raise QgsProcessingException(
            tr(
                "The layer '{name}' lies in QGIS' memory, where the engine can't see it. Save it to a file first."
            ).format(name=layer.name())
        )
    options = _decode("gdal", source).get("openOptions")
    if options:
        raise QgsProcessingException(
            tr(
                "The layer '{name}' is opened with the options {names}, unknown to the engine. Save it as "
                "a GeoTIFF or a virtual raster first."
            ).format(name=layer.name(), names=", ".join(options))
        )
    return source


def pixel_window(layer: QgsRasterLayer, extent: QgsRectangle) -> QgsRectangle:
    """The whole pixels of a layer that an extent touches, as a rectangle in the layer's coordinates.

    Raises:
        QgsProcessingException: If it touches none.
    """
    whole = layer.extent()
    part = whole.intersect(extent)
    if part.isEmpty():
        raise QgsProcessingException(tr("The extent lies outside of the layer '{name}'.").format(name=layer.name()))
    across, down = whole.width() / layer.width(), whole.height() / layer.height()
    left = floor((part.xMinimum() - whole.xMinimum()) / across + EDGE)
    right = ceil((part.xMaximum() - whole.xMinimum()) / across - EDGE)
    top = floor((whole.yMaximum() - part.yMaximum()) / down + EDGE)
    bottom = ceil((whole.yMaximum() - part.yMinimum()) / down - EDGE)
    return QgsRectangle(
        whole.xMinimum() + left * across,
        whole.yMaximum() - max(bottom, top + 1) * down,
        whole.xMinimum() + max(right, left + 1) * across,
        whole.yMaximum() - top * down,
    )


def window_source(layer: QgsRasterLayer, extent: QgsRectangle) -> str:
    """What GDAL 3.8 and newer, as the engine has it, opens for a part of this layer: nothing is copied.

    Raises:
        QgsProcessingException: As `raster_source`, or if the extent lies outside.
    """
    source, part = raster_source(layer), pixel_window(layer, extent)
    if part == layer.extent():
        return source
    is_virtual = source.startswith("vrt://")
    if not is_virtual and ("?" in source or "&" in source):
        raise QgsProcessingException(
            tr(
                "A part of {source} can't be addressed, as its name holds '?' or '&': rename it, or leave Extent empty."
            ).format(source=source)
        )
    corners = (part.xMinimum(), part.yMaximum(), part.xMaximum(), part.yMinimum())
    window = f"projwin={','.join(repr(value) for value in corners)}"
    return f"{source}{'&' if '?' in source else '?'}{window}" if is_virtual else f"vrt://{source}?{window}"


def plain_raster_file(layer: QgsRasterLayer) -> str:
    """The file on this computer that is this layer, for commands that take patterns of files.

    Raises:
        QgsProcessingException: If it is anything else.
    """
    source = raster_source(layer)
    if not Path(source).is_file():
        raise QgsProcessingException(
            tr(
                "The layer '{name}' ({source}) is no plain file on this computer, which is needed here. "
                "Save it as a GeoTIFF first: right click on the layer, Export, Save As."
            ).format(name=layer.name(), source=source)
        )
    return source


def raster_warnings(layer: QgsRasterLayer) -> list[str]:
    """What is set in QGIS only, so that the engine, which reads the file, does not see it."""
    provider = layer.dataProvider()
    if provider is None:
        return []
    warnings = []
    own = [band for band in range(1, layer.bandCount() + 1) if provider.userNoDataValues(band)]
    if own:
        warnings.append(
            tr(
                "The additional nodata values of band {names} are known to QGIS only. Give them as "
                "Nodata, if they shall count."
            ).format(names=", ".join(map(str, own)))
        )
    if layer.crs() != provider.crs():
        warnings.append(
            tr(
                "The layer has the CRS {qgis_crs} in QGIS, its file has {file_crs}. The result gets that of the file."
            ).format(qgis_crs=layer.crs().authid() or "unknown", file_crs=provider.crs().authid() or "none")
        )
    return warnings


def polygon_file(value: Any, layer: Optional[QgsVectorLayer]) -> str:
    """FILE or FILE|layer where the file holds just what QGIS shows, else empty: then `write_polygons` is needed.

    Args:
        value: The parameter's value: it may ask for a part of the layer only.
        layer: The layer behind it.
    """
    if layer is None or layer.providerType() != "ogr":
        return ""
    if isinstance(value, QgsProcessingFeatureSourceDefinition):
        return ""  # a selection, a limit or a filter (QGIS 3.22 gives no layer for it anyway)
    provider = layer.dataProvider()
    if layer.subsetString() or layer.isModified() or provider is None or provider.crs() != layer.crs():
        return ""
    parts = _decode("ogr", layer.source())
    path = str(parts.get("path") or "")
    if parts.get("layerId") is not None or Path(path).suffix.lower() not in PLAIN_VECTOR_SUFFIXES:
        return ""
    if not Path(path).is_file():
        return ""
    return f"{path}|{parts['layerName']}" if parts.get("layerName") else path


def write_polygons(
    source: QgsProcessingFeatureSource, context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
) -> str:
    """Write the polygons, as selected, filtered and edited, into a temporary GeoPackage and give its path.

    Raises:
        QgsProcessingException: If it can't be written.
    """
    path = QgsProcessingUtils.generateTempFilename("area_of_interest.gpkg")
    layer = source.materialize(QgsFeatureRequest(), feedback)
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = "area_of_interest"
    options.skipAttributeCreation = True  # shapes only: no column can be in the way
    written = QgsVectorFileWriter.writeAsVectorFormatV3(layer, path, context.transformContext(), options)
    if written[0] != QgsVectorFileWriter.WriterError.NoError:
        raise QgsProcessingException(
            tr("The area of interest could not be written to {path}: {why}").format(path=path, why=written[1])
        )
    return path


def text_of(value: Any) -> str:
    """A class as a field holds it, as text: 1 and 1.0 are '1'; empty for none."""
    if value is None or (isinstance(value, QVariant) and value.isNull()):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _label_writer(
    path: Path, fields: QgsFields, source: QgsProcessingFeatureSource, context: QgsProcessingContext
) -> QgsVectorFileWriter:
    """A GeoPackage for polygons like those of a source, in the place of an old one; it is closed when it is deleted.

    Raises:
        QgsProcessingException: If it can't be made.
    """
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = "labels"
    kind = QgsWkbTypes.multiType(QgsWkbTypes.flatType(source.wkbType()))
    path.unlink(missing_ok=True)
    writer: Optional[QgsVectorFileWriter] = QgsVectorFileWriter.create(
        str(path), fields, kind, source.sourceCrs(), context.transformContext(), options
    )
    if writer is None or writer.hasError() != QgsVectorFileWriter.WriterError.NoError:
        why = writer.errorMessage() if writer is not None else "unknown"
        raise QgsProcessingException(tr("The labels could not be written to {path}: {why}").format(path=path, why=why))
    return writer


def write_labels(
    source: QgsProcessingFeatureSource,
    path: Path,
    context: QgsProcessingContext,
    feedback: Optional[QgsProcessingFeedback],
    *,
    field: str,
    names: Optional[Mapping[str, str]] = None,
) -> int:
    """Write polygons, as selected, filtered and edited, with their class as text in the field `LABEL_FIELD`.

    Args:
        source: The polygons.
        path: GeoPackage to write; an old one is replaced.
        context: Of the algorithm.
        feedback: Asked for cancelling.
        field: Field with the class; empty: none is written. Polygons without a class are left out.
        names: Text of a value → name to write; others are written as they are.

    Returns:
        How many were written.

    Raises:
        QgsProcessingException: If they can't be written, or the user cancelled.
    """
    fields = QgsFields()
    if field:
        fields.append(QgsField(LABEL_FIELD, QVariant.String))
    writer = _label_writer(path, fields, source, context)
    index = source.fields().lookupField(field) if field else -1
    count = 0
    for feature in source.getFeatures():
        if feedback is not None and feedback.isCanceled():
            raise QgsProcessingException(tr("Cancelled. Nothing was written."))
        text = text_of(feature.attribute(index)) if field else ""
        if not feature.hasGeometry() or (field and not text):
            continue
        made = QgsFeature(fields)
        made.setGeometry(feature.geometry())
        if field:
            made.setAttribute(0, (names or {}).get(text, text))
        writer.addFeature(made)
        count += 1
    problem = writer.errorMessage()
    del writer  # closes the file
    if problem:
        raise QgsProcessingException(
            tr("The labels could not be written to {path}: {problem}").format(path=path, problem=problem)
        )
    return count
