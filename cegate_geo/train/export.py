"""Write a trained model as one ONNX file that our engine and others read, and prove that it computes the same.

The portable profile: one input, float32 (batch, 3, S, S) in 0-1 units; one output, float32 (batch, K, S, S),
probabilities. Normalisation and softmax are in the graph, the manifest is in its metadata.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, ModelError, ParityError
from cegate_geo.peft import ModuleKey, SiteModule, SpatialModule
from cegate_geo.train import onnx_graph
from cegate_geo.train.onnx_graph import INPUT, WithProbabilities
from cegate_geo.train.segmenter import Segmenter

Precision = Literal["fp32", "fp16"]

MAX_ABS = 1e-3
"""Largest difference of a probability that passes: half a step of a confidence of 8 bits. Sums of float32 in another
order differ by 1e-6 to 1e-5; a wrong kernel, axis or weight by far more."""
MAX_DISAGREEMENT = 1e-3
"""Largest share of pixels with another class that passes: ties between classes may fall either way."""
MAX_FILE = 2**31 - 1
"""Bytes of a protobuf message, and so of an ONNX file without external data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far two sets of probabilities of the same tiles lie apart."""

    max_abs: float
    """Largest absolute difference, 0 to 1."""
    mean_abs: float
    disagreement: float
    """Share of pixels with another most probable class."""
    tiles: int
    """Tiles that were compared."""

    @classmethod
    def of(cls, a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> Parity:
        """Compare two arrays (N, K, S, S)."""
        difference = np.abs(a - b)
        return cls(
            max_abs=float(difference.max()),
            mean_abs=float(difference.mean()),
            disagreement=float((a.argmax(1) != b.argmax(1)).mean()),
            tiles=len(a),
        )

    @property
    def passes(self) -> bool:
        """Whether both are the same model; false where anything is no number."""
        return self.max_abs <= MAX_ABS and self.disagreement <= MAX_DISAGREEMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written, and how well it agrees with its original."""

    path: Path
    bytes: int
    """Size of the file."""
    precision: Precision
    parameters: int
    """Values in the floating-point initializers of the graph."""
    modules_kept: tuple[str, ...]
    """Modules that the graph computes; LoRA is part of the base weights."""
    modules_total: int
    parity: Parity
    """Eager against onnxruntime on the CPU, of the weights that were written."""
    rounding: Parity | None = None
    """Eager before against after rounding the weights to half precision; None for fp32."""
    pruning: Parity | None = None
    """Eager with all modules against eager pruned and merged; None where the caller pruned."""
    opset: int = onnx_graph.OPSET
    ir_version: int = onnx_graph.IR_VERSION
    seconds_per_tile: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Time for one tile on this machine's CPU, batch 1: "eager" and "onnx" of what was written."""

    def to_json(self) -> dict[str, Any]:
        """As numbers, strings, lists and dictionaries."""
        table = dataclasses.asdict(self)
        return {**table, "path": str(self.path), "modules_kept": list(self.modules_kept)}


def export_model(
    segmenter: Segmenter,
    manifest: Manifest,
    path: Path,
    *,
    precision: Precision = "fp32",
    sample: torch.Tensor,
    pruning: Parity | None = None,
) -> ExportReport:
    """Write a segmenter as ONNX, in the portable profile.

    The file is written once, under a temporary name that becomes `path` when it is complete, and only if onnxruntime
    computes from it what torch computes.

    Args:
        segmenter: Pruned, LoRA merged (`cegate_geo.peft.prune`, `merge`). It stays as it is.
        manifest: Its contract; `parameters` and `parity` are filled in here.
        path: The file; replaced if it exists.
        precision: Of the stored weights. "fp16" halves the file; the computation is in float32 all the same.
        sample: (N, 3, S, S) in 0-1 units with S = `manifest.tile_size`: tiles to compare on.
        pruning: What pruning changed, for the report.

    Raises:
        InputError: If sample or folder can't be used.
        ModelError: If segmenter and manifest contradict each other, or the model does not fit into one file.
        ParityError: If onnxruntime computes something else; nothing is written then.
    """
    _check_sample(sample, manifest, path)
    _check_modules(segmenter, manifest)
    sample = torch.cat([sample, sample.flip(3)]) if len(sample) == 1 else sample  # two tiles: a batch is compared, too
    original = copy.deepcopy(segmenter).cpu().float().eval()
    rounded, rounding = original, None
    expected, seconds = _run_eager(original, sample)
    if precision == "fp16":
        rounded = round_to_half(original)
        unrounded = expected
        expected, seconds = _run_eager(rounded, sample)
        rounding = Parity.of(unrounded, expected)
    model = onnx_graph.build_graph(rounded, tile_size=manifest.tile_size)
    if precision == "fp16":
        onnx_graph.store_half(model)
    if expected.shape[1] != len(manifest.legend):
        raise ModelError(
            f"The model gives {expected.shape[1]} classes, its legend has {len(manifest.legend)}.",
            hint="Use the configuration that it was trained with.",
        )
    computed, onnx_seconds = _run_onnx(_serialise(model), sample)
    parity = Parity.of(expected, computed)
    if not parity.passes:
        raise ParityError(
            f"The exported graph differs from the model: max_abs={parity.max_abs:.2e} (at most {MAX_ABS}), "
            f"disagreement={parity.disagreement:.2e} (at most {MAX_DISAGREEMENT}).",
            hint="Nothing was written. Try precision fp32, and report it with the versions of torch and onnxruntime.",
        )
    parameters = onnx_graph.count_weights(model)
    filled = dataclasses.replace(manifest, parameters=parameters, parity=_parity_table(parity, rounding))
    onnx.helper.set_model_props(model, filled.to_metadata())
    content = _serialise(model)
    _write(content, path)
    return ExportReport(
        path=path,
        bytes=len(content),
        precision=precision,
        parameters=parameters,
        modules_kept=manifest.modules_kept,
        modules_total=manifest.modules_total,
        parity=parity,
        rounding=rounding,
        pruning=pruning,
        seconds_per_tile={"eager": seconds, "onnx": onnx_seconds},
    )


