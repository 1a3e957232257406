"""Tests of the QGIS plugin, run by the project's own Python: they start QGIS, but never import it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "qgis_plugin"))

collect_ignore = ["inside"]  # run by test_qgis_inside.py, in QGIS' Python


@pytest.fixture(scope="session")
def engine() -> Path:
    """The real engine: the command of the environment that runs these tests."""
    program = Path(os.environ.get("CEGATE_TEST_ENGINE", Path(sys.executable).with_name("cegate-geo")))
    if not program.is_file():
        pytest.fail(f"The engine is not installed, {program} is missing: pip install --editable '.[cpu]'")
    return program
