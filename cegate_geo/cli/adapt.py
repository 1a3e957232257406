"""`cegate-geo adapt`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegate_geo.cli.events import EventStream, StepEvents, step_bar, watch_cancel

if TYPE_CHECKING:
    from cegate_geo.train.loop import AdaptProgress, AdaptResult


@click.command("adapt", short_help="Adapt a backbone to labelled rasters and export a model.")
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--images", help="Rasters (path or pattern), instead of CONFIG.")
@click.option("--labels", help="Polygons or class rasters for --images.")
@click.option("--label-field", default="", help="Field of the polygons that holds the class.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Class names in order, for --images.")
@click.option("--set", "overrides", multiple=True, metavar="section.key=value", help="Change a setting of CONFIG.")
@click.option("--resume", is_flag=True, help="Go on from the state in the folder.")
@click.option("--device", default="auto", show_default=True, help="torch device, or auto.")
@click.option("--seed", type=int, help="As --set train.seed=N.")
@click.option("--events", type=click.Choice(["jsonl"]), help="Write JSON lines to stdout, watch stdin for 'cancel'.")
@click.pass_obj
def command(
    state: dict[str, Any],
    /,
    config: Path | None,
    run: Path,
    overrides: tuple[str, ...],
    *,
    resume: bool,
    device: str,
    events: str | None,
    **options: Any,
) -> None:
    """Train the modules that the gate chooses and a head on the labelled rasters that CONFIG names.

    Without CONFIG, --images and --labels adapt the small base that comes with the package, with settings that suit it.

    RUN gets model.onnx, report.html, and what they were made from: config.json, result.json, adapter.safetensors,
    gate.jsonl, metrics.jsonl, pictures/, state/. Ctrl-C saves the state; --resume goes on from there.
    """
    stream: EventStream | None = state.get("events") if events else None
    if stream is not None:
        stream.hello("adapt")  # before torch is loaded, which takes seconds
    from cegate_geo.train.config import AdaptConfig
    from cegate_geo.train.config_file import apply_overrides, build, read_toml
    from cegate_geo.train.export import export_run
    from cegate_geo.train.loop import adapt
    from cegate_geo.train.memory import keep_freed_memory
    from cegate_geo.train.report import write_report

    keep_freed_memory()
    table = apply_overrides(read_toml(config) if config is not None else _table(options), overrides)
    if options["seed"] is not None:
        table.setdefault("train", {})["seed"] = options["seed"]
    settings = build(AdaptConfig, table)
    provenance = {"command": shlex.join(["cegate-geo", *sys.argv[1:]])}
    with step_bar(settings.train.steps) as bar, watch_cancel(stream) as cancelled:
        progress = StepEvents(stream, settings.train.steps) if stream is not None else _on_bar(bar)
        result = adapt(
            settings, run, resume=resume, device=device, progress=progress, cancelled=cancelled, provenance=provenance
        )
    report = export_run(run, run / "model.onnx")
    write_report(run)
    if stream is not None:
        stream.send("result", command="adapt", **_to_json(result, report.path))
        return
    if result.metrics is not None:
        click.echo(f"validation mIoU {result.metrics['miou']:.3f} at step {result.best_step}")
    click.echo(report.path)


def _on_bar(bar: Callable[[int, str], None]) -> Callable[[AdaptProgress], None]:
    def show(at: AdaptProgress) -> None:
        miou = "" if at.miou is None else f", validation mIoU={at.miou:.3f}"
        bar(at.step, f"loss={at.loss:.3f}{miou}")

    return show


def _to_json(result: AdaptResult, model: Path) -> dict[str, Any]:
    """What the event `result` says of a run."""
    return {
        "run": str(result.folder),
        "model": str(model),
        "report": str(result.folder / "report.html"),
        "miou": None if result.metrics is None else result.metrics["miou"],
        "best_step": result.best_step,
        "seconds": round(result.seconds, 1),
    }


def _table(options: dict[str, Any]) -> dict[str, Any]:
    """The configuration that the short form without a file stands for."""
    if not options["images"] or not options["labels"]:
        raise click.UsageError("Give CONFIG.toml, or --images and --labels.")
    names = options["classes"] or ("other", "object")
    source = {"images": options["images"], "labels": options["labels"], "label_field": options["label_field"]}
    return {
        "classes": {str(n): name for n, name in enumerate(names)},
        "source": [source],
        "model": {
            "backbone": "vit_tiny_patch16_224",
            "weights": "shipped",
            "head": "dpt-detail",
            "head_dim": 64,
            "tile_size": 384,
        },
        # The small base learns at rates that would ruin a foundation model.
        "train": {"steps": 1000, "crop": 384, "lr": 1e-3, "head_lr": 2e-3, "ema": 0.995},
    }
