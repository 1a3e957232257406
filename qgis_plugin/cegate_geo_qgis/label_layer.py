# SPDX-License-Identifier: GPL-2.0-or-later
"""A layer to draw labelled polygons into: made, and readied for drawing one class."""

from __future__ import annotations

from typing import Any, Optional, Sequence

from qgis.core import (
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsDefaultValue,
    QgsEditFormConfig,
    QgsEditorWidgetSetup,
    QgsField,
    QgsFields,
    QgsFillSymbol,
    QgsProject,
    QgsRendererCategory,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QVariant
from qgis.PyQt.QtGui import QColor

from .label_classes import class_style
from .layers import class_color
from .outcome import EngineError
from .protocol import ClassArea
from .sources import LABEL_FIELD, text_of
from .words import tr

OWN = "cegate_geo/labels"
"""Property of layers that were made here: drawing asks for no form."""


def make_label_layer(
    classes: Sequence[tuple[str, Optional[QColor]]], crs: QgsCoordinateReferenceSystem, path: str, name: str
) -> QgsVectorLayer:
    """A polygon layer with a class field that is edited by a value map, and drawn by class.

    Args:
        classes: Names, with a colour where there is one.
        crs: Of the scene, so that shapes are drawn in its coordinates.
        path: GeoPackage to make; empty for a layer in memory, which is lost with the project.
        name: Of the layer.

    Raises:
        EngineError: If the file exists or can't be written.
    """
    fields = QgsFields()
    fields.append(QgsField(LABEL_FIELD, QVariant.String))
    if path:
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.driverName, options.layerName = "GPKG", "labels"
        project = QgsProject.instance()
        context = project.transformContext() if project is not None else QgsProject().transformContext()
        writer = QgsVectorFileWriter.create(path, fields, QgsWkbTypes.Type.MultiPolygon, crs, context, options)
        problem = writer.errorMessage() if writer is not None else "unknown"
        del writer  # closes the file
        if problem:
            raise EngineError(
                tr("The label layer {path} could not be made: {problem}").format(path=path, problem=problem)
            )
        layer = QgsVectorLayer(f"{path}|layername=labels", name, "ogr")
    else:
        layer = QgsVectorLayer("MultiPolygon", name, "memory")
        layer.setCrs(crs)
        provider = layer.dataProvider()
        if provider is not None:
            provider.addAttributes(list(fields))
        layer.updateFields()
    if not layer.isValid():
        raise EngineError(tr("The label layer {path} could not be made.").format(path=path or name))
    _style(layer, classes)
    layer.setCustomProperty(OWN, "1")
    return layer


def _style(layer: QgsVectorLayer, classes: Sequence[tuple[str, Optional[QColor]]]) -> None:
    index = layer.fields().lookupField(LABEL_FIELD)
    choices: dict[Optional[str], Any] = {"map": [{text: text} for text, _ in classes]}
    layer.setEditorWidgetSetup(index, QgsEditorWidgetSetup("ValueMap", choices))
    categories = []
    for number, (text, given) in enumerate(classes):
        color = given or class_color(ClassArea(number, text, None, 0, None))
        fill = f"{color.red()},{color.green()},{color.blue()},110"
        look: dict[Optional[str], Optional[str]] = {"color": fill, "outline_color": color.name()}
        categories.append(QgsRendererCategory(text, QgsFillSymbol.createSimple({**look, "outline_width": "0.5"}), text))
    layer.setRenderer(QgsCategorizedSymbolRenderer(LABEL_FIELD, categories))


def drawable_classes(layer: QgsVectorLayer) -> dict[str, str]:
    """Value → name of the classes of a label layer: by its style, else by what its field holds."""
    field = class_field(layer)
    names, _ = class_style(layer, field)
    index = layer.fields().lookupField(field)
    if names or index < 0:
        return names
    found = sorted(text_of(value) for value in layer.uniqueValues(index, 50))
    return {value: value for value in found if value}


def class_field(layer: QgsVectorLayer) -> str:
    """The field with the class: the one that the layer is drawn by, one named 'class', or the first but the key."""
    renderer = layer.renderer()
    if isinstance(renderer, QgsCategorizedSymbolRenderer):
        name = renderer.classAttribute().strip('"')
        if layer.fields().lookupField(name) >= 0:
            return name
    names = [field.name() for field in layer.fields()]
    likely = [name for name in names if name.lower() in (LABEL_FIELD, "label", "klasse", "classe")]
    rest = [name for name in names if name.lower() not in ("fid", "id", "ogc_fid")]
    return str((likely or rest or [""])[0])


def ready_to_draw(layer: QgsVectorLayer, value: str) -> None:
    """Start editing; new polygons get the class, and layers of our own ask for no form."""
    index = layer.fields().lookupField(class_field(layer))
    if index >= 0:
        quoted = value.replace("'", "''")
        layer.setDefaultValueDefinition(index, QgsDefaultValue(f"'{quoted}'"))
    if layer.customProperty(OWN):
        form = layer.editFormConfig()
        form.setSuppress(QgsEditFormConfig.SuppressOn)
        layer.setEditFormConfig(form)
    if not layer.isEditable():
        layer.startEditing()
