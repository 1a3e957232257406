"""`make bench` in small: that it runs, and that what it says of a run is so."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import toy_models as toys

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "engine"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a module of the benchmark by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in ("made", "masks", "measure", "page", "seams"):
        if name not in before:
            sys.modules.pop(name, None)


def test_the_quick_benchmark_measures_all_but_geodeep_and_writes_the_page(tmp_path: Path) -> None:
    words = [sys.executable, str(FOLDER), "--quick", "-o", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "benchmark_engine.json").read_text(encoding="utf-8"))
    free, real = results["cases"]
    for case in (free, real):
        assert case["tiles"] == 9
        assert set(case["contestants"]) == {"engine", "bare", "loop"}
        for one in case["contestants"].values():
            (run,) = one["runs"]
            assert run["seconds"] > 0
            assert run["cpu_s"] > 0
            assert run["peak_mb"] > 30
    assert free["contestants"]["loop"]["agreement"] == 1, "a model that sees one pixel gives the same, however tiled"
    assert 0.99 < real["contestants"]["loop"]["agreement"] <= 1
    assert [row["scene_px"] for row in results["scaling"]] == [1024, 1536]
    page = (tmp_path / "benchmark_engine.md").read_text(encoding="utf-8")
    assert results["commit"] in page
    assert results["machine"]["cpu"] in page
    assert "benchmarks/engine --quick" in page
    assert "plain loop" in (tmp_path / "images" / "benchmark_engine.svg").read_text(encoding="utf-8")


HUNGRY = "import time; held = bytearray(200 << 20); time.sleep(1)"


def test_memory_is_that_of_the_whole_tree(part: Any) -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HUNGRY!r}], check=True)"
    usage = part("measure").measure([sys.executable, "-c", parent])
    assert 200 < usage.peak_mb < 300
    assert usage.seconds > 1


def test_a_run_that_fails_is_no_figure(part: Any) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3(.|\n)*no such scene"):
        part("measure").measure([sys.executable, "-c", "print('no such scene'); raise SystemExit(3)"])


def test_masks_agree_where_their_classes_do(part: Any, tmp_path: Path) -> None:
    left = np.zeros((1, 40, 50), np.uint8)
    right = left.copy()
    right[0, :10] = 1
    paths = [toys.write_raster(tmp_path / f"{n}.tif", values) for n, values in enumerate((left, right))]
    assert part("masks").agreement(*paths) == 0.75


@pytest.mark.parametrize(("size", "overlap"), [(1024, 64), (10_000, 64), (10_000, 256)])
def test_tiles_of_each_contestant_cover_the_scene_once(part: Any, size: int, overlap: int) -> None:
    seams = part("seams")
    for plan in (seams.engine_plan, seams.geodeep_plan, seams.loop_plan):
        axis = plan(size, overlap).rows
        cores = [axis.core(n) for n in range(len(axis))]
        assert [start for start, _ in cores] == [0, *(stop for _, stop in cores[:-1])]
        assert cores[-1][1] == size
        for (start, stop), offset in zip(cores, axis.offsets, strict=True):
            assert offset <= start < stop <= offset + axis.size


def test_the_ratio_is_that_of_turns_not_of_medians(part: Any) -> None:
    """A machine that gets slower hits both alike, turn by turn."""
    runs = {
        "engine": [{"seconds": s, "cpu_s": 1, "peak_mb": 1, "others": 0} for s in (1, 4, 2)],
        "loop": [{"seconds": s, "cpu_s": 1, "peak_mb": 1, "others": 0} for s in (2, 8, 16)],
    }
    contestants = {key: {"runs": value, "seam": None, "agreement": None} for key, value in runs.items()}
    case = {"model": "m", "scene_px": 1, "overlap_px": 64, "tiles": 1, "contestants": contestants}
    (row,) = (line for line in part("page")._case(case).splitlines() if line.startswith("| plain loop"))
    assert row.split("|")[6].strip() == "0.50"
