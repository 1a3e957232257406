"""Laws of the exported file: it computes what torch computes, every runtime reads it, nothing pruned is in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import cegate_geo
from cegate_geo.cli.export import command
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import METADATA_KEY, Manifest
from cegate_geo.errors import InputError, ModelError, ModulesWarning, ParityError
from cegate_geo.peft import ModuleKey, Toolbox, ToolboxConfig, attach, fuse, merge, prune
from cegate_geo.train import afford, export, export_checks, onnx_graph, rounding
from cegate_geo.train.backbone import BackboneSpec
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build, to_table
from cegate_geo.train.export import ExportReport, Precision, export_model, export_run
from cegate_geo.train.raster_input import RasterInput
from cegate_geo.train.run import Run, load_run, new_run
from cegate_geo.train.segmenter import Segmenter

SIDE, CLASSES, DIM = 64, 3, 64
ATOL = 1e-4
"""Sums in another order, in a toy whose random weights amplify them; a module left out shows a hundred times that."""
KEPT = ("blocks.0.spatial", "blocks.0.frequency", "blocks.1.semantic", "blocks.1.frequency")


def randomise(module: nn.Module, scale: float) -> None:
    """Weights far from their identity start, so that every part of the model shows in its output."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def toy(
    keep: tuple[str, ...] | None = KEPT, *, fold: bool = True, head: str = "dpt", head_dim: int = 16
) -> tuple[Segmenter, Toolbox]:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=48, dynamic_img_size=True, depth=2, embed_dim=DIM, num_heads=2
    )
    toolbox = attach(vit, ToolboxConfig(spatial_rank=4, semantic_dim=6, frequency_dim=4, frequency_cutoff=0.5))
    randomise(vit, 0.1)
    segmenter = Segmenter(vit, BackboneSpec(architecture="toy"), head=head, head_dim=head_dim, classes=CLASSES)
    randomise(segmenter.head, 0.3)
    with torch.no_grad():
        for _ in range(30):  # the statistics that normalisation keeps
            segmenter.train()(images(2))
    prune(toolbox, toolbox.keys if keep is None else [ModuleKey.parse(name) for name in keep])
    if fold:
        merge(toolbox)
    return segmenter.eval(), toolbox


def manifest(keep: tuple[str, ...] = KEPT) -> Manifest:
    return Manifest(
        name="toy",
        legend=Legend.from_names(["other", "bâtiment", "water"]),
        bands=("red", "green", "blue"),
        gsd_m=0.15,
        gsd_range_m=(0.1, 0.3),
        tile_size=SIDE,
        halo=8,
        modules_kept=keep,
        modules_total=6,
        provenance={"seed": 0},
    )


def images(count: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def eager(segmenter: nn.Module, tiles: torch.Tensor) -> np.ndarray:
    return torch.softmax(segmenter(tiles), dim=1).numpy()


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def single(folder: Path) -> ExportReport:
    return export_model(toy()[0], manifest(), folder / "single.onnx", sample=images(3))


@pytest.fixture(scope="module")
def half(folder: Path) -> ExportReport:
    return export_model(toy()[0], manifest(), folder / "half.onnx", sample=images(1), precision="fp16")


@pytest.fixture(scope="module")
def graph(single: ExportReport) -> onnx.ModelProto:
    return onnx.load(single.path)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_file_computes_what_torch_computes_for_any_batch(single: ExportReport, batch: int) -> None:
    tiles = images(batch, seed=batch)
    expected = eager(toy()[0], tiles)
    (computed,) = session(single.path).run(None, {"image": tiles.numpy()})
    assert expected.argmax(1).std() > 0.2  # a model that tells places apart
    np.testing.assert_allclose(computed, expected, atol=ATOL)
    np.testing.assert_allclose(computed.sum(1), 1, atol=ATOL)


def test_pruned_and_merged_equals_the_model_with_its_modules(single: ExportReport) -> None:
    tiles = images(2)
    expected = eager(toy(fold=False)[0], tiles)
    np.testing.assert_allclose(session(single.path).run(None, {"image": tiles.numpy()})[0], expected, atol=ATOL)
    bare = eager(toy(())[0], tiles)
    assert np.abs(expected - bare).max() > 0.01  # the modules matter


def test_the_tensor_contract_is_the_portable_one(graph: onnx.ModelProto) -> None:
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    assert graph.ir_version == 8
    assert not graph.functions
    (entry,), (result,) = graph.graph.input, graph.graph.output
    for value, name, channels in ((entry, "image", 3), (result, "probabilities", CLASSES)):
        assert value.name == name
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        batch, *shape = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert [d.dim_value for d in shape] == [channels, SIDE, SIDE]
    assert all(i.data_location == TensorProto.DEFAULT for i in graph.graph.initializer)
    onnx.checker.check_model(graph, full_check=True)


def test_every_operator_is_of_opset_17_and_runs_everywhere(graph: onnx.ModelProto) -> None:
    counts = Counter(n.op_type for n in graph.graph.node)
    assert not set(counts) & {"DFT", "STFT", "Dropout", "If", "Loop", "Scan"}
    assert not [n for n in graph.graph.node if n.domain]
    # the softmax over classes is spelled out; left are those of attention and of the frequency modules' routers
    assert counts["Softmax"] == 2 + 2
    shapes = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True)
    assert len(shapes.graph.node) == len(graph.graph.node)
    for node in graph.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        schema = onnx.defs.get_schema(node.op_type, 17)
        assert set(attributes) <= set(schema.attributes), node.op_type
        assert len(node.input) <= schema.max_input
        if node.op_type == "Softmax":
            assert attributes["axis"] == -1
        if node.op_type == "ReduceMax":
            assert attributes["axes"] == [1]
            assert len(node.input) == 1
        if node.op_type == "ReduceSum":
            assert len(node.input) == 2


