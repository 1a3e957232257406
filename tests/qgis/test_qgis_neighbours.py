"""Other plugins, QGIS' own `osgeo.gdal_array` and its tools work as before: after set-up, during a run, after it.

By `qgis_process`: where QGIS' own program links libraries, and not only Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fake_python
import pytest
from qgis_here import ROOT, headless, qgis_process
from tiny_model import save_threshold_model

pytestmark = pytest.mark.qgis


def run(environ: dict[str, str], algorithm: str, **parameters: object) -> None:
    words = [qgis_process(), "run", algorithm, "--", *(f"{key}={value}" for key, value in parameters.items())]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def home(tmp_path) -> Path:
    """A profile with a plugin of somebody else."""
    profile = tmp_path / "home" / "profiles" / "default"
    shutil.copytree(ROOT / "tests" / "qgis" / "neighbour", profile / "python" / "plugins" / "neighbour")
    (profile / "QGIS").mkdir()
    (profile / "QGIS" / "QGIS3.ini").write_text("[PythonPlugins]\nneighbour=true\n")
    return tmp_path / "home"


def install(home: Path, folder: Path) -> None:
    """Add our plugin."""
    profile = home / "profiles" / "default"
    words = [sys.executable, ROOT / "qgis_plugin" / "package.py", folder]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    zipfile.ZipFile(made).extractall(profile / "python" / "plugins")
    (profile / "QGIS" / "QGIS3.ini").write_text("[PythonPlugins]\nneighbour=true\ncegate_geo_qgis=true\n")


def test_other_plugins_see_the_same_world_as_without_this_one(home, engine, shared_data, tmp_path):
    scene, large = tmp_path / "scene.tif", tmp_path / "large.tif"
    scene.symlink_to(shared_data / "awkward" / "rasterio" / "RGB.byte.tif")
    large.symlink_to(shared_data / "scene" / "banepa_11264x8704_rgb.tif")
    model = save_threshold_model(tmp_path / "drone.onnx", gsd_m=0.132)
    (tmp_path / "out").mkdir()
    more = {"CEGATE_GEO_ENGINE": str(engine), "OMP_NUM_THREADS": "1", "GDAL_PAM_ENABLED": "NO"}
    environ = headless(home, QGIS_CUSTOM_CONFIG_PATH=str(home), **more)
    run(environ, "neighbour:look", SCENE=scene, REPORT=tmp_path / "alone.json")
    install(home, tmp_path / "zip")
    python = fake_python.install(tmp_path / "python3.12")
    run({**environ, "PATH": f"/usr/bin{os.pathsep}/bin"}, "cegate_geo:set_up_engine", PYTHON=python)
    given = {"LARGE": large, "MODEL": model, "MASK": tmp_path / "out" / "mask.tif"}
    run(environ, "neighbour:look", SCENE=scene, REPORT=tmp_path / "together.json", **given)
    (alone,) = json.loads((tmp_path / "alone.json").read_text()).values()
    together = json.loads((tmp_path / "together.json").read_text())
    assert list(together) == ["before", "during", "after"]
    for when, seen in together.items():
        for what, value in alone.items():
            assert seen[what] == value, f"{what} {when}"
    assert alone["strangers"] == []
    assert alone["array"][:2] == ["uint8", [3, 718, 791]]
    assert list((tmp_path / "out").iterdir()) == []
