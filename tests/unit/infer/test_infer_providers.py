"""Which provider runs, that it is compared with the CPU first, and what happens when it can't."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cegate_geo.api import predict
from cegate_geo.errors import InputError, ModelError, ProviderWarning, RuntimeMissingError
from cegate_geo.infer import providers
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.parity import MAX_DIFFERENCE, Parity
from cegate_geo.infer.predictor import Predictor, SessionOptions
from cegate_geo.infer.providers import Candidate, candidates, cgroup_quota, is_out_of_memory, usable_cores
from tests import toy_models as toys

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class FakeSession:
    """CPU sessions as they are; others add `offset` to the first class, and fail beyond `most` tiles."""

    offset: float = 0.0
    most: int | None = None
    running: str | None = None
    seen: dict[str, Any]
    calls: list[int]

    def __init__(self, path: str, *, sess_options: Any, providers: list[Any], enable_fallback: int) -> None:
        names = [p if isinstance(p, str) else p[0] for p in providers]
        self._name = names[0]
        if names[0] != CPU:
            type(self).seen = {
                "providers": names,
                "threads": sess_options.intra_op_num_threads,
                "fallback": enable_fallback,
                "options": providers[0][1],
            }
        self._inner = onnxruntime.InferenceSession(path, sess_options=sess_options, providers=[CPU])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_providers(self) -> list[str]:
        return [self._name if self._name == CPU or self.running is None else self.running]

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        (inputs,) = feed.values()
        (raw,) = self._inner.run(names, feed)
        if self._name == CPU:
            return [raw]
        type(self).calls.append(len(inputs))
        if self.most is not None and len(inputs) > self.most:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=x")
        raw = raw.copy()
        raw[:, 0] += self.offset
        return [raw]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an onnxruntime that has other providers than this machine; gives the class of its sessions."""

    def make(
        *available: str, running: str | None = None, offset: float = 0.0, most: int | None = None
    ) -> type[FakeSession]:
        fields = {"running": running, "offset": offset, "most": most, "calls": [], "seen": {}}
        session = type("Session", (FakeSession,), fields)
        module = SimpleNamespace(
            SessionOptions=onnxruntime.SessionOptions,
            ExecutionMode=onnxruntime.ExecutionMode,
            InferenceSession=session,
            get_available_providers=lambda: list(available),
            __version__=onnxruntime.__version__,
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        monkeypatch.setattr(providers.importlib.util, "find_spec", lambda _: None)
        return session

    return make


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toys.identity(tmp_path / "m.onnx")


@pytest.fixture
def tile() -> np.ndarray:
    return toys.noise((64, 64))[None].astype(np.float32) / 255


def test_the_provider_that_was_asked_for_runs_or_it_fails(model: Path, runtime: Any) -> None:
    session = runtime(CUDA, CPU)
    assert load_predictor(model, SessionOptions(threads=3)).provider == "cuda"
    assert session.seen["providers"] == [CUDA, CPU]
    assert (session.seen["threads"], session.seen["fallback"]) == (3, 0)
    runtime(CUDA, CPU, running=CPU)
    for options in (SessionOptions(provider="cuda"), SessionOptions(require_gpu=True)):
        with pytest.raises(ModelError, match="fell back"):
            load_predictor(model, options)
    runtime(CPU)
    for options in (SessionOptions(provider="cuda"), SessionOptions(require_gpu=True)):
        with pytest.raises(RuntimeMissingError, match="only"):
            load_predictor(model, options)
    for name in ("cpu", "openvino"):
        with pytest.raises(ModelError, match="contradict"):
            load_predictor(model, SessionOptions(provider=name, require_gpu=True))


def test_auto_says_so_when_the_gpu_is_not_used(model: Path, runtime: Any) -> None:
    runtime(CUDA, CPU, running=CPU)
    with pytest.warns(ProviderWarning, match="CUDAExecutionProvider"):
        assert load_predictor(model).provider == "cpu"


@pytest.mark.parametrize(
    ("name", "chain", "option"),
    [
        ("tensorrt", [TENSORRT, CUDA, CPU], "trt_engine_cache_enable"),
        ("coreml", ["CoreMLExecutionProvider", CPU], "ModelFormat"),
        ("directml", ["DmlExecutionProvider", CPU], None),
        ("openvino", ["OpenVINOExecutionProvider", CPU], "device_type"),
    ],
)
def test_providers_are_opened_by_name(
    model: Path, runtime: Any, name: str, chain: list[str], option: str | None
) -> None:
    session = runtime(chain[0], CUDA, CPU)
    predictor = load_predictor(model, SessionOptions(provider=name))
    assert (predictor.provider, session.seen["providers"]) == (name, chain)
    assert option is None or option in session.seen["options"]


def test_auto_takes_the_best_and_never_tensorrt() -> None:
    everything = tuple(reversed(providers.RUNTIME_NAMES.values()))
    ways = [c.provider for c in candidates("auto", require_gpu=False, available=everything)]
    assert ways[0] == "cuda"
    assert ways[-1] == "cpu"
    assert "tensorrt" not in ways
    assert [c.provider for c in candidates("auto", require_gpu=True, available=everything)] == [
        "cuda", "coreml", "directml",
    ]  # fmt: skip


def test_a_provider_that_agrees_is_used_and_says_by_how_much(model: Path, tile: np.ndarray, runtime: Any) -> None:
    runtime(CUDA, CPU, offset=MAX_DIFFERENCE / 10)
    predictor = load_predictor(model).proven(tile)
    assert predictor.provider == "cuda"
    assert "0.005" in predictor.reason
    assert predictor.is_proven
    assert predictor.reference is None, "the CPU's session is let go"


def test_auto_leaves_a_provider_that_does_not_agree(model: Path, tile: np.ndarray, runtime: Any) -> None:
    runtime(CUDA, CPU, offset=MAX_DIFFERENCE * 2)
    with pytest.warns(ProviderWarning, match=r"cuda is not used: probabilities differ by 0\.1 at most"):
        predictor = load_predictor(model).proven(tile)
    assert predictor.provider == "cpu"
    assert "cuda is not used" in predictor.reason
    np.testing.assert_array_equal(predictor.run(tile), tile)
    with pytest.raises(ModelError, match="can't be used"):
        load_predictor(model, SessionOptions(require_gpu=True)).proven(tile)


def test_one_that_was_asked_for_is_used_with_a_warning(model: Path, tile: np.ndarray, runtime: Any) -> None:
    runtime(CUDA, CPU, offset=MAX_DIFFERENCE * 2)
    with pytest.warns(ProviderWarning, match="used as asked, although"):
        assert load_predictor(model, SessionOptions(provider="cuda")).proven(tile).provider == "cuda"


def test_a_provider_that_fails_on_the_first_tile_is_left(model: Path, tile: np.ndarray, runtime: Any) -> None:
    runtime(CUDA, CPU, most=0)
    with pytest.warns(ProviderWarning, match="it failed"):
        assert load_predictor(model).proven(tile).provider == "cpu"
    with pytest.raises(ModelError, match="can't be used"):
        load_predictor(model, SessionOptions(provider="cuda")).proven(tile)


def test_predict_proves_its_provider_before_the_first_tile(tmp_path: Path, model: Path, runtime: Any) -> None:
    session = runtime(CUDA, CPU, offset=0.5)
    scene = toys.noise((100, 130))
    toys.write_raster(tmp_path / "scene.tif", scene)
    with pytest.warns(ProviderWarning, match="cuda is not used"):
        result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model)
    assert session.calls == [1]
    assert result.provider == "cpu"
    assert "cuda" in result.provider_reason
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], scene.argmax(axis=0))


