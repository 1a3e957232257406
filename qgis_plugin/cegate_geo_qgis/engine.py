# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the engine is, and the environment it is started with. No qgis.

The engine is never QGIS' own Python: `sys.executable` is another program inside QGIS, and packages inside QGIS break
its libraries. It is found, in this order, by the Processing setting, by the environment variable, in the virtual
environment that belongs to the plugin, and on the PATH. A place that was named but holds no engine is an error: going
on to the next would run another engine than the one that was asked for.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence

from .outcome import EngineError
from .words import mark, tr

SETTING = "CEGATE_GEO_ENGINE"
"""Name of the Processing setting and of the environment variable."""
COMMAND = "cegate-geo"
READY = "cegate-geo-ready.json"
"""File in the plugin's own environment, written when all of it is there; without it the environment is half-made."""
INSTALL_HINT = mark(
    "Run 'Set up the engine' in the Processing Toolbox, under CEGate-Geo: it installs the engine apart from QGIS, into "
    "{folder}. Or name an installed one under Settings > Options > Processing > Providers > CEGate-Geo."
)
WATCH_INPUT = "CEGATE_GEO_WATCH_STDIN"
"""Variable that makes any command of the engine end with its standard input, which stays open as long as QGIS lives."""
UNWANTED = (
    "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV",
    "PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "GDAL_DRIVER_PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH",
    "QT_PLUGIN_PATH",
)  # fmt: skip
"""Variables that QGIS sets for itself. With PROJ_LIB of another PROJ, EPSG codes are lost without a word."""


@dataclass(frozen=True)
class EngineCommand:
    """How the engine is started: program and leading arguments."""

    program: str
    arguments: tuple[str, ...]
    origin: str
    """Who named it, in words."""


def find_engine(
    *, setting: str, environ: Mapping[str, str], managed: Path, windows: Optional[bool] = None
) -> EngineCommand:
    """The engine to start.

    Args:
        setting: The Processing setting; may be empty.
        environ: Environment of this process.
        managed: Virtual environment that belongs to the plugin; need not exist, and counts only once it is complete.
        windows: Whether paths are those of Windows; default: as this system's.

    Raises:
        EngineError: If there is none, with what to install; or if a place was named that holds none.
    """
    windows = os.name == "nt" if windows is None else windows
    for text, origin in (
        (setting, tr("the Processing setting")),
        (environ.get(SETTING, ""), tr("the variable {name}").format(name=SETTING)),
    ):
        if text.strip():
            return _named_engine(text.strip(), origin, environ, windows)
    script = engine_script(managed, windows)
    if script.is_file() and (managed / READY).is_file():
        return EngineCommand(str(script), (), tr("the plugin's own environment"))
    home = environ.get("HOME") or environ.get("USERPROFILE")
    folders = [environ.get("PATH", ""), str(Path(home, ".local", "bin")) if home else ""]  # pipx and uv install there
    search = os.pathsep.join(folder for folder in folders if folder)
    found = shutil.which(COMMAND, path=search)
    if found:
        return EngineCommand(found, (), tr("the PATH"))
    what = tr("is half installed") if managed.exists() else tr("was not found")
    raise EngineError(
        tr("The engine of CEGate-Geo {what}. {mend}").format(what=what, mend=tr(INSTALL_HINT).format(folder=managed))
    )


def engine_script(environment: Path, windows: bool) -> Path:
    """The engine's command in a virtual environment."""
    return environment / "Scripts" / f"{COMMAND}.exe" if windows else environment / "bin" / COMMAND


def _named_engine(text: str, origin: str, environ: Mapping[str, str], windows: bool) -> EngineCommand:
    """A virtual environment's folder, a file, or a command with arguments."""
    text = str(Path(text).expanduser())
    if Path(text).is_dir():
        script = engine_script(Path(text), windows)
        if not script.is_file():
            raise EngineError(
                tr("{text}, named by {origin}, is no environment with the engine: {script} is missing.").format(
                    text=text, origin=origin, script=script
                )
            )
        return EngineCommand(str(script), (), origin)
    words = [text] if Path(text).is_file() else _words(text, windows)
    program = shutil.which(words[0], path=environ.get("PATH")) if words else None
    if program is None:
        raise EngineError(
            tr(
                "The engine {text!r}, named by {origin}, does not exist or can't be run. Name a command, "
                "a Python interpreter or a virtual environment that has {command}."
            ).format(text=text, origin=origin, command=COMMAND)
        )
    arguments = words[1:]
    if not arguments and re.fullmatch(r"(python|pypy)w?[\d.]*(\.exe)?", Path(program).name.lower()):
        arguments = ["-I", "-u", "-m", "cegate_geo"]
    return EngineCommand(program, tuple(arguments), origin)


def _words(text: str, windows: bool) -> list[str]:
    try:
        words = shlex.split(text, posix=not windows)
    except ValueError:  # a quote without its partner
        return [text]
    return [w.strip('"') for w in words] if windows else words


def clean_environment(
    environ: Mapping[str, str], *, host_folders: Sequence[str] = (), windows: Optional[bool] = None
) -> dict[str, str]:
    """The environment for the engine: this process' own, without what QGIS set for its own Python and libraries.

    Args:
        environ: Environment of this process.
        host_folders: Folders of the QGIS installation; on Windows they leave the PATH, as their DLLs would be taken.
        windows: Whether paths are those of Windows; default: as this system's.
    """
    windows = os.name == "nt" if windows is None else windows
    kept = {key: value for key, value in environ.items() if key.upper() not in UNWANTED}
    kept.pop(SETTING, None)
    if windows:
        for key in [k for k in kept if k.upper() == "PATH"]:
            kept[key] = ";".join(f for f in kept[key].split(";") if not is_below(f, host_folders))
    kept.update(PYTHONNOUSERSITE="1", PYTHONUTF8="1", PYTHONUNBUFFERED="1")
    kept[WATCH_INPUT] = "1"
    return kept


def is_below(path: str, folders: Sequence[str]) -> bool:
    """Whether a path of Windows is one of the folders or lies below one; an empty folder holds nothing."""
    return any((_plain(path) + "/").startswith(_plain(folder) + "/") for folder in folders if folder.strip())


def _plain(folder: str) -> str:
    return folder.strip().strip('"').replace("\\", "/").rstrip("/").lower()
