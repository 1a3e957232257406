"""A model file and its session: contract in, probabilities out."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Contract, Margin, StatedContract
from cegate_geo.domain.manifest import METADATA_KEY, Manifest
from cegate_geo.errors import ContractWarning, ModelError, ProviderWarning, RuntimeMissingError
from cegate_geo.infer.foreign.decide import kind_of
from cegate_geo.infer.foreign.open import find_weights, gather, require_no_options
from cegate_geo.infer.foreign.settle import settle
from cegate_geo.infer.outputs import as_probabilities, channels_first, softmax

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Names on the command line → names in onnxruntime."""
INPUT_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(uint16)": "uint16"}


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            f"onnxruntime can't be imported: {error}.",
            hint='Install it: pip install "cegate-geo[cpu]", or "cegate-geo[gpu]" for CUDA.',
        ) from error
    return onnxruntime


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a session is to run."""

    provider: str = "auto"
    """'auto', or a key of PROVIDERS."""
    require_gpu: bool = False
    threads: int = 0
    """Threads within the session; 0 for all usable cores."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A loaded model.

    Not thread-safe by promise, though onnxruntime's sessions are.
    """

    path: Path
    """The weights."""
    contract: Contract
    provider: str
    """What really runs, by our name."""
    sides: tuple[int | None, int | None]
    """Fixed (height, width) of the input; None where it is free."""
    batch: int | None
    """Fixed batch size; None where it is free."""
    input_type: np.dtype[np.generic]
    session: Any = field(repr=False)

    @property
    def manifest(self) -> Manifest:
        """What it expects and gives."""
        return self.contract.manifest

    @property
    def margin(self) -> Margin:
        """Pixels of an input, on each side, for which it gives nothing."""
        return self.contract.form.margin if self.contract.form else Margin()

    def tile_shape(self, shape: tuple[int, int], *, asked: int | None) -> tuple[int, int]:
        """Height and width of the tiles that it gives for a scene of `shape`, without `margin`.

        Fixed by the graph, or the manifest's, or what was asked for. Where a graph leaves its sides free, a tile is no
        larger than the scene: then nothing has to be made up.

        Raises:
            ModelError: If it takes no tiles of the size that is asked for.
        """
        sides = []
        for fixed, length in zip(self.sides, shape, strict=True):
            if fixed is not None:
                if asked not in (None, fixed):
                    raise ModelError(
                        f"{self.path.name} takes tiles of {fixed} px only, not {asked}.", hint="Leave out --tile-size."
                    )
                sides.append(fixed)
                continue
            size, multiple = asked or self.manifest.tile_size, self.manifest.size_multiple
            if asked and asked % multiple:
                raise ModelError(f"{asked} px is no multiple of {multiple}.", hint=f"Use a multiple of {multiple}.")
            sides.append(min(size, -(-length // multiple) * multiple))
        margin = self.margin
        return sides[0] - margin.top - margin.bottom, sides[1] - margin.left - margin.right

    def run(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities (N, K, H, W) float32 for inputs (N, C, H, W); without `margin`, where the model has one.

        Raises:
            ModelError: If the model fails, gives another shape than its contract says, or something that is no number.
        """
        raw, form = self._call(inputs), self.contract.form
        if form is not None:
            probabilities = as_probabilities(raw, self.manifest.output, form, self.manifest.legend)
        else:
            probabilities = raw.astype(np.float32, copy=False)
            if self.manifest.output == "logits":
                probabilities = softmax(probabilities)
        if not np.isfinite(probabilities.sum(dtype=np.float64)):
            raise ModelError(
                f"{self.path.name} gave values that are no numbers (NaN or infinite).",
                hint="Check that the scene's values are what the model was trained on, and that the export's parity "
                "report is good.",
            )
        return probabilities

    def decided(self, inputs: npt.NDArray[np.generic]) -> Predictor:
        """This model with what its output means, by what it gives for a real tile (1, C, H, W); says so.

        Raises:
            ModelError: If the model fails, or what it gives has to be stated.
        """
        raw = self._call(inputs)
        kind = kind_of(raw, name=self.path.name)
        warnings.warn(
            f"{self.path.name} does not say whether it gives probabilities or logits. In one tile of the scene it gave "
            f"{float(raw.min()):.3g} to {float(raw.max()):.3g}, so they are taken as {kind}; --output-kind states it.",
            ContractWarning,
            stacklevel=2,
        )
        contract = dataclasses.replace(self.contract, manifest=dataclasses.replace(self.manifest, output=kind))
        return dataclasses.replace(self, contract=contract)

    def _call(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        """What the graph gives, (N, C, h, w)."""
        count, form = len(inputs), self.contract.form
        if self.batch is not None and count < self.batch:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], self.batch - count, axis=0)])
        fed = inputs.transpose(0, 2, 3, 1) if form and form.input_layout == "NHWC" else inputs
        output = form.output if form else self.session.get_outputs()[0].name
        try:
            (raw,) = self.session.run([output], {self.session.get_inputs()[0].name: np.ascontiguousarray(fed)})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(
                f"{self.path.name} failed on an input of shape {fed.shape}: {_first_line(error)}.",
                hint="Try a smaller --batch-size, or export the model again.",
            ) from error
        maps = channels_first(raw, form) if form else raw
        sides = form.output_shape if form else inputs.shape[2:]
        expected = (len(inputs), form.channels if form else len(self.manifest.legend), *sides)
        if maps.shape != expected:
            raise ModelError(
                f"{self.path.name} gave an output of shape {maps.shape}, its contract promises {expected}.",
                hint="Export the model again.",
            )
        return maps[:count]


