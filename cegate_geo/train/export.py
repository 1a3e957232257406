"""Write a trained model as one ONNX file that our engine and others read, and prove that it computes the same.

The portable profile: one input, float32 (batch, C, S, S), raster values divided by the manifest's `input_maximum`, 0-1
for 8 bits; one output, float32 (batch, K, S, S), probabilities. Normalisation and softmax are in the graph, the
manifest is in its metadata. The native profile takes raster values as they are stored, see `native`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import torch

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, ModelError, ParityError
from cegate_geo.peft import ModuleKey, SiteModule, fuse, merge, prune
from cegate_geo.train import onnx_graph
from cegate_geo.train.afford import afford_run
from cegate_geo.train.export_checks import check_bytes, check_held_out, check_place, check_sample, check_size
from cegate_geo.train.native import check_native, make_native, raster_values, unit_values
from cegate_geo.train.parity import MAX_ABS, MAX_DISAGREEMENT, Parity, Probabilities, run_eager, run_onnx
from cegate_geo.train.quantise import Labelled, quantise_proved
from cegate_geo.train.rounding import ROUNDED, proved_rounding, round_weights
from cegate_geo.train.run import Run, load_run
from cegate_geo.train.run_contract import run_manifest, sample_tiles
from cegate_geo.train.run_files import write_bytes
from cegate_geo.train.scenes import bounded_block_cache
from cegate_geo.train.segmenter import Segmenter
from cegate_geo.train.shrink import Point, shrink_run

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Profile = Literal["portable", "native"]
Keep = Literal["auto", "all", "active"] | float
"""Which modules an export keeps: all that were ever active, if they cost little, else those that are worth most for
their cost, if held-out tiles show no loss ("auto", see `afford`); all that were ever active; those of the last
selection; or the smallest set that loses at most this much mean IoU (0 to 1) on the run's held-out tiles."""


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
    parity: Mapping[str, float]
    """Eager beside onnxruntime on the CPU, of the weights that were written; see `Parity`."""
    rounding: Mapping[str, float] | None = None
    """What the precision costs: eager beside eager with weights in 16 bits, or the graph beside itself in 8 bits; None
    for fp32."""
    miou: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Mean IoU on held-out tiles of the graph in single precision ("fp32") and as written ("int8"); int8 only."""
    pruning: Mapping[str, float] | None = None
    """Eager as trained beside eager pruned and merged; None where the caller pruned."""
    curve: tuple[Point, ...] = ()
    """What `keep` by mean IoU chose from; empty otherwise."""
    opset: int = onnx_graph.OPSET
    ir_version: int = onnx_graph.IR_VERSION
    seconds_per_tile: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Time for one tile on this machine's CPU: "onnx" and "eager" as written, "trained" before pruning."""

    def to_json(self) -> dict[str, Any]:
        """As numbers, strings, lists and dictionaries."""
        return {**dataclasses.asdict(self), "path": str(self.path), "modules_kept": list(self.modules_kept)}


def export_model(
    segmenter: Segmenter,
    manifest: Manifest,
    path: Path,
    *,
    profile: Profile = "portable",
    precision: Precision = "fp32",
    sample: torch.Tensor,
    source: Labelled | None = None,
) -> ExportReport:
    """Write a segmenter as ONNX.

    The file is written once, under a temporary name that becomes `path` when it is complete, and only if onnxruntime
    computes from it what torch computes.

    Args:
        segmenter: Pruned, LoRA merged (`cegate_geo.peft.prune`, `merge`). It stays as it is.
        manifest: Its contract in the portable profile; `parameters` and `parity` are filled in here.
        path: The file; replaced if it exists.
        profile: Tensor contract.
        precision: "fp16" and "bf16" store weights in 16 bits, and compute in float32 all the same; "int8" computes
            large products in 8 bits.
        sample: (N, C, S, S) as the model takes them, with S = `manifest.tile_size`: tiles to compare on.
        source: Tiles to calibrate int8 on, and to prove it on.

    Raises:
        InputError: If sample or path can't be used.
        ModelError: If segmenter and manifest contradict each other, or the model does not fit into one file.
        ParityError: If onnxruntime computes something else, or rounding costs too much; nothing is written then.
    """
    _check_modules(segmenter, manifest)
    check_sample(sample, manifest)
    tiles = sample if len(sample) > 1 else torch.cat([sample, sample.flip(3)])  # a batch of two is compared, too
    if profile == "native":
        check_native(manifest)
        tiles = unit_values(raster_values(tiles, manifest), manifest)
    made, computed = _portable_graph(segmenter, manifest, precision, tiles)
    if precision == "int8":
        made = _in_8_bits(made, computed, tiles, source, manifest)
    if profile == "native":
        computed = run_onnx(_serialise(made.graph), tiles)[0] if precision == "int8" else computed
        made = _in_native_form(made, computed, tiles, manifest)
        manifest = dataclasses.replace(manifest, scaling="none")
    filled = dataclasses.replace(manifest, parameters=made.parameters, parity=made.figures())
    onnx.helper.set_model_props(made.graph, filled.to_metadata())
    content = _serialise(made.graph)
    _write(content, path)
    return ExportReport(
        path=path,
        bytes=len(content),
        precision=precision,
        parameters=made.parameters,
        modules_kept=manifest.modules_kept,
        modules_total=manifest.modules_total,
        parity=made.parity.to_json(),
        rounding=made.rounding.to_json() if made.rounding else None,
        miou=made.miou,
        seconds_per_tile=made.seconds,
    )


