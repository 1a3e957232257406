# SPDX-License-Identifier: GPL-2.0-or-later
"""The Processing provider `cegate_geo` and its settings."""

from __future__ import annotations

from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .adapt_model import AdaptModel
from .check_model import CheckModel
from .engine import SETTING
from .evaluate import Evaluate
from .model_information import ModelInformation
from .predict_job import RASTER_SUFFIXES, VECTOR_SUFFIXES
from .segment_raster import SegmentRaster
from .set_up_engine import SetUpEngine
from .words import tr

PROVIDER_ID = "cegate_geo"
"""Never changes: saved models and scripts hold it."""


class CegateGeoProvider(QgsProcessingProvider):
    """All algorithms of CEGate-Geo. One file an algorithm; `loadAlgorithms` lists them."""

    def id(self) -> str:
        """Never changes."""
        return PROVIDER_ID

    def name(self) -> str:
        """Shown in the toolbox."""
        return "CEGate-Geo"

    def longName(self) -> str:
        """Shown where there is room."""
        return tr("CEGate-Geo: segmentation of rasters of any size")

    def icon(self) -> QIcon:
        """The plugin's own picture."""
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def load(self) -> bool:
        """Add the settings, then the algorithms."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        ProcessingConfig.addSetting(
            Setting(
                self.name(),
                SETTING,
                tr("Engine: command, Python interpreter or virtual environment (empty: look for it)"),
                "",
                valuetype=Setting.FILE,
            )
        )
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Take the settings away."""
        ProcessingConfig.removeSetting(SETTING)

    def loadAlgorithms(self) -> None:
        """Called by `refreshAlgorithms`."""
        for algorithm in (SegmentRaster, AdaptModel, Evaluate, CheckModel, ModelInformation, SetUpEngine):
            self.addAlgorithm(algorithm())

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        """The engine writes GeoTIFF only."""
        return list(RASTER_SUFFIXES)

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """The engine writes GeoPackage and FlatGeobuf."""
        return list(VECTOR_SUFFIXES)

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:  # noqa: ARG002, the signature is QGIS'
        """For temporary layers."""
        return VECTOR_SUFFIXES[0]

    def supportsNonFileBasedOutput(self) -> bool:
        """The engine writes files, no memory layers and no database tables."""
        return False
