"""`cegate-geo dataset`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("dataset", short_help="Write the configuration that reads a published dataset.")
@click.argument("name", required=False)
@click.argument("root", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="TOML file to write; default: standard output.")
@click.option("--gsd", "gsd_m", type=float, metavar="M", help="Metres per pixel, where the authors state none.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def command(name: str | None, root: Path | None, *, output: Path | None, gsd_m: float | None, overwrite: bool) -> None:
    """Write the part of an `adapt` configuration that reads the dataset NAME, unpacked into the folder ROOT.

    Nothing is copied: classes, colours, patterns and what its labels mean go into [classes], [[source]] and
    [[validation]]. Add [model] and [train]. What its authors measure on follows as comments, for a suite of benchmark.
    Without NAME, the known datasets are listed.
    """
    from cegate_geo.errors import InputError, OutputExistsError
    from cegate_geo.train.datasets import DATASETS

    if name is None:
        for known, dataset in DATASETS.items():
            click.echo(f"{known:20} {dataset.about}")
        return
    if root is None:
        raise click.UsageError("Give the folder ROOT that the dataset was unpacked into.")
    from cegate_geo.train.dataset_tables import write_configuration

    text = write_configuration(name, root, gsd_m=gsd_m)
    if output is None:
        click.echo(text, nl=False)
        return
    if output.exists() and not overwrite:
        raise OutputExistsError(f"{output} exists already.", hint="Use --overwrite, or choose another name.")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output} can't be written: {error.strerror}.", hint="Choose another place.") from error
    click.echo(output)
