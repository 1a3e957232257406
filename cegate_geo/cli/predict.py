"""`cegate-geo predict`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cegate_geo.cli.events import EventStream, ProgressEvents, progress_bar, watch_cancel
from cegate_geo.infer.heap import give_back_freed_memory
from cegate_geo.infer.providers import PROVIDER_NAMES

UNITS_MB = {"": 1.0, "M": 1.0, "MB": 1.0, "G": 1024.0, "GB": 1024.0}


class MemorySize(click.ParamType[Any]):
    """'512M', '2G', or plain megabytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Megabytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        if match is None or match[2].upper() not in UNITS_MB:
            self.fail(f"{value!r} is no size. Write it as 512M or 2G.", param, ctx)
        return int(float(match[1]) * UNITS_MB[match[2].upper()])


class NumberList(click.ParamType[Any]):
    """Numbers with commas between."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers; 'nan' is one."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers. Write it as 255 or 255,255,255.", param, ctx)


class WordList(click.ParamType[Any]):
    """Words with commas between."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The words."""
        if isinstance(value, tuple):
            return value
        words = tuple(part.strip() for part in str(value).split(","))
        if not all(words):
            self.fail(f"{value!r} has an empty entry. Write it as 1,2,3 or red,green,blue.", param, ctx)
        return words


CONTRACT_OPTIONS = (
    click.option("--classes", type=WordList(), default=(), metavar="NAME,NAME", help="Names, in the output's order."),
    click.option("--scale", type=NumberList(), default=(), metavar="V[,V,V]", help="Divide values by it, e.g. 255."),
    click.option("--mean", type=NumberList(), default=(), metavar="V[,V,V]", help="Subtract it, after --scale."),
    click.option("--std", type=NumberList(), default=(), metavar="V[,V,V]", help="Divide by it, after --mean."),
    click.option("--gsd-m", type=float, metavar="M", help="Metres per pixel that the model was trained at."),
    click.option("--output-kind", type=click.Choice(["probabilities", "logits", "class-map"]), help="What it gives."),
    click.option("--threshold", type=float, metavar="0..1", help="Least probability for any class but the first."),
    click.option("--head", default="", metavar="NAME", help="The output to use, where there are several."),
    click.option("--dtype", type=click.Choice(["uint8", "uint16", "float32"]), help="Rasters that it was trained on."),
)
"""State the contract of a model that does not say it itself."""
CONTRACT_NAMES = ("classes", "scale", "mean", "std", "gsd_m", "output_kind", "threshold", "head", "dtype")
"""Their parameters."""


