"""What Dask workers are worth: the same scene by one process, by one worker, and by N, of one thread each.

    python benchmarks/workers.py [--rows 12000] [--cols 1500] [--model FILE] [--workers 2] [--repeats 3] [--json OUT]

Workers run before the clock starts; reading, handing out, copying shards and writing outputs are within. Cases take
turns, so that all see the same machine in the same state. The ratio of one worker to N is what counts, on a machine
with N quiet cores: the load before each run is told beside it. All masks have to have the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from cegate_geo.api import predict
from cegate_geo.infer.cluster import Place, open_cluster

BLOCK = 512


def make_scene(path: Path, rows: int, cols: int) -> None:
    """A tiled RGB scene of blocks and noise, without a hole."""
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": cols, "height": rows, "count": 3, "dtype": "uint8", "tiled": True,
               "blockxsize": BLOCK, "blockysize": BLOCK, "photometric": "RGB", "crs": "EPSG:32645",
               "transform": from_origin(300_000, 3_000_000, 0.13, 0.13)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for row in range(0, rows, BLOCK):
            height = min(BLOCK, rows - row)
            coarse = random.integers(0, 236, (3, -(-height // 16), -(-cols // 16)), np.uint8)
            blocks = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :cols]
            speckle = random.integers(0, 20, blocks.shape, np.uint8)
            dataset.write(blocks + speckle, window=Window(0, row, cols, height))


def measure(scene: Path, folder: Path, model: Path | None, workers: int) -> dict[str, Any]:
    """One run; with 0 workers in this process."""
    mask, load, spent = folder / "mask.tif", os.getloadavg()[0], sum(os.times()[:4])
    with open_cluster(Place(scheduler=None, workers=workers)) if workers else nullcontext() as cluster:
        dask = {} if cluster is None else {"dask": cluster.address, "workers": workers}
        started = time.perf_counter()
        result = predict(scene, mask, model=model, provider="cpu", threads=1, overwrite=True, **dask)
        seconds = time.perf_counter() - started
    digest = hashlib.sha256(mask.read_bytes()).hexdigest()
    cpu = sum(os.times()[:4]) - spent  # of workers, too: they have ended
    return {"seconds": seconds, "cpu_s": cpu, "tiles": result.tiles, "sha256": digest, "load": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--cols", type=int, default=1500)
    parser.add_argument("--model", type=Path, help="default: the shipped one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases: dict[int, list[dict[str, Any]]] = {0: [], 1: [], options.workers: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scene(folder / "scene.tif", options.rows, options.cols)
        for _ in range(options.repeats):
            for workers, runs in cases.items():
                runs.append(measure(folder / "scene.tif", folder, options.model, workers))
                run = runs[-1]
                print(f"{workers} workers: {run['seconds']:.1f} s, load before it {run['load']:.1f}", flush=True)
    if len({run["sha256"] for runs in cases.values() for run in runs}) > 1:
        raise SystemExit("The masks differ.")
    medians = {workers: statistics.median(run["seconds"] for run in runs) for workers, runs in cases.items()}
    print(f"\n{options.rows:,} x {options.cols:,} px, median of {options.repeats}, one thread each\n")
    print("| computed by | seconds | CPU seconds, start included | tiles | times one worker |\n|---|---|---|---|---|")
    for workers, seconds in medians.items():
        who = f"{workers} Dask worker{'s' if workers > 1 else ''}" if workers else "this process"
        cpu, tiles = statistics.median(run["cpu_s"] for run in cases[workers]), cases[workers][0]["tiles"]
        print(f"| {who} | {seconds:.1f} | {cpu:.1f} | {tiles:,} | {medians[1] / seconds:.2f} |")
    if options.json:
        options.json.write_text(json.dumps({str(workers): runs for workers, runs in cases.items()}, indent=1))


if __name__ == "__main__":
    main()