def load_predictor(
    path: Path,
    options: SessionOptions | None = None,
    *,
    stated: StatedContract | None = None,
    tile_size: int | None = None,
    for_use: bool = True,
) -> Predictor:
    """Load a model file with its contract.

    Args:
        path: ONNX file; or an `.emd`, a STAC item or a sidecar of geoai that names one.
        options: How it is to run.
        stated: What the user states of a model that carries no manifest.
        tile_size: Side of a tile that the user asks for, in pixels; counts where the graph leaves it free.
        for_use: Refuse what has to be stated before a model without a manifest can run; else only describe it.

    Raises:
        ModelError: If it is no model, or its contract is missing, unreadable or does not fit its graph.
        InputError: If what is stated contradicts the model.
        RuntimeMissingError: If onnxruntime, or the provider that was asked for, is missing.
    """
    options, stated = options or SessionOptions(), stated or StatedContract()
    path, beside = find_weights(path)
    session, running = _open_session(path, options)
    metadata = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY in metadata:
        require_no_options(path, stated)
        return _checked(path, Manifest.from_json(metadata[METADATA_KEY]), session, running)
    facts, sources = gather(path, metadata, beside, stated)
    settled = settle(path, session, facts, sources, tile_size=tile_size, for_use=for_use)
    return Predictor(
        path=path,
        contract=settled.contract,
        provider=_our_name(running),
        sides=settled.input.shape,
        batch=settled.input.batch,
        input_type=settled.input.dtype,
        session=session,
    )


def _open_session(path: Path, options: SessionOptions) -> tuple[Any, str]:
    """A session, and the provider that really runs."""
    ort = _onnxruntime()
    names = _provider_names(options, ort.get_available_providers())
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = options.threads or usable_cores()
    session = _guarded(path, lambda: ort.InferenceSession(str(path), sess_options=settings, providers=names))
    running = session.get_providers()[0]
    asked_gpu = options.require_gpu or options.provider not in ("auto", "cpu")
    if asked_gpu and running != names[0]:
        raise ModelError(
            f"{names[0]} was asked for, but onnxruntime fell back to {running}.",
            hint="Check the driver and the CUDA version with cegate-geo doctor, or use --provider cpu.",
        )
    if running != names[0]:
        warnings.warn(
            f"{names[0]} could not be used; the model runs on {running}. cegate-geo doctor says more.",
            ProviderWarning,
            stacklevel=2,
        )
    return session, running


def _guarded(path: Path, load: Callable[[], Any]) -> Any:
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.", hint="Check the path given with --model.")
    try:
        return load()
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(
            f"onnxruntime can't load {path.name}: {_first_line(error)}.",
            hint="Check that it is a complete ONNX file, and that this onnxruntime is new enough for its opset.",
        ) from error


def _provider_names(options: SessionOptions, available: list[str]) -> list[str]:
    cpu = PROVIDERS["cpu"]
    gpu = [name for key, name in PROVIDERS.items() if key != "cpu" and name in available]
    if options.provider == "auto":
        if options.require_gpu and not gpu:
            raise RuntimeMissingError(
                f"--require-gpu is set, but this onnxruntime has {', '.join(available)} only.",
                hint='Install the GPU runtime: pip uninstall onnxruntime; pip install "cegate-geo[gpu]".',
            )
        return [*gpu, cpu]
    name = PROVIDERS[options.provider]
    if name not in available:
        raise RuntimeMissingError(
            f"This onnxruntime has no {name}, only {', '.join(available)}.",
            hint='Install the GPU runtime: pip uninstall onnxruntime; pip install "cegate-geo[gpu]".',
        )
    if name == cpu and options.require_gpu:
        raise ModelError("--require-gpu and --provider cpu contradict each other.", hint="Leave out one of them.")
    return [name] if name == cpu else [name, cpu]


def _checked(path: Path, manifest: Manifest, session: Any, running: str) -> Predictor:
    """Compare the graph with its manifest."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    problems = []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        problems.append(f"its inputs are {[(i.name, i.shape) for i in inputs]}, not one of (N, C, H, W)")
    elif inputs[0].type not in INPUT_TYPES:
        problems.append(f"its input is {inputs[0].type}")
    elif isinstance(inputs[0].shape[1], int) and inputs[0].shape[1] != len(manifest.bands):
        problems.append(f"its input has {inputs[0].shape[1]} channels, the manifest {len(manifest.bands)} bands")
    if len(outputs[0].shape) != 4:
        problems.append(f"its output is {outputs[0].shape}, not (N, K, H, W)")
    elif isinstance(outputs[0].shape[1], int) and outputs[0].shape[1] != len(manifest.legend):
        problems.append(f"its output has {outputs[0].shape[1]} channels, the manifest {len(manifest.legend)} classes")
    if manifest.output == "class-map":
        problems.append("it gives a class map, which can't be blended")
    if problems:
        raise ModelError(
            f"{path.name} can't be used: {'; '.join(problems)}.",
            hint="Export it again with cegate-geo export --profile portable.",
        )
    batch, _, height, width = (size if isinstance(size, int) else None for size in inputs[0].shape)
    return Predictor(
        path=path,
        contract=Contract(manifest=manifest),
        provider=_our_name(running),
        sides=(height, width),
        batch=batch,
        input_type=np.dtype(INPUT_TYPES[inputs[0].type]),
        session=session,
    )


def _our_name(provider: str) -> str:
    return {name: key for key, name in PROVIDERS.items()}.get(provider, provider)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else repr(error)).rstrip(".")
