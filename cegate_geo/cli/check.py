"""`cegate-geo check`."""

from __future__ import annotations

import json
from typing import Any

import click

from cegate_geo.cli.events import watch_cancel
from cegate_geo.cli.predict import NumberList, WordList, contract_options
from cegate_geo.errors import EXIT_FAILED
from cegate_geo.infer.providers import PROVIDER_NAMES


@click.command("check", short_help="Test a model on a part of a scene, with numbers to report.")
@click.argument("scene")
@click.option("-m", "--model", metavar="FILE|NAME", help="As in predict.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--bands", type=WordList(), default=(), metavar="1,2,3|NAMES", help="Bands, in the model's order.")
@click.option("--nodata", type=NumberList(), default=(), metavar="V[,V,V]", help="Value of holes without a flag.")
@click.option("--resample", type=click.Choice(["auto", "always", "never"]), default="auto", help="As in predict.")
@click.option("--tile-size", type=int, metavar="PX", help="Side of a tile, where the model leaves it free.")
@click.option("--halo", type=int, metavar="PX", help="Context on each side of a tile. Default: the model's.")
@click.option("--stitch", type=click.Choice(["blend", "crop"]), default="blend", help="How tiles are joined.")
@click.option("--tta", type=click.Choice(["none", "flips", "d4"]), default="none", help="As in predict.")
@click.option("--provider", type=click.Choice(PROVIDER_NAMES), default="auto", help="What computes.")
@click.option("--require-gpu", is_flag=True, help="Fail rather than run on the CPU.")
@click.option("--threads", type=int, default=0, metavar="N", help="Session threads. Default: all usable cores.")
@contract_options
@click.pass_context
def command(ctx: click.Context, /, scene: str, *, as_json: bool, **options: Any) -> None:
    """Test whether a model suits SCENE and this machine, on six tiles at most: seconds, and nothing is written.

    Bands and values, metres per pixel, parity of the provider with CPU float32, determinism, seams, georeference and
    nodata, each with the number that was found, its limit, and what to do. Attach what it says to a report.

    Exit code 1 if a test fails, 2 if the scene can't be opened, 3 if the model can't be used.
    """
    from cegate_geo.api import check

    with watch_cancel(None) as cancel:
        report = check(scene, cancel=cancel, **options)
    if as_json:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        for verdict in report.verdicts:
            click.echo(f"{verdict.state:<8} {verdict.name:<13} {verdict.message}")
            if verdict.hint and verdict.state != "ok":
                click.echo(f"{'':<22} → {verdict.hint}")
        speed = "" if report.seconds_per_tile is None else f", {report.seconds_per_tile:.3g} s a tile"
        click.echo(f"{report.scene} with {report.model} ({report.provider}{speed})")
    ctx.exit(0 if report.is_good else EXIT_FAILED)
