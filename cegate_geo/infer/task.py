"""What a Dask worker does: see whether it can do a job, and compute shards into the job's folder.

Where it does not see that folder, it keeps them for the client to fetch (`carry`).

The worker plans the job itself, from the same options, and compares what decides the bytes (`job_key`) with what the
client sent. So another version, model, scene or provider is seen before a shard is computed, by name.

Arguments and results are plain values: a worker of another version can take them, and say so.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CancelledError, CegateError, CegateWarning, InputError, ModelError
from cegate_geo.infer.assemble import Band
from cegate_geo.infer.carry import Desk, Parcel
from cegate_geo.infer.cluster import this_worker
from cegate_geo.infer.compute import ShardSink, compute_stack
from cegate_geo.infer.ensemble import AnyPredictor, load_models, models_sha256
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.job import PredictOptions
from cegate_geo.infer.job_header import stored_batch
from cegate_geo.infer.job_key import job_key
from cegate_geo.infer.mosaic import mosaic_sources, open_scene
from cegate_geo.infer.reader import is_plain_path
from cegate_geo.infer.settle import Run, fitted, proven, session_options, settle
from cegate_geo.infer.shard_store import tell_difference
from cegate_geo.infer.shift import EnoughError, Shelf, Shift, Teller, Tray
from cegate_geo.infer.tally import Tally

SHARE = "Put it on a file system that all workers see under the same path."


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker has to know of a job."""

    scene: str
    models: tuple[Path, ...]
    folder: Path
    """Of the shards."""
    token: str
    """Name of a file in that folder that is there as long as the client wants shards."""
    options: PredictOptions
    header: Mapping[str, Any]
    """Of the journals."""
    shard_shape: tuple[int, int]
    parcels: tuple[Parcel, ...] = ()
    """Files that workers are sent that do not see them."""

    @property
    def is_in_sight(self) -> bool:
        """Whether the folder is seen here: a folder of that name is not enough."""
        return (self.folder / self.token).exists()

    def packed(self) -> bytes:
        """As it is sent: only who is of the same version may open it."""
        return pickle.dumps(self)


_at_work = threading.Lock()
"""A worker with several threads computes for one call at a time: the session takes all of them."""
_shifts: dict[str, Shift] = {}
_loaded: dict[bytes, tuple[AnyPredictor, str]] = {}
"""The model of the last job, ready to run, and its SHA-256."""


def greet(version: str, packed: bytes) -> dict[str, Any]:
    """Get ready for a job.

    Returns:
        `host`; `carries`, whether shards have to be fetched from here, as the job's folder is not seen; and `error`,
        the CegateError that says why it can't be computed here, or None.
    """
    view, answer = this_worker(), {"host": socket.gethostname(), "carries": False, "error": None}
    try:
        job = _opened(version, packed)
        answer["carries"] = not job.is_in_sight
        with Desk(view) as desk, _run_of(job, packed, desk, threads=view.threads):
            return answer
    except Exception as error:
        return answer | {"error": _as_ours(error)}


def compute(
    version: str, packed: bytes, shards: list[tuple[int, int, int, int]], carries: bool = False
) -> dict[str, Any]:
    """Compute shards that follow one below the other into the job's folder.

    Args:
        version: Of the client.
        packed: The job.
        shards: (column, row, width, height) of each, from the top down.
        carries: Keep them here instead, until the client has fetched each of them.

    Returns:
        `entries` of those that are finished, as in a journal; tiles that are `done`, and of these
        `skipped`; and `error`, a CegateError or None.
    """
    stack = tuple(Window(col_off=col, row_off=row, width=width, height=height) for col, row, width, height in shards)
    shift, view, failure = Shift(stack), this_worker(), None
    teller = Teller(shift, view)
    with Desk(view) as desk:
        try:
            job = _opened(version, packed)
            if not carries:
                _require_folder(job)
            with _run_of(job, packed, desk, threads=view.threads) as run:
                _shifts[view.key] = shift
                try:
                    _compute(run, job, shift, teller, desk if carries else None)
                finally:
                    del _shifts[view.key]
        except Exception as error:
            failure = _as_ours(desk.located(error) if carries else error)
        try:
            if carries:
                teller.tell()
                desk.wait_until_fetched()
        except Exception as error:
            failure = failure or _as_ours(error)
    entries = [entry.to_json() for entry in shift.entries]
    return {"entries": entries, "done": teller.done, "skipped": teller.skipped, "error": failure}


def shorten(call: str, keep: int) -> int | None:
    """Take shards away from a call at work: gives how many of them it will compute, None where it is not at work."""
    shift = _shifts.get(call)
    return None if shift is None else shift.shorten(keep)


def dismiss(packed: bytes) -> None:
    """Let go of a job's model."""
    _loaded.pop(packed, None)


def _opened(version: str, packed: bytes) -> Job:
    if version != __version__:
        raise ModelError(
            f"It has cegate-geo {__version__}, the client {version}.", hint="Install the same version on all workers."
        )
    job: Job = pickle.loads(packed)
    return job


