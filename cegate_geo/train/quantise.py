"""Weights and activations of a graph's large products in 8 bits, calibrated on tiles of the source.

Only products with a trained weight are touched: those of attention with each other, normalisations and softmax stay in
single precision. Weights use 7 of their 8 bits: with 8, kernels of x86 processors without VNNI overflow, and a file
that was proved here would compute something else there.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from cegate_geo.domain.confusion import ConfusionMatrix
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import InputError, ModelError, ParityError
from cegate_geo.train.chips import read_tile, validation_tiles
from cegate_geo.train.job import read_areas, read_tiles
from cegate_geo.train.onnx_graph import INPUT, IR_VERSION, OPSET
from cegate_geo.train.parity import Parity, Probabilities, run_onnx
from cegate_geo.train.run import Run
from cegate_geo.train.validation import Tile, to_ids

CALIBRATION_TILES = 16
"""Tiles that ranges of activations are taken from, spread over all that was trained on."""
MAX_LOSS = 0.01
"""Largest loss of mean IoU on held-out tiles by computing in 8 bits."""
PRODUCTS = ("Conv", "Gemm", "MatMul")
QUANTISE_FROM = 256
"""Weights of fewer values stay in single precision."""


class _Tiles(CalibrationDataReader):
    def __init__(self, tiles: torch.Tensor) -> None:
        self.left = iter(tiles.float().split(1))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next tile as the session's input; None at the end."""
        tile = next(self.left, None)
        return None if tile is None else {INPUT: tile.numpy()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Tiles of the source, for int8."""

    calibration: torch.Tensor
    """(N, C, S, S) as the model takes them, of the part that was trained on."""
    held_out: Sequence[Tile]
    """With labels, not trained on."""

    @classmethod
    def of(cls, run: Run) -> Labelled:
        """Of a run, whose source is read again.

        Raises:
            InputError: If it can't be read, or the run held nothing out.
        """
        side = run.config.model.tile_size
        _, training, held_out = read_areas(run.config)
        tiles = read_tiles(held_out, side)
        if not tiles:
            raise InputError(
                "The run has no held-out tiles to prove int8 on.",
                hint="Adapt with train.validation above 0 or [[validation]], or export with fp16.",
            )
        windows = validation_tiles(training, crop=side)
        places = np.linspace(0, len(windows) - 1, min(CALIBRATION_TILES, len(windows))).round().astype(int)
        images = [torch.from_numpy(read_tile(*windows[n])[0]) for n in places]
        return cls(calibration=torch.stack(images), held_out=tiles)


def quantise(graph: onnx.ModelProto, tiles: torch.Tensor) -> onnx.ModelProto:
    """A graph with QuantizeLinear and DequantizeLinear around its large products; the given one stays as it is.

    Args:
        graph: As `onnx_graph.build_graph` gives it.
        tiles: (N, C, S, S) as the model takes them to calibrate on, N of 1 or more.

    Raises:
        InputError: If there is no tile.
        ModelError: If the graph has no product to quantise.
    """
    if not len(tiles):
        raise InputError("There is no tile to calibrate on.", hint="Export with precision fp16 or fp32.")
    nodes = large_products(graph)
    if not nodes:
        raise ModelError("The graph holds no large product.", hint="Export with precision fp16 or fp32.")
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    with tempfile.TemporaryDirectory(prefix="cegate-int8-") as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            copy,
            path,
            _Tiles(tiles),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        found = onnx.load(path)
    others = sorted({n.domain for n in found.graph.node} - {""})
    if others:
        raise ModelError(f"The quantised graph has operators of {others}.", hint="Upgrade onnxruntime.")
    del found.opset_import[:]
    found.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    found.ir_version = IR_VERSION
    found.producer_name, found.producer_version = graph.producer_name, graph.producer_version
    onnx.checker.check_model(found, full_check=True)
    return found


def measure(content: bytes, tiles: Sequence[Tile], legend: Legend) -> float:
    """Mean IoU of an ONNX file on labelled tiles, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    matrix = ConfusionMatrix(legend)
    for image, labels in tiles:
        said = session.run(None, {INPUT: image[None]})[0].argmax(1)[0]
        matrix.update(to_ids(labels, legend), to_ids(said.astype(np.int64), legend))
    return matrix.metrics()["miou"] or 0.0


def quantise_proved(
    graph: onnx.ModelProto,
    computed: Probabilities,
    tiles: torch.Tensor,
    source: Labelled | None,
    legend: Legend,
) -> tuple[onnx.ModelProto, Parity, dict[str, float], float]:
    """The graph in 8 bits, if it is good enough on held-out tiles.

    Args:
        graph: In single precision.
        computed: Its probabilities on `tiles`.
        tiles: (N, C, S, S) as the model takes them to compare on.
        source: What to calibrate and to prove it on.
        legend: The classes in channel order.

    Returns:
        The graph, what 8 bits changed on `tiles`, mean IoU before and after, and seconds for one tile.

    Raises:
        InputError: If there is no source.
        ParityError: If mean IoU falls by more than `MAX_LOSS`.
    """
    if source is None:
        raise InputError("int8 needs tiles of the source.", hint="Export a run, or give source=Labelled(...).")
    found = quantise(graph, source.calibration)
    output, seconds = run_onnx(found.SerializeToString(), tiles)
    miou = {
        name: measure(g.SerializeToString(), source.held_out, legend) for name, g in (("fp32", graph), ("int8", found))
    }
    if not miou["fp32"] - miou["int8"] <= MAX_LOSS:
        raise ParityError(
            f"In 8 bits mean IoU on {len(source.held_out)} held-out tiles falls from {miou['fp32']:.4f} to "
            f"{miou['int8']:.4f}; at most {MAX_LOSS} may be lost.",
            hint="Nothing was written. Export it with precision fp16.",
        )
    return found, Parity.of(computed, output), miou, seconds


def large_products(graph: onnx.ModelProto) -> list[str]:
    """Names of nodes that multiply by a trained weight of some size; the frequency split's matrices are none."""
    sizes = {i.name: int(np.prod(i.dims)) for i in graph.graph.initializer if i.name.endswith("weight")}
    products = [node for node in graph.graph.node if node.op_type in PRODUCTS]
    return [node.name for node in products if sizes.get(node.input[1], 0) >= QUANTISE_FROM]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice to pre-process a graph that is as plain as can be."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
