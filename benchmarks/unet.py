"""A small U-Net from scratch on the demo model's labels: what one has without a foundation model.

    python benchmarks/unet.py IMAGERY -o RUNS [--seeds 3] [--steps 700] [--side 256] [--batch-size 8]

IMAGERY is the folder that the paths of `buildings.toml` and of its recipe start from. Labels, splits, augmentation,
loss, schedule and the choice of weights on held-out blocks of the source are the recipe's; the network (0.37 M
parameters), its steps, its chips and its rate are its own. Writes RUNS/unet-SEED/ with `model.onnx`, `metrics.jsonl`
and `regions.json`, and prints a table; complete runs are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from cegate_geo.domain.manifest import Manifest
from cegate_geo.train.chips import ChipSampler, read_tile, validation_tiles
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build, read_toml
from cegate_geo.train.job import DATA_STREAM, collect_facts, read_areas
from cegate_geo.train.onnx_graph import build_graph
from cegate_geo.train.run_files import write_text
from cegate_geo.train.steps import learning_rate, segmentation_loss
from cegate_geo.train.unet import WIDTHS, UNet
from cegate_geo.train.validation import validate

SUITE = Path(__file__).with_name("buildings.toml")
"""The demo model's own benchmark: its recipe, and where it is measured."""
RATE = 2e-3
VALIDATE_EVERY = 100


class Control(nn.Module):
    """A `UNet` on images in 0-1 units.

    Args:
        classes: Number of classes K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.unet = UNet(classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in 0-1 units → logits (N, K, H, W); H and W are multiples of 8."""
        logits: torch.Tensor = self.unet((images - 0.45) / 0.225)
        return logits


def main() -> None:
    """Train what is missing, then measure it where the demo model is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("imagery", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    runs, found = given.output.resolve(), []
    for seed in range(given.seeds):
        run = runs / f"unet-{seed}"
        if not (run / "model.onnx").is_file():
            run.mkdir(parents=True, exist_ok=True)
            train(run, configure(seed, given), given.imagery)
        found.append(measure(run, given.imagery))
    for region in found[0]:
        means, buildings = ([100 * figure(one[region]) for one in found] for figure in (mean_iou, building_iou))
        print(f"{region:<24} mean IoU {spread(means)}, IoU of buildings {spread(buildings)}, {len(found)} seeds")


def mean_iou(metrics: dict[str, Any]) -> float:
    """Of both classes."""
    return float(metrics["miou"])


def building_iou(metrics: dict[str, Any]) -> float:
    """Of the class that counts."""
    return float(metrics["per_class"][1]["iou"])


def spread(values: list[float]) -> str:
    """'mean ± standard deviation'."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def measure(run: Path, imagery: Path) -> dict[str, dict[str, Any]]:
    """Figures of a run by region; those that it has are not made again."""
    path = run / "regions.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for test in read_toml(SUITE)["setting"][0]["test"]:
        if test["name"] in found:
            continue
        words = ["evaluate", "--model", str(run / "model.onnx"), "--images", test["images"], "--labels", test["labels"]]
        for name in ("rows", "cols"):
            words += [f"--{name}", ":".join(map(str, test[name]))] if name in test else []
        command = [sys.executable, "-m", "cegate_geo", *words, "--json", "-"]
        done = subprocess.run(command, cwd=imagery, stdout=subprocess.PIPE, text=True, check=True)
        found[test["name"]] = json.loads(done.stdout)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def configure(seed: int, given: argparse.Namespace) -> AdaptConfig:
    """The recipe with the U-Net's own steps, chips and batch."""
    config = build(AdaptConfig, read_toml(SUITE.parent / read_toml(SUITE)["config"]))
    train = dataclasses.replace(
        config.train, seed=seed, steps=given.steps, crop=given.side, batch_size=given.batch_size, precision="fp32"
    )
    return dataclasses.replace(config, train=train)


def train(run: Path, config: AdaptConfig, imagery: Path) -> None:
    """Train one network and export it with its contract."""
    os.chdir(imagery)
    began, settings = time.monotonic(), config.train
    scenes, areas, held_out = read_areas(config)
    sampler = ChipSampler(
        areas,
        crop=settings.crop,
        scale=settings.scale,
        balance=settings.balance,
        classes=len(config.legend),
        photometric=settings.photometric,
    )
    tiles = [read_tile(area, window) for area, window in validation_tiles(held_out, crop=config.model.tile_size)]
    torch.manual_seed(settings.seed)
    model = Control(len(config.legend))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=settings.weight_decay)
    best, kept = -1.0, model.state_dict()
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * learning_rate(step, settings)
            chips = [np.random.default_rng([settings.seed, DATA_STREAM, step, n]) for n in range(settings.batch_size)]
            images, labels = sampler.batch(chips)
            model.train()
            loss = segmentation_loss(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.write(json.dumps({"step": step, "loss": float(loss.detach())}) + "\n")
            if (step + 1) % VALIDATE_EVERY == 0 or step + 1 == settings.steps:
                # Typed for our own segmenter; any module of images to logits will do.
                metrics = validate(model, tiles, config.legend, device="cpu", precision="fp32").metrics()  # type: ignore[arg-type]
                miou = metrics["miou"] or 0.0
                log.write(json.dumps({"step": step, "validation": metrics}) + "\n")
                log.flush()
                print(f"{run.name} step {step + 1}: {miou:.3f} on the source's held-out blocks", file=sys.stderr)
                if miou > best:
                    best, kept = miou, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    export(model, manifest(config, collect_facts(config, scenes, sampler, None)), run / "model.onnx")
    write_text(run / "result.json", json.dumps({"miou": best, "seconds": time.monotonic() - began}))


def manifest(config: AdaptConfig, facts: dict[str, Any]) -> Manifest:
    """The same contract as the demo model's."""
    low, high = facts["gsd_range_m"]
    return Manifest(
        name="unet-control",
        legend=config.legend,
        bands=("red", "green", "blue"),
        gsd_m=facts["gsd_m"],
        gsd_range_m=(low, high),
        tile_size=config.model.tile_size,
        halo=config.model.tile_size // 8,
        architecture="U-Net, widths " + " ".join(map(str, WIDTHS)),
    )


def export(model: Control, contract: Manifest, path: Path) -> None:
    """One ONNX file with the manifest in it."""
    graph = build_graph(model.eval(), tile_size=contract.tile_size)
    onnx.helper.set_model_props(graph, contract.to_metadata())
    part = path.with_name(path.name + ".part")
    part.write_bytes(graph.SerializeToString(deterministic=True))
    part.replace(path)


if __name__ == "__main__":
    main()
