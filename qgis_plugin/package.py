# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the plugin's zip: `python qgis_plugin/package.py [FOLDER]`, by default into dist/. Same source, same bytes."""

from __future__ import annotations

import configparser
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "cegate_geo_qgis"
SHIPPED = {".py", ".txt", ".svg", ".qml", ".qm"}
"""Suffixes of what belongs into the zip; caches and leftovers do not."""
EPOCH = (1980, 1, 1, 0, 0, 0)


def plugin_version() -> str:
    """The version that metadata.txt states."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(HERE / NAME / "metadata.txt", encoding="utf-8")
    return metadata["general"]["version"]


def build(folder: Path) -> Path:
    """Write the zip into a folder and give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{NAME}.{plugin_version()}.zip"
    files = {f"{NAME}/LICENSE": HERE / "LICENSE"}
    for path in (HERE / NAME).rglob("*"):
        if path.suffix in SHIPPED and path.is_file():
            files[path.relative_to(HERE).as_posix()] = path
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name].read_bytes())
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / 'dist')}\n")
