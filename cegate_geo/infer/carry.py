"""What Dask carries where a worker does not see the client's files: shards to the client, the model to the worker.

A call on a worker has a folder of its own (`Desk`), which goes with the call, however that ends. The client (`Carrier`)
puts files there and fetches shards from there, in pieces, one at a time, so that nobody on the way holds more.
The call ends when all of its shards are fetched; who is lost before takes along what is not.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cegate_geo.domain.windows import Window
from cegate_geo.errors import CancelledError, CegateError, ModelError
from cegate_geo.infer.cluster import Call, Cluster, WorkerView
from cegate_geo.infer.foreign.geoai import sidecar_of
from cegate_geo.infer.foreign.open import find_weights
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.predictor import file_sha256
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.shard_file import write_shard
from cegate_geo.infer.shard_store import ShardStore, shard_file

PIECE = 2 * 2**20
"""Bytes that are under way at once; client and scheduler hold some three times as many meanwhile."""
AREA_BYTES = 32 * 2**20
"""A file of an area of interest is read anew for each call; larger ones are not sent."""
EXTERNAL = (".data", "_data")
"""What exporters put behind the name of an ONNX file for weights that they keep beside it."""
SHAPEFILE = (".shx", ".dbf", ".prj", ".cpg")
PREFIX = "cegate-"
"""Of a call's folder."""
POLL_S = 0.1
ITS_DISK = "Check that disk of the worker; its --local-directory names another."

Parcel = tuple[Path, ...]
"""A file that can be sent, and those that have to lie beside or below it."""
Announced = list[tuple[str, int, str]]
"""Files that come: name below the folder, bytes, SHA-256."""


def model_parcel(path: Path) -> Parcel | None:
    """A model's file with its weights and what describes them; None where they do not lie together."""
    try:
        weights, _ = find_weights(path)
    except ModelError:
        return None
    beside = [weights.with_name(weights.name + ending) for ending in EXTERNAL] + [sidecar_of(weights)]
    found = (path, *(file for file in dict.fromkeys((weights, *beside)) if file != path and file.is_file()))
    is_together = all(file.is_relative_to(path.parent) and ".." not in file.parts for file in found)
    return found if path.is_file() and is_together else None


def area_parcel(path: Path) -> Parcel | None:
    """A file of polygons with its side files; None where it is a folder, or large."""
    beside = [path.with_suffix(ending) for ending in SHAPEFILE] if path.suffix.lower() == ".shp" else []
    found = tuple(file for file in (path, *beside) if file.is_file())
    return found if path in found and sum(file.stat().st_size for file in found) <= AREA_BYTES else None


class Desk:
    """A call's own folder on a worker, made when it is needed; it goes when the call ends.

    It lies in the worker's, which Dask removes with the worker; after a kill the next worker that starts there does.

    Args:
        view: The worker.
    """

    def __init__(self, view: WorkerView) -> None:
        self._view, self._made = view, ExitStack()
        self._path: Path | None = None
        self._changed = threading.Condition()
        self._missing: dict[str, int] | None = None
        """Bytes that files still lack; None before they were announced."""
        self._announced: Announced = []
        self._shards: set[str] = set()
        """Finished shards that were not fetched."""
        self._error: CegateError | None = None
        """What went wrong in the client's hands."""

    def __enter__(self) -> Desk:
        _desks[self._view.key] = self
        return self

    def __exit__(self, *_: object) -> None:
        _desks.pop(self._view.key, None)
        self._made.close()

    @property
    def path(self) -> Path:
        """The folder."""
        if self._path is None:
            made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._view.folder, ignore_cleanup_errors=True)
            self._path = Path(self._made.enter_context(made))
        return self._path

    # For the call

    def receive(self, parcels: Sequence[tuple[int, Parcel]]) -> dict[Path, Path]:
        """Ask the client for files, and wait for them: where each lies here, by where it lies there.

        Args:
            parcels: What is missing, with its number in the job.

        Raises:
            CegateError: If they can't be stored, or are not what was sent; CancelledError if nobody waits any more.
        """
        if not parcels:
            return {}
        folder = self.path
        self._view.say(lacks=json.dumps([number for number, _ in parcels]))
        self._wait(lambda: self._missing is not None and not any(self._missing.values()))
        for name, _, sha256 in self._announced:
            if file_sha256(folder / name) != sha256:
                raise CegateError(
                    f"{PurePosixPath(name).name} did not arrive as it was sent.",
                    hint="Leave it as it is, and run the command again.",
                )
        return {parcel[0]: folder / str(number) / parcel[0].name for number, parcel in parcels}

    def file(self, window: Window) -> Path:
        """Where a shard lies."""
        return shard_file(self.path, window)

    def offer(self, entry: Entry) -> None:
        """Keep a finished shard until it is fetched."""
        with self._changed:
            self._shards.add(self.file(entry.window).name)

    def wait_until_fetched(self) -> None:
        """Wait for the client to fetch all finished shards.

        Raises:
            CegateError: If one can't be read; CancelledError if nobody waits any more.
        """
        self._wait(lambda: not self._shards)

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            while self._error is not None or not until():
                if self._error is not None:
                    raise self._error
                if not self._view.is_wanted():
                    raise CancelledError("Cancelled.")
                self._changed.wait(POLL_S)

    # For the client; Dask calls these in the worker's own thread

    def announce(self, files: Announced) -> bool:
        """Say which files come."""
        for name, _, _ in files:
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with self._changed:
            self._announced, self._missing = files, {name: size for name, size, _ in files}
            self._changed.notify_all()
        return True

    def put(self, name: str, data: bytes) -> bool:
        """Add a piece to a file that was announced."""
        with self._changed:
            if self._missing is None or name not in self._missing:
                return False
            with (self.path / name).open("ab") as file:
                file.write(data)
            self._missing[name] -= len(data)
            self._changed.notify_all()
        return True

    def piece(self, name: str, offset: int, size: int) -> bytes | None:
        """Bytes of a finished shard, empty where all are 0; None where there is no such shard."""
        if name not in self._shards:
            return None
        with (self.path / name).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        return b"" if data == bytes(len(data)) else data

    def let_go(self, name: str) -> bool:
        """A shard was fetched, and is safe."""
        with suppress(OSError):
            (self.path / name).unlink(missing_ok=True)
        with self._changed:
            self._shards.discard(name)
            self._changed.notify_all()
        return True

    def fail(self, error: Exception) -> None:
        """End the call: what the client asked for can't be done."""
        with self._changed:
            self._error = CegateError(f"{self.path}: {error}.", hint=ITS_DISK)
            self._changed.notify_all()

    def located(self, error: Exception) -> Exception:
        """The same error; one of writing a shard says that it is not the output's folder which is to be looked at."""
        if type(error) is CegateError and isinstance(error.__cause__, OSError):
            error.message, error.hint = f"{self._view.folder}: {error.message}", ITS_DISK
        return error


