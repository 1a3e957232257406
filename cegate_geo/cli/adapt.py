"""`cegate-geo adapt`."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegate_geo.cli.events import EventStream, StepEvents, step_bar, watch_cancel
from cegate_geo.errors import CegateError, CegateWarning

if TYPE_CHECKING:
    from cegate_geo.train.loop import AdaptProgress, AdaptResult
    from cegate_geo.train.ranks import Ranks


@click.command("adapt", short_help="Adapt a backbone to labelled rasters and export a model.")
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", "run", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--images", help="Rasters (path or pattern), instead of CONFIG.")
@click.option("--labels", help="Polygons or class rasters for --images.")
@click.option("--label-field", default="", help="Field of the polygons that holds the class.")
@click.option("--bands", default="", metavar="B,B,...", help="Bands of --images by number or name; 1,2,3 if not given.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Class names in order, for --images.")
@click.option("--set", "overrides", multiple=True, metavar="section.key=value", help="Change a setting of CONFIG.")
@click.option("--resume", is_flag=True, help="Go on from the state in the folder.")
@click.option(
    "--accept-changes",
    is_flag=True,
    help="With --resume: go on although rasters, labels or frozen weights are others than those that the run began "
    "with. Its figures of before and after do not compare, and nothing gives the same run again.",
)
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
    """Train modules, all or those that the gate chooses, and a head on the labelled rasters that CONFIG names.

    Without CONFIG, --images and --labels adapt the small base that comes with the package, with settings that suit it.

    What polygons do not cover is the first class, within the rectangle around them; beyond it nothing counts, unless
    aoi, rows or cols of the [[source]] say what is labelled. background = "ignore" if there are examples only.

    Rasters hold any number of bands of uint8, uint16, int16 or floats, chosen by number or by name, as in bands =
    ["B4", "B3", "B2", "B8"] of each [[source]]; [input] says what they are called, which of them are red, green and
    blue, and how they are scaled. The model finds them by name in what it predicts.

    RUN gets model.onnx, report.html, and what they were made from: config.json, result.json, adapter.safetensors,
    gate.jsonl, metrics.jsonl, pictures/, state/. Ctrl-C saves the state; --resume goes on from there.

    On several GPUs, or machines with a folder that all of them see, start it with torchrun: torchrun --nproc-per-node 4
    -m cegate_geo adapt CONFIG -o RUN/. Each process takes its part of every batch; the result is that of one.
    """
    if options["accept_changes"] and not resume:
        raise click.UsageError("--accept-changes goes with --resume.")
    is_first = os.environ.get("RANK", "0") == "0"
    stream: EventStream | None = state.get("events") if events and is_first else None
    if stream is not None:
        stream.hello("adapt")  # before torch is loaded, which takes seconds
    from cegate_geo.train.memory import keep_freed_memory
    from cegate_geo.train.ranks import join_ranks

    keep_freed_memory()
    with join_ranks(device) as ranks, _one_voice(ranks):
        result = _adapt(config, run, overrides, resume=resume, stream=stream, ranks=ranks, options=options)
    if ranks.is_first:
        _export(run, result, stream)


def _adapt(
    config: Path | None,
    run: Path,
    overrides: tuple[str, ...],
    *,
    resume: bool,
    stream: EventStream | None,
    ranks: Ranks,
    options: dict[str, Any],
) -> AdaptResult:
    from cegate_geo.train.config import AdaptConfig
    from cegate_geo.train.config_file import apply_overrides, build, read_toml
    from cegate_geo.train.loop import adapt

    table = apply_overrides(read_toml(config) if config is not None else _table(options), overrides)
    if options["seed"] is not None:
        table.setdefault("train", {})["seed"] = options["seed"]
    settings = build(AdaptConfig, table)
    provenance = {"command": shlex.join(["cegate-geo", *sys.argv[1:]])}
    with step_bar(settings.train.steps) as bar, watch_cancel(stream) as cancelled:
        progress = StepEvents(stream, settings.train.steps) if stream is not None else _on_bar(bar)
        return adapt(
            settings,
            run,
            resume="changed" if options["accept_changes"] else resume,
            progress=progress if ranks.is_first else None,
            cancelled=cancelled,
            provenance=provenance,
            ranks=ranks,
        )


def _export(run: Path, result: AdaptResult, stream: EventStream | None) -> None:
    from cegate_geo.train.export import export_run
    from cegate_geo.train.report import write_report
    from cegate_geo.train.run_files import MODEL

    report = export_run(run, run / MODEL)
    write_report(run, report.to_json())
    if stream is not None:
        stream.send("result", command="adapt", **_to_json(result, report.path))
        return
    if result.metrics is not None:
        click.echo(f"validation mIoU {result.metrics['miou']:.3f} at step {result.best_step}")
    click.echo(report.path)


@contextmanager
def _one_voice(ranks: Ranks) -> Iterator[None]:
    """Of several processes that fail, the first to do so tells why; the others end after it, without a word."""
    with warnings.catch_warnings():
        if not ranks.is_first:
            warnings.simplefilter("ignore", CegateWarning)
        try:
            yield
        except Exception as error:
            if ranks.count > 1:  # the launcher ends all when one has ended, and some of them still have to talk
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            code = error.exit_code if isinstance(error, CegateError) else 1
            if not ranks.is_speaker():
                raise click.exceptions.Exit(ranks.hear(code)) from error
            atexit.register(ranks.told, code)
            raise


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
    if options["bands"]:
        words = [word.strip() for word in options["bands"].split(",")]
        source["bands"] = [int(word) if word.isdecimal() else word for word in words]
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
        # The small base learns at rates that would ruin a foundation model. With chips of 384 px the same steps take
        # longer than a quarter of an hour on two cores; in so few, milder changes of the chips are better: docs/LOG.md.
        "train": {
            "steps": 1000,
            "crop": 256,
            "scale": [0.75, 1.35],
            "photometric": 0.6,
            "lr": 1e-3,
            "head_lr": 2e-3,
            "ema": 0.995,
        },
    }
