"""Small ONNX models as other tools leave them: no manifest, and all kinds of tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str]


def build(
    path: Path,
    nodes: Sequence[Any],
    *,
    given: Shape = ("n", 3, 64, 64),
    gives: Shape | dict[str, Shape] = ("n", 3, 64, 64),
    weights: dict[str, npt.NDArray[np.generic]] | None = None,
    types: tuple[int, int] = (FLOAT, FLOAT),
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Save a model from `x` to `y` (or to the outputs that are named)."""
    outputs = gives if isinstance(gives, dict) else {"y": gives}
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info("x", types[0], list(given))],
        [helper.make_tensor_value_info(name, types[1], list(shape)) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def node(kind: str, given: str | Sequence[str] = "x", gives: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, [given] if isinstance(given, str) else list(given), [gives], **attributes)


def bands_as_classes(
    path: Path, *, size: int | str = 64, channels: int = 3, batch: int | str = "n", **more: Any
) -> Path:
    """Gives its bands back: as many classes."""
    shape = (batch, channels, size, "w" if isinstance(size, str) else size)
    return build(path, [node("Identity")], given=shape, gives=shape, **more)


def first_band(path: Path, *, factor: float = 1.0, offset: float = 0.0, size: int = 64, **more: Any) -> Path:
    """One channel: the first band times a factor plus an offset."""
    weights = {"kernel": np.array([factor, 0, 0], np.float32).reshape(1, 3, 1, 1), "bias": np.float32([offset])}
    return build(
        path,
        [node("Conv", ["x", "kernel", "bias"])],
        given=("n", 3, size, size),
        gives=("n", 1, size, size),
        weights=weights,
        **more,
    )


def valid_convolution(path: Path, kernel: npt.NDArray[np.float32], *, size: int = 64, **more: Any) -> Path:
    """Each band filtered without padding, so that the output is smaller than the input."""
    side = size - len(kernel) + 1
    weights = {"kernel": np.stack([kernel[None]] * 3)}
    nodes = [node("Conv", ["x", "kernel"], group=3)]
    return build(path, nodes, given=("n", 3, size, size), gives=("n", 3, side, side), weights=weights, **more)


def mlm_item(weights: str, **more: Any) -> dict[str, Any]:
    """A STAC item of the MLM extension, as small as it may be; `more` replaces parts of input, output, properties."""
    given = {
        "name": "x",
        "bands": ["red", "green", "blue"],
        "input": {
            "shape": [-1, 3, 64, 64], "dim_order": ["batch", "bands", "height", "width"], "data_type": "float32"
        },
        "value_scaling": [{"type": "scale", "value": 255}],
    }  # fmt: skip
    gives = {
        "name": "y",
        "tasks": ["semantic-segmentation"],
        "result": {
            "shape": [-1, 3, 64, 64], "dim_order": ["batch", "class", "height", "width"], "data_type": "float32"
        },
        "classification:classes": [
            {"value": 1, "name": "roof", "color_hint": "ff0000"},
            {"value": 2, "name": "road"},
            {"value": 7, "name": "water"},
        ],
    }  # fmt: skip
    properties = {
        "datetime": "2024-01-01T00:00:00Z",
        "mlm:name": "Toy",
        "mlm:architecture": "none",
        "mlm:framework": "ONNX",
        "mlm:framework_version": "1.17.0",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:input": [given | more.get("input", {})],
        "mlm:output": [gives | more.get("output", {})],
        **more.get("properties", {}),
    }
    asset = {"href": weights, "roles": ["mlm:model"], "type": "application/octet-stream; framework=onnx"}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": ["https://stac-extensions.github.io/mlm/v1.5.2/schema.json"],
        "id": "toy",
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {"model": asset | more.get("asset", {})},
    }


def write_json(path: Path, table: dict[str, Any]) -> Path:
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def deepness_classes(raw: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int_]:
    """What Deepness and GeoDeep make of an output (K, H, W): zero what is below, then the largest, or any for K = 1."""
    kept = np.where(raw < np.float32(threshold), np.float32(0), raw)
    return (kept[0] != 0).astype(int) if len(kept) == 1 else kept.argmax(axis=0)
