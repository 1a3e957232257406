"""Pictures of the QGIS plugin for the docs, from the real desktop: `python docs/make_qgis_pictures.py`.

Run by the project's own Python (with torch); needs QGIS, Xvfb and ImageMagick:
`apt install qgis xvfb xauth imagemagick`. Makes a region by the demo's code, packs the plugin, and drives the window of
a QGIS with a fresh profile by `drive_qgis.py`: install from the zip, preview, labels, adapt, run on all, dialogs. What
goes into the docs (not all of it) shows made imagery only.

To try everything, on another scene and with an engine that the plugin itself sets up:
`--scene FILE --labels FILE --wheels FOLDER --target FOLDER`; labels have a field `class`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))


def make_profile(home: Path, engine: str) -> Path:
    """A fresh profile, with the engine named in the settings where there is one; gives the plugin's zip."""
    profile = home / "profiles" / "default"
    (profile / "QGIS").mkdir(parents=True)
    words = [sys.executable, str(ROOT / "qgis_plugin" / "package.py"), str(home / "dist")]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    setting = f"[Processing]\nConfiguration\\CEGATE_GEO_ENGINE={engine}\n" if engine else ""
    rest = "[PythonPlugins]\nprocessing=true\n\n[app]\nfirstRunVersionFlag=99999\n"
    (profile / "QGIS" / "QGIS3.ini").write_text(f"{setting}\n{rest}")
    return Path(made)


def make_scene(folder: Path) -> tuple[Path, Path]:
    """Region B of the demo and its polygons."""
    from cegate_geo.demo.regions import REGION_B, make_region, write_region

    files = write_region(make_region(REGION_B, 0), folder)
    return files.scene, files.labels


def drive(home: Path, given: dict[str, str]) -> None:
    """Start the desktop in a folder and let it take the pictures."""
    run = home / "run"
    run.mkdir(mode=0o700)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QT_", "PYTHON", "CEGATE", "QGIS"))}
    environment = {
        **kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(run), "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin",
        "BROWSER": "/bin/true", **{f"PICTURES_{name.upper()}": value for name, value in given.items()},
    }  # fmt: skip
    qgis = shutil.which("qgis.bin") or shutil.which("qgis") or sys.exit("QGIS is not installed")
    words = ["xvfb-run", "-a", "-s", "-screen 0 1500x940x24", qgis, "--nologo", "--noversioncheck"]
    words += ["--profiles-path", str(home), "--profile", "default", "--code", str(HERE / "drive_qgis.py")]
    done = subprocess.run(words, cwd=home, env=environment, timeout=3000, check=False, stdout=subprocess.DEVNULL)
    if not (home / "exit-code").is_file() or (home / "exit-code").read_text() != "0":
        sys.exit(f"QGIS did not get to the end (exit code {done.returncode})")


def beside(home: Path, path: Path) -> str:
    """A file or folder under its own name in the folder that QGIS runs in: pictures show no other folder."""
    link = home / path.name
    if not link.exists():
        link.symlink_to(path.absolute())
    return path.name


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scene", type=Path, help="another scene, to look at")
    parser.add_argument("--labels", type=Path, help="its polygons")
    parser.add_argument("--target", type=Path, default=HERE / "images")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--model", type=Path, help="a model that was adapted already, instead of adapting one")
    parser.add_argument("--engine", default=str(Path(sys.executable).with_name("cegate-geo")))
    parser.add_argument("--wheels", type=Path, help="set up the engine from this folder, in the desktop")
    parser.add_argument("--variant", default="train", help="of the engine that is set up")
    given = parser.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plugin = make_profile(home, "" if given.wheels else given.engine)
        scene, labels = (given.scene, given.labels) if given.scene else make_scene(home)
        words = {
            "target": str(given.target.resolve()), "scene": beside(home, scene), "name": scene.stem,
            "labels": beside(home, labels) if labels else "", "steps": str(given.steps),
            "model": f"{beside(home, given.model.parent)}/{given.model.name}" if given.model else "",
            "zip": beside(home, plugin), "wheels": beside(home, given.wheels) if given.wheels else "",
            "variant": given.variant,
        }  # fmt: skip
        drive(home, words)


if __name__ == "__main__":
    main()
