# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of `cegate-geo predict`, and how it is written on a command line. No qgis."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess  # nosec B404: only for writing a command as Windows does
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from .engine import EngineCommand
from .model_use import ModelUse, Option, as_words
from .outcome import EngineError
from .words import tr

EVENTS = ("--events", "jsonl")
"""Makes the engine speak the protocol instead of drawing a bar."""
RASTER_SUFFIXES = ("tif", "tiff")
VECTOR_SUFFIXES = ("gpkg", "fgb")
"""What the engine writes."""
GRIDS = ("source", "model")
AS_THE_MODEL_SAYS = ModelUse()
OWN_OPTIONS = ("-o", "--output", "--events", "--dry-run", "--shard", "--resume", "--no-resume")
"""Not to be given as further options: the plugin depends on them."""


@dataclass(frozen=True)
class PredictJob:
    """One scene to segment. None and empty mean: as the engine or the model decides."""

    scene: str
    output: str
    use: ModelUse = AS_THE_MODEL_SAYS
    vector: str = ""
    confidence: str = ""
    probabilities: str = ""
    aoi: str = ""
    """FILE or FILE|layer."""
    invert_aoi: bool = False
    min_area_m2: Optional[float] = None
    simplify_m: Optional[float] = None
    vector_classes: str = ""
    """Names or ids with commas between; empty for all."""
    gsd: str = "source"
    batch_size: Optional[int] = None
    max_memory_mb: Optional[int] = None
    overwrite: bool = True
    force: bool = False
    extra: tuple[str, ...] = ()
    """Further options, as they would be typed."""

    def arguments(self) -> list[str]:
        """Everything behind `cegate-geo`, without the option that turns events on."""
        options: list[Option] = [
            ("--vector", self.vector),
            ("--confidence", self.confidence),
            ("--probabilities", self.probabilities),
            ("--aoi", self.aoi),
            ("--min-area", None if self.min_area_m2 is None else f"{self.min_area_m2:g}"),
            ("--simplify", None if self.simplify_m is None else f"{self.simplify_m:g}"),
            ("--vector-classes", self.vector_classes),
            ("--gsd", "" if self.gsd == "source" else self.gsd),
            ("--batch-size", self.batch_size),
            ("--max-memory", None if self.max_memory_mb is None else f"{self.max_memory_mb}M"),
        ]
        words = ["predict", self.scene, "--output", self.output, *self.use.arguments(), *as_words(options)]
        words += ["--invert-aoi"] if self.invert_aoi and self.aoi else []
        words += ["--no-resume"]  # QGIS has no place to say what is left of a run that was cancelled
        words += ["--overwrite"] if self.overwrite else []
        words += ["--force"] if self.force else []
        return words + list(self.extra)


def further_options(text: str) -> tuple[str, ...]:
    """Options as they were typed, in words.

    Raises:
        EngineError: If a quote has no partner, or the plugin itself depends on one of them.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise EngineError(
            tr("The further options {text!r} can't be read: {error}.").format(text=text, error=error)
        ) from error
    taken = [word for word in words if word.partition("=")[0] in OWN_OPTIONS]
    if taken:
        raise EngineError(
            tr("{option} can't be among the further options: the plugin itself sets it.").format(option=taken[0])
        )
    return words


def remove_remains(output: str, pid: int) -> None:
    """Remove the hidden job folder beside the output of an engine that was killed; it does so itself otherwise."""
    target = Path(output)
    for folder in target.parent.glob(".*.part"):
        if folder.name.startswith(f".{target.name}.") and folder.name.endswith(f"-{pid}.part"):
            shutil.rmtree(folder, ignore_errors=True)


def describe_command(command: EngineCommand, arguments: Sequence[str], *, windows: Optional[bool] = None) -> str:
    """The command as one would type it in a terminal."""
    words = [command.program, *command.arguments, *arguments]
    windows = os.name == "nt" if windows is None else windows
    return subprocess.list2cmdline(words) if windows else " ".join(shlex.quote(word) for word in words)


def nodata_problem(text: str) -> str:
    """What is wrong with a nodata value as it was typed; empty where nothing is."""
    for part in text.split(",") if text.strip() else ():
        try:
            float(part)
        except ValueError:
            return tr(
                "Nodata {text!r} is no number. Write one, or one for each band: 255 or 255,255,255, or nan."
            ).format(text=text)
    return ""
