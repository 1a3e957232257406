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

EVENTS = ("--events", "jsonl")
"""Makes the engine speak the protocol instead of drawing a bar."""
RASTER_SUFFIXES = ("tif", "tiff")
VECTOR_SUFFIXES = ("gpkg", "fgb")
"""What the engine writes."""
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml")
STITCHES = ("blend", "crop")
GRIDS = ("source", "model")
RESAMPLINGS = ("auto", "always", "never")


@dataclass(frozen=True)
class PredictJob:
    """One scene to segment. None and empty mean: as the engine or the model decides."""

    scene: str
    output: str
    model: str = ""
    vector: str = ""
    confidence: str = ""
    aoi: str = ""
    """FILE or FILE|layer."""
    bands: tuple[int, ...] = ()
    """From 1, in the order of the model's bands."""
    nodata: str = ""
    """One number, or one a band: '255' or '255,255,255'."""
    min_area_m2: Optional[float] = None
    simplify_m: Optional[float] = None
    vector_classes: str = ""
    """Names or ids with commas between; empty for all."""
    provider: str = "auto"
    stitch: str = "blend"
    gsd: str = "source"
    resample: str = "auto"
    tile_size: Optional[int] = None
    halo: Optional[int] = None
    batch_size: Optional[int] = None
    threads: Optional[int] = None
    max_memory_mb: Optional[int] = None
    overwrite: bool = True
    force: bool = False

    def arguments(self) -> list[str]:
        """Everything behind `cegate-geo`, without the option that turns events on."""
        options: list[tuple[str, object]] = [
            ("--model", self.model),
            ("--vector", self.vector),
            ("--confidence", self.confidence),
            ("--aoi", self.aoi),
            ("--bands", ",".join(str(band) for band in self.bands)),
            ("--nodata", self.nodata),
            ("--min-area", None if self.min_area_m2 is None else f"{self.min_area_m2:g}"),
            ("--simplify", None if self.simplify_m is None else f"{self.simplify_m:g}"),
            ("--vector-classes", self.vector_classes),
            ("--provider", "" if self.provider == "auto" else self.provider),
            ("--stitch", "" if self.stitch == "blend" else self.stitch),
            ("--gsd", "" if self.gsd == "source" else self.gsd),
            ("--resample", "" if self.resample == "auto" else self.resample),
            ("--tile-size", self.tile_size),
            ("--halo", self.halo),
            ("--batch-size", self.batch_size),
            ("--threads", self.threads),
            ("--max-memory", None if self.max_memory_mb is None else f"{self.max_memory_mb}M"),
        ]
        words = ["predict", self.scene, "--output", self.output]
        for name, value in options:
            if value is not None and value != "":
                words += [f"{name}={value}"]  # with '=', so that a negative number is no option
        words += ["--no-resume"]  # QGIS has no place to say what is left of a run that was cancelled
        words += ["--overwrite"] if self.overwrite else []
        words += ["--force"] if self.force else []
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
            return f"Nodata {text!r} is no number. Write one, or one for each band: 255 or 255,255,255, or nan."
    return ""
