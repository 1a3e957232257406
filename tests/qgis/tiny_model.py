"""A tiny ONNX model whose answer is known by hand: class 1 where the first band is above 127, else class 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cegate_geo.domain.legend import Legend, LegendClass
from cegate_geo.domain.manifest import Manifest

LEGEND = Legend(
    (
        LegendClass(id=0, name="sombre é", color=(12, 34, 56)),
        LegendClass(id=1, name="bright", color=(250, 200, 10)),
    )
)


def save_threshold_model(path: Path, *, gsd_m: float, bands: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    """Write the model: probability of class 1 = clip(255 * (first band - 0.5) + 0.5, 0, 1), pixel by pixel."""
    size = 64
    weights = np.zeros((2, len(bands), 1, 1), np.float32)
    weights[:, 0] = [[[-255.0]], [[255.0]]]
    bias = np.array([128.0, -127.0], np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights", "bias"], ["raw"]),
        helper.make_node("Clip", ["raw", "zero", "one"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", len(bands), size, size])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2, size, size])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.float32(0.0), "zero"),
            numpy_helper.from_array(np.float32(1.0), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    manifest = Manifest(
        name="threshold", legend=LEGEND, bands=bands, gsd_m=gsd_m, gsd_range_m=(gsd_m / 2, gsd_m * 2),
        tile_size=size, halo=8,
    )  # fmt: skip
    helper.set_model_props(model, manifest.to_metadata())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
