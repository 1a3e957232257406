"""What an export refuses at once: what can be known to fail before minutes of measuring, tracing and comparing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, ModelError
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.rounding import ROUNDED
from cegate_geo.train.run import Run

MAX_FILE = 2**31 - 1
"""Bytes of a protobuf message, and so of an ONNX file without external data."""


def check_place(path: Path) -> None:
    """Refuse a file that can't be written.

    Raises:
        InputError: It is a folder, or lies in none.
    """
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"{path} can't be written: {reason}.", hint="Choose another place.")


def check_sample(sample: torch.Tensor, manifest: Manifest) -> None:
    """Refuse tiles that the manifest's model does not take.

    Raises:
        InputError: Their shape or their values are others.
    """
    size, channels = manifest.tile_size, len(manifest.bands)
    if sample.ndim != 4 or sample.shape[0] < 1 or tuple(sample.shape[1:]) != (channels, size, size):
        raise InputError(
            f"The sample has the shape {tuple(sample.shape)}.",
            hint=f"Give (N, {channels}, {size}, {size}) with N of 1 or more.",
        )
    if not bool(sample.isfinite().all()):
        raise InputError("The sample holds values that are no numbers.", hint="Fill what is no data.")
    if manifest.dtype == "uint8" and not bool(((sample >= 0) & (sample * manifest.input_maximum <= 255.01)).all()):
        raise InputError("The sample holds values outside 0 to 1.", hint="Divide by the largest raster value.")


def check_held_out(config: AdaptConfig, what: str, hint: str) -> None:
    """Refuse what is proved on held-out tiles, of a run that held nothing out.

    Raises:
        InputError: There is no [[validation]], and train.validation is 0.
    """
    if not config.validation and config.train.validation == 0:
        raise InputError(
            f"The run has no held-out tiles (train.validation = 0): {what}.",
            hint=f"Adapt with train.validation above 0 or [[validation]], or export with {hint}.",
        )


def check_size(run: Run, precision: str) -> None:
    """Refuse a model whose large weights alone do not fit into one file.

    In 8 bits, too, the graph is in single precision first.

    Raises:
        ModelError: With what they need.
    """
    blocks = run.segmenter.backbone.blocks
    weights = sum(p.numel() for p in blocks.parameters() if p.ndim > 1) if isinstance(blocks, nn.Module) else 0
    frozen = weights - run.toolbox.count_parameters()  # modules may be left out
    check_bytes((2 if precision in ROUNDED else 4) * frozen)


def check_bytes(size: int) -> None:
    """Refuse a graph of more bytes than one file holds.

    Raises:
        ModelError: With the size.
    """
    if size > MAX_FILE:
        raise ModelError(
            f"The model needs {size / 2**30:.1f} GiB, one ONNX file holds 2.",
            hint="Export it with precision fp16, or adapt a smaller backbone.",
        )
