"""`cegate-geo export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cegate_geo.train.export import ExportReport, Keep, Precision, Profile


def _keep(context: click.Context, option: click.Parameter, value: str) -> str | float:  # noqa: ARG001
    """`auto`, `all`, `active`, or a number from 0 to 1."""
    if value in ("auto", "all", "active"):
        return value
    try:
        loss = float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither auto nor all nor active nor a number.") from error
    if not 0 <= loss < 1:
        raise click.BadParameter(f"{value} is no loss of mean IoU: 0.01 is one point of 100.")
    return loss


@click.command("export", short_help="Export a run as one ONNX file with its manifest.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The ONNX file.")
@click.option(
    "--profile",
    type=click.Choice(["portable", "native"]),
    default="portable",
    show_default=True,
    help="Tensor contract; portable runs in QGIS plugins that know ONNX, and everywhere else. native takes raster "
    "values as they are stored, and gives class ids and confidence, too; the results of predict are the same.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 and bf16 halve the file and compute in single precision all the same; they are written only if at most "
    "one pixel of 100 gets another class. int8 computes large products in 8 bits, calibrated on the run's source; it "
    "is written only if it loses at most one point of mean IoU.",
)
@click.option(
    "--keep",
    callback=_keep,
    default="auto",
    show_default=True,
    metavar="auto|all|active|LOSS",
    help="Modules to keep: all that were ever active (all), those of the last selection (active), or the smallest set "
    "that loses at most this much mean IoU on the run's held-out tiles (0.01 is one point of 100). auto keeps all "
    "while they cost about 5 % of the frozen model's time or less, else the best that cost no more, if held-out tiles "
    "lose at most 0.002 of mean IoU.",
)
@click.option("--stac", is_flag=True, help="Write a STAC item (MLM extension) beside it: MODEL.stac.json.")
@click.option("--emd", is_flag=True, help="Write an Esri model definition (ArcGIS) beside it: MODEL.emd.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(
    run: Path,
    output: Path,
    *,
    profile: Profile,
    precision: Precision,
    keep: Keep,
    stac: bool,
    emd: bool,
    as_json: bool,
) -> None:
    """Prune the model of RUN, merge LoRA into the base weights, and write one ONNX file with its manifest.

    The file is written only if onnxruntime computes from it what torch computes. What it, its STAC item or its Esri
    definition was before is replaced.

    Where it is RUN/model.onnx, RUN/report.html is written anew and tells what this export measured. An export to
    another place leaves the report as it is: it tells of the model beside it.
    """
    if profile != "portable" and (stac or emd):
        raise click.UsageError("--stac and --emd describe the portable profile only.")
    from cegate_geo.train.export import export_run
    from cegate_geo.train.report import renew_report

    report = export_run(run, output, profile=profile, precision=precision, keep=keep)
    if stac:
        from cegate_geo.train.stac import write_item

        write_item(report.path)
    if emd:
        from cegate_geo.train.emd import write_definition

        write_definition(report.path)
    click.echo(json.dumps(report.to_json()) if as_json else describe(report))
    page = renew_report(run, report.path, report.to_json())
    if page is not None and not as_json:
        click.echo(f"report    {page}")


def describe(report: ExportReport) -> str:
    """The report for a terminal."""
    rows = [
        ("file", f"{report.path}, {report.bytes / 1e6:.2f} MB, weights in {report.precision}"),
        ("graph", f"{report.parameters:,} parameters, opset {report.opset}, IR version {report.ir_version}"),
        ("modules", f"{len(report.modules_kept)} of {report.modules_total} kept"),
        ("parity", _figures(report.parity) + " (eager beside onnxruntime)"),
    ]
    if report.rounding is not None:
        of = "graph in single precision beside 8 bits" if report.precision == "int8" else "weights to 16 bits"
        rows.append(("rounding", f"{_figures(report.rounding)} ({of})"))
    if report.miou:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in report.miou.items())
        rows.append(("mean IoU", f"{shown} (held-out tiles)"))
    if report.pruning is not None:
        rows.append(("pruning", _figures(report.pruning) + " (as trained beside pruned and merged)"))
    for point in report.curve:
        of = "all" if point is report.curve[0] else f"{len(point.kept)}"
        size = f"{point.parameters:,} parameters, {1000 * point.seconds:.0f} ms"
        rows.append(("curve", f"{of} modules: mean IoU {point.miou:.4f}, {size}"))
    times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in report.seconds_per_tile.items())
    rows.append(("one tile", times))
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _figures(parity: Mapping[str, float]) -> str:
    return (
        f"max {parity['max_abs']:.1e}, mean {parity['mean_abs']:.1e}, "
        f"{100 * parity['disagreement']:.4f} % of pixels differ, {parity['tiles']:.0f} tiles"
    )
