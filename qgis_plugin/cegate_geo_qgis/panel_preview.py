# SPDX-License-Identifier: GPL-2.0-or-later
"""The layer of the last preview: the next one takes its place."""

from __future__ import annotations

from typing import Any, Mapping

from qgis.core import QgsLayerTreeGroup, QgsProject

PREVIEW_OPACITY = 0.65
"""The scene stays visible below."""


class PreviewLayer:
    """At most one layer of the project."""

    def __init__(self) -> None:
        self._id = ""

    def keep(self, results: Mapping[str, Any]) -> None:
        """Take the layer that a run has loaded, in the place of the last."""
        self.drop()
        project = QgsProject.instance()
        for layer in project.mapLayers().values() if project is not None else []:
            if layer.source() == results.get("OUTPUT"):
                self._id = layer.id()
                layer.setOpacity(PREVIEW_OPACITY)

    def drop(self) -> None:
        """Remove it, and its group if that is empty then."""
        project, self._id, old = QgsProject.instance(), "", self._id
        root = project.layerTreeRoot() if project is not None else None
        node = root.findLayer(old) if root is not None and old else None
        if project is None or root is None or node is None:
            return
        group = node.parent()
        project.removeMapLayer(old)
        if isinstance(group, QgsLayerTreeGroup) and group is not root and not group.children():
            root.removeChildNode(group)
