"""Runs in QGIS' own Python, with pytest-qgis: the plugin from the source tree, the engine faked."""

# ruff: noqa: N802, the names are QGIS'

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
FAKE = ROOT / "tests" / "qgis" / "fake_engine.py"
sys.path.insert(0, str(ROOT / "qgis_plugin"))


class FakeEngine:
    """The fake engine as the variable CEGATE_GEO_ENGINE names it, and what it was given."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self._patch, self._log = monkeypatch, folder / "engine.log"
        monkeypatch.setenv("CEGATE_GEO_ENGINE", f"/usr/bin/python3 {shlex.quote(str(FAKE))}")
        monkeypatch.setenv("FAKE_ENGINE_LOG", str(self._log))
        self.mode("ok")

    def mode(self, name: str, **more: str) -> None:
        self._patch.setenv("FAKE_ENGINE_MODE", name)
        for key, value in more.items():
            self._patch.setenv(key, value)

    @property
    def log(self) -> list[dict]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    @property
    def argv(self) -> list[str]:
        return self.log[0]["argv"]

    def is_alive(self) -> bool:
        pid = self.log[0]["pid"]
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"


@pytest.fixture
def fake_engine(monkeypatch, tmp_path) -> FakeEngine:
    return FakeEngine(monkeypatch, tmp_path)


def make_recorder():
    """Feedback that keeps what is logged."""
    from qgis.core import QgsProcessingFeedback

    class Recorder(QgsProcessingFeedback):
        def __init__(self):
            super().__init__(False)
            self.lines, self.warnings, self.commands = [], [], []

        def pushInfo(self, info):
            self.lines.append(info)

        def setProgressText(self, text):
            self.lines.append(text)

        def pushWarning(self, warning):
            self.warnings.append(warning)

        def pushCommandInfo(self, info):
            self.commands.append(info)

    return Recorder()


@pytest.fixture
def feedback():
    return make_recorder()


@pytest.fixture
def scene_values() -> np.ndarray:
    """(48, 64) uint8: 0 is a hole, above 127 is building."""
    values = np.random.default_rng(0).integers(1, 256, (48, 64)).astype("uint8")
    values[:5, :7] = 0
    return values


@pytest.fixture
def scene(tmp_path, scene_values) -> Path:
    """A GeoTIFF of three bands in UTM 45N."""
    from osgeo import gdal, osr

    gdal.UseExceptions()
    folder = tmp_path / "a scène"
    folder.mkdir()
    path = folder / "my scène.tif"
    made = gdal.GetDriverByName("GTiff").Create(str(path), 64, 48, 3)
    crs = osr.SpatialReference()
    crs.ImportFromEPSG(32645)
    made.SetProjection(crs.ExportToWkt())
    made.SetGeoTransform((300000, 0.5, 0, 3000000, 0, -0.5))
    for band in range(3):
        made.GetRasterBand(band + 1).WriteArray(scene_values)
    made = None
    return path


@pytest.fixture
def provider(qgis_processing):
    """The plugin, loaded as QGIS does it."""
    from cegate_geo_qgis import classFactory

    plugin = classFactory(None)
    plugin.initProcessing()
    yield plugin.provider
    plugin.unload()


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where pictures of dialogs are left for a human to look at."""
    folder = Path(os.environ.get("CEGATE_QGIS_PICTURES", "/tmp/cegate-qgis-pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
