"""A run by Dask workers, from the side of the client: what they are told, and what is taken from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cegate_geo.errors import CegateError
from cegate_geo.infer.carry import Carrier, Parcel, area_parcel, model_parcel
from cegate_geo.infer.cluster import Cluster
from cegate_geo.infer.crew import Crew
from cegate_geo.infer.finish import Scratch
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.reader import is_plain_path
from cegate_geo.infer.settle import Run
from cegate_geo.infer.shard_store import ShardStore
from cegate_geo.infer.shares import Stack
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.task import Job

VISIBLE_S = 30.0
"""So long a file of another machine may take to be seen here."""
POLL_S = 0.05


def compute_by_workers(
    cluster: Cluster,
    run: Run,
    missing: Sequence[Stack],
    store: ShardStore,
    *,
    models: Sequence[Path],
    tally: Tally,
    scratch: Scratch,
    monitor: Monitor,
) -> tuple[int, int]:
    """Let workers compute shards into the store; count them, and copy them into the scratch rasters.

    Gives the number of tiles, and of those skipped.
    """

    def take(entry: Entry) -> None:
        _require_whole(store, entry, monitor)
        tally.include_json(entry.tally)
        scratch.copy(store, [entry], monitor)

    if not missing:
        return 0, 0
    with store.token() as token:
        job = worker_job(run, store, models=models, token=token)
        carrier = Carrier(cluster, store, job.parcels, monitor)
        return Crew(cluster, run, job, store, carrier, take=take, monitor=monitor).compute(missing)


def worker_job(run: Run, store: ShardStore, *, models: Sequence[Path], token: str) -> Job:
    """A run as workers have to know it, with names that they can find from where they are."""
    options, scene = run.options, run.scene.path
    models, area = [model.absolute() for model in models], options.aoi
    parcels: list[Parcel | None] = [model_parcel(model) for model in models]
    if area is not None and is_plain_path(area.partition("|")[0]):
        area = str(Path(area).absolute())
        parcels.append(area_parcel(Path(area.partition("|")[0])))
    return Job(
        scene=str(Path(scene).absolute()) if is_plain_path(scene) else scene,
        models=tuple(models),
        folder=store.path.absolute(),
        token=token,
        options=replace(options, aoi=area, dask=None, workers=None),
        header={**store.begun, "shard_shape": list(run.shard_shape)},
        shard_shape=run.shard_shape,
        parcels=tuple(parcel for parcel in parcels if parcel is not None),
    )


def _require_whole(store: ShardStore, entry: Entry, monitor: Monitor) -> None:
    """Refuse a shard that is not here as its worker wrote it; a network's file system may take a while.

    Raises:
        CegateError: If it is not.
    """
    path, until = store.file(entry.window), time.monotonic() + VISIBLE_S
    while not entry.seal.fits(path):
        monitor.check()
        if time.monotonic() > until:
            raise CegateError(
                f"{path} is not here as a Dask worker has written it.",
                hint="The folder must be on a file system that this machine shares with workers that see it.",
            )
        time.sleep(POLL_S)
