"""Small files that tests of the training side read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import onnx
import rasterio
import shapely
from affine import Affine
from onnx import TensorProto, helper, numpy_helper

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.infer.georeference import quiet_about_georeference

LEGEND = Legend.from_names({0: "other", 1: "building", 7: "road"})
TRANSFORM = Affine(0.5, 0, 600_000, 0, -0.5, 4_000_000)
"""Half a metre, EPSG:32645."""
MANIFEST = Manifest(
    name="roofs-15cm",
    legend=Legend.from_names({0: "other", 2: "building", 9: "road"}, colors={"building": "#d64541"}),
    bands=("red", "green", "blue"),
    gsd_m=0.5,
    gsd_range_m=(0.25, 1.0),
    tile_size=32,
    halo=4,
    description="Roofs of a town.",
    licence="CC-BY-4.0",
    architecture="vit_tiny_patch16_224 + dpt",
    parameters=9,
)
"""Of a model as `write_model` makes it."""


def noise(shape: tuple[int, int], *, bands: int = 3, seed: int = 0) -> np.ndarray:
    """(bands, H, W) uint8, 1 to 254."""
    return np.random.default_rng(seed).integers(1, 255, (bands, *shape), dtype=np.uint8)


def write_raster(
    path: Path, values: np.ndarray, *, crs: Any = "EPSG:32645", transform: Affine = TRANSFORM, **profile: Any
) -> Path:
    """(bands, H, W) or (H, W) as a GeoTIFF, or what the suffix says."""
    values = values if values.ndim == 3 else values[None]
    colormap = profile.pop("colormap", None)
    profile = {"driver": "PNG" if path.suffix == ".png" else "GTiff", **profile}
    count, height, width = values.shape
    with (
        quiet_about_georeference(),
        rasterio.open(
            path,
            "w",
            count=count,
            height=height,
            width=width,
            dtype=values.dtype,
            crs=crs,
            transform=transform,
            **profile,
        ) as target,
    ):
        target.write(values)
        if colormap is not None:
            target.write_colormap(1, colormap)
    return path


def pixel_box(left: float, top: float, right: float, bottom: float, transform: Affine = TRANSFORM) -> Any:
    """A polygon in map coordinates around pixels: columns left to right, rows top to bottom."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return shapely.Polygon([transform @ corner for corner in corners])


def write_polygons(path: Path, shapes: Sequence[Any], *, crs: Any = "EPSG:32645", **fields: Sequence[Any]) -> Path:
    """Shapes with their fields as a vector file."""
    with warnings.catch_warnings():
        if crs is None:
            warnings.filterwarnings("ignore", "'crs' was not provided")
        geopandas.GeoDataFrame(dict(fields), geometry=list(shapes), crs=crs).to_file(path)
    return path


def write_model(path: Path, manifest: Manifest = MANIFEST) -> Path:
    """A model in the portable profile: class k where band k is the brightest, by far."""
    shape = ["batch", 3, manifest.tile_size, manifest.tile_size]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    factor = numpy_helper.from_array(np.array(50, np.float32), "factor")
    nodes = [
        helper.make_node("Mul", ["image", "factor"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(nodes, "toy", [image], [result], [factor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, manifest.to_metadata())
    onnx.save(model, path)
    return path


def without_contract(path: Path) -> None:
    """Take everything from a model that tells what it is for, so that only files beside it do."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
