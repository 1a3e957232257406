# SPDX-License-Identifier: GPL-2.0-or-later
"""The widgets of the panel and how they are laid out; what they do is in `panel.py`."""

from __future__ import annotations

from typing import Optional

from qgis.core import QgsMapLayerProxyModel
from qgis.gui import QgsCollapsibleGroupBox, QgsFileWidget, QgsMapLayerComboBox
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from .parameters import model_filter
from .words import tr


class PanelForm(QWidget):
    """All widgets of the panel, as attributes."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.addWidget(self._make_engine_row())
        column.addLayout(self._make_choice())
        column.addLayout(self._make_predicting())
        column.addWidget(self._make_teaching())
        column.addWidget(self._make_log())
        column.addStretch(1)
        area = QScrollArea()
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        bar = area.verticalScrollBar()
        beside = bar.sizeHint().width() if bar is not None else 0
        area.setMinimumWidth(inside.minimumSizeHint().width() + beside)  # nothing is cut off where the dock is narrow
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area, 1)
        layout.addWidget(self._make_status())

    def _make_engine_row(self) -> QWidget:
        self.engine_row = QFrame()
        self.engine_row.setFrameShape(QFrame.Shape.StyledPanel)
        self.engine_text = QLabel()
        self.engine_text.setWordWrap(True)
        self.set_up = QPushButton(tr("Set up the engine ..."))
        layout = QVBoxLayout(self.engine_row)
        layout.addWidget(self.engine_text)
        layout.addWidget(self.set_up)
        return self.engine_row

    def _make_choice(self) -> QVBoxLayout:
        self.scene = QgsMapLayerComboBox()
        self.scene.setFilters(QgsMapLayerProxyModel.Filter.RasterLayer)
        self.model = _file_widget(QgsFileWidget.StorageMode.GetFile, model_filter())
        edit = self.model.lineEdit()
        if edit is not None:
            edit.setPlaceholderText(tr("The demo model: buildings"))
        self.card = QTextBrowser()
        self.card.setOpenExternalLinks(True)
        self.card.setMinimumHeight(215)
        self.card.setMaximumHeight(290)
        form = QFormLayout()
        form.addRow(tr("Scene"), self.scene)
        form.addRow(tr("Model"), self.model)
        layout = QVBoxLayout()
        layout.addLayout(form)
        layout.addWidget(self.card)
        return layout

    def _make_predicting(self) -> QVBoxLayout:
        self.preview = QPushButton(tr("Preview"))
        self.preview.setToolTip(tr("Segment the middle of what the map shows, in seconds."))
        self.run_all = QPushButton(tr("Run on all"))
        self.run_all.setToolTip(tr("Segment the whole scene; of a web map, what the map shows."))
        self.polygons = QCheckBox(tr("Polygons, too"))
        self.target = _file_widget(QgsFileWidget.StorageMode.SaveFile, "GeoTIFF (*.tif)")
        edit = self.target.lineEdit()
        if edit is not None:
            edit.setPlaceholderText(tr("[Temporary file]"))
        form = QFormLayout()
        form.addRow(tr("Save as"), self.target)
        layout = QVBoxLayout()
        layout.addLayout(_row(self.preview, self.run_all, self.polygons))
        layout.addLayout(form)
        return layout

    def _make_teaching(self) -> QWidget:
        self.teaching = QgsCollapsibleGroupBox(tr("Teach it your classes"))
        self.labels = QgsMapLayerComboBox()
        self.labels.setFilters(QgsMapLayerProxyModel.Filter.PolygonLayer)
        self.labels.setAllowEmptyLayer(True)
        self.new_labels = QPushButton(tr("New ..."))
        self.label_class = QComboBox()
        self.draw = QPushButton(tr("Draw"))
        self.draw.setToolTip(tr("Draw polygons of this class: click corners, right click to end."))
        self.background = QLineEdit()
        self.background.setPlaceholderText(tr("Only what is drawn counts"))
        self.background.setToolTip(tr("A class, where all of its objects in the scene were drawn."))
        self.steps = QSpinBox()
        self.steps.setRange(1, 1_000_000)
        self.steps.setSingleStep(100)
        self.steps.setValue(300)
        self.folder = _file_widget(QgsFileWidget.StorageMode.GetDirectory, "")
        self.adapt = QPushButton(tr("Adapt"))
        self.adapt.setToolTip(tr("Learn from the polygons, starting from the small base model."))
        self.more = QPushButton(tr("More options ..."))
        form = QFormLayout(self.teaching)
        form.addRow(tr("Labels"), _row(self.labels, self.new_labels))
        form.addRow(tr("Class"), _row(self.label_class, self.draw))
        form.addRow(tr("Background"), self.background)
        form.addRow(tr("Steps"), self.steps)
        form.addRow(tr("Folder"), self.folder)
        form.addRow(_row(self.adapt, self.more))
        return self.teaching

    def _make_log(self) -> QWidget:
        box = QgsCollapsibleGroupBox(tr("Log"))
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(2000)
        self.log.setMinimumHeight(110)
        layout = QVBoxLayout(box)
        layout.addWidget(self.log)
        box.setCollapsed(True)
        self.log_box = box
        return box

    def _make_status(self) -> QWidget:
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setFormat("%p %")
        self.cancel = QPushButton(tr("Cancel"))
        box = QWidget()
        layout = QVBoxLayout(box)
        layout.addWidget(self.status)
        layout.addLayout(_row(self.bar, self.cancel))
        return box


def _file_widget(mode: QgsFileWidget.StorageMode, pattern: str) -> QgsFileWidget:
    widget = QgsFileWidget()
    widget.setStorageMode(mode)
    widget.setFilter(pattern)
    return widget


def _row(*widgets: QWidget) -> QHBoxLayout:
    """Side by side; what can grow does, buttons do not."""
    layout = QHBoxLayout()
    for widget in widgets:
        grows = not isinstance(widget, (QPushButton, QCheckBox))
        if grows:
            widget.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        layout.addWidget(widget, 1 if grows else 0)
    return layout
