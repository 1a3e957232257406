# SPDX-License-Identifier: GPL-2.0-or-later
"""How a model is to be used, as options that several commands of the engine share. No qgis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Union

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml")
STITCHES = ("blend", "crop")
RESAMPLINGS = ("auto", "always", "never")
VIEWS = ("none", "flips", "d4")
OUTPUT_KINDS = ("auto", "probabilities", "logits", "class-map")

Option = tuple[str, Union[str, int, None]]


def as_words(options: Sequence[Option]) -> list[str]:
    """`--name=value` of those that have a value; with '=', so that a negative number is no option."""
    return [f"{name}={value}" for name, value in options if value is not None and value != ""]


@dataclass(frozen=True)
class ModelUse:
    """A model and how it looks at a scene. None and empty mean: as the engine or the model decides."""

    model: str = ""
    bands: tuple[int, ...] = ()
    """From 1, in the order of the model's bands."""
    nodata: str = ""
    """One number, or one a band: '255' or '255,255,255'."""
    resample: str = "auto"
    tile_size: Optional[int] = None
    halo: Optional[int] = None
    stitch: str = "blend"
    views: str = "none"
    """Whose mean is taken for each tile: one of VIEWS."""
    provider: str = "auto"
    require_gpu: bool = False
    threads: Optional[int] = None
    classes: str = ""
    """Names with commas between, in the order of the model's output."""
    scale: str = ""
    """This and the next two: one number, or one a band."""
    mean: str = ""
    std: str = ""
    gsd_m: Optional[float] = None
    """Metres per pixel that the model was trained at."""
    output_kind: str = "auto"
    threshold: Optional[float] = None

    def arguments(self) -> list[str]:
        """The options, without those that say what the engine does anyway."""
        options: list[Option] = [
            ("--model", self.model),
            ("--bands", ",".join(str(band) for band in self.bands)),
            ("--nodata", self.nodata),
            ("--resample", "" if self.resample == "auto" else self.resample),
            ("--tile-size", self.tile_size),
            ("--halo", self.halo),
            ("--stitch", "" if self.stitch == "blend" else self.stitch),
            ("--tta", "" if self.views == "none" else self.views),
            ("--provider", "" if self.provider == "auto" else self.provider),
            ("--threads", self.threads),
        ]
        return as_words(options) + (["--require-gpu"] if self.require_gpu else []) + self.contract()

    def contract(self) -> list[str]:
        """The options that state what a bare model file does not say."""
        options: list[Option] = [
            ("--classes", self.classes),
            ("--scale", self.scale),
            ("--mean", self.mean),
            ("--std", self.std),
            ("--gsd-m", None if self.gsd_m is None else f"{self.gsd_m:g}"),
            ("--output-kind", "" if self.output_kind == "auto" else self.output_kind),
            ("--threshold", None if self.threshold is None else f"{self.threshold:g}"),
        ]
        return as_words(options)
