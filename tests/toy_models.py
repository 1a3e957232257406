"""Small ONNX models with a manifest, and rasters to run them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import rasterio
from affine import Affine
from onnx import TensorProto, helper, numpy_helper

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest

NAMES = ("other", "building", "water", "road", "tree")
UTM = {"crs": "EPSG:32645", "transform": Affine(0.13, 0, 300_000, 0, -0.13, 3_000_000)}


def manifest(classes: int = 3, *, size: int = 64, halo: int = 8, **more: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "toy",
        "legend": Legend.from_names(NAMES[:classes]),
        "bands": ("red", "green", "blue"),
        "gsd_m": 0.13,
        "gsd_range_m": (0.1, 0.2),
        "tile_size": size,
        "halo": halo,
    }
    return Manifest(**values | more)


def save(path: Path, contract: Manifest | None, nodes: list[Any], weights: dict[str, npt.NDArray[np.generic]], *,
         classes: int, sides: tuple[int | str, int | str], batch: int | str = "n", channels: int = 3,
         input_type: int = TensorProto.FLOAT) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", input_type, [batch, channels, *sides])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes, *sides])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if contract is not None:
        helper.set_model_props(model, contract.to_metadata())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def identity(path: Path, *, size: int = 64, halo: int = 8, dynamic: bool = False, batch: int | str = "n",
             **more: Any) -> Path:  # fmt: skip
    """Gives its three bands back as the probabilities of three classes."""
    contract = manifest(3, size=size, halo=halo, **more)
    sides: tuple[int | str, int | str] = ("h", "w") if dynamic else (size, size)
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, contract, [node], {}, classes=3, sides=sides, batch=batch, channels=len(contract.bands))


def brightness(
    path: Path, *, size: int = 64, halo: int = 8, channels: int = 3, dynamic: bool = False, **more: Any
) -> Path:
    """Two classes: the mean of all bands, below and above the middle of the range."""
    contract = manifest(2, size=size, halo=halo, **more)
    share = np.full((1, channels, 1, 1), 1 / channels, np.float32)
    nodes = [helper.make_node("Conv", ["x", "kernel", "bias"], ["y"])]
    weights = {"kernel": np.concatenate([-share, share]), "bias": np.array([1, 0], np.float32)}
    sides: tuple[int | str, int | str] = ("h", "w") if dynamic else (size, size)
    return save(path, contract, nodes, weights, classes=2, sides=sides, channels=channels)


def convolutions(path: Path, *, layers: int = 2, classes: int = 3, halo: int = 8, size: int = 64, seed: int = 0,
                 **more: Any) -> Path:  # fmt: skip
    """A stack of random 3 x 3 convolutions with a softmax, sides free. Its receptive field is 2 * layers + 1."""
    random = np.random.default_rng(seed)
    nodes, weights, name, channels = [], {}, "x", 3
    for layer in range(layers):
        width = classes if layer == layers - 1 else 6
        weights[f"w{layer}"] = random.normal(size=(width, channels, 3, 3)).astype(np.float32)
        out = "logits" if layer == layers - 1 else f"a{layer}"
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [out], pads=[1, 1, 1, 1]))
        if layer < layers - 1:
            nodes.append(helper.make_node("Relu", [out], [f"r{layer}"]))
            name, channels = f"r{layer}", width
    nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=1))
    contract = manifest(classes, size=size, halo=halo, **more)
    return save(path, contract, nodes, weights, classes=classes, sides=("h", "w"))


def transformer(path: Path, *, size: int = 256, halo: int = 64, seed: int = 0) -> Path:
    """A small vision transformer with random weights: patches of 16, positions, two blocks of self-attention.

    Every output pixel depends on every input pixel of its tile and on where in the tile it lies.
    """
    random, side, width = np.random.default_rng(seed), size // 16, 24
    where = np.linspace(0, np.pi, side)
    waves = [np.cos(a * where)[:, None] * np.cos(b * where)[None] for a in range(3) for b in range(3)]
    positions = random.normal(size=(width, len(waves))) @ np.reshape(waves, (len(waves), -1))
    weights: dict[str, npt.NDArray[np.generic]] = {
        "embed": random.normal(size=(width, 3, 16, 16)).astype(np.float32) / 28,
        "positions": positions.T[None].astype(np.float32) * 0.4,
        "tokens": np.array([0, width, side * side]),
        "grid": np.array([0, 3, side, side]),
        "scale": np.array([1, 1, 16, 16], np.float32),
        "root": np.array(width**-0.5, np.float32),
        "head": (random.normal(size=(width, 3)) * 0.35).astype(np.float32),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "embed"], ["patches"], strides=[16, 16]),
        make("Reshape", ["patches", "tokens"], ["flat"]),
        make("Transpose", ["flat"], ["sequence"], perm=[0, 2, 1]),
        make("Add", ["sequence", "positions"], ["t0"]),
    ]
    for n in range(2):
        for part in "qkv":
            weights[f"{part}{n}"] = (random.normal(size=(width, width)) * width**-0.5).astype(np.float32)
            nodes.append(make("MatMul", [f"t{n}", f"{part}{n}"], [f"{part}_{n}"]))
        nodes += [
            make("Transpose", [f"k_{n}"], [f"kt_{n}"], perm=[0, 2, 1]),
            make("MatMul", [f"q_{n}", f"kt_{n}"], [f"s_{n}"]),
            make("Mul", [f"s_{n}", "root"], [f"scaled_{n}"]),
            make("Softmax", [f"scaled_{n}"], [f"attention_{n}"], axis=-1),
            make("MatMul", [f"attention_{n}", f"v_{n}"], [f"mixed_{n}"]),
            make("Add", [f"t{n}", f"mixed_{n}"], [f"t{n + 1}"]),
        ]
    nodes += [
        make("MatMul", ["t2", "head"], ["scores"]),
        make("Transpose", ["scores"], ["channels"], perm=[0, 2, 1]),
        make("Reshape", ["channels", "grid"], ["coarse"]),
        make("Resize", ["coarse", "", "scale"], ["fine"], mode="linear"),
        make("Softmax", ["fine"], ["y"], axis=1),
    ]
    return save(path, manifest(3, size=size, halo=halo), nodes, weights, classes=3, sides=(size, size))


def write_raster(path: Path, values: npt.NDArray[np.generic], **profile: Any) -> Path:
    """Write (C, H, W); in UTM at 13 cm unless told otherwise."""
    where = {} if "crs" in profile or "gcps" in profile else UTM
    count, height, width = values.shape
    options: dict[str, Any] = {"driver": "GTiff", "photometric": "RGB"} if count == 3 else {"driver": "GTiff"}
    options |= {"count": count, "height": height, "width": width, "dtype": values.dtype, **where, **profile}
    options = {key: value for key, value in options.items() if value is not None}
    with rasterio.open(path, "w", **options) as dataset:
        dataset.write(values)
    return path


def noise(shape: tuple[int, int], *, seed: int = 0, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (channels, *shape), np.uint8)


def read(path: Path) -> npt.NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read()
