"""Peak memory of training, measured from outside of the process that trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from shapely.geometry import box

from cegate_geo.train.scenes import BLOCK_CACHE_MB

SCRIPT = """
import json, os, sys, warnings
os.environ.pop("GDAL_CACHEMAX", None)
warnings.simplefilter("ignore")
from pathlib import Path
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.loop import adapt
peaks = []
for folder, table in json.loads(sys.stdin.read()).items():
    adapt(build(AdaptConfig, table), Path(folder), device="cpu")
    lines = open("/proc/self/status").read().splitlines()
    peaks.append(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
print(json.dumps(peaks))
"""
OTHERWISE_MB = 150
"""Strips of a wider scene, tables of its cells, and what allocators keep."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")


def write_scene(folder: Path, side: int) -> tuple[Path, Path]:
    """A sparse scene with 16 x 16 pairs of labelled squares, all over it, on noise."""
    rng = np.random.default_rng(0)
    transform = Affine(0.5, 0, 300_000, 0, -0.5, 4_000_000)
    squares, names = [], []
    raster, labels = folder / f"{side}.tif", folder / f"{side}.gpkg"
    with rasterio.open(
        raster, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", photometric="RGB",
        tiled=True, blockxsize=512, blockysize=512, interleave="pixel", sparse_ok=True, compress="deflate",
        crs="EPSG:32645", transform=transform,
    ) as target:  # fmt: skip
        for place in np.ndindex(16, 16):
            row, col = (int(k * side / 16 + side / 64) for k in place)
            noise = rng.integers(1, 255, (3, 64, 64), dtype=np.uint8)
            target.write(noise, window=Window(col, row, 64, 64))
            for n, name in enumerate(("other", "building")):
                left, top = transform @ (col + 32 * n, row)
                squares.append(box(left, top - 32, left + 16, top))
                names.append(name)
    gpd.GeoDataFrame({"class": names}, geometry=squares, crs="EPSG:32645").to_file(labels)
    return raster, labels


def settings(raster: Path, labels: Path) -> dict[str, object]:
    source = {"images": str(raster), "labels": str(labels), "label_field": "class", "background": "ignore"}
    return {
        "classes": {"0": "other", "1": "building"},
        "source": [source],
        "model": {"backbone": "test_vit2.r160_in1k", "weights": "random", "head": "linear", "tile_size": 256},
        "peft": {"method": "frozen"},
        "train": {"steps": 2, "batch_size": 2, "crop": 256, "precision": "fp32", "validate_every": 2},
    }


def test_memory_of_training_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    """1.7 GB of pixels, labelled all over: too many to be held, so that they are read from the file."""
    small, large = (write_scene(tmp_path, side) for side in (2048, 24_000))
    assert large[0].stat().st_size < 20e6
    tables = {str(tmp_path / raster.stem): settings(raster, labels) for raster, labels in (small, large)}
    words = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(words, check=True, input=json.dumps(tables), capture_output=True, text=True)
    before, after = json.loads(done.stdout)
    assert after - before <= BLOCK_CACHE_MB + OTHERWISE_MB
