"""`cegate-geo self-label`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command("self-label", short_help="Make labels of a prediction, where the model is sure.")
@click.argument("mask", type=click.Path(path_type=Path))
@click.argument("confidence", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Class raster to write.")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="[CLASS=]P",
    help="Least probability of the winner, for all classes or for one; default 0.9.",
)
@click.option(
    "--share", type=float, default=1.0, show_default=True, help="Keep this share of each class at most: the surest."
)
@click.option(
    "--leave-out", type=click.Path(path_type=Path), metavar="FILE", help="Polygons where nothing is labelled."
)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print what was kept as JSON.")
def command(
    mask: Path,
    confidence: Path,
    *,
    output: Path,
    thresholds: tuple[str, ...],
    share: float,
    leave_out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn MASK and CONFIDENCE, which `predict --confidence` wrote, into labels to train on.

    The labels are a class raster on the mask's grid; 255 is not labelled. Look at it, correct it, and name it as
    `labels` of a [[source]]. With [[target]] tables, `adapt` does all of this itself.

    Leave out what is labelled by hand, and what is to be measured on. --share keeps rare classes from being crowded out
    by those that a model is sure of more often.
    """
    from cegate_geo.train.self_labels import KeepRule, Prediction, write_self_labels

    named = dict(_threshold(text) for text in thresholds)
    rule = KeepRule(threshold=named.pop("", 0.9), thresholds=named, share=share)
    kept = write_self_labels(
        [Prediction(mask=mask, confidence=confidence, labels=output)], rule, leave_out=leave_out, overwrite=overwrite
    )
    if as_json:
        click.echo(json.dumps({"output": str(output), "classes": [dataclasses.asdict(c) for c in kept]}))
        return
    for c in kept:
        part = f"{c.kept / c.predicted:.1%}" if c.predicted else "none"
        click.echo(f"{c.name}: {part} of {c.predicted:,} pixels, from a probability of {c.least:.2f} on")
    click.echo(output)


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no threshold.", param_hint="--threshold") from error
