"""`cegate-geo doctor`."""

from __future__ import annotations

import json

import click

from cegate_geo.errors import EXIT_MODEL


@click.command("doctor", short_help="Check this installation, and say how to mend it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Check versions, providers, GDAL, PROJ and the shipped model. Exit code 3 if predicting can't work."""
    from cegate_geo.cli.checkup import examine

    findings = examine()
    broken = [f for f in findings if f.state == "broken"]
    if as_json:
        table = [{"name": f.name, "state": f.state, "value": f.value, "hint": f.hint} for f in findings]
        click.echo(json.dumps({"ok": not broken, "findings": table}, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{finding.state:<7} {finding.name:<22} {finding.value}")
            if finding.hint:
                click.echo(f"{'':<30} → {finding.hint}")
    ctx.exit(EXIT_MODEL if broken else 0)
