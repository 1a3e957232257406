"""Accuracy of the demo model's recipe: methods x seeds, on held-out rows of its scene and on regions without a label.

    python benchmarks/buildings.py IMAGERY -o RUNS [--method gate] [--method frozen] [--seeds 3]

IMAGERY is the folder that the recipe's paths start from, with buildings/ beside scene/. Every run is one `cegate-geo
adapt`; those that are complete in RUNS are not repeated, others are resumed. The weights of a run are chosen on
held-out blocks of the source; the regions are only measured. Writes RUNS/figures.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parents[1] / "models" / "recipes" / "buildings.toml"
REGIONS: dict[str, tuple[str, str, list[str]]] = {
    "banepa, held-out rows": (
        "scene/banepa_11264x8704_rgb.tif",
        "scene/banepa_mask_central_block.tif",
        ["--rows", "6656:7680", "--cols", "3584:6656"],
    ),
    "banepa-2": ("buildings/banepa2_z20_b?.tif", "buildings/banepa2_z20_b?_mask.tif", []),
    "kampala": ("buildings/kampala_z20_b?.tif", "buildings/kampala_z20_b?_mask.tif", []),
    "zanzibar": ("buildings/zanzibar_z20_b?.tif", "buildings/zanzibar_z20_b?_mask.tif", []),
}


def main() -> None:
    """Run what is missing, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("imagery", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--method", action="append", help="a method of [peft]; default: gate and frozen")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    runs = given.output.resolve()
    table: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for method in given.method or ["gate", "frozen"]:
        for seed in range(given.seeds):
            run = runs / f"{method}-{seed}"
            adapt(run, given.imagery, method, seed)
            for region, found in evaluate(run, given.imagery).items():
                table.setdefault(method, {}).setdefault(region, []).append(found)
    (runs / "figures.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print("\n".join(rows(table)))


def adapt(run: Path, imagery: Path, method: str, seed: int) -> None:
    """Train, go on with training, or do nothing where it is done."""
    if (run / "model.onnx").is_file():
        return
    words = ["adapt", str(RECIPE), "-o", str(run), "--seed", str(seed), "--set", f"peft.method={method}"]
    call([*words, *(["--resume"] if (run / "state" / "state.json").is_file() else [])], imagery)


def evaluate(run: Path, imagery: Path) -> dict[str, dict[str, Any]]:
    """Figures of a run by region; those that it has are not made again."""
    path = run / "regions.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for region, (images, labels, window) in REGIONS.items():
        if region not in found:
            words = ["evaluate", "--model", str(run / "model.onnx"), "--images", images, "--labels", labels, *window]
            found[region] = json.loads(call([*words, "--json", "-"], imagery))
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def call(words: list[str], folder: Path) -> str:
    """Output of one `cegate-geo` command."""
    done = subprocess.run(
        [sys.executable, "-m", "cegate_geo", *words], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def rows(table: dict[str, dict[str, list[dict[str, Any]]]]) -> Iterable[str]:
    """Mean and standard deviation over the seeds, in IoU points of 100."""
    yield f"{'':<24}{'method':<16}{'mean IoU':>14}{'IoU building':>16}{'seeds':>8}"
    for region in REGIONS:
        for method, found in table.items():
            runs = found[region]
            means = spread([100 * m["miou"] for m in runs])
            buildings = spread([100 * m["per_class"][1]["iou"] for m in runs])
            yield f"{region:<24}{method:<16}{means:>14}{buildings:>16}{len(runs):>8}"


def spread(values: list[float]) -> str:
    """'mean ± standard deviation'."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
