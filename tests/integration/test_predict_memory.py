"""Peak memory of whole runs, measured from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from tests import toy_models as toys

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from cegate_geo.api import predict
scene, output, model, nodata = sys.argv[1:5]
result = predict(scene, output, model=model, nodata=json.loads(nodata))
# The high-water mark of this program alone: ru_maxrss would start at that of the process that started it.
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"peak_mb": peak / 2**10, "tiles": result.tiles}))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")


def peak_mb(scene: Path, output: Path, model: Path, nodata: list[int] | None = None) -> float:
    words = [sys.executable, "-c", SCRIPT, str(scene), str(output), str(model), json.dumps(nodata or [])]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["peak_mb"])


def test_memory_does_not_grow_with_the_height_of_the_scene(tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx", size=512, halo=32)
    peaks = []
    for height in (1500, 12_000):
        scene = tmp_path / f"{height}.tif"
        with rasterio.open(
            scene, "w", driver="GTiff", width=2000, height=height, count=3, dtype="uint8", photometric="RGB",
            tiled=True, blockxsize=512, blockysize=512, interleave="pixel", sparse_ok=True, **toys.UTM,
        ) as dataset:  # fmt: skip
            dataset.write(toys.noise((1500, 2000)), window=rasterio.windows.Window(0, 0, 2000, 1500))
        peaks.append(peak_mb(scene, tmp_path / f"{height}_mask.tif", model))
    assert peaks[1] - peaks[0] <= 50


@pytest.mark.shared_data
def test_the_drone_scene_needs_less_than_a_gigabyte(shared_data: Path, tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx", size=512, halo=64)
    scene = shared_data / "scene" / "banepa_11264x8704_rgb.tif"
    assert peak_mb(scene, tmp_path / "mask.tif", model, [255, 255, 255]) < 600
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.shape, mask.crs, mask.transform) == (source.shape, source.crs, source.transform)
        assert mask.read_masks(1)[4000, 4000] == 255
        assert mask.read_masks(1)[800, 11_200] == mask.read_masks(1)[6300, 8750] == 0, "the two holes"
