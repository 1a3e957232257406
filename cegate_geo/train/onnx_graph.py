"""From an eager model to a plain ONNX graph that old runtimes read: opset 17, IR version 8, one file.

torch's exporter speaks opset 18 and later. Few operators changed between 17 and 18; `lower` rewrites those that occur
and refuses a graph with any other, so that a graph never claims an opset whose rules it breaks.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from cegate_geo import __version__
from cegate_geo.errors import ModelError

OPSET, IR_VERSION = 17, 8
INPUT, OUTPUT = "image", "probabilities"
ROUND_FROM = 256
"""Weights of fewer values stay in single precision: they cost no room."""

_TRACED_OPSET = 18
_STORED = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}
_FORBIDDEN = frozenset({"DFT", "STFT", "If", "Loop", "Scan"})


class WithProbabilities(nn.Module):
    """A segmenter followed by a softmax that is spelled out.

    onnxruntime's CPU kernel for Softmax over the channels of (N, K, H, W) is 5 to 15 times slower than its parts.

    Args:
        segmenter: Images (N, C, S, S) as the segmenter takes them to logits (N, K, S, S).
    """

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, C, S, S) as the segmenter takes them → probabilities (N, K, S, S)."""
        logits = self.segmenter(image)
        powers = (logits - logits.amax(dim=1, keepdim=True)).exp()
        return powers / powers.sum(dim=1, keepdim=True)


def build_graph(segmenter: nn.Module, *, tile_size: int, channels: int = 3) -> onnx.ModelProto:
    """The graph of a segmenter with its softmax: static square input of `tile_size` pixels, dynamic batch.

    Args:
        segmenter: In evaluation mode, float32, on the CPU.
        tile_size: Side S of the input.
        channels: Bands C of the input.

    Returns:
        A checked model without metadata. Initializers have the names of the segmenter's parameters.

    Raises:
        ModelError: If the model can't be traced, or needs an operator that opset 17 does not have.
    """
    sample = torch.zeros(2, channels, tile_size, tile_size)
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        with _quiet():
            program = torch.onnx.export(
                WithProbabilities(segmenter).eval(),
                (sample,),
                dynamo=True,
                opset_version=_TRACED_OPSET,
                dynamic_shapes=shapes,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"The model can't be traced: {str(error).splitlines()[0]}", hint="Use a plain timm ViT and a listed head."
        ) from error
    if program is None:
        raise ModelError("torch's exporter gave no program.", hint="Upgrade torch (2.5 or later).")
    model = program.model_proto
    name_weights(model, dict(segmenter.named_parameters()))
    strip(model)
    lower(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of onnxscript's optimiser on what it leaves as it is."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def lower(model: onnx.ModelProto) -> None:
    """Bring a graph of opset 18 to opset 17 and IR version 8, in place.

    Raises:
        ModelError: If it holds an operator that opset 17 does not have, or control flow.
    """
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type == 7}
    if model.functions:
        raise ModelError(f"The graph has {len(model.functions)} local functions.", hint="Upgrade torch and onnxscript.")
    for node in model.graph.node:
        known = node.domain == "" and node.op_type not in _FORBIDDEN
        if not known or _is_training(node):
            raise ModelError(
                f"The graph holds {node.domain}{node.op_type}, which not every runtime has.", hint="Change the model."
            )
        if onnx.defs.get_schema(node.op_type, _TRACED_OPSET).since_version > OPSET:
            rewrite = _REWRITES.get(node.op_type)
            if rewrite is None:
                raise ModelError(
                    f"{node.op_type} ({node.name}) has no form in opset {OPSET}.", hint="Change the model."
                )
            rewrite(node, constants)
    _drop_unused(model)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the machine and the source files, and say who made the graph."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    graph.name = "segmenter"
    model.producer_name, model.producer_version = "cegate-geo", __version__


def name_weights(model: onnx.ModelProto, parameters: Mapping[str, torch.Tensor]) -> None:
    """Give initializers the names of the parameters that they hold, transposed ones included, in place."""
    homes: dict[tuple[tuple[int, ...], bytes], list[str]] = defaultdict(list)
    for name, parameter in parameters.items():
        values = parameter.detach().numpy()
        if values.ndim == 2:
            homes[values.T.shape, np.ascontiguousarray(values.T).tobytes()].append(name)
    taken = {i.name for i in model.graph.initializer}
    renamed: dict[str, str] = {}
    for initializer in model.graph.initializer:
        plain = initializer.name.removeprefix("segmenter.")
        if plain == initializer.name:
            values = numpy_helper.to_array(initializer)
            candidates = homes[values.shape, values.tobytes()]
            plain = candidates.pop(0) if candidates else plain
        if plain not in taken:
            renamed[initializer.name] = initializer.name = plain
            taken.add(plain)
    _rename_inputs(model, renamed)