def test_the_file_names_no_source_file(single: ExportReport) -> None:
    content = single.path.read_bytes()
    package = Path(cegate_geo.__file__).parent
    for text in (str(package), str(Path(timm.__file__).parent), ".py", "site-packages", str(Path.home())):
        assert text.encode() not in content
    assert b"cegate-geo" in content


def test_initializers_are_named_after_the_parameters_that_they_hold(graph: onnx.ModelProto) -> None:
    weights = {i.name: numpy_helper.to_array(i) for i in graph.graph.initializer}
    segmenter = toy()[0]
    segmenter.fix_size(SIDE)
    fuse(segmenter.backbone)
    named = {n: p.detach().numpy() for n, p in segmenter.named_parameters() if p.ndim == 2 and ".norm." not in n}
    assert {"backbone.blocks.1.semantic.down.weight", "backbone.blocks.1.frequency.up.weight"} <= named.keys()
    for name, values in named.items():
        assert np.array_equal(weights[name], values) or np.array_equal(weights[name], values.T), name


def test_a_pruned_module_leaves_no_trace(graph: onnx.ModelProto, folder: Path) -> None:
    names = [i.name for i in graph.graph.initializer]
    traces = {(int(n.split(".")[2]), n.split(".")[3]) for n in names if n.startswith("backbone.blocks.")}
    assert {t for t in traces if t[1] in ("semantic", "frequency")} == {
        (0, "frequency"),
        (1, "semantic"),
        (1, "frequency"),
    }
    assert not [n for n in names if "spatial" in n]
    everything = toy(None, fold=False)[1]
    segmenter, toolbox = toy(None)
    path = folder / "all.onnx"
    report = export_model(segmenter, manifest(tuple(str(k) for k in everything.keys)), path, sample=images(2))
    removed = everything.count_parameters([ModuleKey.parse("blocks.0.semantic")])  # LoRA costs nothing once merged
    assert report.parameters - onnx_graph.count_weights(graph) == removed
    assert len(toolbox.keys) == 4


def test_half_precision_halves_the_file_and_computes_in_single(single: ExportReport, half: ExportReport) -> None:
    assert half.bytes == half.path.stat().st_size
    assert 0.5 < half.bytes / single.bytes < 0.62  # what is small, and the graph itself, stays
    large = [i.data_type for i in onnx.load(half.path).graph.initializer if np.prod(i.dims) >= 2048]
    assert len(large) > 10
    assert set(large) == {TensorProto.FLOAT16}
    assert half.parameters == single.parameters
    assert half.rounding is not None
    assert 0 < half.rounding["max_abs"] < 0.05
    assert half.parity["max_abs"] < ATOL  # beside the rounded model: nothing else was lost
    tiles = images(2)
    computed = session(half.path).run(None, {"image": tiles.numpy()})[0]
    assert (computed.argmax(1) != eager(toy()[0], tiles).argmax(1)).mean() < 0.01


