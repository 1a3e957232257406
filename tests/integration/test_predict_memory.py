"""Peak memory of whole runs, measured from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from onnx import helper

from cegate_geo.domain.legend import Legend
from tests import toy_models as toys

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from cegate_geo.api import predict
scene, output, model, nodata = sys.argv[1:5]
options = json.loads(sys.argv[5])
result = predict(scene, output, model=model, nodata=json.loads(nodata), **options)
# The high-water mark of this program alone: ru_maxrss would start at that of the process that started it.
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"peak_mb": peak / 2**10, "tiles": result.tiles}))
"""

PLAN = """
import json, sys
from cegate_geo.api import plan
scene, output, model = sys.argv[1:4]
print(plan(scene, output, model=model, **json.loads(sys.argv[4])).memory_mb)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")


def planned_mb(scene: Path, output: Path, model: Path, **options: Any) -> int:
    """In a process of its own: in this one other tests have left freed memory that a model may use."""
    words = [sys.executable, "-c", PLAN, str(scene), str(output), str(model), json.dumps(options)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def peak_mb(scene: Path, output: Path, model: Path, nodata: list[int] | None = None, **options: Any) -> float:
    words = [sys.executable, "-c", SCRIPT, str(scene), str(output), str(model), json.dumps(nodata or [])]
    words += [json.dumps(options)]
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


COMMAND = """
import sys
from cegate_geo.cli.main import main
assert main(["predict", *sys.argv[1:]]) == 0
lines = open("/proc/self/status").read().splitlines()
print("peak", next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
"""


def command_peak_mb(*words: str | Path) -> float:
    """Of the command line, whose process gives memory back."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *map(str, words)], check=True, capture_output=True, text=True)
    return float(done.stdout.rpartition("peak ")[2])


def test_memory_does_not_grow_with_the_width_of_the_scene(tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx", size=512, halo=32)
    peaks = []
    for width in (10_000, 40_000):
        scene = empty_scene(tmp_path / f"{width}.tif", (4000, width), 0.13)
        peaks.append(command_peak_mb(scene, "-o", tmp_path / f"{width}_mask.tif", "-m", model))
    assert peaks[1] - peaks[0] <= 50


def empty_scene(path: Path, shape: tuple[int, int], gsd_m: float, **more: Any) -> Path:
    """A sparse scene with some noise at its top."""
    where = {"crs": "EPSG:32645", "transform": Affine(gsd_m, 0, 300_000, 0, -gsd_m, 3_000_000)}
    with rasterio.open(
        path, "w", driver="GTiff", width=shape[1], height=shape[0], count=3, dtype="uint8", photometric="RGB",
        tiled=True, blockxsize=512, blockysize=512, interleave="pixel", sparse_ok=True, **where, **more,
    ) as dataset:  # fmt: skip
        dataset.write(toys.noise((500, shape[1])), window=rasterio.windows.Window(0, 0, shape[1], 500))
    return path


@pytest.mark.parametrize(("gsd_m", "heights", "width"), [(0.03, (6000, 24_000), 3000), (0.5, (1400, 4200), 600)])
@pytest.mark.parametrize("gsd", ["source", "model"])
def test_memory_does_not_grow_when_the_scene_is_resampled(
    tmp_path: Path, gsd_m: float, heights: tuple[int, int], width: int, gsd: str
) -> None:
    model = toys.brightness(tmp_path / "m.onnx", size=256, halo=32)
    peaks = []
    for height in heights:
        scene = empty_scene(tmp_path / f"{height}.tif", (height, width), gsd_m)
        peaks.append(peak_mb(scene, tmp_path / f"{height}_mask.tif", model, gsd=gsd))
    assert peaks[1] - peaks[0] <= 50


@pytest.mark.parametrize(("gsd_m", "shape"), [(0.03, (1500, 8000)), (0.5, (600, 2500))])
def test_a_wide_resampled_scene_stays_within_the_memory_that_it_is_given(
    tmp_path: Path, gsd_m: float, shape: tuple[int, int]
) -> None:
    """With 19 classes, all probabilities written: cut into shards as narrow as that takes."""
    legend = Legend.from_names({n: f"class {n}" for n in range(19)})
    weights = {"kernel": np.full((19, 3, 1, 1), 1 / 57, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"])]
    model = toys.save(
        tmp_path / "m.onnx", toys.manifest(size=256, halo=32, legend=legend), nodes, weights, classes=19,
        sides=(256, 256),
    )  # fmt: skip
    scene = empty_scene(tmp_path / "scene.tif", shape, gsd_m)
    options = {"max_memory_mb": 512, "probabilities": str(tmp_path / "p.tif"), "confidence": str(tmp_path / "c.tif")}
    assert peak_mb(scene, tmp_path / "mask.tif", model, **options) <= 512


def test_a_scene_of_a_hundred_thousand_columns_stays_within_the_memory_that_it_is_given(tmp_path: Path) -> None:
    """With 19 classes a band of it in full width would take gigabytes: it is stitched in strips."""
    legend = Legend.from_names({n: f"class {n}" for n in range(19)})
    weights = {"kernel": np.full((19, 3, 1, 1), 1 / 57, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"])]
    model = toys.save(
        tmp_path / "m.onnx", toys.manifest(size=256, halo=32, legend=legend), nodes, weights, classes=19,
        sides=(256, 256),
    )  # fmt: skip
    scene = empty_scene(tmp_path / "scene.tif", (500, 100_000), 0.13)
    assert peak_mb(scene, tmp_path / "mask.tif", model, max_memory_mb=512) <= 512


def test_a_cog_of_many_bands_takes_no_more_memory_where_it_is_wider(tmp_path: Path) -> None:
    """Overviews of all bands at once took 100 MB more for 12,000 columns."""
    code = """
import sys
from pathlib import Path
import numpy as np
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.writer import RasterWriter, make_cog, probability_raster
from tests import toy_models as toys
width = int(sys.argv[2])
kind = probability_raster(Legend.from_names({n: f"class {n}" for n in range(19)}))
with gdal_settings(""):
    place = Georeference(shape=(512, width), **toys.UTM)
    with RasterWriter(Path(sys.argv[1] + ".tif"), place, kind, tags={}) as writer:
        for col in range(0, width, 1024):
            window = Window(col_off=col, row_off=0, width=1024, height=512)
            writer.write(window, np.full((19, 512, 1024), col % 251, np.uint8), valid=np.ones((512, 1024), bool))
    make_cog(Path(sys.argv[1] + ".tif"), Path(sys.argv[1] + "_cog.tif"), kind)
lines = open("/proc/self/status").read().splitlines()
print("peak", next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10)
"""
    peaks = []
    for width in (3072, 12_288):
        words = [sys.executable, "-c", code, str(tmp_path / str(width)), str(width)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout.rpartition("peak ")[2]))
    assert peaks[1] - peaks[0] <= 60, peaks


def hungry(path: Path) -> Path:
    """A model that takes some 130 MB for what lies between its input and its output."""
    weights: dict[str, Any] = {
        "a": np.full((64, 3, 1, 1), 0.01, np.float32),
        "b": np.full((64, 64, 1, 1), 0.01, np.float32),
        "c": np.full((2, 64, 1, 1), 0.01, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Conv", ["p", "b"], ["q"]),
        helper.make_node("Conv", ["q", "c"], ["y"]),
    ]
    return toys.save(path, toys.manifest(2, size=512, halo=32), nodes, weights, classes=2, sides=(512, 512))


def test_what_a_model_takes_within_a_call_is_part_of_the_plan(tmp_path: Path) -> None:
    """A limit below it is refused before anything is read, and the one that the refusal names holds."""
    model, scene = hungry(tmp_path / "m.onnx"), toys.write_raster(tmp_path / "s.tif", toys.noise((600, 700)))
    before = sorted(tmp_path.iterdir())
    words = ["predict", scene, "-o", tmp_path / "mask.tif", "-m", model, "--max-memory=200M"]
    done = subprocess.run(
        [sys.executable, "-m", "cegate_geo", *map(str, words)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    told = re.search(r"--max-memory 200M does not suffice: .* about (\d+) MB .* Give --max-memory (\d+)M", done.stderr)
    assert told is not None, done.stderr
    assert sorted(tmp_path.iterdir()) == before
    peak = command_peak_mb(*words[1:-1], f"--max-memory={told[2]}M")
    assert 250 < peak <= int(told[2])
    assert 0.75 * int(told[1]) <= peak


@pytest.mark.parametrize(("shape", "with_all"), [((1500, 6000), False), ((700, 3000), True)])
def test_a_plan_tells_what_a_run_takes(tmp_path: Path, shape: tuple[int, int], with_all: bool) -> None:
    """At most, and not much more than it takes."""
    legend = Legend.from_names({n: f"class {n}" for n in range(19)})
    weights = {"kernel": np.full((19, 3, 1, 1), 1 / 57, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"])]
    model = toys.save(
        tmp_path / "m.onnx", toys.manifest(size=256, halo=32, legend=legend), nodes, weights, classes=19,
        sides=(256, 256),
    )  # fmt: skip
    scene = empty_scene(tmp_path / "scene.tif", shape, 0.13)
    more = {"probabilities": str(tmp_path / "p.tif"), "confidence": str(tmp_path / "c.tif")} if with_all else {}
    planned = planned_mb(scene, tmp_path / "mask.tif", model, **more)
    peak = peak_mb(scene, tmp_path / "mask.tif", model, **more)
    assert 0.75 * planned <= peak <= planned <= 512


@pytest.mark.shared_data
def test_the_drone_scene_needs_less_than_a_gigabyte(shared_data: Path, tmp_path: Path) -> None:
    model = toys.brightness(tmp_path / "m.onnx", size=512, halo=64)
    scene = shared_data / "scene" / "banepa_11264x8704_rgb.tif"
    assert peak_mb(scene, tmp_path / "mask.tif", model, [255, 255, 255]) < 600
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.shape, mask.crs, mask.transform) == (source.shape, source.crs, source.transform)
        assert mask.read_masks(1)[4000, 4000] == 255
        assert mask.read_masks(1)[800, 11_200] == mask.read_masks(1)[6300, 8750] == 0, "the two holes"
