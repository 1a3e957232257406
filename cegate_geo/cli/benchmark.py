"""`cegate-geo benchmark`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cegate_geo.train.benchmark import RunRecord
    from cegate_geo.train.suite import SuiteConfig


@click.command("benchmark", short_help="Methods x settings x seeds, with a table.")
@click.argument("suite", type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the table.")
@click.option("--setting", "settings", metavar="NAME", multiple=True, help="Only this setting; may be repeated.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Run nothing: print the table of what is there.")
@click.option("--device", default="auto", show_default=True, help="torch device, or auto.")
@click.pass_context
def command(
    context: click.Context, suite: Path, folder: Path, *, settings: tuple[str, ...], is_dry: bool, device: str
) -> None:
    """Run `cegate-geo adapt` for each method, setting and seed of SUITE.toml, and measure it on regions of their own.

    The learning rate of each method is chosen from one grid on source validation, weights likewise. Runs that are
    complete in the folder are not repeated, others are resumed; so the same command goes on after Ctrl-C.

    Without a peft.budget in config or suite, the method gate is the default of adapt, all modules and the patch
    embedding; random, fixed and grad-norm then choose a quarter, as the paper's gate does with peft.budget = 0.25.

    Settings may be run side by side into one folder, each with --setting; the same command without it then makes the
    table of all. --dry-run shows how far it is: methods of which every rate was tried.

    The folder gets table.md, table.json, table.html with plots, table.svg with the differences to the reference over
    all regions, and runs/. Failed runs are listed, and make the exit code 1.

    \b
    config = "recipe.toml"            # of adapt; its paths start from the working folder
    methods = ["gate", "lora", "frozen"]
    reference = "gate"                # intervals are paired against it
    seeds = [0, 1, 2]
    lr = [1e-5, 5e-5, 1e-4]           # empty: that of config
    oracle = false                    # also tell the best rate on the test labels
    [[variant]]                       # a method with other settings
    name = "gate-50"
    set = { peft = { method = "gate", every = 50 } }
    [[setting]]
    name = "town"
    set = { train = { steps = 500 } } # tables over those of config
    [[setting.test]]
    name = "next town"
    images = "b/*.tif"
    labels = "b/*_mask.tif"
    """  # noqa: D301 - click wants the character
    from cegate_geo.cli.events import watch_cancel
    from cegate_geo.train.benchmark import run_suite
    from cegate_geo.train.benchmark_table import to_markdown
    from cegate_geo.train.memory import keep_freed_memory
    from cegate_geo.train.suite import read_suite

    keep_freed_memory()
    planned = read_suite(suite, settings=settings)
    with watch_cancel(None) as cancelled:
        records = run_suite(
            planned,
            folder,
            device=device,
            is_dry=is_dry,
            told=lambda text: click.echo(text, err=True),
            cancelled=cancelled,
        )
    if not is_dry:
        _write_tables(planned.config, records, folder)
    click.echo(to_markdown(planned.config, records))
    if any(record.failure for record in records):
        context.exit(1)


def _write_tables(config: SuiteConfig, records: list[RunRecord], folder: Path) -> None:
    """The table in all its forms."""
    from cegate_geo.train.benchmark_page import overall_chart, to_page
    from cegate_geo.train.benchmark_table import to_json, to_markdown
    from cegate_geo.train.run_files import write_text

    write_text(folder / "table.json", json.dumps(to_json(config, records), indent=2) + "\n")
    write_text(folder / "table.md", to_markdown(config, records))
    write_text(folder / "table.html", to_page(config, records))
    if picture := overall_chart(config, records):
        write_text(folder / "table.svg", picture)