def test_bfloat16_halves_the_file_at_a_larger_loss(
    single: ExportReport, half: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "MAX_ROUNDING", 0.5)  # classes of a random model hang by a thread
    report = export_model(toy()[0], manifest(), tmp_path / "b.onnx", sample=images(1), precision="bf16")
    large = [i for i in onnx.load(report.path).graph.initializer if np.prod(i.dims) >= 2048]
    assert {i.data_type for i in large} == {TensorProto.BFLOAT16}
    assert abs(report.bytes - half.bytes) < 100  # the figures of the manifest have other digits
    assert report.parameters == single.parameters
    assert report.rounding is not None
    assert half.rounding is not None
    assert half.rounding["max_abs"] < report.rounding["max_abs"] < 0.2
    assert report.parity["max_abs"] < ATOL  # beside the rounded model: nothing else was lost
    computed = session(report.path).run(None, {"image": images(2).numpy()})[0]
    assert abs(computed - eager(toy()[0], images(2))).max() < 0.2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_that_costs_too_much_is_not_written(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "MAX_ROUNDING", -1.0)
    with pytest.raises(ParityError, match=rf"Weights in {precision} change the class of .* % of the pixels"):
        export_model(toy()[0], manifest(), tmp_path / "m.onnx", sample=images(1), precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_what_half_precision_can_not_hold_bfloat16_can() -> None:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, 1e6)
    rounding.round_weights(layer, "bf16")
    torch.testing.assert_close(layer.weight, torch.full((2, 2), 1e6), rtol=2**-8, atol=0)
    with pytest.raises(ModelError, match=r"weight holds values beyond fp16"):
        rounding.round_weights(layer, "fp16")


def test_norms_are_folded_before_weights_are_rounded(tmp_path: Path) -> None:
    model = toy(head="dpt-unet", head_dim=32)[0]
    statistics = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_model(model, manifest(), tmp_path / "half.onnx", sample=images(2), precision="fp16")
    assert report.parity["max_abs"] < ATOL
    graph = onnx.load(report.path).graph
    large = [i for i in graph.initializer if len(i.dims) > 1 and np.prod(i.dims) >= 2048]
    assert any(i.name.startswith("head.unet") for i in large)
    assert {i.data_type for i in large} == {TensorProto.FLOAT16}
    behind = {name for node in graph.node if node.op_type == "Conv" for name in node.output}
    assert not [n for n in graph.node if n.op_type == "BatchNormalization" and n.input[0] in behind]
    assert all(torch.equal(value, statistics[name]) for name, value in model.state_dict().items())


