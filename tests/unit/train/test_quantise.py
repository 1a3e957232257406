"""8 bits: which products, how far the result lies off, and the gate that lets nothing worse through."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from test_export import CLASSES, SIDE, images, manifest, toy

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import METADATA_KEY, Manifest
from cegate_geo.errors import InputError, ParityError
from cegate_geo.train import onnx_graph, quantise
from cegate_geo.train.export import ExportReport, export_model
from cegate_geo.train.quantise import Labelled, large_products, measure, quantise_proved

LEGEND = Legend.from_names(["other", "bâtiment", "water"])


def labelled(truth: np.ndarray | None = None) -> Labelled:
    """Held-out tiles whose labels are what the model says in single precision, or `truth`."""
    tiles = images(4, seed=7)
    with torch.no_grad():
        said = toy()[0](tiles).argmax(1).numpy() if truth is None else truth
    held_out = [(tile.numpy(), labels.astype(np.int64)) for tile, labels in zip(tiles, said, strict=True)]
    return Labelled(calibration=images(6, seed=8), held_out=held_out)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    patch = pytest.MonkeyPatch()
    patch.setattr(quantise, "MAX_LOSS", 0.2)  # random weights bear rounding worse than trained ones
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    try:
        return export_model(toy()[0], manifest(), path, precision="int8", sample=images(3), source=labelled())
    finally:
        patch.undo()


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """In single precision."""
    model = toy()[0]
    model.fix_size(SIDE)
    return onnx_graph.build_graph(model, tile_size=SIDE)


def test_trained_products_are_in_8_bits_and_nothing_else(written: ExportReport, graph: onnx.ModelProto) -> None:
    products = large_products(graph)
    graph = onnx.load(written.path)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 17)]
    assert graph.ir_version == 8
    types = {i.name: i.data_type for i in graph.graph.initializer}
    made = {o: n for n in graph.graph.node for o in n.output}
    weighted = 0
    for node in graph.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            source = made.get(node.input[1])
            is_quantised = source is not None and source.op_type == "DequantizeLinear"
            if is_quantised and source.input[0] in types:
                assert types[source.input[0]] == TensorProto.INT8
                weighted += 1
            elif is_quantised:
                pytest.fail(f"{node.name} multiplies two activations in 8 bits")
    assert weighted == len(products) > 10
    eight = [i for i in graph.graph.initializer if i.data_type == TensorProto.INT8 and len(i.dims) >= 2]
    for weight in eight:
        assert np.abs(onnx.numpy_helper.to_array(weight).astype(int)).max() <= 64  # 7 bits


def test_the_file_is_smaller_and_close_and_says_so(written: ExportReport, tmp_path: Path) -> None:
    single = export_model(toy()[0], manifest(), tmp_path / "single.onnx", sample=images(3))
    assert written.bytes < 0.5 * single.bytes
    # Not the same: frequency modules are in their short form where the weights are in single precision.
    assert written.parameters == pytest.approx(single.parameters, rel=0.01)
    tiles = images(3, seed=9)
    outputs = [
        onnxruntime.InferenceSession(r.path, providers=["CPUExecutionProvider"]).run(None, {"image": tiles.numpy()})[0]
        for r in (single, written)
    ]
    assert 0 < np.abs(outputs[0] - outputs[1]).mean() < 0.05
    read = Manifest.from_json(
        onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
        .get_modelmeta()
        .custom_metadata_map[METADATA_KEY]
    )
    assert read.parity["miou_fp32"] == pytest.approx(1)
    assert read.parity["miou_int8"] == written.miou["int8"] < 1
    assert "rounding_disagreement" in read.parity


def test_what_loses_too_much_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = iter([0.80, 0.7899])
    monkeypatch.setattr(quantise, "measure", lambda *_: next(loss))
    with pytest.raises(ParityError, match=r"falls from 0\.8000 to 0\.7899"):
        export_model(toy()[0], manifest(), tmp_path / "m.onnx", precision="int8", sample=images(1), source=labelled())
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_never_passes(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "measure", lambda *_: float("nan"))
    with pytest.raises(ParityError):
        quantise_proved(graph, np.zeros((1, CLASSES, SIDE, SIDE), np.float32), images(1), labelled(), LEGEND)


def test_without_tiles_there_is_no_int8(graph: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="tiles of the source"):
        quantise_proved(graph, np.zeros((1, CLASSES, SIDE, SIDE), np.float32), images(1), None, LEGEND)
    with pytest.raises(InputError, match="calibrate"):
        quantise.quantise(graph, torch.zeros(0, 3, SIDE, SIDE))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 47, 200])
def test_calibration_tiles_are_spread_over_all_that_was_trained_on(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    def give(area: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        assert area == "trained"
        return np.full((3, 2, 2), number, np.float32), np.zeros((2, 2), np.int64)

    monkeypatch.setattr(quantise, "read_areas", lambda _: ([], "training", "held out"))
    monkeypatch.setattr(quantise, "read_tiles", lambda areas, _: [areas])
    monkeypatch.setattr(quantise, "validation_tiles", lambda _, crop: [("trained", n) for n in range(crop)])
    monkeypatch.setattr(quantise, "read_tile", give)
    run = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(tile_size=count)))
    found = Labelled.of(cast(Any, run))
    numbers = found.calibration[:, 0, 0, 0]
    assert len(numbers) == len(numbers.unique()) == min(count, quantise.CALIBRATION_TILES)
    assert (numbers.min(), numbers.max()) == (0, count - 1)
    assert len(numbers) == 1 or numbers.diff().max() <= -(-(count - 1) // (len(numbers) - 1))
    assert found.held_out == ["held out"]


def test_mean_iou_is_measured_on_labelled_pixels(written: ExportReport) -> None:
    content = written.path.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    tile = images(1, seed=3).numpy()
    said = session.run(None, {"image": tile})[0].argmax(1)[0].astype(np.int64)
    assert len(np.unique(said)) > 1
    assert measure(content, [(tile[0], said)], LEGEND) == pytest.approx(1)
    wrong = (said + 1) % CLASSES
    assert measure(content, [(tile[0], wrong)], LEGEND) == 0
    half = np.where(np.arange(SIDE)[:, None] < SIDE // 2, said, 255)
    assert measure(content, [(tile[0], half)], LEGEND) == pytest.approx(1)
