# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds what can make an environment: a Python that is new enough and whole, or `uv`. No qgis.

Never QGIS' own: `sys.executable` is another program inside QGIS, and the Python that QGIS brings on Windows and macOS
stays untouched. On Linux the system's Python, which QGIS uses too, is a good base: an environment leaves it as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, Optional, Sequence

from .engine import is_below
from .outcome import EngineError
from .words import tr

OLDEST = (3, 11)
"""The engine's `requires-python`."""
NAMES = ("python3.13", "python3.12", "python3.11", "python3.14", "python3", "python")
"""Commands in the order of trial: first those for which all packages have had wheels for long."""
PROBE = """
import importlib.util as u, json, sys
whole = all(u.find_spec(name) for name in ("venv", "ensurepip"))
program = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps({"version": sys.version_info[:2], "whole": whole, "bits": sys.maxsize.bit_length() + 1,
                  "program": program}))
"""
"""Run by each candidate. `_base_executable` looks through shims and environments."""
Ask = Callable[[Sequence[str]], str]
"""Runs a program and gives what it printed; raises EngineError where it fails."""


@dataclass(frozen=True)
class Maker:
    """What makes the environment."""

    program: str
    """A Python, or `uv`."""
    version: tuple[int, int]
    """Of the Python; of `uv`, which brings or finds one: (0, 0)."""

    @property
    def is_uv(self) -> bool:
        """Whether it is `uv`."""
        return self.version == (0, 0)

    def __str__(self) -> str:
        return (
            f"uv ({self.program})"
            if self.is_uv
            else tr("Python {version} ({program})").format(version=dotted(self.version), program=self.program)
        )


def dotted(version: Sequence[int]) -> str:
    """'3.11'."""
    return ".".join(str(part) for part in version)


def is_uv(program: str) -> bool:
    """Whether a path looks like that of `uv`."""
    return re.fullmatch(r"uv(\.exe)?", re.split(r"[\\/]", program)[-1].lower()) is not None


def host_folders(prefix: str, environ: Mapping[str, str], platform: str) -> tuple[str, ...]:
    """The folders of a QGIS that brings its own Python; none on Linux, where the system's Python serves both.

    Args:
        prefix: QGIS' prefix path: `C:/OSGeo4W/apps/qgis`, `/Applications/QGIS.app/Contents/MacOS`.
        environ: Environment of this process.
        platform: As `sys.platform`.
    """
    if platform == "win32":
        root = re.sub(r"(?i)[\\/]apps[\\/]qgis[^\\/]*[\\/]?$", "", prefix)  # Python lies beside it, below apps
        return tuple(folder for folder in (environ.get("OSGEO4W_ROOT", ""), root) if folder)
    if platform == "darwin" and ".app/" in prefix:
        return (prefix[: prefix.index(".app/") + 4],)
    return ()


def search_folders(environ: Mapping[str, str], *, windows: bool, host_folders: Sequence[str]) -> list[str]:
    """Where programs are looked for: the PATH, and where installers put them that a desktop's PATH does not name.

    Args:
        environ: Environment of this process.
        windows: Whether paths are those of Windows.
        host_folders: As `host_folders` gives them: left out.
    """
    home = environ.get("USERPROFILE" if windows else "HOME") or ""
    given = {key.upper(): value for key, value in environ.items()}
    folders = given.get("PATH", "").split(";" if windows else ":")
    folders += [f"{home}/.local/bin", f"{home}/.cargo/bin"] if home else []
    if windows:
        roots = [f"{given[key]}\\Programs\\Python" for key in ("LOCALAPPDATA",) if given.get(key)]
        roots += [given[key] for key in ("PROGRAMFILES",) if given.get(key)]
        folders += [f"{root}\\Python3{minor}" for root in roots for minor in (13, 12, 11, 14)]
        # The Store's Python writes to a hidden copy of AppData, where QGIS' profile is: nobody would find the result.
        folders = [folder for folder in folders if "\\windowsapps" not in folder.lower()]
    else:
        folders += ["/usr/local/bin", "/opt/homebrew/bin", "/usr/bin"]
        folders += [f"/Library/Frameworks/Python.framework/Versions/3.{minor}/bin" for minor in (13, 12, 11, 14)]
    folders = [folder.strip('"') for folder in folders if folder.strip() and not is_below(folder, host_folders)]
    return list(dict.fromkeys(folders))


def launcher_paths(text: str) -> list[str]:
    """The interpreters that `py -0p`, the launcher of Windows, lists; the newest first, as it does."""
    found = (re.search(r"(?i)[a-z]:\\.*?python[\d.]*\.exe", line) for line in text.splitlines())
    return [match.group() for match in found if match]


def python_candidates(folders: Sequence[str], *, windows: bool, host_folders: Sequence[str], ask: Ask) -> list[str]:
    """Paths that may be a Python, in the order of trial, each once."""
    names = [f"{name}.exe" for name in ("python", "python3")] if windows else list(NAMES)
    paths = [Path(folder, name) for name in names for folder in folders]
    found = [str(path) for path in paths if path.is_file() and os.access(path, os.X_OK)]
    if windows:
        launcher = shutil.which("py.exe", path=";".join(folders))
        try:
            listed = launcher_paths(ask([launcher, "-0p"])) if launcher else []
        except EngineError:
            listed = []
        found = [p for p in listed if not is_below(p, host_folders) and "\\windowsapps" not in p.lower()] + found
    return list(dict.fromkeys(found))


