"""Runs the tests that need QGIS' own Python (folder `inside`) in a process of their own."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from qgis_here import headless, inside_python, qgis_process, qgis_python
from tiny_model import save_threshold_model

INSIDE = Path(__file__).with_name("inside")
pytestmark = pytest.mark.qgis


@pytest.mark.parametrize("file", sorted(path.name for path in INSIDE.glob("test_*.py")))
def test_inside_qgis(file, engine, tmp_path):
    qgis_process(), qgis_python()
    report = tmp_path / "report.xml"
    words = [inside_python(), "-m", "pytest", "-c", INSIDE / "pytest.ini", INSIDE / file, f"--junit-xml={report}", "-q"]
    words += ["--basetemp", tmp_path / "tests"]
    environment = headless(
        tmp_path / "home",
        CEGATE_QGIS_PICTURES=str(tmp_path / "pictures"),
        CEGATE_TEST_ENGINE=str(engine),
        CEGATE_TEST_MODEL=str(save_threshold_model(tmp_path / "model.onnx", gsd_m=0.5)),
    )
    done = subprocess.run(words, cwd=INSIDE, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, f"{done.stdout[-20_000:]}\n{done.stderr[-5000:]}"
    counts = ET.parse(report).getroot().find("testsuite")
    assert counts is not None
    assert int(counts.get("tests", 0)) > 0
    assert int(counts.get("skipped", 1)) == 0
