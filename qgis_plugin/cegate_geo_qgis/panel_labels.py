# SPDX-License-Identifier: GPL-2.0-or-later
"""The panel's lower half: label layers, drawing into them, and what an adaptation is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

from qgis.core import QgsApplication, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.gui import QgisInterface
from qgis.PyQt.QtCore import QObject, pyqtSignal
from qgis.PyQt.QtGui import QColor

from .adapt_job import holds_run
from .engine_algorithm import Parameters
from .label_layer import class_field, drawable_classes, make_label_layer, ready_to_draw
from .model_card import ModelCard
from .new_labels_dialog import NewLabelsDialog
from .outcome import EngineError
from .panel_form import PanelForm
from .words import tr


class LabelDesk(QObject):
    """Makes label layers, readies them for drawing, and gives the parameters of Adapt model."""

    changed = pyqtSignal()
    """Another layer, or other classes."""
    failed = pyqtSignal(str)

    def __init__(
        self, form: PanelForm, iface: QgisInterface, scene: Callable[[], Optional[QgsRasterLayer]],
        card: Callable[[], Optional[ModelCard]],
    ) -> None:  # fmt: skip
        super().__init__(form)
        self._form, self._iface, self._scene, self._card = form, iface, scene, card
        form.labels.layerChanged.connect(self.refresh)
        form.new_labels.clicked.connect(self.ask)
        form.draw.clicked.connect(self.draw)

    def layer(self) -> Optional[QgsVectorLayer]:
        """The chosen label layer."""
        layer = self._form.labels.currentLayer()
        return layer if isinstance(layer, QgsVectorLayer) else None

    def refresh(self, *_: Any) -> None:
        """Offer the classes of the layer."""
        layer, box = self.layer(), self._form.label_class
        box.clear()
        for value, name in (drawable_classes(layer) if layer is not None else {}).items():
            box.addItem(name, value)
        if layer is not None and not self._form.folder.filePath():
            self._form.folder.setFilePath(str(self._next_folder()))
        self.changed.emit()

    def draw(self) -> None:
        """Let the user draw polygons of the chosen class."""
        layer = self.layer()
        if layer is None:
            return
        ready_to_draw(layer, str(self._form.label_class.currentData()))
        self._iface.setActiveLayer(layer)
        action = self._iface.actionAddFeature()
        if action is not None:
            action.trigger()
        name = self._form.label_class.currentText()
        self._form.status.setText(tr("Draw '{name}': click corners, right click to end.").format(name=name))

    def ask(self) -> None:
        """Make a layer to draw into, as the user says."""
        card, scene = self._card(), self._scene()
        classes = [item.name for item in card.classes] if card is not None else [tr("other"), tr("object")]
        project = QgsProject.instance()
        home = project.homePath() if project is not None else ""
        folder = Path(home) if home else Path.home()
        dialog = NewLabelsDialog(classes, str(_free(folder, "labels", ".gpkg")), self._form)
        if scene is not None and dialog.exec():
            self.make(dialog.classes(), dialog.path())
        dialog.deleteLater()

    def make(self, classes: list[str], path: str) -> None:
        """Make a label layer of these classes and choose it."""
        card, scene, project = self._card(), self._scene(), QgsProject.instance()
        if scene is None or project is None:
            return
        known = {c.name: QColor(*c.color) for c in card.classes if c.color} if card is not None else {}
        try:
            name = tr("Labels of {scene}").format(scene=scene.name())
            layer = make_label_layer([(text, known.get(text)) for text in classes], scene.crs(), path, name)
        except EngineError as error:
            self.failed.emit(str(error))
            return
        root = project.layerTreeRoot()
        project.addMapLayer(layer, root is None)
        if root is not None:
            root.insertLayer(0, layer)  # not into the group of results that may be chosen
        self._form.labels.setLayer(layer)
        self.refresh()

    def take_free_folder(self) -> None:
        """Name another folder for the run where the one that is named holds a run already."""
        folder = str(self._form.folder.filePath()).strip()
        if not folder or holds_run(Path(folder)):
            self._form.folder.setFilePath(str(self._next_folder()))

    def parameters(self) -> Parameters:
        """Of Adapt model."""
        scene, labels = self._scene(), self.layer()
        return {
            "IMAGES": [scene.id()] if scene is not None else [],
            "LABELS": labels.id() if labels is not None else None,
            "FIELD": class_field(labels) if labels is not None else None,
            "BACKGROUND": self._form.background.text().strip(),
            "STEPS": self._form.steps.value(),
            "RUN": str(self._form.folder.filePath()).strip(),
        }

    def _next_folder(self) -> Path:
        """A folder for a run beside the labels, else in the profile, that does not exist yet."""
        layer = self.layer()
        source = Path(layer.source().partition("|")[0]) if layer is not None else Path()
        home = source.parent if source.is_file() else Path(QgsApplication.qgisSettingsDirPath(), "cegate_geo", "runs")
        return _free(home, "run")


def _free(folder: Path, name: str, suffix: str = "") -> Path:
    """The first of NAME_1, NAME_2 ... that does not exist in a folder."""
    number = 1
    while (folder / f"{name}_{number}{suffix}").exists():
        number += 1
    return folder / f"{name}_{number}{suffix}"
