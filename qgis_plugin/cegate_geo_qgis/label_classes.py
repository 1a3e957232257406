# SPDX-License-Identifier: GPL-2.0-or-later
"""What a label layer says of its classes beside the values in its field: names and colours."""

from __future__ import annotations

from typing import Any, Optional

from qgis.core import QgsCategorizedSymbolRenderer, QgsVectorLayer

from .sources import text_of


def class_style(layer: Optional[QgsVectorLayer], field: str) -> tuple[dict[str, str], dict[str, str]]:
    """Names and colours of a field's values, from the layer's categories, else from its value map.

    Returns:
        (value → name, value → '#rrggbb'), both in the order of the layer; empty where it says nothing.
    """
    if layer is None or not field:
        return {}, {}
    renderer = layer.renderer()
    if isinstance(renderer, QgsCategorizedSymbolRenderer) and renderer.classAttribute().strip('"') == field:
        names, colors = {}, {}
        for category in renderer.categories():
            value, symbol = text_of(category.value()), category.symbol()
            if not value:
                continue
            names[value] = category.label().strip() or value
            if symbol is not None:
                colors[value] = symbol.color().name()
        return names, colors
    return value_map(layer, field), {}


def value_map(layer: QgsVectorLayer, field: str) -> dict[str, str]:
    """Value → name of a field that is edited by a value map; empty for other fields."""
    index = layer.fields().lookupField(field)
    setup = layer.editorWidgetSetup(index) if index >= 0 else None
    if setup is None or setup.type() != "ValueMap":
        return {}
    given: Any = setup.config().get("map", {})
    pairs = [pair for part in given for pair in part.items()] if isinstance(given, list) else list(dict(given).items())
    return {text_of(value): str(name) for name, value in pairs if text_of(value)}
