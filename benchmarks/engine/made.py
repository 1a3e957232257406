"""What is measured on: a scene and models, all made by code from seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import rasterio
from onnx import TensorProto, helper, numpy_helper
from rasterio.transform import from_origin
from rasterio.windows import Window

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest

TILE = 512
"""Side of the made models' input, and of the scene's blocks, in pixels."""
BLOCK = 16
"""Side of the scene's patches of one colour."""
BANDS = ("red", "green", "blue")
GSD_M = 0.13


def make_scene(path: Path, size: int) -> Path:
    """An uncompressed tiled RGB scene, uint8, of patches with grain; the larger ones hold the smaller ones' rows."""
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8", "tiled": True,
               "blockxsize": TILE, "blockysize": TILE, "interleave": "pixel", "photometric": "RGB", "crs": "EPSG:32645",
               "bigtiff": "IF_SAFER", "transform": from_origin(300_000, 3_000_000, GSD_M, GSD_M)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, size, TILE):
            height = min(TILE, size - row)
            coarse = random.integers(0, 236, (3, -(-height // BLOCK), -(-size // BLOCK)), np.uint8)
            patches = coarse.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)[:, :height, :size]
            grain = random.integers(0, 20, patches.shape, np.uint8)
            dataset.write(patches + grain, window=Window(0, row, size, height))
    return path


def make_nearly_free(path: Path, *, overlap: int) -> Path:
    """Three classes, the bands times a half: all time is the engine's."""
    weights = [numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), "half")]
    nodes = [helper.make_node("Mul", ["x", "half"], ["y"])]
    return _save(_graph(nodes, weights, classes=3), path, ("a", "b", "c"), overlap=overlap)


def make_many_classes(path: Path, *, overlap: int, classes: int) -> Path:
    """As many classes as wanted, mixed from the bands by one convolution of a pixel: nearly free, too."""
    kernel = np.random.default_rng(0).uniform(0, 1 / 3, (classes, 3, 1, 1)).astype(np.float32)
    weights = [numpy_helper.from_array(kernel, "kernel")]
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"])]
    return _save(_graph(nodes, weights, classes=classes), path, [f"class {n}" for n in range(classes)], overlap=overlap)


def make_convolutions(path: Path, *, overlap: int, layers: int = 4) -> Path:
    """Three classes from random convolutions of 3 x 3 and 32 channels: a stand-in for a real model in quick runs."""
    random, name, channels, nodes, weights = np.random.default_rng(0), "x", 3, [], []
    for n in range(layers):
        last = n == layers - 1
        width = 3 if last else 32
        kernel = random.normal(size=(width, channels, 3, 3), scale=(channels * 9) ** -0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{n}"))
        nodes.append(helper.make_node("Conv", [name, f"w{n}"], [f"c{n}"], pads=[1, 1, 1, 1]))
        nodes.append(
            helper.make_node("Softmax", [f"c{n}"], ["y"], axis=1) if last else
            helper.make_node("Relu", [f"c{n}"], [f"r{n}"])
        )  # fmt: skip
        name, channels = f"r{n}", width
    return _save(_graph(nodes, weights, classes=3), path, ("a", "b", "c"), overlap=overlap)


def make_vit(folder: Path, overlaps: Sequence[int]) -> list[Path]:
    """ViT-S/16 of timm at 512 px with a linear head, six classes, random weights; one file for each overlap.

    Exported as `cegate-geo export` does; needs torch.
    """
    import torch

    from cegate_geo.train.backbone import load_backbone
    from cegate_geo.train.onnx_graph import build_graph
    from cegate_geo.train.segmenter import Segmenter

    torch.manual_seed(0)
    names = ("ground", "building", "road", "tree", "water", "car")
    backbone, spec = load_backbone("vit_small_patch16_224", "random", image_size=TILE)
    segmenter = Segmenter(backbone, spec, head="linear", head_dim=64, classes=len(names)).eval()
    segmenter.fix_size(TILE)
    graph = build_graph(segmenter, tile_size=TILE)
    return [_save(graph, folder / f"vit-s-{overlap}.onnx", names, overlap=overlap) for overlap in overlaps]


def _graph(nodes: list[Any], weights: list[Any], *, classes: int) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, TILE, TILE])
        for name, channels in (("x", 3), ("y", classes))
    ]
    graph = helper.make_graph(nodes, "bench", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _save(model: onnx.ModelProto, path: Path, names: Sequence[str], *, overlap: int) -> Path:
    """Write a model with the metadata of our engine and of GeoDeep."""
    manifest = Manifest(
        name=path.stem, legend=Legend.from_names(names), bands=BANDS, gsd_m=GSD_M, gsd_range_m=(0.1, 0.2),
        tile_size=TILE, halo=overlap // 2,
    )  # fmt: skip
    # Not rounded to whole per cent: GeoDeep shall lay the same tiles.
    exact = {"tiles_overlap": json.dumps(100 * overlap / TILE)}
    helper.set_model_props(model, manifest.to_metadata() | exact)
    onnx.save(model, path)
    return path


def first_tiles(scene: Path, count: int) -> npt.NDArray[np.float32]:
    """(count, 3, TILE, TILE), 0 to 1: tiles of the scene's first blocks."""
    with rasterio.open(scene) as dataset:
        across = max(1, dataset.width // TILE)
        windows = [Window(n % across * TILE, n // across % across * TILE, TILE, TILE) for n in range(count)]
        return np.stack([dataset.read(window=window) for window in windows]).astype(np.float32) / np.float32(255)
