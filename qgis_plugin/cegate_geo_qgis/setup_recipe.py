# SPDX-License-Identifier: GPL-2.0-or-later
"""What is installed, from where, and the command lines that do it. No qgis."""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from .child import module_words
from .interpreters import OLDEST, Maker, dotted, wheel_pythons, wheel_versions
from .outcome import EngineError
from .words import tr

PACKAGE = "cegate-geo"
EXTRAS = {"cpu": "cpu", "gpu": "gpu", "train": "cpu,train"}
"""Variant → extras of the package. Training predicts too, to show what it has learned."""
NEEDED_MB = {"cpu": 700, "gpu": 2500, "train": 9000}
"""Free space: about what is downloaded and what that becomes, together."""


@dataclass(frozen=True)
class Recipe:
    """What to install, from where."""

    version: str
    """Of the engine: the plugin's own."""
    variant: str = "cpu"
    wheel: Optional[Path] = None
    """The engine's wheel; what it needs comes from the package index."""
    folder: Optional[Path] = None
    """Folder with all wheels; nothing comes from the network."""
    maker: str = ""
    """A Python or `uv`; empty: look for one."""

    def check(self) -> None:
        """Raise EngineError where it can't work, before anything is touched."""
        if self.wheel is not None and self.folder is not None:
            raise EngineError(
                tr("Give a wheel or a folder of wheels, not both: the folder may hold the engine's wheel.")
            )
        if self.wheel is not None and not (self.wheel.is_file() and self.wheel.suffix == ".whl"):
            raise EngineError(tr("{wheel} is no wheel (a file that ends with .whl).").format(wheel=self.wheel))
        if self.folder is None:
            return
        versions = wheel_versions(self.folder, PACKAGE)
        if self.version not in versions:
            has = (
                tr("holds {package} {versions}").format(package=PACKAGE, versions=", ".join(versions))
                if versions
                else tr("holds no wheel of {package}").format(package=PACKAGE)
            )
            raise EngineError(
                tr(
                    "The folder {folder} {has}; this plugin needs {version}. Gather the wheels: pip download "
                    '-d FOLDER "{package}[{extras}]=={version}"'
                ).format(
                    folder=self.folder, has=has, version=self.version, package=PACKAGE, extras=EXTRAS[self.variant]
                )
            )

    def pythons(self) -> Optional[frozenset[tuple[int, int]]]:
        """The Pythons that the folder's wheels are for; None for any."""
        return None if self.folder is None else wheel_pythons([path.name for path in self.folder.glob("*.whl")])

    def requirement(self) -> str:
        """For pip and uv."""
        package = f"{PACKAGE}[{EXTRAS[self.variant]}]"
        return f"{package} @ {self.wheel.resolve().as_uri()}" if self.wheel else f"{package}=={self.version}"

    def source(self) -> str:
        """Where packages come from, in words."""
        return tr("the folder {folder}").format(folder=self.folder) if self.folder else tr("the package index")


def plugin_version() -> str:
    """The version of this plugin, of which the engine should be too."""
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(Path(__file__).with_name("metadata.txt"), encoding="utf-8")
    return metadata["general"]["version"]


def interpreter_of(environment: Path, *, windows: bool) -> Path:
    """The Python of a virtual environment."""
    return environment / "Scripts" / "python.exe" if windows else environment / "bin" / "python"


def make_words(maker: Maker, environment: Path, versions: Optional[frozenset[tuple[int, int]]]) -> list[str]:
    """The words that make an environment."""
    if not maker.is_uv:
        return module_words(maker.program, "venv", str(environment))
    wanted = dotted(max(versions)) if versions else f">={dotted(OLDEST)}"
    return [maker.program, "venv", "--no-project", "--python", wanted, str(environment)]


def install_words(maker: Maker, python: Path, recipe: Recipe) -> list[str]:
    """The words that install the engine. Wheels only: nothing is built, and no package's code runs."""
    words = ["install", "--only-binary", ":all:"]
    words += ["--no-index", "--find-links", str(recipe.folder.resolve())] if recipe.folder else []
    if maker.is_uv:
        return [maker.program, "pip", *words, "--python", str(python), recipe.requirement()]
    return module_words(str(python), "pip", *words, "--progress-bar", "off", recipe.requirement())


def install_percent(line: str, percent: float) -> float:
    """How far an installation is, in percent, after a line of pip or uv: never back, and never at its end."""
    if re.match(r"Installing collected packages|Prepared \d+ package", line):
        return max(percent, 75.0)
    if re.match(r"Successfully installed|Installed \d+ package", line):
        return 90.0
    if re.match(r"\s*(Collecting|Downloading|Using cached|Processing|Resolved|Obtaining)\b", line):
        return percent + (70.0 - percent) * 0.04
    return percent
