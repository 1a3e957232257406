"""Pictures of the QGIS plugin for the docs, from the real desktop: `python docs/make_qgis_pictures.py`.

Run by the project's own Python (with torch); needs QGIS, Xvfb and ImageMagick:
`apt install qgis xvfb xauth imagemagick`. Makes a region by the demo's code, packs the plugin, installs the zip into a
fresh profile, and drives the window by `drive_qgis.py`: preview, labels, adapt, run on all, dialogs. What goes into the
docs (not all of it) shows made imagery only. Other scenes, to look at: `--scene FILE --target FOLDER`.
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


def make_profile(home: Path, engine: str) -> None:
    """A fresh profile with the plugin from its zip, and the engine named in the settings."""
    profile = home / "profiles" / "default"
    (profile / "QGIS").mkdir(parents=True)
    words = [sys.executable, str(ROOT / "qgis_plugin" / "package.py"), str(home / "dist")]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    with zipfile.ZipFile(made) as archive:
        archive.extractall(profile / "python" / "plugins")
    setting = f"[Processing]\nConfiguration\\CEGATE_GEO_ENGINE={engine}\n\n[app]\nfirstRunVersionFlag=99999\n"
    plugins = "[PythonPlugins]\ncegate_geo_qgis=true\nprocessing=true\n"
    (profile / "QGIS" / "QGIS3.ini").write_text(f"{plugins}\n{setting}")


def make_scene(folder: Path) -> tuple[Path, Path]:
    """Region B of the demo and its polygons."""
    from cegate_geo.demo.regions import REGION_B, make_region, write_region

    files = write_region(make_region(REGION_B, 0), folder)
    return files.scene, files.labels


def drive(home: Path, target: Path, scene: Path, labels: Path | None, steps: int, model: str) -> None:
    """Start the desktop and let it take the pictures."""
    run = home / "run"
    run.mkdir(mode=0o700)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QT_", "PYTHON", "CEGATE", "QGIS"))}
    environment = {
        **kept, "HOME": str(home), "XDG_RUNTIME_DIR": str(run), "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin",
        "PICTURES_WORK": str(home), "PICTURES_TARGET": str(target), "PICTURES_SCENE": str(scene),
        "PICTURES_LABELS": str(labels or ""), "PICTURES_STEPS": str(steps), "PICTURES_NAME": scene.stem,
        "PICTURES_MODEL": model, "BROWSER": "/bin/true",
    }  # fmt: skip
    qgis = shutil.which("qgis.bin") or shutil.which("qgis") or sys.exit("QGIS is not installed")
    words = ["xvfb-run", "-a", "-s", "-screen 0 1500x940x24", qgis, "--nologo", "--noversioncheck"]
    words += ["--profiles-path", str(home), "--profile", "default", "--code", str(HERE / "drive_qgis.py")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    sys.stderr.write(done.stderr[-6000:])
    if not (home / "exit-code").is_file() or (home / "exit-code").read_text() != "0":
        sys.exit("QGIS did not get to the end")


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scene", type=Path, help="another scene, to look at")
    parser.add_argument("--labels", type=Path, help="its polygons")
    parser.add_argument("--target", type=Path, default=HERE / "images")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--model", default="", help="a model that was adapted already, instead of adapting one")
    parser.add_argument("--engine", default=str(Path(sys.executable).with_name("cegate-geo")))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_profile(home, given.engine)
        scene, labels = (given.scene, given.labels) if given.scene else make_scene(home)
        given.target.mkdir(parents=True, exist_ok=True)
        drive(home, given.target.resolve(), scene.resolve(), labels, given.steps, given.model)


if __name__ == "__main__":
    main()
