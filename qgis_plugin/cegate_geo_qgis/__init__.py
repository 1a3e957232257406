# SPDX-License-Identifier: GPL-2.0-or-later
"""QGIS plugin that segments rasters with CEGate-Geo's engine, in another process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from qgis.gui import QgisInterface

    from .plugin import CegateGeoPlugin


def classFactory(iface: Optional[QgisInterface]) -> CegateGeoPlugin:
    """What QGIS calls to load the plugin. `iface` is None in `qgis_process`."""
    from .plugin import CegateGeoPlugin

    return CegateGeoPlugin(iface)
