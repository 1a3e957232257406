"""The plugin's zip in a fresh profile, the engine set up by `qgis_process`: with a fake Python, and once for real.

The real one needs the engine's wheels: CEGATE_WHEELS names a folder of them, made for instance by

    pip wheel --no-deps -w FOLDER . && pip download -d FOLDER "FOLDER/cegate_geo-VERSION-py3-none-any.whl[cpu]"
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import fake_python
import psutil
import pytest
import rasterio
from qgis_here import ROOT, headless, qgis_process

ID = "cegate_geo:set_up_engine"
pytestmark = pytest.mark.qgis


@pytest.fixture
def home(tmp_path) -> Path:
    """A fresh profile with the zip installed and nothing else, in a folder with a space and an accent."""
    words = [sys.executable, ROOT / "qgis_plugin" / "package.py", tmp_path / "zip"]
    plugin = Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())
    home = tmp_path / "un profil é"
    profile = home / "profiles" / "default"
    (profile / "python" / "plugins").mkdir(parents=True)
    zipfile.ZipFile(plugin).extractall(profile / "python" / "plugins")
    (profile / "QGIS").mkdir()
    (profile / "QGIS" / "QGIS3.ini").write_text("[PythonPlugins]\ncegate_geo_qgis=true\n")
    return home


@pytest.fixture
def environ(home) -> dict[str, str]:
    """Without the engine of the environment that runs these tests, and with what QGIS' launchers elsewhere set."""
    wrong = {"PROJ_LIB": "/usr/share/proj", "GDAL_DATA": "/nowhere", "PYTHONPATH": "/usr/lib/python3/dist-packages"}
    kept = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(folder for folder in kept if not Path(folder, "cegate-geo").exists())
    return headless(home, QGIS_CUSTOM_CONFIG_PATH=str(home), PATH=path, OMP_NUM_THREADS="1", **wrong)


def words(algorithm: str = ID, **parameters: object) -> list[str]:
    return [qgis_process(), "run", algorithm, "--", *(f"{key}={value}" for key, value in parameters.items())]


def run(environ, *arguments, **parameters):
    line = words(*arguments, **parameters)
    return subprocess.run(line, env=environ, capture_output=True, text=True, timeout=550, check=False)


def managed(home: Path) -> Path:
    return home / "profiles" / "default" / "cegate_geo" / "engine"


def test_install_check_and_remove(home, environ, tmp_path):
    python = fake_python.install(tmp_path / "python3.12")
    done = run(environ, PYTHON=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ENGINE:\t{managed(home)}" in done.stdout
    assert "Successfully installed cegate-geo" in done.stdout
    assert run(environ, ACTION="check").returncode == 0
    assert run(environ, ACTION="remove").returncode == 0
    assert not managed(home).parent.exists()
    failed = run(environ, ACTION="check")
    assert failed.returncode == 1
    assert "There is no engine in" in failed.stderr


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_qgis_that_ends_early_leaves_no_installer_and_no_engine(home, environ, tmp_path, kind):
    python = fake_python.install(tmp_path / "python3.12")
    more = {"FAKE_PIP_MODE": "orphan", "FAKE_PIP_PIDS": str(tmp_path / "pids")}
    with subprocess.Popen(words(PYTHON=python), env={**environ, **more}, stdout=subprocess.DEVNULL) as qgis:
        for _ in range(600):
            if (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2:
                break
            time.sleep(0.1)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        qgis.send_signal(kind)
        qgis.wait(60)
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive, gone
    assert not (managed(home) / "cegate-geo-ready.json").exists()
    assert run(environ, PYTHON=python).returncode == 0  # afresh


def test_a_scene_is_segmented_by_the_engine_that_was_set_up_offline(home, environ, shared_data, tmp_path):
    """Nothing is faked, and no network is used: what a user without one has after the zip and the wheels."""
    wheels = os.environ.get("CEGATE_WHEELS")
    if not wheels:
        pytest.skip("CEGATE_WHEELS names no folder of the engine's wheels; gathering them needs a package index")
    scene = tmp_path / "scène.tif"
    scene.symlink_to(shared_data / "buildings" / "kampala_z20_b0.tif")
    before = run(environ, "cegate_geo:segment_raster", INPUT=scene, OUTPUT=tmp_path / "m.tif")
    assert before.returncode == 1
    assert "Run 'Set up the engine'" in before.stderr
    environ = {**environ, "HTTPS_PROXY": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = run(environ, FOLDER=wheels)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(environ, "cegate_geo:segment_raster", INPUT=scene, OUTPUT=tmp_path / "m.tif")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{managed(home)}/bin/cegate-geo' predict" in done.stdout
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "m.tif") as mask:
        assert (mask.transform, mask.crs, mask.shape) == (source.transform, source.crs, source.shape)
        values = mask.read(1)
    assert 0.02 < (values == 1).mean() < 0.9
    assert run(environ, ACTION="remove").returncode == 0
    assert not managed(home).parent.exists()
