"""What computes: execution providers by name, their sessions, and which to try in which order.

CPU float32 of onnxruntime is the reference: it is opened for every model, and what another provider gives is compared
with it on a tile of the scene before it may go on (`parity`).

CUDA, TensorRT, CoreML and DirectML are set up as onnxruntime's documentation says
(https://onnxruntime.ai/docs/execution-providers/); this project has not run them. OpenVINO runs by the package
`openvino`, or by an onnxruntime that has it built in.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cegate_geo.errors import ModelError, RuntimeMissingError

ProviderName = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml"]
PROVIDER_NAMES: tuple[str, ...] = get_args(ProviderName)
"""What can be asked for."""
RUNTIME_NAMES = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Our names → those of onnxruntime."""
ACCELERATORS = ("cuda", "tensorrt", "coreml", "directml")
"""Providers that run on something else than the CPU: what `--require-gpu` means."""
AUTO_ORDER = ("cuda", "coreml", "directml", "openvino", "cpu")
"""What `auto` tries, best first. Not TensorRT: it builds its engine for minutes, which is no default."""
INSTALL = {
    "cuda": 'pip uninstall onnxruntime; pip install "cegate-geo[gpu]"',
    "tensorrt": 'pip uninstall onnxruntime; pip install "cegate-geo[gpu]" tensorrt',
    "openvino": 'pip install "cegate-geo[openvino]"',
    "coreml": "pip install onnxruntime on a Mac: its wheels have it",
    "directml": "pip uninstall onnxruntime; pip install onnxruntime-directml on Windows",
    "cpu": 'pip install "cegate-geo[cpu]"',
}
"""How to get each."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model."""

    provider: str
    """A key of RUNTIME_NAMES."""
    precision: Literal["float32", "bf16"] = "float32"
    """What it computes in, as far as we say it."""
    is_native: bool = False
    """By the provider's own package, not by onnxruntime."""

    @property
    def label(self) -> str:
        """For people: 'openvino bf16'."""
        return self.provider if self.precision == "float32" else f"{self.provider} {self.precision}"


def onnxruntime_module() -> Any:
    """The package onnxruntime.

    Raises:
        RuntimeMissingError: If it can't be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            f"onnxruntime can't be imported: {error}.",
            hint='Install it: pip install "cegate-geo[cpu]", or "cegate-geo[gpu]" for CUDA.',
        ) from error
    return onnxruntime


def candidates(provider: str, *, require_gpu: bool, available: Sequence[str]) -> tuple[Candidate, ...]:
    """What to try for what is asked for, best first.

    Args:
        provider: One of PROVIDER_NAMES.
        require_gpu: Nothing that runs on the CPU.
        available: What onnxruntime was built with.

    Raises:
        RuntimeMissingError: If what is asked for is not installed.
        ModelError: If the wishes contradict each other.
    """
    if require_gpu and provider not in ("auto", *ACCELERATORS):
        raise ModelError(
            f"--require-gpu and --provider {provider} contradict each other.", hint="Leave out one of them."
        )
    names: tuple[str, ...] = AUTO_ORDER if provider == "auto" else (provider,)
    if require_gpu:
        names = tuple(name for name in names if name in ACCELERATORS)
    found = tuple(way for name in names for way in _ways(name, available))
    if found:
        return found
    if provider == "auto":
        raise RuntimeMissingError(
            f"--require-gpu is set, but this onnxruntime has {', '.join(available)} only.",
            hint=f"Install the GPU runtime: {INSTALL['cuda']}.",
        )
    raise RuntimeMissingError(
        f"This onnxruntime has no {RUNTIME_NAMES[provider]}, only {', '.join(available)}.",
        hint=f"Install it: {INSTALL[provider]}.",
    )


def _ways(name: str, available: Sequence[str]) -> tuple[Candidate, ...]:
    """How a provider can run here, best first; nothing where it can't."""
    if name == "openvino" and importlib.util.find_spec("openvino") is not None:
        single = Candidate(provider=name, is_native=True)
        has_bf16 = "BF16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        # bf16 keeps float32's range and 8 bits of it: no overflow, half the memory traffic.
        return (Candidate(provider=name, precision="bf16", is_native=True), single) if has_bf16 else (single,)
    return (Candidate(provider=name),) if RUNTIME_NAMES[name] in available else ()


def _openvino_core() -> Any:
    import openvino

    return openvino.Core()


def open_reference(path: Path, *, threads: int) -> Any:
    """A session on the CPU in float32."""
    return _open_in_onnxruntime(path, Candidate(provider="cpu"), threads=threads)


