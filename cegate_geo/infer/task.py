"""What a Dask worker does: see whether it can do a job, and compute shards into the job's folder.

The worker plans the job itself, from the same options, and compares what decides the bytes (`job_key`) with what the
client sent. So another version, model, scene or provider is seen before a shard is computed, by name.

Arguments and results are plain values: a worker of another version can take them, and say so.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import socket
import threading
import time
import traceback
import uuid
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
from cegate_geo.infer.cluster import WorkerView, this_worker
from cegate_geo.infer.compute import ShardSink, compute_stack
from cegate_geo.infer.ensemble import AnyPredictor, load_models, models_sha256
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.job import PredictOptions
from cegate_geo.infer.job_header import stored_batch
from cegate_geo.infer.job_key import job_key
from cegate_geo.infer.journal import Entry, Journal
from cegate_geo.infer.mosaic import mosaic_sources, open_scene
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.reader import is_plain_path
from cegate_geo.infer.settle import Run, fitted, proven, session_options, settle
from cegate_geo.infer.shard_store import shard_file, tell_difference
from cegate_geo.infer.tally import Tally

SAY_EVERY_S = 0.5


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

    def packed(self) -> bytes:
        """As it is sent: only who is of the same version may open it."""
        return pickle.dumps(self)


class _EnoughError(Exception):
    """The shards that are left were given to another worker."""


class _Shift:
    """A call at work: shards that follow one below the other, of which the lower ones may be taken away."""

    def __init__(self, stack: tuple[Window, ...]) -> None:
        self.stack = stack
        self.entries: list[Entry] = []
        """Of those that are finished."""
        self._keep = len(stack)
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """A shard is finished."""
        with self._lock:
            self.entries.append(entry)

    def shorten(self, keep: int) -> int:
        """Leave out what comes after the first `keep` shards; gives how many it will compute."""
        with self._lock:
            self._keep = max(min(self._keep, keep), min(len(self.entries) + 1, len(self.stack)))
            return self._keep

    @property
    def is_enough(self) -> bool:
        """Whether all that it is to compute is finished, and there was more."""
        return len(self.entries) >= self._keep < len(self.stack)


_at_work = threading.Lock()
"""A worker with several threads computes for one call at a time: the session takes all of them."""
_shifts: dict[str, _Shift] = {}
_loaded: dict[bytes, tuple[AnyPredictor, str]] = {}
"""The model of the last job, ready to run, and its SHA-256."""


@functools.cache
def _name_of(pid: int) -> str:
    """Tells this process from all others that ever write into a folder; a fork of it, too."""
    return f"{socket.gethostname().split('.')[0] or 'host'}-{pid}-{uuid.uuid4().hex[:8]}"


def greet(version: str, packed: bytes) -> dict[str, Any]:
    """Get ready for a job.

    Returns:
        `host`; and `error`, the CegateError that says why it can't be computed here, or None.
    """
    host = socket.gethostname()
    try:
        job = _opened(version, packed)
        with _run_of(job, packed, this_worker()):
            return {"host": host, "error": None}
    except Exception as error:
        return {"host": host, "error": _as_ours(error)}


def compute(version: str, packed: bytes, shards: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    """Compute shards that follow one below the other into the job's folder.

    Args:
        version: Of the client.
        packed: The job.
        shards: (column, row, width, height) of each, from the top down.

    Returns:
        `entries` of those that are finished, as in a journal; tiles that are `done`, and of these
        `skipped`; and `error`, a CegateError or None.
    """
    stack = tuple(Window(col_off=col, row_off=row, width=width, height=height) for col, row, width, height in shards)
    shift, view, failure = _Shift(stack), this_worker(), None
    teller = _Teller(shift, view)
    try:
        job = _opened(version, packed)
        with _run_of(job, packed, view) as run:
            _shifts[view.key] = shift
            try:
                _compute(run, job, shift, teller)
            finally:
                del _shifts[view.key]
    except Exception as error:
        failure = _as_ours(error)
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
def _run_of(job: Job, packed: bytes, view: WorkerView) -> Iterator[Run]:
    """The job as this worker would compute it. The scene is opened for each call: a dataset belongs to one thread."""
    _require_sight(job)
    with _at_work, gdal_settings(job.scene), warnings.catch_warnings():
        warnings.simplefilter("ignore", CegateWarning)  # the client has said it
        predictor, sha256 = _predictor(job, packed, threads=view.threads)
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
    hint = "Put it on a file system that all workers see under the same path."
    if not (job.folder / job.token).exists():
        raise InputError(f"It can't see the job folder {job.folder} of the client.", hint=hint)
    if not os.access(job.folder, os.W_OK):
        raise InputError(f"It can't write to {job.folder}.", hint="Give it the rights, or run it as the same user.")
    files = [*job.models, *([Path(job.options.aoi.partition("|")[0])] if job.options.aoi else [])]
    files += [Path(source) for source in mosaic_sources(job.scene) or [job.scene] if is_plain_path(source)]
    missing = [str(path) for path in files if is_plain_path(str(path)) and not path.exists()]
    if missing:
        raise InputError(f"It can't see {' and '.join(missing)}.", hint=hint)


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


class _Shelf:
    """The job's folder, as a sink of shards sees it."""

    def __init__(self, job: Job, shift: _Shift) -> None:
        self._job, self._shift = job, shift
        self._journal: Journal | None = None

    def file(self, window: Window) -> Path:
        """Where a shard lies."""
        return shard_file(self._job.folder, window)

    def add(self, entry: Entry) -> None:
        """Enter a finished shard into this process' own journal."""
        if self._journal is None:
            self._journal = Journal(self._job.folder / f"journal-{_name_of(os.getpid())}.jsonl", self._job.header)
        self._journal.add(entry)
        self._shift.add(entry)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()


class _Teller(Monitor):
    """Counts what a shift has done, tells the client, and ends it when nobody wants it, or no more of it."""

    def __init__(self, shift: _Shift, view: WorkerView) -> None:
        super().__init__()
        self._shift, self._view = shift, view
        self._last, self._told = 0.0, 0
        self.done = 0
        """Tiles, skipped ones included."""
        self.skipped = 0

    def advance(self, *, run: int, skipped: int) -> None:
        """Say that so many more tiles were run, and skipped."""
        self.done, self.skipped = self.done + run + skipped, self.skipped + skipped
        now = time.monotonic()
        if now - self._last >= SAY_EVERY_S:
            self._last = now
            new = self._shift.entries[self._told :]
            self._told += len(new)
            # As text: Dask's messages hold no whole numbers as large as areas may be.
            lines = json.dumps([entry.to_json() for entry in new])
            self._view.say(done=self.done, finished=self._told, entries=lines)
        self.check()

    def check(self) -> None:
        """Raise what ends the shift."""
        if self._shift.is_enough:
            raise _EnoughError
        if not self._view.is_wanted():
            raise CancelledError("Cancelled.")


def _compute(run: Run, job: Job, shift: _Shift, teller: _Teller) -> None:
    token = job.folder / job.token

    def write(band: Band) -> None:
        # Who begins another job in this folder takes the token away: nothing of this one may come into it then.
        if not token.exists():
            raise CancelledError("Cancelled.")
        sink.write(band)

    total = Tally(run.predictor.manifest.legend, run.view.ground)
    with closing(_Shelf(job, shift)) as shelf, closing(ShardSink(shift.stack, run, shelf, total)) as sink:
        try:
            compute_stack(run, shift.stack, sink, teller, write=write)
            sink.finish()
        except _EnoughError:
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
