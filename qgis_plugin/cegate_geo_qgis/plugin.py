# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin itself: adds the Processing provider and takes it away again."""

from __future__ import annotations

from typing import Optional

from qgis.core import QgsApplication

from .provider import PROVIDER_ID, CegateGeoProvider


class CegateGeoPlugin:
    """Registers the provider, in the desktop and in `qgis_process`."""

    def __init__(self) -> None:
        self.provider: Optional[CegateGeoProvider] = None

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

    def unload(self) -> None:
        """Take everything away that was added."""
        registry = QgsApplication.processingRegistry()
        if self.provider is not None and registry is not None:
            registry.removeProvider(PROVIDER_ID)  # by id: at the end of QGIS it may be gone already
        self.provider = None
