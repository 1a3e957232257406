# SPDX-License-Identifier: GPL-2.0-or-later
"""The panel: scene and model, whether they suit each other, preview, run, draw, adapt, look again.

Thin over the algorithms: all work is theirs, beside the window; what the panel adds are their parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import processing
from qgis.core import (
    QgsProcessing,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsRasterLayer,
)
from qgis.gui import QgisInterface, QgsDockWidget
from qgis.PyQt import sip
from qgis.PyQt.QtGui import QShowEvent
from qgis.PyQt.QtWidgets import QWidget

from . import panel_extent
from .engine_algorithm import Parameters, current_engine
from .model_card import ModelCard, verdicts
from .outcome import EngineError
from .panel_card import CardShelf, short_html
from .panel_extent import Seen
from .panel_form import PanelForm
from .panel_labels import LabelDesk
from .panel_preview import PreviewLayer
from .panel_run import PanelRun
from .raster_export import ground_size, is_web_map
from .words import tr

SEGMENT, ADAPT, SET_UP = (f"cegate_geo:{name}" for name in ("segment_raster", "adapt_model", "set_up_engine"))
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
        self._last_preview = PreviewLayer()
        self._dialogs: list[Any] = []
        """QGIS holds their windows only: without its Python half a dialog's Run does nothing."""
        self.runs = PanelRun(self)
        self.form = PanelForm(self)
        self.setWidget(self.form)
        self.labels = LabelDesk(self.form, iface, self.scene, self.card)
        self._connect()
        self._refresh()
        self._end(True, tr("Choose a scene and press Preview."))

    def _connect(self) -> None:
        form, runs = self.form, self.runs
        form.scene.layerChanged.connect(self._refresh)
        form.model.fileChanged.connect(self._refresh)
        form.set_up.clicked.connect(self._open_set_up)
        form.preview.clicked.connect(self.preview)
        form.run_all.clicked.connect(self.run_all)
        form.adapt.clicked.connect(self.adapt)
        form.more.clicked.connect(self._open_adapt)
        form.cancel.clicked.connect(self._cancel)
        self.labels.changed.connect(self._refresh_buttons)
        self.labels.failed.connect(lambda text: self._end(False, text))
        runs.began.connect(self._begin)
        runs.moved.connect(self._move)
        runs.said.connect(form.log.appendPlainText)
        runs.stepped.connect(form.status.setText)  # of a training: worth more than a bar
        runs.ended.connect(self._end)

    def close_down(self) -> None:
        """Stop what runs; called when the plugin is unloaded."""
        self._shelf.close()
        self.runs.close()
        for dialog in self._open_dialogs():
            dialog.close()

    def showEvent(self, event: Optional[QShowEvent]) -> None:
        """The engine may have been set up meanwhile."""
        super().showEvent(event)
        self._refresh()

    # What is chosen

    def scene(self) -> Optional[QgsRasterLayer]:
        """The chosen scene."""
        layer = self.form.scene.currentLayer()
        return layer if isinstance(layer, QgsRasterLayer) else None

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
        self.form.engine_text.setText(tr("The engine that does the work is missing."))
        self.form.engine_text.setToolTip(problem)
        self.form.engine_row.setVisible(bool(problem))
        self._refresh_buttons()
        answer = None if problem else self._shelf.get(self.model(), self._refresh)
        if problem:
            self.form.card.setHtml("")
        elif answer is None:
            self.form.card.setHtml(f"<i>{tr('Reading the model ...')}</i>")
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

    def _refresh_buttons(self) -> None:
        form, busy = self.form, self.runs.is_running()
        has_scene, has_labels = self.scene() is not None, self.labels.layer() is not None
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
        seen = self.seen(layer, limit_px=panel_extent.PREVIEW_PX) if layer is not None else None
        if layer is None or seen is None:
            self._end(False, tr("The map does not show the scene: zoom to it first."))
            return
        target = QgsProcessingOutputLayerDefinition(QgsProcessing.TEMPORARY_OUTPUT, QgsProject.instance())
        target.destinationName = tr("Preview of {scene}").format(scene=layer.name())

        def look(results: dict[str, Any]) -> None:
            self._last_preview.keep(results)
            if seen.is_part:
                self._end(True, tr("Done: the middle of what the map shows. Zoom in to see more of it."))

        self._start(SEGMENT, {**self._predicting(layer), "EXTENT": seen.extent, "OUTPUT": target}, look)

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
            seen = self.seen(layer, limit_px=None)
            parameters["EXTENT"] = seen.extent if seen is not None else None
        if self.form.polygons.isChecked():
            beside = temporary if place == temporary else str(Path(place).with_suffix(".gpkg"))
            parameters["VECTOR"] = QgsProcessingOutputLayerDefinition(beside, QgsProject.instance())
        self._start(SEGMENT, parameters, lambda _: self._last_preview.drop())

    def adapt(self) -> None:
        """Learn from the labels."""
        self.labels.take_free_folder()
        self._start(ADAPT, self.labels.parameters(), self._take_model)

    def seen(self, layer: QgsRasterLayer, *, limit_px: Optional[int]) -> Optional[Seen]:
        """What the map shows of a layer; see `seen_extent`."""
        card = self.card() if is_web_map(layer) else None
        gsd_m = card.gsd_m if card is not None else None
        return panel_extent.seen_extent(self._iface.mapCanvas(), layer, gsd_m=gsd_m, limit_px=limit_px)

    def _predicting(self, layer: QgsRasterLayer) -> Parameters:
        return {"INPUT": layer.id(), "MODEL": self.model()}

    def _open_set_up(self) -> None:
        self._open(SET_UP, {})

    def _open_adapt(self) -> None:
        self._open(ADAPT, self.labels.parameters())

    def _open(self, algorithm: str, parameters: Parameters) -> None:
        """Show an algorithm's dialog beside the window, which stays usable."""
        dialog = processing.createAlgorithmDialog(algorithm, parameters)
        if dialog is None:
            return
        dialog.algorithmFinished.connect(self._refresh)
        self._dialogs = [*self._open_dialogs(), dialog]
        dialog.show()

    def _open_dialogs(self) -> list[Any]:
        return [dialog for dialog in self._dialogs if not sip.isdeleted(dialog)]

    # What comes of it

    def _start(self, algorithm: str, parameters: Parameters, when_done: Any) -> None:
        self.form.log.clear()
        problem = self.runs.start(algorithm, parameters, when_done)
        if problem:
            self._end(False, problem)

    def _cancel(self) -> None:
        self.form.status.setText(tr("Cancelling ..."))
        self.runs.cancel()

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
        self.form.status.setText(text or tr("Done."))
        self.form.status.setStyleSheet("" if ok else "color: #c62828")
        self._refresh_buttons()

    def _take_model(self, results: dict[str, Any]) -> None:
        self.form.model.setFilePath(str(results["MODEL"]))
        miou = results.get("MIOU")
        what = "" if miou is None else tr(" Mean IoU on the parts held out: {miou:.3f}.").format(miou=miou)
        self._end(True, tr("The model has learned.{quality} Look again: Preview.").format(quality=what))