@bounded_block_cache()
def export_run(
    folder: Path,
    output: Path,
    *,
    profile: Profile = "portable",
    precision: Precision = "fp32",
    keep: Keep | None = "auto",
) -> ExportReport:
    """Prune and merge the model of a run, and write it.

    Args:
        folder: Folder of the run.
        output: The file; replaced if it exists.
        profile: Tensor contract.
        precision: See `export_model`. "int8" reads the run's source again.
        keep: None for what the trained model computes: "all", or "active" where inactive modules were bypassed. "auto"
            starts from the same, and reads some of the run's held-out tiles again where modules cost much. A number
            reads all of them, and measures each module alone: two validations for each.

    Raises:
        InputError: If the folder holds no run, or an argument is no choice.
        ModelError: If the model can't be exported. What the run and the arguments tell is refused before anything is
            computed.
        ParityError: If what is left computes something else than what was trained; nothing is written then. With
            another `keep` a difference is expected where more modules were trained: the report tells it.
    """
    _check_choices(profile, precision, keep)
    check_place(output)
    run = load_run(folder)
    is_bypassing = run.config.peft.inactive == "bypass"
    if is_bypassing and keep == "all":
        raise InputError(
            "Modules that are not active were bypassed in training: together they are no trained model.",
            hint="Export with keep = active.",
        )
    if is_bypassing:
        run.toolbox.set_active(run.active)
    total, sample = len(run.toolbox.keys), sample_tiles(run)
    _check_run(run, run_manifest(run, run.ever_active, total), sample, profile=profile, precision=precision, keep=keep)
    source = Labelled.of(run) if precision == "int8" else None  # before minutes of measuring: it may be gone
    run.segmenter.cpu().eval()
    trained, seconds = run_eager(run.segmenter, sample)
    kept, curve = _shed(run, keep, sample)
    pruning = Parity.of(trained, run_eager(run.segmenter, sample)[0])
    if kept >= (run.active if is_bypassing else run.ever_active):
        _proved(pruning, "The pruned model differs from the trained one")
    report = export_model(
        run.segmenter,
        run_manifest(run, kept, total),
        output,
        profile=profile,
        precision=precision,
        sample=sample,
        source=source,
    )
    times = {"trained": seconds, **report.seconds_per_tile}
    return dataclasses.replace(report, pruning=pruning.to_json(), seconds_per_tile=times, curve=curve)


def _check_run(
    run: Run, manifest: Manifest, sample: torch.Tensor, *, profile: Profile, precision: Precision, keep: Keep | None
) -> None:
    """Refuse what is known to fail: see `export_run`."""
    check_sample(sample, manifest)
    if profile == "native":
        check_native(manifest)
    if isinstance(keep, int | float):
        check_held_out(run.config, "what a module is worth is unknown", "keep all or active")
    if precision == "int8":
        check_held_out(run.config, "int8 can't be proved", "fp16")
    check_size(run, precision)