_desks: dict[str, Desk] = {}
"""By the key of the call."""


def at_desk(call: str, what: str, *arguments: Any) -> Any:
    """Do something at the desk of a call at work, for the client; None where it is not at work, or that fails."""
    desk = _desks.get(call)
    if desk is None:
        return None
    try:
        return getattr(desk, what)(*arguments)
    except Exception as error:  # the call says it; Dask would only log it
        desk.fail(error)
        return None


class _GoneError(Exception):
    """The call is not at work any more, or its worker is gone."""


class Carrier:
    """The client's side: sends files to workers, and fetches shards into the store.

    Args:
        cluster: The workers.
        store: Where shards go.
        parcels: What can be sent.
        monitor: Asked whether to go on.
    """

    def __init__(self, cluster: Cluster, store: ShardStore, parcels: Sequence[Parcel], monitor: Monitor) -> None:
        self._cluster, self._store, self._parcels, self._monitor = cluster, store, parcels, monitor
        self._known: dict[int, Announced] = {}
        self._here: set[Window] = set()

    def send(self, call: Call, lacks: str) -> None:
        """Send files that a call has asked for; one that is gone meanwhile gets none.

        Raises:
            CegateError: If one can't be read.
        """
        numbers = [int(number) for number in json.loads(lacks)]
        try:
            files = [(number, file) for number in numbers for file in self._parcels[number]]
            announced = [said for number in numbers for said in self._announced(number)]
            self._at_desk(call, "announce", announced)
            for (_, file), (name, size, _) in zip(files, announced, strict=True):
                with file.open("rb") as source:
                    for offset in range(0, size, PIECE):
                        self._at_desk(call, "put", name, source.read(min(PIECE, size - offset)))
        except _GoneError:
            return
        except OSError as error:
            raise CegateError(
                f"{error.filename} can't be read: {error}.", hint="Run the same command again."
            ) from error

    def fetch(self, call: Call, entry: Entry) -> bool:
        """Fetch a finished shard into the store, and enter it in the journal. False where it can't be had, now or ever.

        Raises:
            CegateError: If it is damaged, or can't be written here.
        """
        path = self._store.file(entry.window)
        try:
            if entry.window not in self._here:
                if entry.seal.size:
                    write_shard(path, entry.seal, self._pieces(call, path.name, entry.seal.size))
                self._store.add(entry)
                self._here.add(entry.window)
            return bool(self._at_desk(call, "let_go", path.name))
        except _GoneError:
            return False

    def _announced(self, number: int) -> Announced:
        if number not in self._known:
            first, *_ = parcel = self._parcels[number]
            self._known[number] = [
                (
                    (PurePosixPath(str(number)) / file.relative_to(first.parent).as_posix()).as_posix(),
                    file.stat().st_size,
                    self._monitor.wait(partial(file_sha256, file)),
                )
                for file in parcel
            ]
        return self._known[number]

    def _pieces(self, call: Call, name: str, size: int) -> Iterator[bytes]:
        for offset in range(0, size, PIECE):
            length = min(PIECE, size - offset)
            yield self._at_desk(call, "piece", name, offset, length) or bytes(length)

    def _at_desk(self, call: Call, what: str, *arguments: Any) -> Any:
        """Do something at the desk of a call.

        Raises:
            _GoneError: If it is not there.
        """
        ask = partial(self._cluster.ask, [call.worker], at_desk, call.key, what, *arguments)
        found = self._monitor.wait(ask).get(call.worker)
        if found is None:
            raise _GoneError
        return found