def store_rounded(model: onnx.ModelProto, dtype: torch.dtype) -> int:
    """Store weights in 16 bits, with a Cast to float32 behind each that runtimes fold when they load; in place.

    Only weights that lose nothing by it are stored so: round the model's parameters first (`rounding.round_weights`).

    Args:
        model: As `build_graph` gives it.
        dtype: torch.float16 or torch.bfloat16.

    Returns:
        Number of initializers in 16 bits.
    """
    renamed: dict[str, str] = {}
    for initializer in model.graph.initializer:
        if initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        values = torch.from_numpy(numpy_helper.to_array(initializer).copy())
        rounded = values.to(dtype)
        if values.ndim < 2 or values.numel() < ROUND_FROM or not torch.equal(rounded.float(), values):
            continue
        renamed[initializer.name] = f"{initializer.name}/float32"
        initializer.ClearField("float_data")
        initializer.data_type = _STORED[dtype]
        initializer.raw_data = rounded.view(torch.int16).numpy().astype("<i2").tobytes()
    _rename_inputs(model, renamed)
    made = [
        onnx.helper.make_node("Cast", [a], [b], name=f"cast/{a}", to=onnx.TensorProto.FLOAT) for a, b in renamed.items()
    ]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return len(renamed)


def count_weights(model: onnx.ModelProto) -> int:
    """Number of values in the floating-point initializers."""
    floating = (onnx.TensorProto.FLOAT, *_STORED.values())
    return sum(int(np.prod(i.dims)) for i in model.graph.initializer if i.data_type in floating)


def _is_training(node: onnx.NodeProto) -> bool:
    return node.op_type == "Dropout" or any(a.name == "training_mode" and a.i for a in node.attribute)


def _rename_inputs(model: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    for node in model.graph.node:
        for n, name in enumerate(node.input):
            node.input[n] = renamed.get(name, name)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _drop_attributes(node: onnx.NodeProto, defaults: Mapping[str, Any]) -> None:
    """Remove attributes that opset 17 lacks; each must have the value that is opset 17's behaviour."""
    kept = []
    for attribute in node.attribute:
        if attribute.name not in defaults:
            kept.append(attribute)
        elif onnx.helper.get_attribute_value(attribute) != defaults[attribute.name]:
            value = onnx.helper.get_attribute_value(attribute)
            raise ModelError(
                f"{node.op_type} ({node.name}) with {attribute.name}={value!r} has no form in opset {OPSET}.",
                hint="Change the model.",
            )
    del node.attribute[:]
    node.attribute.extend(kept)


def _lower_resize(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> None:  # noqa: ARG001 one form
    _drop_attributes(node, {"antialias": 0, "keep_aspect_ratio_policy": b"stretch", "axes": None})


def _lower_split(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> None:  # noqa: ARG001 one form
    """Without `num_outputs`, opset 17 splits evenly by the number of outputs; the checker refuses uneven ones."""
    _drop_attributes(node, {"num_outputs": len(node.output)})


def _lower_pad(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> None:  # noqa: ARG001 one form
    """Without axes, which opset 17 lacks, a padding is given for each of them."""
    if len(node.input) > 3 and node.input[3]:
        raise ModelError(f"Pad ({node.name}) with axes has no form in opset {OPSET}.", hint="Change the model.")
    del node.input[3:]


def _axes_to_attribute(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> None:
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            raise ModelError(f"{node.op_type} ({node.name}) has computed axes.", hint="Use fixed axes in the model.")
        axes = constants[node.input[1]].reshape(-1).tolist()
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    del node.input[1:]
    _drop_attributes(node, {"noop_with_empty_axes": 0})


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_REWRITES: Mapping[str, Callable[[onnx.NodeProto, Mapping[str, npt.NDArray[Any]]], None]] = {
    "Pad": _lower_pad,
    "Resize": _lower_resize,
    "Split": _lower_split,
    **{f"Reduce{name}": _axes_to_attribute for name in _REDUCTIONS},
}
