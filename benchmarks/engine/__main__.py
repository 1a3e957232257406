"""This engine beside GeoDeep, a plain loop, and the bare session: seconds, memory, seams. Linux and macOS.

    make bench                                  # everything; writes into docs/
    python benchmarks/engine --quick -o OUT     # seconds, without GeoDeep: whether the benchmark works
    python benchmarks/engine --page docs        # the page and the plot again, from the figures that are there

Every run is a process of its own, and the contestants take turns, so that all see the machine in the same states.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import made
import masks
import numpy as np
import page
import rasterio
import seams
from measure import Usage, commit, machine, measure

from cegate_geo.infer.tiles import TilePlan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEM = "benchmark_engine"
FREE, REAL = "nearly free", "ViT-S/16"
STAND_IN = "convolutions"
"""Instead of REAL in quick runs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on one scene with one overlap."""

    name: str
    model: Path
    scene: Path
    size: int
    """Side of the scene in pixels."""
    overlap: int
    """Pixels that neighbouring tiles share, at least."""
    folder: Path
    """For masks and tiles."""

    @property
    def tiles(self) -> int:
        """Session calls of the engine."""
        return len(seams.engine_plan(self.size, self.overlap))

    def mask(self, contestant: str) -> Path:
        """Where a contestant's result goes."""
        return self.folder / f"{contestant}.tif"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something that is measured."""

    key: str
    words: Callable[[Case], list[str | Path]]
    """Its command line."""
    plan: Callable[[int, int], TilePlan] | None = None
    """How it lays and joins tiles, by side of the scene and overlap; None where it makes no mask."""
    heavy: bool = True
    """Whether it runs on the real model, too."""


@dataclass
class Record:
    """What came of a contestant in a case."""

    runs: list[Usage] = field(default_factory=list)
    seam: float | None = None
    """Largest step of a probability across tile edges that comes from joining tiles, 0 to 1."""
    agreement: float | None = None
    """Share of pixels with the engine's class."""


def engine_words(case: Case) -> list[str | Path]:
    return [
        sys.executable, "-m", "cegate_geo", "predict", case.scene, "-o", case.mask("engine"), "-m", case.model,
        "--provider", "cpu", "--overwrite",
    ]  # fmt: skip


def bare_words(case: Case) -> list[str | Path]:
    tiles = case.folder / "tiles.npy"
    if not tiles.exists():
        np.save(tiles, made.first_tiles(case.scene, 8))
    return [sys.executable, HERE / "bare_session.py", case.model, tiles, str(case.tiles)]


def loop_words(case: Case) -> list[str | Path]:
    words = [sys.executable, HERE / "plain_loop.py", case.scene, case.model, case.mask("loop")]
    return [*words, str(made.TILE), str(case.overlap)]


def contestants(geodeep: Path | None) -> list[Contestant]:
    """Who takes part. `geodeep`: the command of GeoDeep's environment."""
    found = [
        Contestant(key="engine", words=engine_words, plan=seams.engine_plan),
        Contestant(key="bare", words=bare_words),
        Contestant(key="loop", words=loop_words, plan=seams.loop_plan),
    ]
    if geodeep is None:
        return found

    def words(case: Case, command: Sequence[str | Path], key: str) -> list[str | Path]:
        return [*command, case.scene, case.model, "-t", "mask", "-o", case.mask(key), "-q"]

    unfiltered = [geodeep.with_name("python"), HERE / "without_median.py"]
    return [
        *found,
        Contestant(key="geodeep", words=lambda c: words(c, [geodeep], "geodeep"), plan=seams.geodeep_plan),
        Contestant(
            key="geodeep-unfiltered", words=lambda c: words(c, unfiltered, "geodeep-unfiltered"),
            plan=seams.geodeep_plan, heavy=False,
        ),
    ]  # fmt: skip


def run_case(case: Case, taking_part: Sequence[Contestant], repeats: int) -> dict[str, Any]:
    """All contestants in turn, `repeats` times; then what their masks and seams are."""
    case.folder.mkdir()
    records = {one.key: Record() for one in taking_part}
    for repeat in range(repeats):
        for one in taking_part:
            usage = measure(one.words(case), environment=_environment())
            records[one.key].runs.append(usage)
            _say(f"{case.name}, overlap {case.overlap}, {one.key}, run {repeat + 1}", usage)
    for one in taking_part:
        if one.plan is not None:
            record = records[one.key]
            record.agreement = masks.agreement(case.mask(one.key), case.mask("engine"))
            record.seam = seams.largest_step(case.model, case.scene, one.plan(case.size, case.overlap))
    return {
        "model": case.name, "scene_px": case.size, "overlap_px": case.overlap, "tiles": case.tiles,
        "contestants": {key: dataclasses.asdict(record) for key, record in records.items()},
    }  # fmt: skip