def test_runtimes_fold_the_casts_when_they_load(half: ExportReport, folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(half.path, options, providers=["CPUExecutionProvider"])
    stored = [i for i in onnx.load(half.path).graph.initializer if i.data_type == TensorProto.FLOAT16]
    folded = onnx.load(folder / "optimised.onnx").graph
    assert stored
    assert not [i for i in folded.initializer if i.data_type == TensorProto.FLOAT16]
    assert not [n for n in folded.node if n.op_type == "Cast" and n.input[0] in {i.name for i in stored}]


def test_the_metadata_hold_the_manifest_and_what_other_plugins_read(single: ExportReport) -> None:
    metadata = session(single.path).get_modelmeta().custom_metadata_map
    read = Manifest.from_json(metadata[METADATA_KEY])
    assert read.parity["max_abs"] == single.parity["max_abs"]
    assert read.parameters == single.parameters
    assert dataclasses.replace(read, parity={}, parameters=0) == manifest()
    values = {key: json.loads(text) for key, text in metadata.items() if key != METADATA_KEY}
    assert values["model_type"] == "Segmentor"
    assert values["class_names"] == {"0": "other", "1": "bâtiment", "2": "water"}
    assert values["resolution"] == 15
    assert values["tile_size"] == SIDE
    assert values["seg_thresh"] == 0


def test_a_graph_that_computes_something_else_is_not_written(
    graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = onnx.ModelProto()
    damaged.CopyFrom(graph)
    weight = next(i for i in damaged.graph.initializer if i.name == "head.out.2.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    monkeypatch.setattr(onnx_graph, "build_graph", lambda *args, **kwargs: damaged)
    path = tmp_path / "model.onnx"
    with pytest.raises(ParityError, match="differs from the model"):
        export_model(toy()[0], manifest(), path, sample=images(2))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"an older model")
    with pytest.raises(ParityError):
        export_model(toy()[0], manifest(), path, sample=images(2))
    assert path.read_bytes() == b"an older model"


def test_weights_that_are_no_numbers_never_pass(
    graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "build_graph", lambda *args, **kwargs: graph)
    segmenter = toy()[0]
    with torch.no_grad():
        segmenter.head.out[2].bias[0] = float("nan")
    with pytest.raises(ParityError):
        export_model(segmenter, manifest(), tmp_path / "model.onnx", sample=images(2))
    assert list(tmp_path.iterdir()) == []


def test_the_segmenter_stays_as_it_is(tmp_path: Path, graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "build_graph", lambda *args, **kwargs: onnx.ModelProto.FromString(content))
    content = graph.SerializeToString()
    segmenter = toy()[0].train()
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    export_model(segmenter, manifest(), tmp_path / "model.onnx", sample=images(2))
    assert segmenter.training
    assert all(torch.equal(v, before[k]) for k, v in segmenter.state_dict().items())
    assert segmenter(images(1)[:, :, :32, :48]).shape == (1, CLASSES, 32, 48)  # not bound to the tile size


def test_what_the_manifest_does_not_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match=r"LoRA modules are not merged: \['blocks\.0\.spatial'\]"):
        export_model(toy(fold=False)[0], manifest(), path, sample=images(1))
    with pytest.raises(ModelError, match=r"blocks\.0\.frequency"):
        export_model(toy()[0], manifest(("blocks.1.semantic", "blocks.1.frequency")), path, sample=images(1))
    wrong = dataclasses.replace(manifest(), legend=Legend.from_names(["a", "b"]))
    with pytest.raises(ModelError, match="gives 3 classes, its legend has 2"):
        export_model(toy()[0], wrong, path, sample=images(1))
    with pytest.raises(InputError, match="shape"):
        export_model(toy()[0], manifest(), path, sample=images(1)[:, :, :32])
    with pytest.raises(InputError, match="outside 0 to 1"):
        export_model(toy()[0], manifest(), path, sample=255 * images(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/m.onnx", "file/m.onnx", "folder"])
def test_where_nothing_can_be_written_is_told_and_nothing_is_left(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{place} can't be written"):
        export_model(toy()[0], manifest(), tmp_path / place, sample=images(1))
    with pytest.raises(InputError, match=f"{place} can't be written"):  # before the run is looked for
        export_run(tmp_path / "run", tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older model")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_model(toy()[0], manifest(), path, sample=images(1))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"an older model"]


def model_of(
    *nodes: onnx.NodeProto, outputs: dict[str, list[int]], constants: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    body = helper.make_graph(
        list(nodes),
        "law",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6, 6])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()],
        [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run_model(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)
    made: list[np.ndarray] = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})
    return made


def test_lowering_to_opset_17_changes_no_value() -> None:
    model = model_of(
        helper.make_node("ReduceMax", ["x", "axes"], ["a"], keepdims=1),
        helper.make_node("ReduceMean", ["x", "pair"], ["b"], keepdims=0),
        helper.make_node("ReduceL2", ["x"], ["c"], keepdims=0),
        helper.make_node("Split", ["x"], ["d", "e"], axis=1, num_outputs=2),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["f"], mode="linear", antialias=0, keep_aspect_ratio_policy="stretch"
        ),
        helper.make_node("Pad", ["x", "pads"], ["g"]),
        outputs={
            "a": [2, 1, 6, 6],
            "b": [2, 4],
            "c": [],
            "d": [2, 2, 6, 6],
            "e": [2, 2, 6, 6],
            "f": [2, 4, 12, 9],
            "g": [2, 5, 6, 8],
        },
        constants={
            "axes": np.array([1]),
            "pair": np.array([2, 3]),
            "sizes": np.array([2, 4, 12, 9]),
            "pads": np.array([0, 1, 0, 0, 0, 0, 0, 2]),
        },
    )
    before = run_model(model)
    onnx_graph.lower(model)
    assert model.opset_import[0].version == 17
    onnx.checker.check_model(model, full_check=True)
    for a, b in zip(before, run_model(model), strict=True):
        assert np.array_equal(a, b)
    assert {i.name for i in model.graph.initializer} == {"sizes", "pads"}


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=1), "antialias=1"),
        (helper.make_node("Mish", ["x"], ["y"]), "Mish"),
        (helper.make_node("Pad", ["x", "sizes", "", "axes"], ["y"]), "Pad .* with axes"),
        (helper.make_node("DFT", ["x"], ["y"]), "DFT"),
        (helper.make_node("Dropout", ["x"], ["y"]), "Dropout"),
        (helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft"), "FusedMatMul"),
        (helper.make_node("ReduceMax", ["x", "y"], ["z"]), "computed axes"),
    ],
)
def test_what_has_no_form_in_opset_17_is_refused(node: onnx.NodeProto, name: str) -> None:
    with pytest.raises(ModelError, match=name):
        onnx_graph.lower(model_of(node, outputs={"y": [1]}, constants={"sizes": np.array([2, 4, 3, 3])}))


