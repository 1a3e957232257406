"""`cegate-geo adapt`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cegate_geo.train.loop import AdaptProgress


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
def command(
    config: Path | None, run: Path, overrides: tuple[str, ...], *, resume: bool, device: str, **options: Any
) -> None:
    """Train the modules that the gate chooses and a head on the labelled rasters that CONFIG names.

    Without CONFIG, --images and --labels adapt the small base that comes with the package, with settings that suit it.

    RUN gets model.onnx, report.html, and what they were made from: config.json, result.json, adapter.safetensors,
    gate.jsonl, metrics.jsonl, pictures/, state/. Ctrl-C saves the state; --resume goes on from there.
    """
    from cegate_geo.cli.events import step_bar, watch_cancel
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
    with step_bar(settings.train.steps) as bar, watch_cancel(None) as cancelled:

        def progress(at: AdaptProgress) -> None:
            miou = "" if at.miou is None else f", validation mIoU={at.miou:.3f}"
            bar(at.step, f"loss={at.loss:.3f}{miou}")

        result = adapt(
            settings, run, resume=resume, device=device, progress=progress, cancelled=cancelled, provenance=provenance
        )
    report = export_run(run, run / "model.onnx")
    write_report(run)
    if result.metrics is not None:
        click.echo(f"validation mIoU {result.metrics['miou']:.3f} at step {result.best_step}")
    click.echo(report.path)


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