def examine(program: str, ask: Ask, *, windows: bool = False) -> Maker:
    """A program that was found or named, as what makes the environment.

    Raises:
        EngineError: If it can't, with the reason in words and how to mend it.
    """
    if is_uv(program):
        ask([program, "--version"])
        return Maker(program, (0, 0))
    try:
        told = json.loads(ask([program, "-I", "-c", PROBE]).strip().splitlines()[-1])
        version, real = (int(told["version"][0]), int(told["version"][1])), str(told["program"])
        whole, bits = bool(told["whole"]), int(told["bits"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EngineError(tr("{program} is no Python.").format(program=program)) from error
    if version < OLDEST:
        raise EngineError(
            tr("{program} is Python {version}, too old: {oldest} or newer is needed.").format(
                program=program, version=dotted(version), oldest=dotted(OLDEST)
            )
        )
    if bits < 64:
        raise EngineError(
            tr("{program} is a 32-bit Python: there are no packages for it. Install a 64-bit one.").format(
                program=program
            )
        )
    if not whole:
        raise EngineError(
            tr("{program} lacks the modules venv and ensurepip. {mend}").format(
                program=program, mend=_whole_hint(version, windows)
            )
        )
    return Maker(real, version)


def _whole_hint(version: tuple[int, int], windows: bool) -> str:
    if windows:
        return tr("Install Python anew from python.org, with pip.")
    return tr("On Debian and Ubuntu: sudo apt install python{version}-venv (or python3-venv).").format(
        version=dotted(version)
    )


def find_maker(
    given: str,
    environ: Mapping[str, str],
    *,
    ask: Ask,
    versions: Optional[frozenset[tuple[int, int]]] = None,
    host_folders: Sequence[str] = (),
    windows: Optional[bool] = None,
) -> Maker:
    """A Python, else `uv`.

    Args:
        given: The program that the user named; empty: look for one.
        environ: Environment of this process, without what QGIS set for itself.
        ask: Runs a program and gives what it printed.
        versions: Pythons for which the wheels at hand are made; None for any.
        host_folders: As `host_folders` gives them.
        windows: Whether paths are those of Windows; default: as this system's.

    Raises:
        EngineError: If there is none, with what was seen and what to install.
    """
    windows = os.name == "nt" if windows is None else windows
    if given:
        return _fitting(examine(given, ask, windows=windows), versions)
    folders = search_folders(environ, windows=windows, host_folders=host_folders)
    reasons = []
    for path in python_candidates(folders, windows=windows, host_folders=host_folders, ask=ask):
        try:
            return _fitting(examine(path, ask, windows=windows), versions)
        except EngineError as error:
            reasons.append(str(error))
    uv = shutil.which("uv.exe" if windows else "uv", path=os.pathsep.join(folders))
    if uv:
        try:
            return examine(uv, ask)
        except EngineError as error:
            reasons.append(str(error))
    raise EngineError(_nothing_found(reasons, windows))


def _fitting(maker: Maker, versions: Optional[frozenset[tuple[int, int]]]) -> Maker:
    if versions is None or maker.is_uv or maker.version in versions:
        return maker
    listed = ", ".join(dotted(version) for version in sorted(versions)) or tr("no Python at all")
    raise EngineError(tr("{maker}: the wheels at hand are for {listed}.").format(maker=maker, listed=listed))


def _nothing_found(reasons: Sequence[str], windows: bool) -> str:
    get = (
        tr("from python.org") if windows else tr("by your system's packages (Debian, Ubuntu: python3 and python3-venv)")
    )
    what = tr("The engine needs Python {version} or newer, or uv, and none was found that can be used.").format(
        version=dotted(OLDEST)
    )
    seen = [tr("Seen:"), *dict.fromkeys(reasons)] if reasons else []
    return "\n".join([what, *seen, tr("Install one {get}, or name its program under 'Python or uv'.").format(get=get)])


WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-[^-]+\.whl")
"""The parts of a wheel's file name (packaging.python.org, binary distribution format)."""


def wheel_versions(folder: Path, name: str) -> list[str]:
    """The versions of a package among the wheels of a folder."""
    parts = [WHEEL.fullmatch(path.name) for path in sorted(folder.glob("*.whl"))]
    return [m["version"] for m in parts if m and m["name"].lower().replace("-", "_") == name.replace("-", "_")]


def wheel_pythons(names: Sequence[str]) -> frozenset[tuple[int, int]]:
    """The Pythons for which each package in a list of wheels' file names has one, from 3.11 to 3.19."""
    every = frozenset((3, minor) for minor in range(OLDEST[1], 20))
    by_package: dict[str, frozenset[tuple[int, int]]] = {}
    for match in filter(None, map(WHEEL.fullmatch, names)):
        package = match["name"].lower()
        suits = frozenset(v for v in every if _suits(match["python"], match["abi"], v))
        by_package[package] = by_package.get(package, frozenset()) | suits
    for suits in by_package.values():
        every &= suits
    return every


def _suits(tags: str, abi: str, version: tuple[int, int]) -> bool:
    for tag in tags.split("."):
        match = re.fullmatch(r"(py|cp)(\d)(\d*)", tag)
        if match is None or int(match[2]) != version[0]:
            continue
        minor = int(match[3]) if match[3] else None
        later = match[1] == "py" or abi == "abi3"  # made for this and all later ones
        if minor is None or minor == version[1] or (later and minor < version[1]):
            return True
    return False