@pytest.fixture
def part(tmp_path: Path, model: Path) -> Any:
    """Computes one of two parts of a scene."""
    toys.write_raster(tmp_path / "scene.tif", toys.noise((1024, 64)))

    def compute(number: int, **options: Any) -> Any:
        more = {"shard": (number, 2), "shard_rows": 512, **options}
        return predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, **more)

    return compute


def test_auto_goes_on_with_the_provider_of_finished_shards(part: Any, runtime: Any) -> None:
    runtime(CPU)
    part(1)
    session = runtime(CUDA, CPU)
    result = part(2)
    assert (result.provider, result.provider_reason) == ("cpu", "finished shards were computed on it")
    assert session.calls == []


def test_auto_does_not_go_on_with_a_provider_that_is_not_here_any_more(part: Any, runtime: Any) -> None:
    runtime(CUDA, CPU)
    part(1)
    runtime(CPU)
    with pytest.raises(InputError, match=r"provider was cuda, is cpu\."):
        part(2)
    runtime(CUDA, CPU)
    with pytest.raises(InputError, match=r"provider was cuda, is cpu\."):
        part(2, provider="cpu")


def test_a_part_takes_the_batch_of_finished_shards(part: Any, runtime: Any) -> None:
    """However little memory it is given: another batch would be another job."""
    session = runtime(CUDA, CPU)
    part(1, batch_size=5)
    session = runtime(CUDA, CPU)
    part(2)
    assert set(session.calls) == {1, 5}, "one tile to prove the provider, then batches of five"
    with pytest.raises(InputError, match=r"batch was 5, is 4\."):
        part(2, batch_size=4)