def eager_probabilities(segmenter: nn.Module, sample: torch.Tensor) -> npt.NDArray[np.float32]:
    """Probabilities (N, K, S, S) of a segmenter in evaluation mode, tile by tile."""
    return _run_eager(segmenter, sample)[0]


@torch.no_grad()
def round_to_half(segmenter: Segmenter) -> Segmenter:
    """A copy whose weight matrices and kernels are rounded to half precision; biases, norms and scales stay.

    Raises:
        ModelError: If a weight does not fit into half precision.
    """
    rounded = copy.deepcopy(segmenter)
    for name, parameter in rounded.named_parameters():
        if parameter.ndim >= 2:
            parameter.copy_(parameter.half().float())
            if not bool(torch.isfinite(parameter).all()):
                raise ModelError(f"{name} holds values beyond half precision.", hint="Export it with fp32.")
    return rounded


def _check_sample(sample: torch.Tensor, manifest: Manifest, path: Path) -> None:
    size = manifest.tile_size
    if sample.ndim != 4 or sample.shape[0] < 1 or tuple(sample.shape[1:]) != (3, size, size):
        raise InputError(
            f"The sample has the shape {tuple(sample.shape)}.", hint=f"Give (N, 3, {size}, {size}) with N of 1 or more."
        )
    if not bool(((sample >= 0) & (sample <= 1)).all()):
        raise InputError("The sample holds values outside 0 to 1.", hint="Divide by the largest raster value.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist.", hint="Make it first.")


def _check_modules(segmenter: Segmenter, manifest: Manifest) -> None:
    """Refuse a model with LoRA that is not merged, or with other modules than the manifest says."""
    if manifest.output != "probabilities" or manifest.scaling != "unit" or len(manifest.bands) != 3:
        raise ModelError(
            f"The manifest says output={manifest.output!r}, scaling={manifest.scaling!r}, bands={manifest.bands}.",
            hint="The portable profile takes three bands in 0-1 units and gives probabilities.",
        )
    present = {str(key) for key in attached(segmenter)}
    unmerged = sorted(str(k) for k in attached(segmenter) if k.kind == "spatial")
    if unmerged:
        raise ModelError(f"{len(unmerged)} LoRA modules are not merged: {unmerged[:3]}.", hint="Call peft.merge first.")
    stated = {name for name in manifest.modules_kept if ModuleKey.parse(name).kind != "spatial"}
    if present != stated:
        raise ModelError(
            f"The model carries {len(present)} modules beside LoRA, its manifest states {len(stated)}: "
            f"{sorted(present ^ stated)[:3]} differ.",
            hint="Call peft.prune first, and state what was kept.",
        )


def attached(segmenter: Segmenter) -> Collection[ModuleKey]:
    """Keys of the modules that a segmenter's backbone carries."""
    keys = []
    for name, module in segmenter.backbone.named_modules():
        if isinstance(module, SiteModule):
            layer = int(name.split(".")[1])
            keys.append(ModuleKey(layer, "spatial" if isinstance(module, SpatialModule) else module.kind))
    return keys


@torch.no_grad()
def _run_eager(segmenter: nn.Module, sample: torch.Tensor) -> tuple[npt.NDArray[np.float32], float]:
    """Probabilities of all tiles, and seconds of the fastest."""
    model = WithProbabilities(segmenter).eval()
    outputs, seconds = [], float("inf")
    for tile in sample.float():
        began = time.perf_counter()
        outputs.append(model(tile[None]).numpy())
        seconds = min(seconds, time.perf_counter() - began)
    return np.concatenate(outputs), seconds


def _run_onnx(content: bytes, sample: torch.Tensor) -> tuple[npt.NDArray[np.float32], float]:
    """Probabilities of all tiles, the first alone and the others in pairs, and seconds for one tile."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    tiles = sample.float().numpy()
    starts = [0, *range(1, len(tiles), 2), len(tiles)]
    batches = [tiles[a:b] for a, b in pairwise(starts)]
    outputs = [session.run(None, {INPUT: batch})[0] for batch in batches]
    began = time.perf_counter()
    session.run(None, {INPUT: batches[0]})
    return np.concatenate(outputs), time.perf_counter() - began


def _parity_table(parity: Parity, rounding: Parity | None) -> dict[str, float]:
    """What the manifest keeps; rounding is there for half precision only."""
    table = {"max_abs": parity.max_abs, "mean_abs": parity.mean_abs, "disagreement": parity.disagreement}
    table["tiles"] = float(parity.tiles)
    if rounding is not None:
        table |= {"rounding_max_abs": rounding.max_abs, "rounding_disagreement": rounding.disagreement}
    return table


def _serialise(model: onnx.ModelProto) -> bytes:
    size = model.ByteSize()
    if size > MAX_FILE:
        raise ModelError(
            f"The model needs {size / 2**30:.1f} GiB, one ONNX file holds 2.", hint="Export it with precision fp16."
        )
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _write(content: bytes, path: Path) -> None:
    """Under a temporary name in the same folder, synced, renamed."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}.", hint="Choose another place.") from error
    finally:
        part.unlink(missing_ok=True)
