# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks for the classes of a new label layer and where it lies."""

from __future__ import annotations

from typing import Optional, Sequence

from qgis.gui import QgsFileWidget
from qgis.PyQt.QtWidgets import QDialog, QDialogButtonBox, QLabel, QPlainTextEdit, QVBoxLayout, QWidget

from .words import tr


class NewLabelsDialog(QDialog):
    """Modal: classes, one a line, and a file."""

    def __init__(self, classes: Sequence[str], path: str, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(tr("New label layer"))
        self.names = QPlainTextEdit("\n".join(classes))
        self.names.setToolTip(tr("Draw some polygons of each, also of the ground in between."))
        self.file = QgsFileWidget()
        self.file.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.file.setFilter("GeoPackage (*.gpkg)")
        self.file.setFilePath(path)
        buttons = QDialogButtonBox.StandardButton
        self.buttons = QDialogButtonBox(buttons.Ok | buttons.Cancel)
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addWidget(QLabel(tr("Classes, one a line, two at least:")))
        layout.addWidget(self.names)
        layout.addWidget(QLabel(tr("GeoPackage (empty: a layer in memory, lost with the project):")))
        layout.addWidget(self.file)
        layout.addWidget(self.buttons)
        self.names.textChanged.connect(self._check)
        self._check()

    def classes(self) -> list[str]:
        """The names, each once."""
        lines = [line.strip() for line in self.names.toPlainText().splitlines()]
        return list(dict.fromkeys(line for line in lines if line))

    def path(self) -> str:
        """The file; empty for memory."""
        text = str(self.file.filePath()).strip()
        return text if not text or text.lower().endswith(".gpkg") else f"{text}.gpkg"

    def _check(self) -> None:
        ok = self.buttons.button(QDialogButtonBox.StandardButton.Ok)
        if ok is not None:
            ok.setEnabled(len(self.classes()) >= 2)