def test_out_of_memory_halves_the_batch(tmp_path: Path, model: Path, runtime: Any) -> None:
    session = runtime(CUDA, CPU, most=3)
    scene = toys.noise((200, 300))
    toys.write_raster(tmp_path / "scene.tif", scene)
    with pytest.warns(ProviderWarning, match="too much for the memory of cuda") as said:
        result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, provider="cuda")
    assert result.provider == "cuda"
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], scene.argmax(axis=0))
    for size, warning in zip((4, 2), said, strict=True):
        assert f"--batch-size {size} says it at once" in str(warning.message)
    assert session.calls[:3] == [1, 8, 4], "one to compare, a whole batch, its half"
    assert max(session.calls[3:]) == 2, "what has failed is not tried again"


def test_out_of_memory_with_one_tile_is_an_error(model: Path, tile: np.ndarray, runtime: Any) -> None:
    runtime(CUDA, CPU, most=0)
    predictor = load_predictor(model, SessionOptions(provider="cuda"))
    with pytest.raises(ModelError, match="out of memory"):
        predictor.run(tile)


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("Failed to allocate memory for requested buffer of size 1073741824", True),
        ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("std::bad_alloc", True),
        ("Got invalid dimensions for input: x", False),
    ],
)
def test_lack_of_memory_is_told_from_other_failures(text: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) == is_memory


def test_parity_of_what_is_no_number_is_bad() -> None:
    good = np.full((1, 2, 4, 4), 0.5, np.float32)
    assert Parity.between(good, good) == Parity(0.0, 0.0)
    broken = good.copy()
    broken[0, 0, 0, 0] = np.nan
    assert not Parity.between(broken, good).is_good
    assert not Parity.between(good[:, :, :2], good).is_good
    swapped = np.array([0.5, 0.51], np.float32).reshape(1, 2, 1, 1)
    assert not Parity.between(swapped, swapped[:, ::-1]).is_good, "small differences may change every class"


