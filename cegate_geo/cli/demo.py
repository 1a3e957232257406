"""`cegate-geo demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from tqdm import tqdm

from cegate_geo.cli.events import watch_cancel


class _Bars:
    """One bar on stderr for each step that can be counted; lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._title = ""

    def begin(self, title: str, total: int) -> None:
        self._title = title
        if sys.stderr.isatty():
            self._bar = tqdm(total=total or None, desc=title, file=sys.stderr, leave=False, dynamic_ncols=True)
        else:
            click.echo(f"{title} ...", err=True)

    def advance(self, done: int, note: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)

    def end(self, seconds: float) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        click.echo(f"{self._title}: {seconds:.1f} s", err=True)


@click.command("demo", short_help="The whole way on regions made by code.")
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path, file_okay=False), default="demo-out", show_default=True,
    help="Folder for everything that it makes; an earlier demo there is replaced.",
)  # fmt: skip
@click.option("--seed", type=int, default=7, show_default=True, help="Of the regions and of training.")
def command(folder: Path, seed: int) -> None:
    """Make two regions by code, adapt on one, predict the other, and write a page that says what happened.

    Needs nothing but this installation. Without torch the shipped model is used, and the page says how to get the rest.
    """
    from cegate_geo.demo.charts import text_table
    from cegate_geo.demo.run import DemoSettings, run_demo

    with watch_cancel(None) as cancel:
        result = run_demo(folder, DemoSettings(seed=seed), listener=_Bars(), cancelled=cancel)
    story = result.story
    if story.frozen is not None:
        click.echo(f"Region B, never seen in training, against its exact truth ({story.steps} steps each):")
    click.echo(text_table(story))
    if result.missing:
        click.echo(f"{result.missing} is not installed, so nothing was adapted. For the whole demo:", err=True)
        click.echo('  pip install "cegate-geo[cpu,train]"  (in a clone of the repository: make demo)', err=True)
    click.echo(result.page.resolve())
