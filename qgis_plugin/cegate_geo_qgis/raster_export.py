# SPDX-License-Identifier: GPL-2.0-or-later
"""Layers saved as a file for the engine: web maps as they are drawn, others with their own values.

These are layers that are no files, and parts of files whose pixels QGIS does not show as they lie there.
"""

from __future__ import annotations

from typing import Optional

from qgis.core import (
    QgsCoordinateTransformContext,
    QgsDistanceArea,
    QgsPoint,
    QgsPointXY,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingUtils,
    QgsRasterBlockFeedback,
    QgsRasterDataProvider,
    QgsRasterFileWriter,
    QgsRasterLayer,
    QgsRasterPipe,
    QgsRectangle,
)
from qgis.PyQt.QtCore import Qt

from .sources import pixel_window
from .words import tr

WEB_MAPS = ("wms", "arcgismapserver")
"""Providers that draw pictures of any size; XYZ and WMTS layers are of the first."""
COVERAGES = ("virtualraster", "wcs", "postgresraster")
"""Providers with pixels of their own."""
NEAR = 0.01
"""Share of a pixel by which corners may differ through rounding."""
MOST_PIXELS = 100_000_000
"""Of what is fetched: more would burden the server, and take hours."""


def is_web_map(layer: QgsRasterLayer) -> bool:
    """Whether the layer is drawn by a server, at any size."""
    return layer.providerType() in WEB_MAPS


def needs_export(layer: QgsRasterLayer, extent: Optional[QgsRectangle]) -> bool:
    """Whether the layer, or the part of it that is asked for, is no file, but can be saved as one."""
    if is_web_map(layer) or layer.providerType() in COVERAGES:
        return True
    return extent is not None and layer.providerType() == "gdal" and not lies_north_up(layer)


def lies_north_up(layer: QgsRasterLayer) -> bool:
    """Whether the pixels of a file are those that QGIS shows: north is up, and the file says where it lies.

    Of rotated, mirrored and upside-down files, and those with ground control points, QGIS shows another, warped grid.
    GDAL can't cut a part of it out of the file.
    """
    provider = layer.dataProvider()
    if provider is None:
        return False
    whole, width, height = layer.extent(), layer.width(), layer.height()
    kind = QgsRasterDataProvider.TransformType.TransformImageToLayer  # of the file's pixels, not of the warped ones
    for column, row, x, y in (
        (0, 0, whole.xMinimum(), whole.yMaximum()),
        (width, 0, whole.xMaximum(), whole.yMaximum()),
        (0, height, whole.xMinimum(), whole.yMinimum()),
    ):
        found = provider.transformCoordinates(QgsPoint(column, row), kind)
        if found.isEmpty():
            return False
        if abs(found.x() - x) * width > NEAR * whole.width() or abs(found.y() - y) * height > NEAR * whole.height():
            return False
    return True


def metres_per_unit(layer: QgsRasterLayer, at: QgsPointXY) -> Optional[tuple[float, float]]:
    """Metres on the ground of one unit of a layer's CRS to the east and to the north, at a point in that CRS.

    None where the CRS is unknown, or does not reach there.
    """
    crs = layer.crs()
    if not crs.isValid():
        return None
    measure = QgsDistanceArea()
    measure.setSourceCrs(crs, QgsCoordinateTransformContext())
    if not measure.setEllipsoid(crs.ellipsoidAcronym() or "EPSG:7030"):
        return None
    step = 1e-4 if crs.isGeographic() else 10.0
    found = []
    for end in (QgsPointXY(at.x() + step, at.y()), QgsPointXY(at.x(), at.y() + step)):
        length = measure.measureLine(at, end)  # metres, as there is an ellipsoid
        if not 0 < length < float("inf"):
            return None
        found.append(length / step)
    return found[0], found[1]


def ground_size(layer: QgsRasterLayer) -> Optional[float]:
    """Metres on the ground along the side of a pixel in the middle of a layer; None where its CRS does not tell."""
    if not layer.width() or not layer.height():
        return None
    scale = metres_per_unit(layer, layer.extent().center())
    if scale is None:
        return None
    extent = layer.extent()
    return float((extent.width() / layer.width() * scale[0] * extent.height() / layer.height() * scale[1]) ** 0.5)


