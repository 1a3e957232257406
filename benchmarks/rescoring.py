"""What the gate's scoring costs beside training: the shipped base, 16 samples every 100 steps of 4 chips.

    python benchmarks/rescoring.py [--crop 384] [--steps 20] [--device cpu] [--precision bf16]

Times steps and scorings of one job, in turns, so that other work on the machine meets both; and scorings of one chip at
a time, beside those that take as many chips in one pass as a step has. The share is that of a scoring in 100 steps with
one scoring, of medians, each with its chips. Pixels and labels are noise: time does not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine

from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.job import make_job
from cegate_geo.train.memory import keep_freed_memory
from cegate_geo.train.ranks import alone
from cegate_geo.train.steps import choose_modules, read_batch, take_step

SAMPLES, EVERY, BATCH = 16, 100, 4


def main() -> None:
    """Print seconds of a step and of a scoring, and the share that scoring takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=384)
    parser.add_argument("--steps", type=int, default=20, help="steps to time, with a scoring after every fourth")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(configuration(Path(folder), given), Path(folder), ranks=alone(given.device), provenance=None)
        together = job.run.config
        single = dataclasses.replace(together, train=dataclasses.replace(together.train, batch_size=1))
        steps, scorings, loops = [], [], []
        choose_modules(job, 0)
        take_step(job, 0, read_batch(job, 0))  # what is done once is not counted
        for step in range(1, given.steps + 1):
            steps.append(timed(lambda step=step: take_step(job, step, read_batch(job, step)), job.device))
            if step % 4 == 0:
                job.run.config = single
                loops.append(timed(lambda step=step: choose_modules(job, step), job.device))
                job.run.config = together
                scorings.append(timed(lambda step=step: choose_modules(job, step), job.device))
                shallowest = min(key.layer for key in job.gate.active)
                print(
                    f"step {step}: {steps[-1]:.2f} s, scoring {scorings[-1]:.2f} s (one chip at a time "
                    f"{loops[-1]:.2f} s), shallowest block {shallowest}",
                    flush=True,
                )
    step = statistics.median(steps)
    print(f"{job.device}, {job.precision}, {torch.get_num_threads()} threads, chips of {given.crop} px")
    print(f"a step of {BATCH}, with its chips: {step:.3f} s")
    for what, scoring in ((f"{BATCH} chips", statistics.median(scorings)), ("one chip", statistics.median(loops))):
        share = scoring / (EVERY * step + scoring)
        print(f"a scoring of {SAMPLES}, {what} at a time: {scoring:.2f} s; share {share:.1%}")


def configuration(folder: Path, given: argparse.Namespace) -> AdaptConfig:
    """The defaults of `adapt --images --labels`, on noise."""
    rng = np.random.default_rng(0)
    side = 4 * given.crop
    for name, values in (
        ("image", rng.integers(0, 255, (3, side, side))),
        ("labels", rng.integers(0, 2, (1, side, side))),
    ):
        profile = {"count": len(values), "height": side, "width": side, "dtype": "uint8", "crs": "EPSG:32645"}
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", transform=Affine(0.5, 0, 6e5, 0, -0.5, 4e6), **profile
        ) as target:
            target.write(values.astype(np.uint8))
    table = {
        "classes": {"0": "other", "1": "object"},
        "source": [{"images": str(folder / "image.tif"), "labels": str(folder / "labels.tif")}],
        "model": {
            "backbone": "vit_tiny_patch16_224", "weights": "shipped", "head": "dpt-detail", "head_dim": 64,
            "tile_size": given.crop,
        },
        "peft": {"samples": SAMPLES, "every": EVERY, "budget": 0.25},
        "train": {
            "crop": given.crop, "batch_size": BATCH, "validation": 0.0, "precision": given.precision, "lr": 1e-3,
        },
    }  # fmt: skip
    return build(AdaptConfig, table)


def timed(work: object, device: str) -> float:
    """Seconds of a call: on a CPU those of the processor, which other work hardly changes, else those of the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    work()  # type: ignore[operator]
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    main()