def config(**peft: object) -> AdaptConfig:
    table = {
        "classes": {"0": "other", "3": "building"},
        "source": [{"images": "/secret/place/*.tif", "labels": "/secret/place/labels.gpkg"}],
        "model": {"backbone": "test_vit.r160_in1k", "weights": "random", "head": "linear", "tile_size": 32},
        "peft": {"spatial": {"rank": 2}, "semantic": {"dim": 2}, "frequency": {"dim": 2}, **peft},
        "licence": "CC-BY-4.0",
    }
    return build(AdaptConfig, table)


def make_run(folder: Path, **peft: object) -> Run:
    """A run as training leaves it: some modules were active once, fewer are active last, the others never moved."""
    folder.mkdir()
    settings = config(**peft)
    (folder / "config.json").write_text(json.dumps(to_table(settings)), encoding="utf-8")
    torch.manual_seed(3)
    run = new_run(folder, settings)
    for parameter in run.segmenter.backbone.parameters():
        with torch.no_grad():
            parameter.copy_(parameter + 0.05 * torch.randn(parameter.shape))
    run.ever_active = frozenset(k for k in run.toolbox.keys if k.layer in (0, 2))
    run.active = frozenset(k for k in run.ever_active if k.layer == 2)
    for key, module in run.toolbox.modules.items():
        for name, parameter in module.named_parameters():
            if "up." in name and key not in run.ever_active:
                nn.init.zeros_(parameter)
            elif "up." in name:
                nn.init.normal_(parameter, std=0.3)
    run.facts = {
        "command": "cegate-geo adapt /secret/a.toml --set model.weights=/secret/base.safetensors -o runs/a",
        "gsd_m": 0.2, "gsd_range_m": [0.1, 0.4], "bands": ["red", "green", "blue"], "version": "0", "sources": ["a"],
    }  # fmt: skip
    run.save()
    return load_run(folder)