def fake_openvino(capabilities: list[str], offset: dict[str, float]) -> ModuleType:
    """The package openvino, by the part of it that is used: gives its input back, with an error for each precision."""

    class Request:
        def __init__(self, shift: float) -> None:
            self._shift = shift

        def infer(self, feed: dict[int, Any]) -> None:
            self._output = feed[0] + np.float32(self._shift) * np.array([1, 0, 0], np.float32)[None, :, None, None]

        def get_output_tensor(self, index: int) -> Any:
            assert index == 0
            return SimpleNamespace(data=self._output)

    class Core:
        def get_property(self, device: str, name: str) -> Any:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return capabilities

        def compile_model(self, path: str, device: str, hints: dict[str, Any]) -> Any:
            return SimpleNamespace(create_infer_request=lambda: Request(offset[hints["INFERENCE_PRECISION_HINT"]]))

    module = ModuleType("openvino")
    module.Core = Core  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace(name="openvino")  # type: ignore[assignment]
    return module


@pytest.mark.parametrize(
    ("capabilities", "bf16", "label"),
    [(["FP32", "BF16"], 1e-3, "openvino bf16"), (["FP32", "BF16"], 0.2, "openvino"), (["FP32"], 1e-3, "openvino")],
)
def test_openvino_takes_bf16_where_the_cpu_has_it_and_it_agrees(
    model: Path, tile: np.ndarray, monkeypatch: pytest.MonkeyPatch, capabilities: list[str], bf16: float, label: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino(capabilities, {"bf16": bf16, "f32": 0.0}))
    loaded = load_predictor(model, SessionOptions(provider="openvino"))
    if bf16 > MAX_DIFFERENCE:
        with pytest.warns(ProviderWarning, match="openvino bf16 is not used"):
            predictor = loaded.proven(tile)
    else:
        predictor = loaded.proven(tile)
    assert predictor.way.label == label
    assert predictor.default_batch == 1


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_openvino_itself_agrees_with_the_cpu(tmp_path: Path, precision: Any) -> None:
    pytest.importorskip("openvino", reason="the package openvino is an extra")
    path = toys.transformer(tmp_path / "vit.onnx")
    tiles = toys.noise((256, 512), seed=1).reshape(3, 256, 2, 256).transpose(2, 0, 1, 3).astype(np.float32) / 255
    cpu = load_predictor(path, SessionOptions(provider="cpu"))
    way = Candidate(provider="openvino", precision=precision, is_native=True)
    found = cpu.on((way,)).run(tiles)
    parity = Parity.between(found, cpu.run(tiles))
    assert parity.is_good, str(parity)
    assert parity.max_difference < (1e-4 if precision == "float32" else MAX_DIFFERENCE)


def test_a_container_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    inner = root / "kubepods" / "pod"
    inner.mkdir(parents=True)
    membership.write_text("0::/kubepods/pod\n")
    assert cgroup_quota(root, membership) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(root, membership) is None
    (inner / "cpu.max").write_text("350000 100000\n")
    assert cgroup_quota(root, membership) == 3.5
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(root, membership) == 1.5, "limits of the levels above hold too"
    (root / "cpu,cpuacct" / "docker").mkdir(parents=True)
    membership.write_text("4:cpu,cpuacct:/docker/of/the/host\n")
    assert cgroup_quota(root, membership) is None
    (root / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("-1\n")
    (root / "cpu,cpuacct" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(root, membership) is None
    (root / "cpu,cpuacct" / "cpu.cfs_quota_us").write_text("100000\n")
    assert cgroup_quota(root, membership) == 1.0
    assert cgroup_quota(root, tmp_path / "nothing") is None
    for quota, cores in ((0.3, 1), (1.5, 2), (64.0, 4), (None, 4)):
        monkeypatch.setattr(providers, "cgroup_quota", lambda quota=quota: quota)
        monkeypatch.setattr(providers.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
        assert usable_cores() == cores


def test_a_predictor_is_its_own_reference_on_the_cpu(model: Path, tile: np.ndarray) -> None:
    predictor = load_predictor(model, SessionOptions(provider="cpu"))
    assert predictor.is_proven
    assert predictor.proven(tile) is predictor
    assert isinstance(predictor, Predictor)
    assert dataclasses.asdict(predictor.way)["provider"] == "cpu"
