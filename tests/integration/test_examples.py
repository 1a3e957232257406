"""Every script in examples/ runs as its text says, one after another, as a reader would try them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import rasterio

from cegate_geo.demo.regions import REGION_A, RegionFiles, make_region, write_region

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert not check or finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> RegionFiles:
    spec = replace(REGION_A, shape=(256, 256), gsd_m=0.6)
    return write_region(make_region(spec, 1), tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def adapted(region: RegionFiles, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run") / "run"
    options = ("--weights", "random", "--steps", 2, "--crop", 64)
    finished = run("adapt_from_python.py", region.scene, region.labels, "class", folder, *options)
    return folder / "model.onnx", finished.stdout


def test_adapt_from_python_leaves_a_model_and_says_what_the_gate_kept(adapted: tuple[Path, str]) -> None:
    model, said = adapted
    assert model.is_file()
    assert "mean IoU on held-out blocks" in said
    assert "of 36 modules: blocks." in said


def test_predict_scene_then_inspect_mask(adapted: tuple[Path, str], region: RegionFiles, tmp_path: Path) -> None:
    mask = tmp_path / "mask.tif"
    said = run("predict_scene.py", region.scene, mask, "--model", adapted[0])
    assert "100%" in said.stderr
    assert "polygons in" in said.stdout
    assert mask.with_suffix(".gpkg").is_file()
    with rasterio.open(mask) as written, rasterio.open(region.scene) as scene:
        assert (written.crs, written.transform, written.shape) == (scene.crs, scene.transform, scene.shape)
    seen = run("inspect_mask.py", mask).stdout
    assert "EPSG:32632" in seen
    for name in ("other", "building", "road", "tree", "water"):
        assert name in seen
    shares = [float(word[:-1]) for word in seen.split() if word.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.05)


def test_every_example_is_run_by_a_test_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {"adapt_from_python.py", "predict_scene.py", "inspect_mask.py"}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in scripts)