def open_session(path: Path, candidate: Candidate, *, threads: int, reference: Any) -> Any:
    """A session that runs on what is asked for, or an error: onnxruntime falls back to the CPU with a warning at most.

    Args:
        path: Weights.
        candidate: How to run them.
        threads: Within the session.
        reference: The session of `open_reference`.

    Raises:
        ModelError: If something else than the candidate runs.
    """
    if candidate.provider == "cpu":
        return reference
    if candidate.is_native:
        return OpenVinoSession(path, candidate.precision, threads=threads, reference=reference)
    session = _open_in_onnxruntime(path, candidate, threads=threads)
    running, wanted = session.get_providers(), RUNTIME_NAMES[candidate.provider]
    if not running or running[0] != wanted:
        raise ModelError(
            f"{wanted} was asked for, but onnxruntime fell back to {running[0] if running else 'nothing'}.",
            hint="Check the driver and the runtime's libraries with cegate-geo doctor, or use --provider cpu.",
        )
    return session


def _open_in_onnxruntime(path: Path, candidate: Candidate, *, threads: int) -> Any:
    ort, name = onnxruntime_module(), candidate.provider
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads or usable_cores()
    # Between calls its threads would go on turning, on cores that reading and stitching need.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    # On the CPU a second call would take all of the first one's memory again, in one piece, and be no faster for it.
    settings.enable_mem_pattern = name not in ("cpu", "directml")
    if name == "directml":  # it supports neither patterns nor this, and says so only when it runs
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    chain: list[Any] = [(RUNTIME_NAMES[name], _options(name, threads=threads or usable_cores()))]
    if name == "tensorrt":
        chain.append((RUNTIME_NAMES["cuda"], _options("cuda", threads=0)))  # for what TensorRT does not know
    if name != "cpu":
        chain.append(RUNTIME_NAMES["cpu"])
    # With its own fallback onnxruntime would print to stdout, where results go, and run on something else.
    return ort.InferenceSession(str(path), sess_options=settings, providers=chain, enable_fallback=0)


def _options(name: str, *, threads: int) -> dict[str, str]:
    """Options of a provider in onnxruntime."""
    if name == "cuda":
        return {"arena_extend_strategy": "kSameAsRequested"}  # doubling the arena runs out of memory early
    if name == "tensorrt":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()) / "cegate-geo-tensorrt"
        return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}
    if name == "openvino":
        return {"device_type": "CPU", "num_of_threads": str(threads)}
    if name == "coreml":
        return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}
    return {}


class OpenVinoSession:
    """A model in the package `openvino` on the CPU, with the part of onnxruntime's session interface that is used.

    Args:
        path: Weights.
        precision: What it computes in.
        threads: Within a call; 0 for all usable cores.
        reference: onnxruntime's session of the same file, which describes inputs and outputs.
    """

    def __init__(self, path: Path, precision: str, *, threads: int, reference: Any) -> None:
        hints = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
            "PERFORMANCE_HINT": "LATENCY",  # one call at a time, with all threads
        }
        self._model = _openvino_core().compile_model(str(path), "CPU", hints)
        self._request = self._model.create_infer_request()
        self._inputs, self._outputs = reference.get_inputs(), reference.get_outputs()
        self._metadata = reference.get_modelmeta()

    def get_inputs(self) -> Any:
        """As onnxruntime describes them."""
        return self._inputs

    def get_outputs(self) -> Any:
        """As onnxruntime describes them."""
        return self._outputs

    def get_modelmeta(self) -> Any:
        """As onnxruntime describes it."""
        return self._metadata

    def get_providers(self) -> list[str]:
        """What runs, by onnxruntime's name."""
        return [RUNTIME_NAMES["openvino"]]

    def run(self, names: Sequence[str], feed: dict[str, npt.NDArray[np.generic]]) -> list[npt.NDArray[Any]]:
        """Outputs of these names; copies, for OpenVINO's own memory is used again in the next call."""
        places = {output.name: index for index, output in enumerate(self._outputs)}
        self._request.infer({index: feed[given.name] for index, given in enumerate(self._inputs)})
        return [self._request.get_output_tensor(places[name]).data.copy() for name in names]


def usable_cores() -> int:
    """Cores that this process may use: by its affinity and by the quota of its container, whichever is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, int(quota + 0.5)))


def cgroup_quota(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores that a container may use, by version 2 or 1 of Linux' control groups; None where nothing limits them.

    Limits of all levels above hold too, so the least of them counts.
    """
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    quotas = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _levels(root, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(folder) for mount in ("cpu", controllers) for folder in _levels(root / mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _levels(root: Path, path: str) -> list[Path]:
    """The folder of a group and those above it. In a container only the root may be visible."""
    inner = root / path.lstrip("/")
    return [inner, *(folder for folder in inner.parents if folder == root or root in folder.parents)]


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "bad_alloc", "e_outofmemory", "8007000e")
"""How CUDA, cuDNN, cuBLAS, onnxruntime's arena and DirectML say it, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a session failed for lack of memory: onnxruntime's exceptions have words only."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)