def contract_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of CONTRACT_OPTIONS to a command."""
    for option in reversed(CONTRACT_OPTIONS):
        command = option(command)
    return command


@click.command("predict", short_help="Predict a scene into a georeferenced mask.")
@click.argument("scenes", metavar="SCENE...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Mask to write, a .tif; of several scenes a folder.",
)
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="FILE|NAME",
    help="ONNX file, .emd or STAC MLM item, or a shipped model's name. Given several times: the mean of all.",
)
@click.option("--vector", type=click.Path(path_type=Path), help="Polygons to write: .gpkg or .fgb.")
@click.option("--min-area", "min_area_m2", type=float, default=0.0, metavar="M2", help="Polygons: merge smaller ones.")
@click.option("--simplify", "simplify_m", type=float, default=0.0, metavar="M", help="Polygons: move outlines so far.")
@click.option("--vector-classes", type=WordList(), default=(), metavar="NAMES|IDS", help="Polygons: of these classes.")
@click.option("--confidence", type=click.Path(path_type=Path), help="Winner's probability to write, a .tif.")
@click.option("--probabilities", type=click.Path(path_type=Path), help="All probabilities to write, a .tif.")
@click.option("--mosaic", is_flag=True, help="All SCENEs, those of folders and patterns too, are one scene.")
@click.option("--aoi", metavar="FILE[|LAYER]", help="Polygons: predict only there.")
@click.option("--invert-aoi", is_flag=True, help="Predict only outside of --aoi.")
@click.option("--bands", type=WordList(), default=(), metavar="1,2,3|NAMES", help="Bands, in the model's order.")
@click.option("--nodata", type=NumberList(), default=(), metavar="V[,V,V]", help="Value of holes without a flag.")
@click.option(
    "--gsd",
    type=click.Choice(["source", "model"]),
    default="source",
    show_default=True,
    help="Grid of the outputs: the scene's, or one of the model's GSD.",
)
@click.option(
    "--resample",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="When the model sees the scene at its own GSD. auto: outside of its range.",
)
@click.option("--tile-size", type=int, metavar="PX", help="Side of a tile, where the model leaves it free.")
@click.option("--halo", type=int, metavar="PX", help="Context on each side of a tile. Default: the model's.")
@click.option(
    "--stitch", type=click.Choice(["blend", "crop"]), default="blend", show_default=True, help="How tiles are joined."
)
@click.option("--batch-size", metavar="auto|N", default="auto", show_default=True, help="Tiles in a session call.")
@click.option(
    "--tta",
    type=click.Choice(["none", "flips", "d4"]),
    default="none",
    show_default=True,
    help="Mean over 4 or 8 views of each tile, at 4 or 8 times the cost.",
)
@click.option(
    "--provider",
    type=click.Choice(PROVIDER_NAMES),
    default="auto",
    show_default=True,
    help="What computes. auto: the best that agrees with the CPU on a tile of the scene.",
)
@click.option("--require-gpu", is_flag=True, help="Fail rather than run on the CPU.")
@click.option("--threads", type=int, default=0, metavar="N", help="Session threads. Default: all usable cores.")
@click.option(
    "--max-memory",
    "max_memory_mb",
    type=MemorySize(),
    metavar="SIZE",
    help="Take no more memory than that. Default: 512M, or the least that the model takes.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Keep finished shards of a run that ends early in OUTPUT.job, and go on from them.",
)
@click.option("--shard", metavar="I/N", help="Compute the I-th of N parts only, into OUTPUT.job; see cegate-geo merge.")
@click.option("--shard-rows", type=int, metavar="PX", help="Rows of a shard, in steps of 512. Default: 4096.")
@click.option(
    "--dask",
    metavar="ADDRESS|FILE.json|local[:N]",
    help="Let the workers of a Dask scheduler, or N of this machine, compute the shards.",
)
@click.option("--workers", type=int, metavar="N", help="Local workers (default: one a core), or those to wait for.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--force", is_flag=True, help="Predict although the GSD is far from the model's.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, taken and written; write nothing.")
@click.option("--events", type=click.Choice(["jsonl"]), help="Write JSON lines to stdout, watch stdin for 'cancel'.")
@contract_options
@click.pass_obj
def command(
    state: dict[str, Any],
    /,
    scenes: tuple[str, ...],
    output: Path,
    *,
    models: tuple[str, ...],
    batch_size: str,
    events: str | None,
    dry_run: bool,
    mosaic: bool,
    **given: Any,
) -> None:
    """Predict SCENE into a class mask on the same grid: any raster that GDAL opens, here or by http(s), s3, gs or az.

    A STAC item (.json, .geojson) is a scene of those of its assets that the model's bands name, on the finest grid.

    The mask is a cloud-optimised GeoTIFF with class colours and names. It appears when it is complete or not at all.

    Of several scenes each becomes STEM_mask.tif in the folder OUTPUT; --vector, --confidence and --probabilities are
    then names that are put behind each scene's. One that fails does not lose the others.

    With --mosaic all of them are one scene with one mask: neighbouring tiles of imagery, seen together, so that nothing
    shows where they meet. They have to lie on one grid (CRS, pixel size, whole pixels apart); each keeps its own nodata
    value, mask or alpha. Where they overlap, the first that holds data counts; in a folder the first by name.

    Without --model the shipped demo model runs. Models exported by cegate-geo carry their contract. Those of Deepness,
    GeoDeep, geoai and ArcGIS (.emd, ONNX only) and STAC MLM items run by theirs; cegate-geo info shows it. The options
    from --classes on state what a file does not say, and go before what it says: a bare ONNX file needs --classes and
    --scale at least.

    With --model several times, each tile is read once and shown to all models, and the mean of their probabilities is
    blended. They have to agree on classes, bands, scaling, tile size and metres per pixel; one that does not is refused
    by name. Their order decides nothing but the colours, which are the first's.

    Polygons are those of the mask, exact to the pixel; neighbours share their edges. --min-area gives each area that is
    too small to the neighbour with the longest shared edge. --simplify lets outlines move by so many metres at most
    (pixels, where the scene does not say how large they are); nothing overlaps, gapes or vanishes. --vector-classes
    leaves out the other classes, and the memory that their outlines take. The mask has none of that.

    A scene whose pixels lie outside of the model's range of metres per pixel is resampled for the model as it is read,
    and probabilities go back to the scene's pixels before a class is chosen. More than 8 times outside it is refused
    without --force; pixels that much coarser are then used as they are, unless --resample always.

    Large scenes are computed in shards. A run that is cancelled, fails or is killed leaves those that are finished in
    the folder OUTPUT.job, and the same command goes on from there. Several processes, on any machines that share the
    folder, compute one --shard each; cegate-geo merge joins them. Or --dask lets the workers of a Dask scheduler do it,
    which have to see the scene under the same name; what else they do not see goes through Dask. --threads and
    --max-memory are those of each.
    Shards of a lost worker are computed by others. Nothing of this changes a byte of the outputs.
    """
    stream: EventStream | None = state.get("events") if events else None
    if batch_size != "auto" and not batch_size.isdecimal():
        raise click.BadParameter("Write a number, or auto.", param_hint="--batch-size")
    options: dict[str, Any] = {**given, "batch_size": None if batch_size == "auto" else int(batch_size)}
    options["model"] = models or None
    give_back_freed_memory()
    with watch_cancel(stream) as cancel:
        if stream is not None:
            stream.hello("predict")
        run = _dry_run if dry_run else _predict_one if len(scenes) == 1 or mosaic else _predict_many
        run([scenes] if mosaic else list(scenes), output, stream, cancel, options)


Cancel = Callable[[], bool]
Scenes = list[str] | list[tuple[str, ...]]
"""Names; or those of one mosaic."""


def _predict_one(
    scenes: Scenes, output: Path, stream: EventStream | None, cancel: Cancel, options: dict[str, Any]
) -> None:
    from cegate_geo.api import predict

    if stream is not None:
        result = predict(scenes[0], output, progress=ProgressEvents(stream), cancel=cancel, **options)
        stream.send("result", **result.to_json())
        return
    show, close = progress_bar("tile")
    try:
        result = predict(scenes[0], output, progress=show, cancel=cancel, **options)
    finally:
        close()
    click.echo(summary(result))


def _predict_many(
    scenes: Any, output: Path, stream: EventStream | None, cancel: Cancel, options: dict[str, Any]
) -> None:
    """A result for each scene, and an error at the end that names those that failed."""
    from cegate_geo.api import predict_many

    if stream is not None:
        done = predict_many(
            scenes,
            output,
            progress=ProgressEvents(stream),
            cancel=cancel,
            on_start=lambda job: stream.send("scene", scene=job.scene, output=str(job.output)),
            on_result=lambda result: stream.send("result", **result.to_json()),
            on_failure=lambda failure: stream.send(
                "failed", scene=failure.scene, code=failure.error.code, message=str(failure.error)
            ),
            **options,
        )
        failed = [failure.scene for failure in done.failures]
        stream.send("summary", done=[str(result.output) for result in done.results], failed=failed)
        done.raise_failures()
        return
    show, close = progress_bar("tile")
    try:
        done = predict_many(
            scenes,
            output,
            progress=show,
            cancel=cancel,
            on_start=lambda job: click.echo(f"cegate-geo: {job.scene}", err=True),
            on_result=lambda result: click.echo(summary(result)),
            on_failure=lambda failure: click.echo(f"cegate-geo: {failure.scene}: {failure.error}", err=True),
            **options,
        )
    finally:
        close()
    done.raise_failures()


def _dry_run(scenes: Scenes, output: Path, stream: EventStream | None, cancel: Cancel, options: dict[str, Any]) -> None:
    from cegate_geo.api import plan

    if len(scenes) > 1:
        raise click.BadParameter("Plan one scene at a time.", param_hint="--dry-run")
    planned = plan(scenes[0], output, cancel=cancel, **options)
    if stream is not None:
        stream.send("result", **planned.to_json())
    else:
        click.echo(_plan_summary(planned))


def _plan_summary(plan: Any) -> str:
    """A plan for people."""
    grid, size = plan.grid, plan.tile_shape
    ground = "unknown" if plan.ground is None else f"{plan.ground['x_m']:.3g} x {plan.ground['y_m']:.3g} m"
    made_for = "" if plan.model_gsd_m is None else ", the model is for {:.3g} to {:.3g} m".format(*plan.model_gsd_m)
    seen, how = plan.resampled, f"{plan.provider} ({plan.provider_reason}), {_count(plan.batch_size, 'tile')} at a time"
    lines = [
        f"grid      {grid['width']:,} x {grid['height']:,} px, {grid['crs'] or 'no CRS'}",
        f"pixels    {ground}{made_for}",
        *([] if seen is None else [f"resampled to {seen['width']:,} x {seen['height']:,} px for the model"]),
        f"tiles     {plan.tiles:,} of {size[1]} x {size[0]} px, {plan.skipped_tiles:,} of them outside the area; empty "
        "ones are skipped on the way",
        f"shards    {plan.shards}, up to {plan.shard_width:,} px wide",
        f"memory    about {plan.memory_mb:,} MB of {plan.max_memory_mb:,} MB",
        f"time      {_duration(plan.seconds)}, with {how}",
        *(f"would write {path}" for path in plan.outputs),
    ]
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "unknown: no tile with data was found"
    if seconds < 100:
        return f"about {seconds:.3g} s"
    return f"about {seconds / 60:.0f} min" if seconds < 100 * 60 else f"about {seconds / 3600:.1f} h"


USUAL_REASONS = ("as asked", "the best that is here")
"""Why a provider ran, where that is nothing to speak of."""


def summary(result: Any) -> str:
    """The result for people."""
    if result.shard is not None:
        resumed = f", shards that were finished before: {result.resumed_shards}" if result.resumed_shards else ""
        return f"part {result.shard} is in {result.output}  ({result.tiles} tiles{resumed}, {result.seconds:.1f} s)"
    run = result.tiles - result.skipped_tiles
    lines = [
        f"{result.output}  ({run} tiles, {result.skipped_tiles} skipped, {result.seconds:.1f} s, {result.provider})"
    ]
    if result.resumed_shards:
        lines.append(f"shards that were finished before: {result.resumed_shards}")
    # A merge knows none.
    if result.provider_reason and (result.provider != "cpu" or result.provider_reason not in USUAL_REASONS):
        lines.append(f"{result.provider}: {result.provider_reason}")
    if result.resampled is not None:
        size = result.resampled
        lines.append(
            f"the model saw {size['width']:,} x {size['height']:,} px of {size['x_m']:.3g} x {size['y_m']:.3g} m; "
            f"outputs lie on the {'scene' if size['grid'] == 'source' else 'model'}'s grid"
        )
    total = max(1, sum(c.pixels for c in result.classes))
    for c in result.classes:
        area = "" if c.area_m2 is None else f"  {c.area_m2:,.1f} m²"
        lines.append(f"  {c.id:>3}  {c.name:<20} {c.pixels / total:7.2%}  {c.pixels:,} px{area}")
    lines += [str(path) for path in (result.vector, result.confidence, result.probabilities) if path is not None]
    return "\n".join(lines)