def _shed(run: Run, keep: Keep | None, sample: torch.Tensor) -> tuple[frozenset[ModuleKey], tuple[Point, ...]]:
    """Prune and merge a run's model in place: the modules that are left, merged LoRA among them, and their curve."""
    is_last = keep == "active" or run.config.peft.inactive == "bypass"
    kept = run.active if is_last else run.ever_active
    prune(run.toolbox, kept)
    merge(run.toolbox)
    if not isinstance(keep, int | float) and keep != "auto":
        return kept, ()
    worth, curve = afford_run(run, sample) if keep == "auto" else shrink_run(run, keep, sample)
    prune(run.toolbox, worth)
    return frozenset(key for key in kept if key.kind == "spatial") | worth, curve


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A graph on its way into a file, and what was measured of it."""

    graph: onnx.ModelProto
    parameters: int
    parity: Parity
    rounding: Parity | None
    seconds: Mapping[str, float]
    miou: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """As the manifest has them."""
        found = self.parity.to_json() | {f"miou_{k}": v for k, v in self.miou.items()}
        return found | ({f"rounding_{k}": v for k, v in self.rounding.to_json().items()} if self.rounding else {})


def _portable_graph(
    segmenter: Segmenter, manifest: Manifest, precision: Precision, tiles: torch.Tensor
) -> tuple[_Made, Probabilities]:
    """The graph, its weights rounded where they are to be, and what it computes of `tiles`."""
    model, expected, rounding, seconds = _prepare(segmenter, manifest, precision, tiles)
    graph = onnx_graph.build_graph(model, tile_size=manifest.tile_size, channels=model.channels)
    if precision in ROUNDED:
        onnx_graph.store_rounded(graph, ROUNDED[precision])
    computed, onnx_seconds = run_onnx(_serialise(graph), tiles)
    made = _Made(
        graph=graph,
        parameters=onnx_graph.count_weights(graph),
        parity=_proved(Parity.of(expected, computed), "The exported graph differs from the model"),
        rounding=rounding,
        seconds={"eager": seconds, "onnx": onnx_seconds},
    )
    return made, computed


def _in_8_bits(
    made: _Made, computed: Probabilities, tiles: torch.Tensor, source: Labelled | None, manifest: Manifest
) -> _Made:
    """The same in 8 bits, proved on held-out tiles."""
    graph, rounding, miou, seconds = quantise_proved(made.graph, computed, tiles, source, manifest.legend)
    return dataclasses.replace(
        made, graph=graph, rounding=rounding, miou=miou, seconds={**made.seconds, "onnx": seconds}
    )


def _in_native_form(made: _Made, computed: Probabilities, tiles: torch.Tensor, manifest: Manifest) -> _Made:
    """The same of raster values as they are stored, proved to compute what it computed."""
    graph = make_native(made.graph, manifest)
    same, seconds = run_onnx(_serialise(graph), raster_values(tiles, manifest))
    _proved(Parity.of(computed, same), "The graph of the native profile differs from that of the portable one")
    return dataclasses.replace(made, graph=graph, seconds={**made.seconds, "onnx": seconds})


def _prepare(
    segmenter: Segmenter, manifest: Manifest, precision: Precision, tiles: torch.Tensor
) -> tuple[Segmenter, Probabilities, Parity | None, float]:
    """A copy to be traced, what it has to compute, what rounding changed, and seconds for one tile."""
    model = copy.deepcopy(segmenter).cpu().float().eval()
    expected, seconds = run_eager(model, tiles)
    if expected.shape[1] != len(manifest.legend):
        raise ModelError(
            f"The model gives {expected.shape[1]} classes, its legend has {len(manifest.legend)}.",
            hint="Use the configuration that it was trained with.",
        )
    model.fix_size(manifest.tile_size)
    model.fold_norms()
    model.fold_bands()
    if precision != "int8":  # in 8 bits the filter is to see the tokens in full
        fuse(model.backbone)
    if precision not in ROUNDED:
        return model, expected, None, seconds
    round_weights(model, precision)
    rounded, seconds = run_eager(model, tiles)
    return model, rounded, proved_rounding(expected, rounded, precision), seconds


def _proved(parity: Parity, what: str) -> Parity:
    if not parity.passes:
        raise ParityError(
            f"{what}: {parity}; at most max_abs={MAX_ABS} and disagreement={100 * MAX_DISAGREEMENT} % pass.",
            hint="Nothing was written. Report it with the versions of torch, onnx and onnxruntime.",
        )
    return parity


def _check_choices(profile: str, precision: str, keep: object) -> None:
    wrong = {"profile": (profile, get_args(Profile)), "precision": (precision, get_args(Precision))}
    is_share = isinstance(keep, int | float) and not isinstance(keep, bool) and 0 <= keep < 1
    shown = "active" if keep is None or is_share else str(keep)
    wrong["keep"] = (shown, ("auto", "all", "active", "a loss of mean IoU from 0 to 1"))
    for name, (value, choices) in wrong.items():
        if value not in choices:
            raise InputError(f"{name} = {value} is no choice.", hint=f"Use one of {', '.join(choices)}.")


def _check_modules(segmenter: Segmenter, manifest: Manifest) -> None:
    """Refuse another contract, LoRA that is not merged, and other modules than the manifest states."""
    channels = segmenter.channels
    if manifest.output != "probabilities" or manifest.scaling != "unit" or len(manifest.bands) != channels:
        raise ModelError(
            f"The manifest says output={manifest.output!r}, scaling={manifest.scaling!r}, bands={manifest.bands}.",
            hint=f"The model takes {channels} bands, divided by one number, and gives probabilities.",
        )
    present = {
        str(ModuleKey(int(name.split(".")[1]), module.kind))
        for name, module in segmenter.backbone.named_modules()
        if isinstance(module, SiteModule)
    }
    unmerged = sorted(name for name in present if ModuleKey.parse(name).kind == "spatial")
    if unmerged:
        raise ModelError(f"{len(unmerged)} LoRA modules are not merged: {unmerged[:3]}.", hint="Call peft.merge first.")
    stated = {name for name in manifest.modules_kept if ModuleKey.parse(name).kind != "spatial"}
    if present != stated:
        raise ModelError(
            f"The model carries {len(present)} modules beside LoRA, its manifest states {len(stated)}: "
            f"{sorted(present ^ stated)[:3]} differ.",
            hint="Call peft.prune first, and state what was kept.",
        )


def _serialise(model: onnx.ModelProto) -> bytes:
    check_bytes(model.ByteSize())
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _write(content: bytes, path: Path) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}.", hint="Choose another place.") from error
