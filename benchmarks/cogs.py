"""Seconds and peak memory of making COGs of sparse scratch rasters.

python benchmarks/cogs.py --side 40000 --bands 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time

CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np, rasterio
from affine import Affine
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.infer import budget
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.writer import RasterWriter, class_raster, make_cog, probability_raster

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10

folder, height, width, bands, rows = Path(sys.argv[1]), *map(int, sys.argv[2:6])
legend = Legend.from_names({n: f"class {n}" for n in range(max(2, bands))})
kind = class_raster(legend) if bands == 1 else probability_raster(legend)
crs = rasterio.crs.CRS.from_epsg(32645)
place = Georeference(shape=(height, width), crs=crs, transform=Affine(0.1, 0, 3e5, 0, -0.1, 3e6))
random = np.random.default_rng(0)
with rasterio.Env(GDAL_CACHEMAX=budget.CACHE_MB * budget.MEGABYTE):
    with RasterWriter(folder / "scratch.tif", place, kind, tags={}) as writer:
        for row in range(0, min(rows, height), 512):
            window = Window(col_off=0, row_off=row, width=width, height=min(512, height - row))
            coarse = random.integers(0, 2, (kind.count, -(-window.height // 16), -(-width // 16)), np.uint8)
            values = np.kron(coarse, np.ones((1, 16, 16), np.uint8))[:, : window.height, :width]
            writer.write(window, values, valid=np.ones(window.shape, bool))
    before, started = status("VmRSS"), time.monotonic()
    open("/proc/self/clear_refs", "w").write("5")  # start the high-water mark anew
    make_cog(folder / "scratch.tif", folder / "cog.tif", kind)
print(json.dumps({
    "seconds": round(time.monotonic() - started, 1), "before_mb": round(before), "peak_mb": round(status("VmHWM")),
    "mb_on_disk": (folder / "cog.tif").stat().st_size >> 20,
}))
"""


def main() -> None:
    """Run each case in a process of its own and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=40_000)
    parser.add_argument("--width", type=int, default=40_000)
    parser.add_argument("--bands", type=int, default=1)
    parser.add_argument("--rows", type=int, default=512, help="rows that hold data")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", CHILD, folder, *map(str, (given.height, given.width, given.bands, given.rows))]
        started = time.monotonic()
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    print(json.dumps(vars(given) | json.loads(done.stdout) | {"all_s": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
