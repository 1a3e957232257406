# SPDX-License-Identifier: GPL-2.0-or-later
"""What the map shows of a scene, for a preview."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from qgis.core import (
    QgsCoordinateTransform,
    QgsCsException,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsReferencedRectangle,
)
from qgis.gui import QgsMapCanvas

from .raster_export import is_web_map, metres_per_unit

PREVIEW_PX = 1024
"""Side of a preview in pixels of the scene: some seconds for a small model."""


@dataclass(frozen=True)
class Seen:
    """A part of a scene that the map shows."""

    extent: QgsReferencedRectangle
    """In the scene's CRS."""
    is_part: bool
    """Whether the map shows more of the scene."""


def seen_extent(
    canvas: Optional[QgsMapCanvas], layer: QgsRasterLayer, *, gsd_m: Optional[float], limit_px: Optional[int]
) -> Optional[Seen]:
    """What the map shows of a layer; its middle where it is more than the limit. None where it shows nothing.

    Args:
        canvas: The map.
        layer: The scene.
        gsd_m: Metres per pixel that the model wants, by which pixels of a web map are counted.
        limit_px: Most pixels along a side; None for all.
    """
    project = QgsProject.instance()
    if canvas is None or project is None:
        return None
    change = QgsCoordinateTransform(canvas.mapSettings().destinationCrs(), layer.crs(), project)
    try:
        seen = change.transformBoundingBox(canvas.extent())
    except QgsCsException:
        return None
    if not is_web_map(layer):
        seen = seen.intersect(layer.extent())
    if seen.isEmpty():
        return None
    part = seen if limit_px is None else _middle(seen, *_side(layer, seen, limit_px, gsd_m))
    return Seen(QgsReferencedRectangle(part, layer.crs()), part.width() < 0.99 * seen.width())


def _side(layer: QgsRasterLayer, seen: QgsRectangle, pixels: int, gsd_m: Optional[float]) -> tuple[float, float]:
    """Width and height of so many pixels in the layer's units."""
    if not is_web_map(layer):
        whole = layer.extent()
        return whole.width() / layer.width() * pixels, whole.height() / layer.height() * pixels
    scale = metres_per_unit(layer, seen.center())
    if gsd_m is None or scale is None:
        return seen.width(), seen.height()
    return gsd_m * pixels / scale[0], gsd_m * pixels / scale[1]


def _middle(extent: QgsRectangle, width: float, height: float) -> QgsRectangle:
    """The middle of an extent, at most so wide and high."""
    across, down = min(extent.width(), width) / 2, min(extent.height(), height) / 2
    x, y = extent.center().x(), extent.center().y()
    return QgsRectangle(x - across, y - down, x + across, y + down)
