"""A model's whole contract: its manifest, the form of its tensors, and where each part was found.

Our own exports state everything in their manifest and share one tensor form. Models of other tools state less, and lay
out their tensors in other ways; `infer.foreign` fills in a contract for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cegate_geo.domain.manifest import Manifest, OutputKind
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError

Layout = Literal["NCHW", "NHWC", "NHW"]
"""Order of a tensor's axes: batch, channels, height, width. 'NHW' is an output without channels."""
Fit = Literal["same", "centre", "stretch"]
"""How an output lies over its input: pixel by pixel; smaller and over the middle; smaller and over the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Pixels of an input, on each side, for which the model gives nothing."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def around(self, window: Window) -> Window:
        """What the model has to see to give `window`."""
        return Window(
            col_off=window.col_off - self.left,
            row_off=window.row_off - self.top,
            width=window.width + self.left + self.right,
            height=window.height + self.top + self.bottom,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorForm:
    """How a graph of another tool lays out its tensors."""

    input_layout: Layout
    input_shape: tuple[int, int]
    """(height, width) that the graph is fed with."""
    output: str
    """Name of the output that is used."""
    output_layout: Layout
    output_shape: tuple[int, int]
    """(height, width) that the graph gives for `input_shape`."""
    channels: int
    """Of the output. 1: what it says of one class, or class ids."""
    fit: Fit

    @property
    def margin(self) -> Margin:
        """Where `fit` is 'centre', what the output lacks; of an odd rest the smaller half is above and left."""
        if self.fit != "centre":
            return Margin()
        rows, cols = (i - o for i, o in zip(self.input_shape, self.output_shape, strict=True))
        return Margin(top=rows // 2, bottom=rows - rows // 2, left=cols // 2, right=cols - cols // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """Everything that the engine must know of a model."""

    manifest: Manifest
    form: TensorForm | None = None
    """None for our own exports: what `Manifest` says."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Part of the contract → where it was found. Empty: all of it in the manifest."""
    scene_bands: tuple[str, ...] = ()
    """Bands of the scene, by number, where the model names them so; the user's choice goes before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedContract:
    """What a user states of a model that does not say it itself. Goes before what is found beside the model."""

    classes: Sequence[str] = ()
    """Names in the order of the output's channels (or of class ids, from 0)."""
    scale: Sequence[float] = ()
    """Raster values are divided by it: one number, or one for each band."""
    mean: Sequence[float] = ()
    """Subtracted after that: one number, or one for each band."""
    std: Sequence[float] = ()
    """Divisor after that: one number, or one for each band."""
    gsd_m: float | None = None
    """Metres per pixel that the model was trained at."""
    output_kind: OutputKind | None = None
    """What the model gives: 'probabilities', 'logits' or 'class-map' (class ids)."""
    threshold: float | None = None
    """Least probability for any class but the first."""
    head: str = ""
    """Name of the output to use, where the graph has several."""
    dtype: Literal["uint8", "uint16", "float32"] | None = None
    """Type of the rasters that the model was trained on."""

    def __post_init__(self) -> None:
        checks = [
            (all(self.classes), f"classes={list(self.classes)} has an empty name"),
            (len(set(self.classes)) == len(self.classes), f"classes={list(self.classes)} has a name twice"),
            (all(0 < value < math.inf for value in (*self.scale, *self.std)), "scale and std have to be positive"),
            (all(map(math.isfinite, self.mean)), f"mean={list(self.mean)} holds something that is no number"),
            (self.gsd_m is None or 0 < self.gsd_m < math.inf, f"gsd_m={self.gsd_m} is not positive"),
            (self.threshold is None or 0 <= self.threshold <= 1, f"threshold={self.threshold} is no probability"),
            (
                self.output_kind in (None, "probabilities", "logits", "class-map"),
                f"output_kind={self.output_kind!r} is not known",
            ),
            (self.dtype in (None, "uint8", "uint16", "float32"), f"dtype={self.dtype!r} is not known"),
        ]
        for good, problem in checks:
            if not good:
                raise InputError(
                    f"The stated contract is not usable: {problem}.", hint="See cegate-geo predict --help."
                )

    def options(self) -> dict[str, object]:
        """What is stated, by name; empty where nothing is."""
        stated: dict[str, object] = {
            "classes": list(self.classes),
            "scale": list(self.scale),
            "mean": list(self.mean),
            "std": list(self.std),
            "gsd_m": self.gsd_m,
            "output_kind": self.output_kind,
            "threshold": self.threshold,
            "head": self.head,
            "dtype": self.dtype,
        }
        return {name: value for name, value in stated.items() if value not in (None, [], "")}
