"""Milliseconds per tile of each provider that is installed, beside CPU float32, and how far they differ.

    python benchmarks/providers.py MODEL SCENE [THREADS]

The tiles are three windows of the scene around its middle, as they are: the scene should have the model's GSD. Times
are the best of five calls of one tile.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import rasterio
from rasterio.windows import Window

from cegate_geo.errors import ModelError
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.parity import Parity
from cegate_geo.infer.predictor import Predictor, SessionOptions
from cegate_geo.infer.providers import RUNTIME_NAMES, candidates

CALLS = 5


def tiles_of(scene: str, predictor: Predictor, count: int = 3) -> np.ndarray:
    """(N, C, H, W) as the model wants them; bands in their order."""
    height, width = (side or predictor.manifest.tile_size for side in predictor.sides)
    with rasterio.open(scene) as dataset:
        row, col = dataset.height // 2, dataset.width // 2
        bands = list(range(1, len(predictor.manifest.bands) + 1))
        values = [dataset.read(bands, window=Window(col + n * width, row, width, height)) for n in range(count)]
    return np.stack(values).astype(np.float32) / np.float32(predictor.manifest.input_maximum)


def best_ms(predictor: Predictor, tile: np.ndarray) -> float:
    spent = []
    for _ in range(CALLS):
        started = time.perf_counter()
        predictor.run(tile)
        spent.append(time.perf_counter() - started)
    return 1000 * min(spent)


def main(model: str, scene: str, threads: int = 1) -> None:
    cpu = load_predictor(Path(model), SessionOptions(provider="cpu", threads=threads))
    tiles = tiles_of(scene, cpu)
    expected = np.concatenate([cpu.run(tile[None]) for tile in tiles])
    print(f"{cpu.path.name}, {tiles.shape[2]} x {tiles.shape[3]} px, {threads} threads")
    print(f"{'cpu':<16} {best_ms(cpu, tiles[:1]):8.0f} ms")
    for name in RUNTIME_NAMES:
        if name == "cpu":
            continue
        try:
            ways = candidates(name, require_gpu=False, available=onnxruntime.get_available_providers())
        except ModelError:
            continue
        for way in ways:
            other = cpu.on((way,))
            found = np.concatenate([other.run(tile[None]) for tile in tiles])
            print(f"{way.label:<16} {best_ms(other, tiles[:1]):8.0f} ms  {Parity.between(found, expected)}")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
