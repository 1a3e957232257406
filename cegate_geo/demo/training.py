"""The demo where torch is installed: adapt on the first region, predict the second, beside a frozen backbone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import rasterio

from cegate_geo.api import PredictResult, predict
from cegate_geo.demo.progress import Clock
from cegate_geo.demo.regions import LABEL_FIELD, Region, RegionFiles
from cegate_geo.demo.scene import CLASS_COLORS, CLASS_NAMES, demo_legend
from cegate_geo.demo.story import GateView, Outcome, Story
from cegate_geo.errors import ModelError
from cegate_geo.peft import KINDS, ModuleKey, Selection
from cegate_geo.train.config import (
    AdaptConfig,
    FrequencyConfig,
    ModelConfig,
    PeftConfig,
    SemanticConfig,
    SourceConfig,
    SpatialConfig,
    TrainConfig,
)
from cegate_geo.train.evaluate import evaluate_mask
from cegate_geo.train.export import ExportReport, export_run
from cegate_geo.train.loop import AdaptProgress, adapt
from cegate_geo.train.memory import keep_freed_memory
from cegate_geo.train.run import shipped_base

if TYPE_CHECKING:
    from cegate_geo.demo.run import DemoSettings

MIN_AREA_M2 = 3.0
"""Smaller polygons are left out."""

FILES = (
    ("model.onnx", "the adapted model: classes, colours, bands, pixel size and origin travel inside"),
    ("mask.tif", "region B's classes on the grid of its imagery; open it in any GIS"),
    ("polygons.gpkg", "the same as polygons, with class, area and mean confidence"),
    ("region_a.tif, region_a_labels.gpkg", "the labelled region"),
    ("region_b.tif, region_b_labels.gpkg", "the unseen region, and the truth that it was measured by"),
    ("adapt/, frozen/", "both runs: configuration, weights, losses, every choice of the gate"),
    ("demo.json", "the figures of this page"),
)
COMMANDS = (
    ("Adapt on your rasters and polygons; RUN/ gets model.onnx and a report:",
     'cegate-geo adapt --images "my/*.tif" --labels my.gpkg --label-field class \\\n'
     "    --class other --class building -o RUN/"),
    ("Predict a scene of any size. This needs no torch:",
     "cegate-geo predict scene.tif -m RUN/model.onnx -o mask.tif --vector polygons.gpkg"),
    ("Measure it where you have labels that it has not seen:",
     "cegate-geo evaluate mask.tif --labels truth.gpkg --label-field class"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """One method, trained and used."""

    outcome: Outcome
    report: ExportReport
    result: PredictResult


def adapt_and_predict(
    folder: Path,
    settings: DemoSettings,
    regions: tuple[Region, Region],
    files: tuple[RegionFiles, RegionFiles],
    clock: Clock,
) -> Story:
    """Train the gate's modules and, apart, nothing but the head; predict and evaluate with both.

    Both runs have the same configuration but for the method: the same head, steps, chips and seed.
    """
    keep_freed_memory()
    weights, backbone, notes = _choose_weights(settings.weights)
    config = make_config(settings, files[0], weights)
    baseline = replace(config, peft=replace(config.peft, method="frozen"))
    frozen = _train_and_predict(baseline, "frozen", folder / "frozen", folder / "frozen", files[1], clock)
    adapted = _train_and_predict(config, "gate", folder / "adapt", folder, files[1], clock)
    return Story(
        legend=demo_legend(),
        unseen=regions[1],
        labelled=regions[0],
        frozen=frozen.outcome,
        adapted=adapted.outcome,
        gate=_read_gate(folder / "adapt" / "gate.jsonl", adapted.report),
        backbone=backbone,
        steps=settings.steps,
        model_bytes=adapted.report.bytes,
        model_parameters=adapted.report.parameters,
        parity=float(adapted.report.parity["max_abs"]),
        polygons=adapted.result.polygons,
        timings=tuple(clock.timings),
        files=FILES,
        commands=COMMANDS,
        notes=(*notes, _fairness(frozen.outcome, adapted.outcome, settings)),
    )


def make_config(settings: DemoSettings, files: RegionFiles, weights: str) -> AdaptConfig:
    """The demo's adaptation: a small head, modules of small rank, a quick gate."""
    return AdaptConfig(
        classes=dict(enumerate(CLASS_NAMES)),
        colors=CLASS_COLORS,
        source=(
            SourceConfig(
                name="region-a",
                images=str(files.scene),
                labels=str(files.labels),
                label_field=LABEL_FIELD,
                background="ignore",
            ),
        ),
        model=ModelConfig(
            backbone="vit_tiny_patch16_224",
            weights=weights,
            head="dpt-detail",
            head_dim=64,
            norm="group",  # better in few steps, on source validation: docs/LOG.md
            tile_size=settings.crop,
        ),
        peft=PeftConfig(
            budget=0.25,
            every=max(1, settings.steps // 6),
            samples=8,
            spatial=SpatialConfig(rank=16),
            semantic=SemanticConfig(dim=32),
            frequency=FrequencyConfig(dim=16),
        ),
        train=TrainConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            crop=settings.crop,
            scale=(0.67, 1.5),
            lr=2e-4,
            head_lr=2e-3,
            ema=0.97,
            validation=0.12,
            validate_every=max(1, settings.steps // 3),
            save_every=settings.steps,
            seed=settings.training_seed,
        ),
        name="cegate-demo",
        description="Made by cegate-geo demo from a region that code drew. For looking at, not for use.",
        licence="Apache-2.0",
    )


def _choose_weights(wish: str) -> tuple[str, str, tuple[str, ...]]:
    """Weights, what they are in words, and what must be said of them."""
    if wish and wish != "random":
        return wish, f"The backbone is a vision transformer from {Path(wish).name}.", ()
    try:
        if not wish:
            shipped_base()
            text = "The backbone is the small vision transformer of 5.5 M weights that comes with CEGate-Geo."
            return "shipped", text, ()
    except ModelError:
        pass
    note = (
        "The backbone started from random weights, because no pre-trained base was at hand: these figures say nothing "
        "about adapting a foundation model."
    )
    return "random", "The backbone is a small vision transformer with random weights.", (note,)


def _train_and_predict(
    config: AdaptConfig,
    kind: Literal["frozen", "gate"],
    run: Path,
    outputs: Path,
    files: RegionFiles,
    clock: Clock,
) -> _Trained:
    """Adapt, export, predict, evaluate: what a user would do, in the same order."""
    title, name = ("Adapted", "adapt") if kind == "gate" else ("Frozen backbone", "frozen baseline")
    doing = "Adapting the modules that the gate chooses" if kind == "gate" else "Training the head alone, to compare"

    def progress(at: AdaptProgress) -> None:
        clock.listener.advance(at.step, f"loss {at.loss:.2f}")

    with clock.step(name, doing, config.train.steps):
        done = adapt(
            config, run, progress=progress, cancelled=clock.cancelled, provenance={"command": "cegate-geo demo"}
        )
    with clock.step(f"export {name}", "Exporting one ONNX file, and proving that it computes the same"):
        report = export_run(run, outputs / "model.onnx")
    with clock.step(f"predict with {name}", f"Predicting {files.scene.name}"):
        result = predict(
            files.scene,
            outputs / "mask.tif",
            model=outputs / "model.onnx",
            vector=outputs / "polygons.gpkg" if kind == "gate" else None,
            min_area_m2=MIN_AREA_M2 if kind == "gate" else 0.0,
            cancel=clock.cancelled,
            overwrite=True,
        )
    with clock.step(f"evaluate {name}", "Comparing with the exact truth"):
        metrics = evaluate_mask(outputs / "mask.tif", files.labels, label_field=LABEL_FIELD, background="ignore")
        with rasterio.open(outputs / "mask.tif") as dataset:
            class_map = dataset.read(1).astype(np.uint8)
    outcome = Outcome(
        title=title,
        class_map=class_map,
        metrics=metrics,
        train_seconds=done.seconds,
        trained_parameters=_count_trained(run),
    )
    return _Trained(outcome=outcome, report=report, result=result)


def _count_trained(folder: Path) -> int:
    """Weights that learned: the head, and every module that was ever active."""
    return int(json.loads((folder / "result.json").read_text(encoding="utf-8"))["stored_parameters"])


def _read_gate(path: Path, report: ExportReport) -> GateView:
    selections = [Selection.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    last = selections[-1]
    return GateView(
        layers=report.modules_total // len(KINDS),
        kinds=KINDS,
        scores={(k.layer, k.kind): score for k, score in last.scores.items()},
        active=frozenset((k.layer, k.kind) for k in last.active),
        kept=frozenset((k.layer, k.kind) for k in map(ModuleKey.parse, report.modules_kept)),
        selections=len(selections),
    )


def _fairness(frozen: Outcome, adapted: Outcome, settings: DemoSettings) -> str:
    return (
        f"Both models have the same backbone and head, and saw the same chips of region A for {settings.steps} steps. "
        f"Frozen, the head alone learned ({frozen.trained_parameters / 1e6:.2f} M weights); adapted, the head and the "
        f"modules that the gate chose ({adapted.trained_parameters / 1e6:.2f} M). Which step's weights are kept was "
        "decided on held-out blocks of region A. It is one run with one seed, and its settings were found "
        "while region B was looked at: a demonstration, no measurement."
    )