@contextmanager
def _run_of(job: Job, packed: bytes, desk: Desk, *, threads: int) -> Iterator[Run]:
    """The job as this worker would compute it. The scene is opened for each call: a dataset belongs to one thread."""
    _require_sight(job)
    with _at_work, gdal_settings(job.scene), warnings.catch_warnings():
        warnings.simplefilter("ignore", CegateWarning)  # the client has said it
        job = _supplied(job, desk, without_models=packed in _loaded)
        predictor, sha256 = _predictor(job, packed, threads=threads)
        bands = job.options.bands or predictor.contract.scene_bands
        with closing(open_scene(job.scene, predictor.manifest, bands=bands, nodata=job.options.nodata)) as scene:
            # What the client measured of the model's memory has decided batch and shards: it need not be seen again.
            run = fitted(proven(settle(scene, predictor, job.options)), batch_size=stored_batch(job.header))
            told = tell_difference(job.header["key"], job_key(run, sha256))
            if told:
                raise ModelError(
                    f"It would compute something else: {told}.",
                    hint="Give all workers the client's packages, model and scene, and the same kind of machine.",
                )
            _loaded[packed] = run.predictor, sha256
            yield replace(run, shard_shape=job.shard_shape)


def _require_sight(job: Job) -> None:
    """Refuse where files can't be seen.

    Raises:
        InputError: Which, and what is to be done.
    """
    if job.is_in_sight and not os.access(job.folder, os.W_OK):
        raise InputError(f"It can't write to {job.folder}.", hint="Give it the rights, or run it as the same user.")
    sent = {parcel[0] for parcel in job.parcels}
    files = [path for path in [*job.models, *_area(job)] if path not in sent]
    files += [Path(source) for source in mosaic_sources(job.scene) or [job.scene] if is_plain_path(source)]
    missing = [str(path) for path in files if is_plain_path(str(path)) and not path.exists()]
    if missing:
        raise InputError(f"It can't see {' and '.join(missing)}.", hint=SHARE)


def _require_folder(job: Job) -> None:
    """Refuse where the job's folder was seen, and is not any more.

    Raises:
        InputError: Which it is.
    """
    if not job.is_in_sight:
        raise InputError(f"It can't see the job folder {job.folder} of the client.", hint=SHARE)


def _area(job: Job) -> list[Path]:
    """The file of its area of interest, if it has one."""
    return [] if job.options.aoi is None else [Path(job.options.aoi.partition("|")[0])]


def _supplied(job: Job, desk: Desk, *, without_models: bool) -> Job:
    """The job with its files where they are seen from here; the client sends those that are not."""
    needed = {path for path in [*_area(job), *(() if without_models else job.models)] if not path.exists()}
    here = desk.receive([(number, parcel) for number, parcel in enumerate(job.parcels) if parcel[0] in needed])
    options = job.options
    for path in _area(job):
        if path in here:
            layer = str(options.aoi).partition("|")[1:]
            options = replace(options, aoi="".join([str(here[path]), *layer]))
    return replace(job, models=tuple(here.get(path, path) for path in job.models), options=options)


def _predictor(job: Job, packed: bytes, *, threads: int) -> tuple[AnyPredictor, str]:
    """The model, loaded once for a job."""
    known = _loaded.get(packed)
    if known is not None:
        return known
    _loaded.clear()  # one at a time: it may fill a GPU
    options = job.options
    asked = replace(session_options(options), threads=options.threads or threads)
    predictor = load_models(job.models, asked, stated=options.stated, tile_size=options.tile_size)
    return predictor, models_sha256(predictor)


def _compute(run: Run, job: Job, shift: Shift, teller: Teller, desk: Desk | None) -> None:
    """Compute a shift's shards onto a desk, or into the job's folder."""

    def write(band: Band) -> None:
        # Who begins another job in this folder takes the token away: nothing of this one may come into it then.
        if desk is None and not job.is_in_sight:
            raise CancelledError("Cancelled.")
        sink.write(band)

    total = Tally(run.predictor.manifest.legend, run.view.ground)
    place = Shelf(job.folder, job.header, shift) if desk is None else Tray(desk, shift)
    with closing(place) as shelf, closing(ShardSink(shift.stack, run, shelf, total)) as sink:
        try:
            compute_stack(run, shift.stack, sink, teller, write=write)
            sink.finish()
        except EnoughError:
            return


def _as_ours(error: Exception) -> CegateError:
    """An error that can be sent, and says what happened: what led to it becomes a note."""
    ours, told = error, "".join(traceback.format_exception(error))
    if not isinstance(ours, CegateError):
        is_full = isinstance(error, MemoryError)
        hint = "Lower --max-memory or --threads." if is_full else "Please report it, with what -v says."
        ours = CegateError(f"{type(error).__name__}: {error}", hint=hint)
    ours.__cause__ = ours.__context__ = None
    ours.add_note(told)
    return ours.with_traceback(None)
