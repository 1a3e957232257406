"""Tests of the QGIS plugin, run by the project's own Python: they start QGIS, but never import it."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "qgis_plugin"))

collect_ignore = ["inside"]  # run by test_qgis_inside.py, in QGIS' Python
