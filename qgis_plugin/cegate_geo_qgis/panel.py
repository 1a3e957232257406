# SPDX-License-Identifier: GPL-2.0-or-later
"""The panel: scene and model, whether they suit each other, preview, run, draw, adapt, look again.

Thin over the algorithms: all work is theirs, beside the window; what the panel adds are their parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import processing
from qgis.core import (
    QgsApplication,
    QgsCoordinateTransform,
    QgsCsException,
    QgsLayerTreeGroup,
    QgsProcessing,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsReferencedRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgisInterface, QgsDockWidget
from qgis.PyQt.QtGui import QColor, QShowEvent
from qgis.PyQt.QtWidgets import QWidget

from .adapt_job import holds_run
from .engine_algorithm import Parameters, current_engine
from .label_layer import class_field, drawable_classes, make_label_layer, ready_to_draw
from .model_card import ModelCard, verdicts
from .new_labels_dialog import NewLabelsDialog
from .outcome import EngineError
from .panel_card import CardShelf, short_html
from .panel_form import PanelForm
from .panel_run import PanelRun
from .raster_export import ground_size, is_web_map, metres_per_unit

SEGMENT, ADAPT, SET_UP = (f"cegate_geo:{name}" for name in ("segment_raster", "adapt_model", "set_up_engine"))
PREVIEW_PX = 1024
"""Side of a preview in pixels of the scene: some seconds for a small model."""
PREVIEW_OPACITY = 0.65
"""The scene stays visible below."""
DTYPES = {1: "Byte", 2: "UInt16", 3: "Int16", 4: "UInt32", 5: "Int32", 6: "Float32", 7: "Float64"}
"""GDAL's types by QGIS' numbers."""


class Panel(QgsDockWidget):
    """The dock."""

    def __init__(self, iface: QgisInterface, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setObjectName("CegateGeoPanel")
        self.setWindowTitle("CEGate-Geo")
        self._iface = iface
        self._shelf = CardShelf()
        self._preview_id = ""
        self._seen_width, self._is_part = 0.0, False
        self.runs = PanelRun(self)
        self.form = PanelForm(self)
        self.setWidget(self.form)
        self._connect()
        self._refresh()
        self._end(True, self.tr("Choose a scene and press Preview."))

    def _connect(self) -> None:
        form, runs = self.form, self.runs
        form.scene.layerChanged.connect(self._refresh)
        form.model.fileChanged.connect(self._refresh)
        form.labels.layerChanged.connect(self._refresh_classes)
        form.set_up.clicked.connect(self._open_set_up)
        form.preview.clicked.connect(self.preview)
        form.run_all.clicked.connect(self.run_all)
        form.new_labels.clicked.connect(self.ask_for_labels)
        form.draw.clicked.connect(self.draw)
        form.adapt.clicked.connect(self.adapt)
        form.more.clicked.connect(self._open_adapt)
        form.cancel.clicked.connect(self._cancel)
        runs.began.connect(self._begin)
        runs.moved.connect(self._move)
        runs.said.connect(self._tell)
        runs.ended.connect(self._end)

    def close_down(self) -> None:
        """Stop what runs; called when the plugin is unloaded."""
        self._shelf.close()
        self.runs.close()

    def showEvent(self, event: Optional[QShowEvent]) -> None:
        """The engine may have been set up meanwhile."""
        super().showEvent(event)
        self._refresh()

    # What is chosen

    def scene(self) -> Optional[QgsRasterLayer]:
        """The chosen scene."""
        layer = self.form.scene.currentLayer()
        return layer if isinstance(layer, QgsRasterLayer) else None

    def label_layer(self) -> Optional[QgsVectorLayer]:
        """The chosen label layer."""
        layer = self.form.labels.currentLayer()
        return layer if isinstance(layer, QgsVectorLayer) else None

    def model(self) -> str:
        """The chosen model; empty for the demo model."""
        return str(self.form.model.filePath()).strip()

    def card(self) -> Optional[ModelCard]:
        """The card of the chosen model, where it is known already."""
        answer = self._shelf.get(self.model(), self._refresh)
        return answer if isinstance(answer, ModelCard) else None

    def _refresh(self, *_: Any) -> None:
        """Show what is known of engine, model and scene."""
        problem = ""
        try:
            current_engine()
        except EngineError as error:
            problem = str(error)
        self.form.engine_text.setText(self.tr("The engine that does the work is missing."))
        self.form.engine_text.setToolTip(problem)
        self.form.engine_row.setVisible(bool(problem))
        self._refresh_buttons()
        answer = None if problem else self._shelf.get(self.model(), self._refresh)
        if problem:
            self.form.card.setHtml("")
        elif answer is None:
            self.form.card.setHtml(f"<i>{self.tr('Reading the model ...')}</i>")
        elif isinstance(answer, ModelCard):
            self.form.card.setHtml(short_html(answer, self._judge(answer)))
        else:
            self.form.card.setPlainText(str(answer))

    def _judge(self, card: ModelCard) -> list[Any]:
        layer = self.scene()
        provider = layer.dataProvider() if layer is not None else None
        if layer is None or provider is None:
            return []
        if is_web_map(layer):
            return verdicts(card, gsd_m=card.gsd_m, band_count=len(card.bands))  # fetched as the model wants it
        numbers = [provider.dataType(n + 1) for n in range(layer.bandCount())]
        kinds = [DTYPES.get(getattr(number, "value", number), "") for number in numbers]  # Qt 6 has real enumerations
        return verdicts(card, gsd_m=ground_size(layer), band_count=layer.bandCount(), dtypes=[k for k in kinds if k])

    def _refresh_classes(self, *_: Any) -> None:
        layer, box = self.label_layer(), self.form.label_class
        box.clear()
        for value, name in (drawable_classes(layer) if layer is not None else {}).items():
            box.addItem(name, value)
        self._refresh_buttons()
        if layer is not None and not self.form.folder.filePath():
            self.form.folder.setFilePath(str(self._next_folder()))

    def _refresh_buttons(self) -> None:
        form, busy = self.form, self.runs.is_running()
        has_scene, has_labels = self.scene() is not None, self.label_layer() is not None
        usable = not busy and has_scene and not form.engine_row.isVisibleTo(form)
        form.preview.setEnabled(usable)
        form.run_all.setEnabled(usable)
        form.adapt.setEnabled(usable and has_labels)
        form.new_labels.setEnabled(has_scene)
        form.draw.setEnabled(has_labels and form.label_class.count() > 0)
        form.cancel.setEnabled(busy)

    # What is done

    def preview(self) -> None:
        """Segment the middle of what the map shows."""
        layer = self.scene()
        extent = self.seen_extent(layer) if layer is not None else None
        if layer is None or extent is None:
            self._end(False, self.tr("The map does not show the scene: zoom to it first."))
            return
        target = QgsProcessingOutputLayerDefinition(QgsProcessing.TEMPORARY_OUTPUT, QgsProject.instance())
        target.destinationName = self.tr("Preview of {}").format(layer.name())
        parameters: Parameters = {**self._predicting(layer), "EXTENT": extent, "OUTPUT": target}
        self._is_part = extent.width() < 0.99 * self._seen_width
        self._start(SEGMENT, parameters, self._keep_preview)

    def run_all(self) -> None:
        """Segment the whole scene; of a web map, what is seen."""
        layer = self.scene()
        if layer is None:
            return
        temporary = str(QgsProcessing.TEMPORARY_OUTPUT)
        place = str(self.form.target.filePath()).strip() or temporary
        parameters: Parameters = {
            **self._predicting(layer),
            "OUTPUT": QgsProcessingOutputLayerDefinition(place, QgsProject.instance()),
        }
        if is_web_map(layer):
            parameters["EXTENT"] = self.seen_extent(layer, limit_px=None)
        if self.form.polygons.isChecked():
            beside = temporary if place == temporary else str(Path(place).with_suffix(".gpkg"))
            parameters["VECTOR"] = QgsProcessingOutputLayerDefinition(beside, QgsProject.instance())
        self._start(SEGMENT, parameters, self._drop_preview)

    def adapt(self) -> None:
        """Learn from the labels."""
        folder = str(self.form.folder.filePath()).strip()
        if not folder or holds_run(Path(folder)):
            folder = str(self._next_folder())
            self.form.folder.setFilePath(folder)
        self._start(ADAPT, self._adapting(), self._take_model)

    def draw(self) -> None:
        """Let the user draw polygons of the chosen class."""
        layer = self.label_layer()
        if layer is None:
            return
        ready_to_draw(layer, str(self.form.label_class.currentData()))
        self._iface.setActiveLayer(layer)
        action = self._iface.actionAddFeature()
        if action is not None:
            action.trigger()
        name = self.form.label_class.currentText()
        self.form.status.setText(self.tr("Draw '{}': click corners, right click to end.").format(name))

    def ask_for_labels(self) -> None:
        """Make a layer to draw into."""
        card, scene = self.card(), self.scene()
        classes = [item.name for item in card.classes] if card is not None else ["other", "object"]
        project = QgsProject.instance()
        home = project.homePath() if project is not None else ""
        folder = Path(home) if home else Path.home()
        dialog = NewLabelsDialog(classes, str(_free(folder, "labels", ".gpkg")), self)
        if scene is not None and dialog.exec():
            self.make_labels(dialog.classes(), dialog.path())
        dialog.deleteLater()

    def make_labels(self, classes: list[str], path: str) -> None:
        """Make a label layer of these classes and choose it."""
        card, scene, project = self.card(), self.scene(), QgsProject.instance()
        if scene is None or project is None:
            return
        known = {c.name: QColor(*c.color) for c in card.classes if c.color} if card is not None else {}
        try:
            name = self.tr("Labels of {}").format(scene.name())
            layer = make_label_layer([(text, known.get(text)) for text in classes], scene.crs(), path, name)
        except EngineError as error:
            self._end(False, str(error))
            return
        root = project.layerTreeRoot()
        project.addMapLayer(layer, root is None)
        if root is not None:
            root.insertLayer(0, layer)  # not into the group of results that may be chosen
        self.form.labels.setLayer(layer)
        self._refresh_classes()

    def seen_extent(
        self, layer: QgsRasterLayer, *, limit_px: Optional[int] = PREVIEW_PX
    ) -> Optional[QgsReferencedRectangle]:
        """What the map shows of a layer, in the layer's CRS; its middle where it is more than the limit."""
        canvas, project = self._iface.mapCanvas(), QgsProject.instance()
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
        self._seen_width = seen.width()
        if limit_px is not None:
            seen = _middle(seen, *self._side(layer, seen, limit_px))
        return QgsReferencedRectangle(seen, layer.crs())

    def _side(self, layer: QgsRasterLayer, seen: QgsRectangle, pixels: int) -> tuple[float, float]:
        """Width and height of so many pixels in the layer's units."""
        if not is_web_map(layer):
            whole = layer.extent()
            return whole.width() / layer.width() * pixels, whole.height() / layer.height() * pixels
        card, scale = self.card(), metres_per_unit(layer, seen.center())
        if card is None or card.gsd_m is None or scale is None:
            return seen.width(), seen.height()
        return card.gsd_m * pixels / scale[0], card.gsd_m * pixels / scale[1]

    def _predicting(self, layer: QgsRasterLayer) -> Parameters:
        return {"INPUT": layer.id(), "MODEL": self.model()}

    def _adapting(self) -> Parameters:
        layer, labels = self.scene(), self.label_layer()
        return {
            "IMAGES": [layer.id()] if layer is not None else [],
            "LABELS": labels.id() if labels is not None else None,
            "FIELD": class_field(labels) if labels is not None else None,
            "BACKGROUND": self.form.background.text().strip(),
            "STEPS": self.form.steps.value(),
            "RUN": str(self.form.folder.filePath()).strip(),
        }

    def _next_folder(self) -> Path:
        """A folder for a run beside the labels, else in the profile, that does not exist yet."""
        layer = self.label_layer()
        source = Path(layer.source().partition("|")[0]) if layer is not None else Path()
        home = source.parent if source.is_file() else Path(QgsApplication.qgisSettingsDirPath(), "cegate_geo", "runs")
        return _free(home, "run")

    def _open_set_up(self) -> None:
        processing.execAlgorithmDialog(SET_UP, {})
        self._refresh()

    def _open_adapt(self) -> None:
        dialog = processing.createAlgorithmDialog(ADAPT, self._adapting())
        if dialog is not None:
            dialog.show()

    # What comes of it

    def _start(self, algorithm: str, parameters: Parameters, when_done: Any) -> None:
        self.form.log.clear()
        problem = self.runs.start(algorithm, parameters, when_done)
        if problem:
            self._end(False, problem)

    def _cancel(self) -> None:
        self.form.status.setText(self.tr("Cancelling ..."))
        self.runs.cancel()

    def _tell(self, line: str) -> None:
        self.form.log.appendPlainText(line)
        if line.startswith("step "):  # of a training: worth more than a bar
            self.form.status.setText(line)

    def _begin(self, name: str) -> None:
        self.form.status.setText(f"{name} ...")
        self.form.bar.setVisible(True)
        self.form.cancel.setVisible(True)
        self._move(0.0)
        self._refresh_buttons()

    def _move(self, percent: float) -> None:
        self.form.bar.setValue(round(10 * percent))

    def _end(self, ok: bool, text: str) -> None:
        self.form.bar.setVisible(False)
        self.form.cancel.setVisible(False)
        self.form.status.setText(text or self.tr("Done."))
        self.form.status.setStyleSheet("" if ok else "color: #c62828")
        self._refresh_buttons()

    def _keep_preview(self, results: dict[str, Any]) -> None:
        self._drop_preview(results)
        project = QgsProject.instance()
        for layer in project.mapLayers().values() if project is not None else []:
            if layer.source() == results.get("OUTPUT"):
                self._preview_id = layer.id()
                layer.setOpacity(PREVIEW_OPACITY)
        if self._is_part:
            self._end(True, self.tr("Done: the middle of what the map shows. Zoom in to see more of it."))

    def _drop_preview(self, results: dict[str, Any]) -> None:
        del results
        project, self._preview_id, old = QgsProject.instance(), "", self._preview_id
        root = project.layerTreeRoot() if project is not None else None
        node = root.findLayer(old) if root is not None and old else None
        if project is None or root is None or node is None:
            return
        group = node.parent()
        project.removeMapLayer(old)
        if isinstance(group, QgsLayerTreeGroup) and group is not root and not group.children():
            root.removeChildNode(group)

    def _take_model(self, results: dict[str, Any]) -> None:
        self.form.model.setFilePath(str(results["MODEL"]))
        miou = results.get("MIOU")
        what = "" if miou is None else self.tr(" Mean IoU on the parts held out: {:.3f}.").format(miou)
        self._end(True, self.tr("The model has learned.{} Look again: Preview.").format(what))


def _free(folder: Path, name: str, suffix: str = "") -> Path:
    """The first of NAME_1, NAME_2 ... that does not exist in a folder."""
    number = 1
    while (folder / f"{name}_{number}{suffix}").exists():
        number += 1
    return folder / f"{name}_{number}{suffix}"


def _middle(extent: QgsRectangle, width: float, height: float) -> QgsRectangle:
    """The middle of an extent, at most so wide and high."""
    across, down = min(extent.width(), width) / 2, min(extent.height(), height) / 2
    x, y = extent.center().x(), extent.center().y()
    return QgsRectangle(x - across, y - down, x + across, y + down)
