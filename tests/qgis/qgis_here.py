"""Where QGIS is on this machine, and the environment in which its tests run.

`python tests/qgis/qgis_here.py` makes that environment (in QGIS_VENV, default .venv-qgis) and prints its Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
QGIS_PYTHON = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")
"""The Python that has the module `qgis`; another python3 may come first on the PATH."""
PACKAGES = ("pytest>=8,<10", "pytest-qgis>=2.1,<6")


def missing(reason: str) -> NoReturn:
    """Fail in CI, skip elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}: in CI the QGIS tests have to run")
    pytest.skip(reason)


def qgis_process() -> str:
    """The program itself: Debian's wrapper `qgis_process` passes an option that it does not know."""
    found = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    return found or missing("QGIS is not installed (no qgis_process.bin)")


def qgis_python() -> str:
    """A Python that imports qgis."""
    try:
        done = subprocess.run([QGIS_PYTHON, "-c", "import qgis.core"], capture_output=True, check=False)
    except OSError as error:
        missing(f"{QGIS_PYTHON} can't be started: {error}")
    return QGIS_PYTHON if done.returncode == 0 else missing(f"{QGIS_PYTHON} has no module qgis (set QGIS_PYTHON)")


def inside_python() -> Path:
    """The Python of an environment with QGIS and pytest-qgis; made where it is missing.

    Raises:
        subprocess.CalledProcessError: If it can't be made.
    """
    folder = ROOT / os.environ.get("QGIS_VENV", ".venv-qgis")
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        subprocess.run([qgis_python(), "-m", "venv", "--clear", "--system-site-packages", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES], check=True)
        (folder / ".ready").touch()
    return python


def headless(home: Path, **more: str) -> dict[str, str]:
    """An environment for QGIS without a screen, with a home folder of its own."""
    runtime = home / "run"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QGIS_", "CEGATE_", "FAKE_", "PYTEST_"))}
    return {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "QT_QPA_PLATFORM": "offscreen", **more}


if __name__ == "__main__":
    sys.stdout.write(f"{inside_python()}\n")
