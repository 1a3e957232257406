"""`cegate-geo evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cegate_geo.cli.events import EventStream, ProgressEvents, watch_cancel
from cegate_geo.cli.predict import CONTRACT_NAMES, NumberList, WordList, contract_options

if TYPE_CHECKING:
    from cegate_geo.domain.confusion import Metrics


class PixelRange(click.ParamType[Any]):
    """'FIRST:END', pixels from 0 without END."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """First, and last + 1."""
        if isinstance(value, tuple):
            return value
        first, colon, end = str(value).partition(":")
        if not colon or not first.isdecimal() or not end.isdecimal() or int(first) >= int(end):
            self.fail(f"{value!r} is no range. Write it as 6656:7680.", param, ctx)
        return int(first), int(end)


@click.command("evaluate", short_help="Compare a mask or a model with labels.")
@click.argument("masks", metavar="[MASK]...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--model", help="ONNX file or name of a shipped model: evaluate it on --images instead of a MASK.")
@click.option("--images", multiple=True, metavar="GLOB", help="Rasters for --model; may be given several times.")
@click.option("--labels", required=True, metavar="FILE|GLOB", help="Polygons in any CRS, or class rasters.")
@click.option("--label-field", help="Field with the class name or id. Default: every polygon is --label-class.")
@click.option("--label-class", help="Class of polygons without a field. Default: the last class.")
@click.option("--background", help="Class where no polygon is, or 'ignore'. Default: the first class.")
@click.option("--remap", multiple=True, metavar="VALUE=CLASS", help="What a value in the labels means, or 'ignore'.")
@click.option(
    "--class", "mask_classes", multiple=True, metavar="NAME", help="Classes of a MASK that does not name them."
)
@click.option("--aoi", metavar="FILE[|LAYER]", help="Polygons of the area that is labelled.")
@click.option("--rows", type=PixelRange(), metavar="FIRST:END", help="Only these rows.")
@click.option("--cols", type=PixelRange(), metavar="FIRST:END", help="Only these columns.")
@click.option("--bands", type=WordList(), default=(), metavar="1,2,3|NAMES", help="Bands of --images.")
@click.option(
    "--nodata", type=NumberList(), default=(), metavar="V[,V,V]", help="Value of unflagged holes of --images."
)
@click.option(
    "--resample",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="When --model sees --images at its own GSD, as in predict.",
)
@click.option("--force", is_flag=True, help="Evaluate --model although the GSD is far from the model's.")
@contract_options
@click.option("--json", "target", metavar="OUT", help="Write the figures as JSON to a file, or to stdout for '-'.")
@click.option("--events", type=click.Choice(["jsonl"]), help="Write JSON lines to stdout, watch stdin for 'cancel'.")
@click.pass_obj
def command(
    state: dict[str, Any],
    /,
    masks: tuple[Path, ...],
    *,
    model: str | None,
    images: tuple[str, ...],
    target: str | None,
    events: str | None,
    **given: Any,
) -> None:
    """Compare MASK, or what --model predicts on --images, with --labels.

    Pixels of several masks or rasters count together; labels are one file for each, in their order, or one vector file
    for all. Pixels without label or prediction do not count. A class raster has to lie on exactly the same grid. The
    options from --classes to --dtype state the contract of a --model that does not say it, as in cegate-geo predict.
    """
    if bool(masks) == (model is not None) or (model is not None) != bool(images):
        raise click.UsageError("Give either a MASK, or --model and --images.")
    pairs = [entry.partition("=") for entry in given["remap"]]
    if not all(equals and name for _, equals, name in pairs):
        raise click.UsageError(f"--remap {given['remap']} is not usable. Write VALUE=CLASS.")
    stream: EventStream | None = state.get("events") if events else None
    if stream is None:
        metrics = _evaluate(masks, model, images, given, {})
    else:
        stream.hello("evaluate")
        with watch_cancel(stream) as cancel:
            metrics = _evaluate(masks, model, images, given, {"progress": ProgressEvents(stream), "cancel": cancel})
    if target is not None and target != "-":
        _write(metrics, target)
    if stream is not None:
        stream.send("result", command="evaluate", **metrics)
    else:
        click.echo(json.dumps(metrics, indent=2) if target == "-" else _table(metrics))


def _evaluate(
    masks: tuple[Path, ...],
    model: str | None,
    images: tuple[str, ...],
    given: dict[str, Any],
    watching: dict[str, Any],
) -> Metrics:
    """The figures; `watching` holds the keywords progress and cancel of `api.predict`."""
    from cegate_geo.domain.legend import Legend
    from cegate_geo.train.evaluate import LabelKeywords, evaluate_mask, evaluate_model

    names = ("label_field", "label_class", "background", "aoi", "rows", "cols")
    options: LabelKeywords = {k: given[k] for k in names if given[k] is not None}  # type: ignore[assignment]
    options["remap"] = {value: name for value, _, name in (entry.partition("=") for entry in given["remap"])}
    if masks:
        legend = Legend.from_names(given["mask_classes"]) if given["mask_classes"] else None
        return evaluate_mask(masks, given["labels"], legend=legend, **options)
    predicting: Any = {k: given[k] for k in ("bands", "nodata", "resample", "force", *CONTRACT_NAMES)}
    predicting.update(watching)
    return evaluate_model(model or "", images, given["labels"], predicting=predicting, **options)


def _write(metrics: Metrics, target: str) -> None:
    from cegate_geo.errors import InputError

    try:
        Path(target).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target} can't be written: {error.strerror}.", hint="Check the folder.") from error


def _table(metrics: Metrics) -> str:
    """The figures for people."""
    width = max(5, *(len(c["name"]) for c in metrics["per_class"]))
    lines = [f"{'id':>5}  {'class':<{width}}  {'IoU':>6}  {'F1':>6}  {'prec.':>6}  {'recall':>6}  {'pixels':>12}"]
    for c in metrics["per_class"]:
        figures = "  ".join(_number(c[k]) for k in ("iou", "f1", "precision", "recall"))
        lines.append(f"{c['id']:>5}  {c['name']:<{width}}  {figures}  {c['pixels']:>12,}")
    lines.append(f"mean IoU {_number(metrics['miou']).strip()}, accuracy {_number(metrics['accuracy']).strip()}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.4f}"
