# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin itself: adds the Processing provider and the panel, and takes them away again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Optional

from qgis.core import QgsApplication, QgsSettings
from qgis.PyQt.QtCore import QCoreApplication, Qt, QTranslator

from .provider import PROVIDER_ID, CegateGeoProvider
from .words import CONTEXT, tr, translate_by

if TYPE_CHECKING:
    from qgis.gui import QgisInterface
    from qgis.PyQt.QtGui import QAction

    from .panel import Panel

MENU = "&CEGate-Geo"
SHOWN = "cegate_geo/panel_was_shown"
"""Setting of QGIS."""


class CegateGeoPlugin:
    """Registers the provider, in the desktop and in `qgis_process`; in the desktop the panel, too."""

    def __init__(self, iface: Optional[QgisInterface] = None) -> None:
        self.provider: Optional[CegateGeoProvider] = None
        self.panel: Optional[Panel] = None
        self._iface = iface
        self._action: Optional[QAction] = None
        self._translator = _load_translation()
        translate_by(lambda text: QCoreApplication.translate(CONTEXT, text))

    def initProcessing(self) -> None:
        """Add the provider. All that `qgis_process` calls; it has no window."""
        registry = QgsApplication.processingRegistry()
        if self.provider is None and registry is not None:
            provider = CegateGeoProvider()
            if registry.addProvider(provider):  # the registry owns it from here on
                self.provider = provider

    def initGui(self) -> None:
        """Called by the desktop."""
        self.initProcessing()
        if self._iface is None or self.panel is not None:
            return
        from .panel import Panel  # widgets: `qgis_process` needs none

        self.panel = Panel(self._iface, self._iface.mainWindow())
        self._iface.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, self.panel)
        self.panel.setVisible(_is_new())
        self._action = self.panel.toggleViewAction()
        if self._action is not None and self.provider is not None:
            self._action.setIcon(self.provider.icon())
            self._action.setText(tr("CEGate-Geo panel"))
            self._iface.addToolBarIcon(self._action)
            self._iface.addPluginToRasterMenu(MENU, self._action)

    def unload(self) -> None:
        """Take everything away that was added."""
        if self.panel is not None and self._iface is not None:
            self.panel.close_down()
            if self._action is not None:
                self._iface.removePluginRasterMenu(MENU, self._action)
                self._iface.removeToolBarIcon(self._action)
            self._iface.removeDockWidget(self.panel)
            self.panel.deleteLater()
        self.panel = self._action = None
        registry = QgsApplication.processingRegistry()
        if self.provider is not None and registry is not None:
            registry.removeProvider(PROVIDER_ID)  # by id: at the end of QGIS it may be gone already
        self.provider = None
        if self._translator is not None:
            QCoreApplication.removeTranslator(self._translator)
            self._translator = None


def _is_new() -> bool:
    """Whether this profile sees the plugin for the first time; asked once.

    The panel shows itself then: its button may be folded away at the end of a tool bar.
    """
    settings = QgsSettings()
    is_new = not settings.contains(SHOWN)
    settings.setValue(SHOWN, True)
    return is_new


def _load_translation() -> Optional[QTranslator]:
    """The plugin's texts in the language that QGIS runs in; None where there is no such file."""
    translator = QTranslator()
    folder = Path(__file__).with_name("i18n")
    if not translator.load(f"cegate_geo_qgis_{QgsApplication.locale()}", str(folder)):  # de_AT: else de
        return None
    return translator if QCoreApplication.installTranslator(translator) else None