def run_scaling(scene: Path, size: int, overlap: int, model: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """The engine alone on a scene of `size`."""
    case = Case(name="scaling", model=model, scene=scene, size=size, overlap=overlap, folder=folder)
    folder.mkdir()
    runs = []
    for repeat in range(repeats):
        runs.append(measure(engine_words(case), environment=_environment()))
        _say(f"scaling, {size} px, run {repeat + 1}", runs[-1])
    return {
        "scene_px": size,
        "overlap_px": overlap,
        "tiles": case.tiles,
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def _environment() -> dict[str, str]:
    """The engine of this checkout, whichever is installed."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def _say(what: str, usage: Usage) -> None:
    print(
        f"{what:<48}{usage.seconds:>8.2f} s {usage.cpu_s:>8.2f} CPU s {usage.peak_mb:>7.0f} MB"
        f"   others {usage.others:.0%}", flush=True,
    )  # fmt: skip


def versions(geodeep: Path | None) -> dict[str, str]:
    """Of what was measured."""
    found = {name: importlib.metadata.version(name) for name in ("onnxruntime", "numpy", "rasterio")}
    found["gdal"] = rasterio.__gdal_version__
    if geodeep is not None:
        names = ("geodeep", "scipy", "onnxruntime", "rasterio")
        program = f"import importlib.metadata as m; print(*(m.version(n) for n in {names}))"
        done = subprocess.run([geodeep.with_name("python"), "-c", program], check=True, capture_output=True, text=True)
        theirs = done.stdout.split()
        found |= {"geodeep": theirs[0]}
        found |= {f"{name} beside geodeep": value for name, value in zip(names[1:], theirs[1:], strict=True)}
    return found


def run_all(options: argparse.Namespace, work: Path) -> None:
    """Make what is measured on, measure, and write what is known after each case."""
    quick = options.quick
    overlaps, sizes = ((64,), (1024, 1536)) if quick else (options.overlaps, options.scaling)
    size, real_sizes = (1024, (1024,)) if quick else (options.size, options.real_size)
    real_sizes = (real_sizes * len(overlaps))[: len(overlaps)]
    taking_part = contestants(options.geodeep)
    free = [made.make_nearly_free(work / f"free-{overlap}.onnx", overlap=overlap) for overlap in overlaps]
    if quick:
        name, real = STAND_IN, [made.make_convolutions(work / f"real-{o}.onnx", overlap=o) for o in overlaps]
    else:
        name, real = REAL, made.make_vit(work, overlaps)
    scenes = {n: made.make_scene(work / f"{n}.tif", n) for n in {size, *real_sizes}}
    os.sync()  # nothing is to be written back while others are timed
    results = about(options)
    for kind, sides, models in ((FREE, (size,) * len(overlaps), free), (name, real_sizes, real)):
        for overlap, side, model in zip(overlaps, sides, models, strict=True):
            folder = work / f"{model.stem}-case"
            case = Case(name=kind, model=model, scene=scenes[side], size=side, overlap=overlap, folder=folder)
            fit = [one for one in taking_part if one.heavy or kind == FREE]
            results["cases"].append(run_case(case, fit, options.repeats))
            write(results, options.output)
    for side in sizes:
        scene = scenes.get(side) or made.make_scene(work / f"{side}.tif", side)
        os.sync()
        results["scaling"].append(
            run_scaling(scene, side, overlaps[0], free[0], work / f"scaling-{side}", options.repeats)
        )
        scene.unlink()
        write(results, options.output)


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures have to be told with, and no figures yet."""
    typed = " ".join(["python", "benchmarks/engine", *sys.argv[1:]])
    made_by = " ".join(["make bench", *([f"BENCH_ARGS='{options.make_args}'"] if options.make_args else [])])
    return {
        "command": typed if options.make_args is None else made_by,
        "commit": commit(ROOT), "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(), "versions": versions(options.geodeep), "repeats": options.repeats,
        "cases": [], "scaling": [],
    }  # fmt: skip


def write(results: dict[str, Any], folder: Path) -> None:
    """Figures, page and plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{STEM}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.write(results, folder, STEM)


def numbers(text: str) -> tuple[int, ...]:
    """'64,256' as numbers."""
    return tuple(int(part) for part in text.split(",") if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs", help="folder of the page and its images/")
    parser.add_argument("--geodeep", type=Path, help="GeoDeep's command, in an environment of its own")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contestant in each case")
    parser.add_argument("--size", type=int, default=10_000, help="side of the scene for the nearly free model, in px")
    parser.add_argument(
        "--real-size", type=numbers, default=(5000, 3072), metavar="PX[,PX]",
        help="side of the scene for the real model, in px: one, or one for each overlap",
    )  # fmt: skip
    parser.add_argument("--overlaps", type=numbers, default=(64, 256), metavar="PX,PX", help="of neighbouring tiles")
    parser.add_argument(
        "--scaling", type=numbers, default=(5000, 10_000, 20_000), metavar="PX,PX",
        help="sides of the growing scenes; 40000 takes 5 GB",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small scenes, a small model, one run of each")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="measure nothing, write page and plot again")
    parser.add_argument("--work", type=Path, help="where scenes and masks are made, 3 GB; default: a temporary folder")
    parser.add_argument("--make-args", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page:
        results = json.loads((options.page / f"{STEM}.json").read_text(encoding="utf-8"))
        page.write(results, options.page, STEM)
        return
    if options.quick:
        options.repeats = 1
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        run_all(options, Path(work))
    print(options.output / f"{STEM}.md")


if __name__ == "__main__":
    main()
