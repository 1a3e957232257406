"""What the engine adds to the session: seconds and peak memory beside a bare session on the same tiles.

    python benchmarks/throughput.py [--size 5000] [--repeats 3] [--model FILE] [--json OUT]

Each case runs in processes of its own, engine and bare session in turn, so that both see the same machine in the same
state. The ratio is what counts; seconds depend on the machine. Two models: one that is nearly free, where all time is
the engine's own, and one as heavy as a small network (or --model), where the session should be the limit.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import rasterio
from onnx import TensorProto, helper, numpy_helper
from rasterio.transform import from_origin

from cegate_geo.api import describe_model, predict
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.infer.tiles import TilePlan

TILE = 512


def make_scene(path: Path, size: int) -> None:
    """An uncompressed tiled RGB scene of blocks and noise."""
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8", "tiled": True,
               "blockxsize": TILE, "blockysize": TILE, "interleave": "pixel", "photometric": "RGB", "crs": "EPSG:32645",
               "transform": from_origin(300_000, 3_000_000, 0.13, 0.13)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, size, TILE):
            height = min(TILE, size - row)
            coarse = random.integers(0, 236, (3, -(-height // 16), -(-size // 16)), np.uint8)
            blocks = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :size]
            speckle = random.integers(0, 20, blocks.shape, np.uint8)
            dataset.write(blocks + speckle, window=rasterio.windows.Window(0, row, size, height))


def make_model(path: Path, *, layers: int, overlap: int) -> None:
    """Three classes from `layers` convolutions of 3 x 3 and 32 channels; with none, from a multiplication."""
    random, name, channels, nodes, weights = np.random.default_rng(0), "x", 3, [], []
    for n in range(layers):
        width = 3 if n == layers - 1 else 32
        kernel = random.normal(size=(width, channels, 3, 3), scale=(channels * 9) ** -0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{n}"))
        nodes.append(helper.make_node("Conv", [name, f"w{n}"], [f"c{n}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Sigmoid" if n == layers - 1 else "Relu", [f"c{n}"], [f"r{n}"]))
        name, channels = f"r{n}", width
    weights.append(numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), "half"))
    nodes.append(helper.make_node("Mul", [name, "half"], ["y"]))
    shape: list[str | int] = ["n", 3, TILE, TILE]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph(nodes, "bench", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    manifest = Manifest(
        name="bench", legend=Legend.from_names(["a", "b", "c"]), bands=("red", "green", "blue"), gsd_m=0.13,
        gsd_range_m=(0.1, 0.2), tile_size=TILE, halo=overlap // 2,
    )  # fmt: skip
    helper.set_model_props(model, manifest.to_metadata())
    onnx.save(model, path)


def run_engine(model: Path, scene: Path, folder: Path) -> None:
    """Predict, in this process."""
    warnings.simplefilter("ignore")
    predict(scene, folder / "mask.tif", model=model, overwrite=True, force=True)


def run_bare(model: Path, scene: Path) -> None:
    """The same number of session calls on one input, in this process: no reading, no stitching, no writing."""
    manifest = describe_model(model).manifest
    with rasterio.open(scene) as dataset:
        plan = TilePlan.of_shape(dataset.shape, tile_shape=(manifest.tile_size, manifest.tile_size), halo=manifest.halo)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = (1, len(manifest.bands), manifest.tile_size, manifest.tile_size)
    tile = np.random.default_rng(0).random(shape, np.float32)
    for _ in range(len(plan)):
        session.run(None, {session.get_inputs()[0].name: tile})


def measure(kind: str, model: Path, scene: Path, folder: Path) -> dict[str, float]:
    """Seconds of work and peak megabytes of one run in a process of its own."""
    words = [sys.executable, __file__, "--worker", kind, str(model), str(scene), str(folder)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def work(kind: str, model: str, scene: str, folder: str) -> None:
    """What the measured process does."""
    started = time.perf_counter()
    if kind == "engine":
        run_engine(Path(model), Path(scene), Path(folder))
    else:
        run_bare(Path(model), Path(scene))
    seconds = time.perf_counter() - started
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}))


def compare(name: str, model: Path, scene: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Engine and bare session in turn; medians."""
    runs: dict[str, list[dict[str, float]]] = {"engine": [], "bare": []}
    for _ in range(repeats):
        for kind, results in runs.items():
            results.append(measure(kind, model, scene, folder))
    row: dict[str, Any] = {"case": name}
    for kind, results in runs.items():
        row[f"{kind}_s"] = statistics.median(r["seconds"] for r in results)
        row[f"{kind}_mb"] = max(r["peak_mb"] for r in results)
    row["ratio"] = row["engine_s"] / row["bare_s"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5000, help="side of the scene in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a real model instead of the made one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_scene(folder / "scene.tif", options.size)
        cases = []
        for overlap in (64, 256):
            cases.append((f"nearly free, overlap {overlap}", folder / f"free{overlap}.onnx"))
            make_model(cases[-1][1], layers=0, overlap=overlap)
        heavy = options.model or folder / "heavy.onnx"
        if not options.model:
            make_model(heavy, layers=4, overlap=64)
        cases.append((options.model.name if options.model else "4 convolutions, overlap 64", heavy))
        print(f"{options.size} x {options.size} px, median of {options.repeats}")
        print(f"{'case':<28}{'engine s':>10}{'bare s':>10}{'ratio':>8}{'engine MB':>11}{'bare MB':>9}")
        for name, model in cases:
            row = compare(name, model, folder / "scene.tif", folder, options.repeats)
            rows.append(row)
            print(
                f"{name:<28}{row['engine_s']:>10.2f}{row['bare_s']:>10.2f}{row['ratio']:>8.2f}"
                f"{row['engine_mb']:>11.0f}{row['bare_mb']:>9.0f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