def test_an_exported_run_computes_what_the_run_computes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    report = export_run(run.folder, tmp_path / "model.onnx", keep="all")
    tiles = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    expected = eager(run.segmenter.eval(), tiles)
    computed = session(tmp_path / "model.onnx").run(None, {"image": tiles.numpy()})[0]
    np.testing.assert_allclose(computed, expected, atol=ATOL)
    assert report.modules_kept == tuple(str(k) for k in sorted(run.ever_active))
    assert report.modules_total == len(run.toolbox.keys)
    assert report.pruning is not None
    assert report.pruning["max_abs"] < 1e-5
    text = (tmp_path / "model.onnx").read_bytes()
    assert b"/secret" not in text
    assert str(tmp_path).encode() not in text
    read = Manifest.from_json(session(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert read.legend == run.config.legend
    assert (read.gsd_m, read.gsd_range_m, read.tile_size, read.licence) == (0.2, (0.1, 0.4), 32, "CC-BY-4.0")
    assert read.provenance["settings"]["peft"]["method"] == "gate"
    assert read.provenance["command"] == "cegate-geo adapt a.toml --set model.weights=base.safetensors -o runs/a"


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Segmenter]:
    """Segmenters that `export_run` handed to `export_model`, which writes nothing here."""
    seen: list[Segmenter] = []

    def record(segmenter: Segmenter, manifest: Manifest, path: Path, **_: object) -> ExportReport:
        seen.append(segmenter)
        return ExportReport(
            path=path, bytes=0, precision="fp32", parameters=0, modules_kept=manifest.modules_kept,
            modules_total=manifest.modules_total, parity={},
        )  # fmt: skip

    monkeypatch.setattr(export, "export_model", record)
    return seen


def test_keeping_the_active_modules_tells_what_it_costs(tmp_path: Path, handed: list[Segmenter]) -> None:
    run = make_run(tmp_path / "run")
    report = export_run(run.folder, tmp_path / "model.onnx", keep="active")
    assert report.modules_kept == tuple(str(k) for k in sorted(run.active))
    assert report.pruning is not None
    assert report.pruning["max_abs"] > 1e-3


def test_bypassed_modules_are_no_part_of_an_export(tmp_path: Path, handed: list[Segmenter]) -> None:
    run = make_run(tmp_path / "run", inactive="bypass")
    run.toolbox.set_active(run.active)
    expected = eager(run.segmenter.eval(), torch.full((1, 3, 32, 32), 0.4))
    report = export_run(run.folder, tmp_path / "model.onnx", keep=None)
    assert report.modules_kept == tuple(str(k) for k in sorted(run.active))
    np.testing.assert_allclose(eager(handed[0], torch.full((1, 3, 32, 32), 0.4)), expected, atol=ATOL)
    with pytest.raises(InputError, match="bypassed in training"):
        export_run(run.folder, tmp_path / "model.onnx", keep="all")


@pytest.mark.parametrize(("limit", "is_told"), [(0.0, True), (9.0, False)])
def test_all_is_kept_where_it_is_cheap_or_nobody_can_tell_what_is_needed(
    tmp_path: Path, handed: list[Segmenter], monkeypatch: pytest.MonkeyPatch, limit: float, *, is_told: bool
) -> None:
    run = make_run(tmp_path / "run")  # its source is not there any more
    monkeypatch.setattr(afford, "AFFORDED", limit)
    told = pytest.warns(ModulesWarning, match="--keep all") if is_told else contextlib.nullcontext()
    with told:
        report = export_run(run.folder, tmp_path / "model.onnx")
    assert report.modules_kept == tuple(str(k) for k in sorted(run.ever_active))
    assert report.curve == ()


@pytest.mark.parametrize(
    "wrong", [{"keep": 1.5}, {"keep": -0.1}, {"keep": "some"}, {"precision": "int4"}, {"profile": "rich"}]
)
def test_choices_that_do_not_exist_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is no choice"):
        export_run(tmp_path, tmp_path / "model.onnx", **wrong)  # type: ignore[arg-type]


def with_validation(folder: Path, share: float) -> None:
    """Let a run have held out a share of what was labelled."""
    path = folder / "config.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table["train"]["validation"] = share
    path.write_text(json.dumps(table), encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"profile": "native"}, "trained on float32, the native profile takes"),
        ({"keep": 0.01}, "no held-out tiles.*what a module is worth"),
        ({"precision": "int8"}, "no held-out tiles.*int8 can't be proved"),
    ],
    ids=["native", "keep", "int8"],
)
def test_what_a_run_can_not_give_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], told: str
) -> None:
    run = make_run(tmp_path / "run")
    taken = RasterInput(dtype="float32", scale=1.0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    run.facts["input"] = taken.to_json()
    run.save()
    with_validation(run.folder, 0)
    monkeypatch.setattr(export, "run_eager", lambda *_: pytest.fail("it was computed"))
    monkeypatch.setattr(export, "_shed", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr(Segmenter, "forward", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(InputError, match=told):
        export_run(run.folder, tmp_path / "model.onnx", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "model.onnx").exists()


def test_a_source_that_is_gone_is_told_before_modules_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")  # its source is not there any more
    monkeypatch.setattr(export, "_shed", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(InputError, match="/secret/place"):
        export_run(run.folder, tmp_path / "model.onnx", precision="int8")


def test_a_model_that_no_file_holds_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what its large weights need at least: what is exported is larger by a little."""
    run = make_run(tmp_path / "run")
    sizes = {}
    for precision in ("fp32", "fp16"):
        report = export_run(run.folder, tmp_path / "m.onnx", precision=precision, keep="all")  # type: ignore[arg-type]
        sizes[precision] = report.bytes
    seen: list[int] = []
    monkeypatch.setattr(export_checks, "check_bytes", seen.append)
    for precision in ("fp32", "int8", "fp16"):
        export_checks.check_size(run, precision)
    assert seen[0] == seen[1] == 2 * seen[2]
    assert all(0.5 * whole < least < whole for least, whole in zip((seen[0], seen[2]), sizes.values(), strict=True))
    monkeypatch.undo()
    monkeypatch.setattr(export_checks, "MAX_FILE", seen[0] - 1)
    monkeypatch.setattr(export, "run_eager", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(ModelError, match=r"needs 0.0 GiB, one ONNX file holds 2"):
        export_run(run.folder, tmp_path / "model.onnx")


def test_a_loss_of_0_is_a_loss_as_a_whole_number_too(
    tmp_path: Path, handed: list[Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    kept = frozenset(k for k in run.ever_active if k.kind == "semantic")
    seen: list[float] = []

    def choose(_run: Run, allowed: float, _sample: torch.Tensor) -> tuple[frozenset[ModuleKey], tuple[()]]:
        seen.append(allowed)
        return kept, ()

    monkeypatch.setattr(export, "shrink_run", choose)
    report = export_run(run.folder, tmp_path / "model.onnx", keep=0)
    spatial = {str(k) for k in run.ever_active if k.kind == "spatial"}
    assert seen == [0]
    assert set(report.modules_kept) == spatial | {str(k) for k in kept}


def test_the_command_always_prints_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parity = {"max_abs": 2.5e-7, "mean_abs": 1e-8, "disagreement": 0.0001, "tiles": 4}
    report = ExportReport(
        path=tmp_path / "m.onnx",
        bytes=5_540_000,
        precision="fp16",
        parameters=2_700_000,
        modules_kept=("blocks.0.spatial",),
        modules_total=36,
        parity=parity,
        rounding={**parity, "max_abs": 3e-3},
        seconds_per_tile={"onnx": 0.25},
    )
    seen: dict[str, object] = {}

    def give(folder: Path, output: Path, **options: object) -> ExportReport:
        seen.update(options, folder=folder, output=output)
        return report

    monkeypatch.setattr(export, "export_run", give)
    words = [str(tmp_path), "-o", str(tmp_path / "m.onnx"), "--precision", "fp16", "--keep", "active"]
    told = CliRunner().invoke(command, words, catch_exceptions=False).output
    assert (seen["precision"], seen["keep"]) == ("fp16", "active")
    for part in ("5.54 MB", "max 2.5e-07", "0.0100 % of pixels differ", "max 3.0e-03", "opset 17", "1 of 36 kept"):
        assert part in told
    table = json.loads(CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False).output)
    assert table["parity"] == parity
    assert table["path"] == str(tmp_path / "m.onnx")


def test_an_export_renews_the_report_of_the_model_that_lies_beside_it_and_of_no_other(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run").folder
    page = folder / "report.html"

    def told(place: Path, *options: str) -> str:
        words = [str(folder), "-o", str(place), "--keep", "all", *options]
        return CliRunner().invoke(command, words, catch_exceptions=False).output

    assert str(page) in told(folder / "model.onnx")
    first = page.read_bytes()
    assert b"weights in fp32" in first
    for elsewhere in (tmp_path / "model.onnx", folder / "small.onnx"):
        assert str(page) not in told(elsewhere, "--precision", "fp16")
        assert page.read_bytes() == first
    (tmp_path / "link").symlink_to(folder)
    table = json.loads(told(tmp_path / "link" / "model.onnx", "--precision", "fp16", "--json"))
    renewed = page.read_text(encoding="utf-8")
    assert f"{table['bytes'] / 1e6:.2f} MB, weights in fp16" in renewed
    assert "weights in fp32" not in renewed


def test_a_report_that_can_not_be_written_is_told_after_the_model(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run").folder
    (folder / "report.html").mkdir()
    words = [str(folder), "-o", str(folder / "model.onnx"), "--keep", "all"]
    result = CliRunner().invoke(command, words)
    assert isinstance(result.exception, InputError)
    assert "report.html can't be written" in str(result.exception)
    assert "weights in fp32" in result.output
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter.safetensors", "config.json", "model.onnx", "report.html"
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["some", "1.2", "-0.1", "nan"])
def test_the_command_refuses_to_keep_what_is_no_choice(tmp_path: Path, given: str) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), "-o", str(tmp_path / "m.onnx"), f"--keep={given}"])
    assert result.exit_code == 2
    assert "--keep" in result.output