class Snapshot:
    """A layer, or a part of it, ready to be saved in another thread. Made in the thread that the layer belongs to."""

    def __init__(self, layer: QgsRasterLayer, extent: Optional[QgsRectangle]) -> None:
        self.is_web_map = is_web_map(layer)
        self._name = layer.name()
        self._crs = layer.crs()
        provider, renderer = layer.dataProvider(), layer.renderer()
        copy = provider.clone() if provider is not None else None
        if copy is None:
            raise QgsProcessingException(tr("The layer '{name}' is not usable.").format(name=layer.name()))
        self._pipe = QgsRasterPipe()
        self._pipe.set(copy)
        if self.is_web_map:
            if extent is None:
                raise QgsProcessingException(
                    tr("The layer '{name}' is a web map: choose an Extent.").format(name=layer.name())
                )
            if renderer is not None:
                self._pipe.set(renderer.clone())
            self._extent = extent
            self._scale = metres_per_unit(layer, extent.center())
        else:
            self._extent = layer.extent() if extent is None else pixel_window(layer, extent)
            whole = layer.extent()
            self._columns = max(1, round(self._extent.width() / whole.width() * layer.width()))
            self._rows = max(1, round(self._extent.height() / whole.height() * layer.height()))

    def save(
        self, pixel_size_m: Optional[float], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> str:
        """Save it as a temporary GeoTIFF and give its path.

        Args:
            pixel_size_m: Metres for a pixel of a web map.
            context: Of the algorithm.
            feedback: Asked for cancelling.

        Raises:
            QgsProcessingException: If it is too large, can't be fetched, or the user cancelled.
        """
        if self.is_web_map:
            self._measure(pixel_size_m)
        pixels = self._columns * self._rows
        if pixels > MOST_PIXELS:
            raise QgsProcessingException(
                tr(
                    "{columns:,} x {rows:,} px of '{name}' are too many to fetch: choose a smaller extent or "
                    "a larger pixel size."
                ).format(columns=self._columns, rows=self._rows, name=self._name)
            )
        feedback.pushInfo(
            tr("Saving {columns:,} x {rows:,} px of the layer '{name}' to a file ...").format(
                columns=self._columns, rows=self._rows, name=self._name
            )
        )
        path = QgsProcessingUtils.generateTempFilename("scene.tif")
        writer = QgsRasterFileWriter(path)
        writer.setOutputFormat("GTiff")
        writer.setCreateOptions(["COMPRESS=DEFLATE", "TILED=YES"])
        watch = QgsRasterBlockFeedback()
        # Directly: this thread may have no event loop, and a queued call would come when all is read.
        feedback.canceled.connect(watch.cancel, Qt.ConnectionType.DirectConnection)  # type: ignore[call-arg]
        try:
            problem = writer.writeRaster(
                self._pipe, self._columns, self._rows, self._extent, self._crs, context.transformContext(), watch
            )
        finally:
            feedback.canceled.disconnect(watch.cancel)
        if feedback.isCanceled():
            raise QgsProcessingException(tr("Cancelled. Nothing was written."))
        complaints = [text for text in watch.errors() if text]
        if problem != QgsRasterFileWriter.NoError or complaints:
            why = "; ".join(complaints[:3]) or str(problem)
            raise QgsProcessingException(
                tr("The layer '{name}' could not be saved for the engine: {why}.").format(name=self._name, why=why)
            )
        return path

    def _measure(self, pixel_size_m: Optional[float]) -> None:
        if self._scale is None or not pixel_size_m:
            raise QgsProcessingException(
                tr("The CRS of '{name}' does not tell the size of a pixel on the ground.").format(name=self._name)
            )
        self._columns = max(1, round(self._extent.width() * self._scale[0] / pixel_size_m))
        self._rows = max(1, round(self._extent.height() * self._scale[1] / pixel_size_m))
