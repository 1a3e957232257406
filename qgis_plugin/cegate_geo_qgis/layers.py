# SPDX-License-Identifier: GPL-2.0-or-later
"""Styles of the result layers: class colours and names, in the map and in the legend."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsContrastEnhancement,
    QgsFillSymbol,
    QgsLayerTreeGroup,
    QgsMapLayer,
    QgsPalettedRasterRenderer,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProject,
    QgsRasterLayer,
    QgsRendererCategory,
    QgsSingleBandGrayRenderer,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor

from .protocol import ClassArea

CLASS_FIELD = "class"
"""The engine's field with the class id."""
GOLDEN_ANGLE = 137.508
"""Degrees between the hues of classes without a colour: neighbours stay apart, however many there are."""


def class_color(item: ClassArea) -> QColor:
    """The class' own colour, else one by its id."""
    return QColor(*item.color) if item.color else QColor.fromHsv(round(item.id * GOLDEN_ANGLE) % 360, 150, 210)


def shows_classes(layer: QgsRasterLayer, classes: Sequence[ClassArea]) -> bool:
    """Whether the layer is drawn with the name and the colour of each class (a style file beside it did that)."""
    renderer = layer.renderer()
    if not isinstance(renderer, QgsPalettedRasterRenderer):
        return False
    drawn = {round(c.value): (c.label, QColor(c.color).name()) for c in renderer.classes()}
    return all(drawn.get(c.id) == (c.name, class_color(c).name()) for c in classes) and len(drawn) == len(classes)


MOST_IN_SIGHT = 20
"""Classes in the layer tree that are shown unasked."""
RANK = "cegate_geo/rank"
"""Property of a node in the layer tree: where it stands among the results of a run."""


class _Styler(QgsProcessingLayerPostProcessorInterface):
    """Gives a layer its style when QGIS has loaded it, and its place in the layer tree."""

    rank = 0
    """Results of lower rank stand higher."""
    is_shown = True

    def __init__(self, classes: Sequence[ClassArea], *, group: str = "") -> None:
        super().__init__()
        self.classes = classes
        self.group = group
        """Name of the group that the layer goes into; empty to leave it where it is."""

    def postProcessLayer(
        self, layer: Optional[QgsMapLayer], context: QgsProcessingContext, feedback: Optional[QgsProcessingFeedback]
    ) -> None:
        """Called by QGIS in its main thread."""
        del feedback
        if layer is None:
            return
        self.style(layer)
        layer.triggerRepaint()
        project = context.project()
        if self.group and project is not None:
            self._move(layer, project)

    def _move(self, layer: QgsMapLayer, project: QgsProject) -> None:
        """Into the group, above what is of higher rank. Newer QGIS adds layers later, by the group's name.

        The desktop adds layers beside the chosen one, in whatever group that is: it does not count.
        """
        root = project.layerTreeRoot()
        node = root.findLayer(layer.id()) if root is not None else None
        parent = node.parent() if node is not None else None
        if root is None or node is None or not isinstance(parent, QgsLayerTreeGroup):
            return
        wanted = ProcessingConfig.getSetting(ProcessingConfig.RESULTS_GROUP_NAME)
        base = (root.findGroup(str(wanted)) if wanted else None) or root
        groups = [g for g in base.children() if isinstance(g, QgsLayerTreeGroup) and g.name() == self.group]
        group = groups[0] if groups else base.insertGroup(0, self.group)
        moved = node.clone()
        if group is None or moved is None:
            return
        moved.setCustomProperty(RANK, self.rank)
        moved.setItemVisibilityChecked(self.is_shown)
        moved.setExpanded(self.is_shown and len(self.classes) <= MOST_IN_SIGHT)  # QGIS folds rasters up
        ranks = [int(child.customProperty(RANK, 9)) for child in group.children()]
        group.insertChildNode(max((n + 1 for n, rank in enumerate(ranks) if rank < self.rank), default=0), moved)
        parent.removeChildNode(node)  # last: a layer that is nowhere in the tree leaves the project

    def style(self, layer: QgsMapLayer) -> None:
        """Style this layer; another kind of layer than the expected is left as it is."""
        raise NotImplementedError


class ClassMapStyler(_Styler):
    """Paletted raster with class names and colours."""

    rank = 1

    def style(self, layer: QgsMapLayer) -> None:
        """Take the style file beside the raster where it fits the classes, else make a style."""
        if not isinstance(layer, QgsRasterLayer):
            return
        style_file = Path(layer.source()).with_suffix(".qml")
        if not shows_classes(layer, self.classes) and style_file.is_file():
            layer.loadNamedStyle(str(style_file))
        if not shows_classes(layer, self.classes):
            entries = [QgsPalettedRasterRenderer.Class(c.id, class_color(c), c.name) for c in self.classes]
            layer.setRenderer(QgsPalettedRasterRenderer(layer.dataProvider(), 1, entries))


class LevelStyler(_Styler):
    """Grey from 0 (black) to 255 (white), not stretched to what happens to occur; to be looked at when asked for."""

    rank = 2
    is_shown = False

    def __init__(self, classes: Sequence[ClassArea], *, group: str = "", band: int = 1) -> None:
        super().__init__(classes, group=group)
        self._band = band

    def style(self, layer: QgsMapLayer) -> None:
        """Draw one band in grey."""
        if not isinstance(layer, QgsRasterLayer):
            return
        provider = layer.dataProvider()
        if provider is None:
            return
        stretch = QgsContrastEnhancement(provider.dataType(self._band))
        stretch.setContrastEnhancementAlgorithm(
            QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
        )
        stretch.setMinimumValue(0)
        stretch.setMaximumValue(255)
        renderer = QgsSingleBandGrayRenderer(provider, self._band)
        renderer.setContrastEnhancement(stretch)
        layer.setRenderer(renderer)


class PolygonStyler(_Styler):
    """Polygons categorised by class."""

    def style(self, layer: QgsMapLayer) -> None:
        """One category a class; the imagery stays visible through the fill."""
        if not isinstance(layer, QgsVectorLayer) or layer.fields().lookupField(CLASS_FIELD) < 0:
            return
        categories = []
        for item in self.classes:
            color = class_color(item)
            fill = f"{color.red()},{color.green()},{color.blue()},90"
            symbol = QgsFillSymbol.createSimple({"color": fill, "outline_color": color.name(), "outline_width": "0.26"})
            categories.append(QgsRendererCategory(item.id, symbol, item.name))
        layer.setRenderer(QgsCategorizedSymbolRenderer(CLASS_FIELD, categories))


_kept: list[QgsProcessingLayerPostProcessorInterface] = []
"""QGIS keeps no reference to a post-processor that is made in Python, and calls it after the algorithm is gone."""
KEPT = 300


def style_when_loaded(
    context: QgsProcessingContext,
    path: str,
    styler: _Styler,
    *,
    name: str,
    default: str,
) -> None:
    """Have a result styled when QGIS loads it, and named after the scene.

    Args:
        context: Knows whether the result will be loaded.
        path: The result.
        styler: Gives the style.
        name: Name of the layer.
        default: The name that QGIS gives by itself: any other was chosen by the user or a model, and stays.
    """
    if not context.willLoadLayerOnCompletion(path):
        return
    details = context.layerToLoadOnCompletionDetails(path)
    if details.name == default:
        details.name = name
    if styler.group and hasattr(details, "groupName"):  # QGIS 3.32 and newer
        details.groupName = styler.group
    _kept.append(styler)
    del _kept[:-KEPT]
    details.setPostProcessor(styler)
