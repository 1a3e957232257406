"""The native profile: a graph of the portable one that takes raster values as they are stored.

What leaves and enters a session is smaller: whole numbers of one or two bytes go in, where the portable profile takes
float32 in 0-1 units. Class ids and confidence can be taken in place of a float32 channel for each class; blending needs
those channels, so that they stay the first output. onnxruntime computes all outputs of a graph, also those that nobody
asks for: the class map costs its ArgMax in every call, and the confidence nothing to speak of.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, ModelError
from cegate_geo.train.onnx_graph import INPUT, OUTPUT

CLASS, CONFIDENCE = "class", "confidence"
_TYPES = {"uint8": (onnx.TensorProto.UINT8, torch.uint8), "uint16": (onnx.TensorProto.UINT16, torch.uint16)}


def check_native(manifest: Manifest) -> None:
    """Refuse a model of rasters that hold no whole numbers.

    Raises:
        InputError: `manifest.dtype` is another than uint8 and uint16.
    """
    if manifest.dtype not in _TYPES:
        raise InputError(
            f"The model was trained on {manifest.dtype}, the native profile takes {' or '.join(_TYPES)}.",
            hint="Export it with --profile portable.",
        )


def raster_values(tiles: torch.Tensor, manifest: Manifest) -> torch.Tensor:
    """(N, C, S, S) in 0-1 units as the raster values that are nearest to them, in `manifest.dtype`."""
    kind = _TYPES[manifest.dtype][1]
    limits = torch.iinfo(kind)
    return (tiles * manifest.input_maximum).round().clamp(limits.min, limits.max).to(kind)  # casts wrap around


def unit_values(values: torch.Tensor, manifest: Manifest) -> torch.Tensor:
    """Raster values (N, C, S, S) in 0-1 units, float32."""
    return values.float() / manifest.input_maximum


def make_native(graph: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """The same model with raster values as its input, and two more outputs; the given one stays as it is.

    - "image": `manifest.dtype` (N, C, S, S), divided by `input_maximum` in the graph, as the engine does for others;
    - "probabilities": float32 (N, K, S, S), as before;
    - "class": uint8 (N, S, S), the id of the most probable class;
    - "confidence": float32 (N, S, S), its probability, 0 to 1.

    Args:
        graph: As `onnx_graph.build_graph` gives it, or quantised.
        manifest: The model's contract in the portable profile.

    Raises:
        InputError: The manifest's rasters hold no whole numbers.
        ModelError: The graph's probabilities are no quotient of powers and their sum.
    """
    check_native(manifest)
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    inside = made.graph
    total = _divisor_of(made)
    unit = f"{INPUT}/unit"
    for node in inside.node:
        node.input[:] = [unit if name == INPUT else name for name in node.input]
    inside.input[0].type.tensor_type.elem_type = _TYPES[manifest.dtype][0]
    before = [
        helper.make_node("Cast", [INPUT], [f"{INPUT}/float32"], name="native/cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", [f"{INPUT}/float32", "native/maximum"], [unit], name="native/scale"),
    ]
    after = [
        helper.make_node("ArgMax", [OUTPUT], ["native/channel"], name="native/argmax", axis=1, keepdims=0),
        helper.make_node("Gather", ["native/ids", "native/channel"], [CLASS], name="native/class"),
        helper.make_node("Reciprocal", [total], ["native/best"], name="native/reciprocal"),
        helper.make_node("Squeeze", ["native/best", "native/axis"], [CONFIDENCE], name="native/confidence"),
    ]
    nodes = [*before, *inside.node, *after]
    del inside.node[:]
    inside.node.extend(nodes)
    inside.initializer.extend(
        [
            numpy_helper.from_array(np.array(manifest.input_maximum, np.float32), "native/maximum"),
            numpy_helper.from_array(np.array(manifest.legend.ids, np.uint8), "native/ids"),
            numpy_helper.from_array(np.array([1], np.int64), "native/axis"),
        ]
    )
    batch, side = inside.input[0].type.tensor_type.shape.dim[0].dim_param, manifest.tile_size
    for name, kind in ((CLASS, onnx.TensorProto.UINT8), (CONFIDENCE, onnx.TensorProto.FLOAT)):
        inside.output.append(helper.make_tensor_value_info(name, kind, [batch, side, side]))
    onnx.checker.check_model(made, full_check=True)
    return made


def _divisor_of(model: onnx.ModelProto) -> str:
    """What the powers are divided by to become probabilities: of the most probable class, the power is 1."""
    (last,) = [node for node in model.graph.node if OUTPUT in node.output]
    if last.op_type != "Div":
        raise ModelError(
            f"The graph's probabilities come from {last.op_type}, not from a division.", hint="Upgrade cegate-geo."
        )
    return str(last.input[1])
