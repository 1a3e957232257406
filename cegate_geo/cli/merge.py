"""`cegate-geo merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cegate_geo.cli.events import EventStream, ProgressEvents, progress_bar, watch_cancel
from cegate_geo.cli.predict import WordList, summary
from cegate_geo.infer.heap import give_back_freed_memory


@click.command("merge", short_help="Join the shards of a prediction.")
@click.argument("job", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Mask to write. Default: as was asked for.")
@click.option("--vector", type=click.Path(path_type=Path), help="Polygons to write. Default: as was asked for.")
@click.option("--min-area", "min_area_m2", type=float, metavar="M2", help="As of predict. Default: as was asked for.")
@click.option("--simplify", "simplify_m", type=float, metavar="M", help="As of predict. Default: as was asked for.")
@click.option("--vector-classes", type=WordList(), metavar="NAMES|IDS", help="As of predict. Default: likewise.")
@click.option("--confidence", type=click.Path(path_type=Path), help="Winner's probability. Default: as was asked for.")
@click.option("--probabilities", type=click.Path(path_type=Path), help="Probabilities. Default: as was asked for.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--events", type=click.Choice(["jsonl"]), help="Write JSON lines to stdout, watch stdin for 'cancel'.")
@click.pass_obj
def command(state: dict[str, Any], /, job: Path, *, output: Path | None, events: str | None, **given: Any) -> None:
    """Join the parts in JOB, the folder MASK.tif.job that predict --shard fills, into the outputs of one run.

    The bytes are those of one run. Outputs go where the parts were told, unless said otherwise here. Where shards are
    missing or damaged, it says which parts have to be computed. The folder goes when the outputs are in place.
    """
    from cegate_geo.api import merge

    stream: EventStream | None = state.get("events") if events else None
    give_back_freed_memory()
    with watch_cancel(stream) as cancel:
        if stream is not None:
            stream.hello("merge")
            result = merge(job, output, progress=ProgressEvents(stream), cancel=cancel, **given)
            stream.send("result", **result.to_json())
            return
        show, close = progress_bar("shard")
        try:
            result = merge(job, output, progress=show, cancel=cancel, **given)
        finally:
            close()
    click.echo(summary(result))
