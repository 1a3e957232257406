"""Dask, as far as we use it. Nothing else of the package knows it, and it is imported when workers are asked for.

Each worker gets one call at a time, and a call belongs to one worker: who gets what, and what becomes of the shards of
one that is lost, is decided in `crew`, which counts and names them. Dask connects, carries, and says who is there.
"""

from __future__ import annotations

import logging
import pkgutil
import signal
import tempfile
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cegate_geo.errors import CegateError, InputError, RuntimeMissingError
from cegate_geo.infer.heap import give_back_freed_memory
from cegate_geo.infer.providers import usable_cores

CONNECT_S = 10.0
"""So long a scheduler may take to answer."""
LOCAL = "local"
TOPIC = "cegate-geo"
"""Of what workers say while they compute."""
QUIET = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}
"""Of workers that we start: by default Dask looks at each of their threads a hundred times a second, and ticks fifty
times in each process, for a dashboard that is not there."""
INSTALL = 'pip install "cegate-geo[distributed]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where workers are: a scheduler's address, the file that a scheduler wrote, or this machine."""

    scheduler: str | None
    """None for workers of our own on this machine."""
    workers: int
    """So many are started here, or waited for."""

    @classmethod
    def parse(cls, text: str, workers: int | None = None) -> Place:
        """Read 'local', 'local:4', 'tcp://host:8786', 'host:8786' or 'scheduler.json'.

        Raises:
            InputError: If it is none of them, or a number of workers is no number.
        """
        name, _, count = text.partition(":")
        if name == LOCAL and (not count or count.isdecimal()):
            said = int(count) if count else None
            if None not in (said, workers) and said != workers:
                raise InputError(
                    f"--dask {text} asks for {said} workers, --workers for {workers}.", hint="Say it once: --dask local"
                )
            number = said if said is not None else workers if workers is not None else usable_cores()
            _require_workers(number)
            return cls(scheduler=None, workers=number)
        if not text.endswith(".json") and not text.rpartition(":")[2].rstrip("/").isdecimal():
            raise InputError(
                f"--dask {text!r} is no place of Dask workers.",
                hint="Give a scheduler's address (tcp://host:8786), the .json file that it wrote, local, or local:4.",
            )
        _require_workers(1 if workers is None else workers)
        return cls(scheduler=text, workers=workers or 1)


def _require_workers(number: int) -> None:
    if number < 1:
        raise InputError(f"{number} workers compute nothing.", hint="Use --workers 1 or more.")


def distributed_version() -> str | None:
    """Version of dask.distributed; None where it is not installed."""
    try:
        return metadata.version("distributed")
    except metadata.PackageNotFoundError:
        return None


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise RuntimeMissingError(
            f"--dask needs the package {error.name}, which is not installed.", hint=f"Install it: {INSTALL}."
        ) from error
    return distributed


@dataclass(frozen=True, slots=True)
class Call:
    """A function that a worker was asked to run."""

    key: str
    worker: str
    future: Any

    @property
    def state(self) -> Literal["pending", "done", "failed", "lost"]:
        """How far it is. A call is lost with its worker at the latest when somebody looks who is there."""
        status = self.future.status
        if status == "error":
            return "lost" if type(self.error()).__name__ == "KilledWorker" else "failed"
        return {"finished": "done", "pending": "pending"}.get(status, "lost")  # type: ignore[return-value]

    def error(self) -> BaseException | None:
        """What it raised."""
        found: BaseException | None = self.future.exception(timeout=CONNECT_S)
        return found


class Cluster:
    """A connection to workers.

    Args:
        client: Of dask.distributed.
        name: The scheduler, for people.
        wanted: So many workers are to be waited for.
    """

    def __init__(self, client: Any, *, name: str, wanted: int) -> None:
        self._client, self.name, self.wanted = client, name, wanted
        self._said: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        client.subscribe_topic(TOPIC, self._hear)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return str(self._client.scheduler.address)

    def _hear(self, event: tuple[Any, Mapping[str, Any]]) -> None:
        _, message = event
        self._said[str(message["call"])].append(message)

    def workers(self) -> dict[str, int]:
        """Threads of each worker that is there, by its address.

        Raises:
            CegateError: If the scheduler is gone.
        """
        with self._answers():
            return dict(self._client.nthreads())

    def versions(self, workers: Sequence[str]) -> dict[str, str | Exception]:
        """The version of this package on each worker, or what happened when it was asked for."""
        with self._answers():
            # A function of the standard library: it can be sent to whatever version is there.
            asked = self._client.run(
                pkgutil.resolve_name, "cegate_geo:__version__", workers=list(workers), on_error="return"
            )
        return dict(asked)

    def call(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Call:
        """Ask a worker to run a function; it may look at `this_worker` meanwhile."""
        key = f"cegate-{function.__name__}-{uuid.uuid4().hex}"
        with self._answers():
            future = self._client.submit(
                function, *arguments, key=key, workers=[worker], allow_other_workers=False, pure=False
            )
        return Call(key, worker, future)

    def result(self, call: Call) -> Any:
        """What a call that is done gave; None where that was lost with its worker."""
        try:
            return call.future.result(timeout=CONNECT_S)
        except Exception:  # Dask has many names for it
            return None

    def news(self, call: Call) -> list[Mapping[str, Any]]:
        """What a call has said since this was asked last."""
        return self._said.pop(call.key, [])

    def ask(self, workers: Sequence[str], function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Run a short function beside whatever workers do: what it gave, by worker, without those that are gone."""
        with self._answers():
            return dict(self._client.run(function, *arguments, workers=list(workers), on_error="ignore"))

    def cancel(self, calls: Sequence[Call]) -> None:
        """Say that nobody waits for some calls any more; those that run see it by `WorkerView.is_wanted`."""
        with suppress(Exception):
            self._client.cancel([call.future for call in calls])

    def forget(self, call: Call) -> None:
        """Let go of a call."""
        self._said.pop(call.key, None)
        call.future.release()

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Errors of the connection as ours."""
        try:
            yield
        except (OSError, TimeoutError) as error:
            raise self._gone(error) from error
        except (RuntimeError, ValueError) as error:  # of a client that has closed itself
            if self._client.status == "running":
                raise
            raise self._gone(error) from error

    def _gone(self, error: BaseException) -> CegateError:
        return CegateError(
            f"The Dask scheduler {self.name} does not answer any more: {_first_line(error)}.",
            hint="Look into its log, and start it again.",
        )


@contextmanager
def open_cluster(place: Place) -> Iterator[Cluster]:
    """Connect to workers, or start them here; what was started is gone afterwards.

    Raises:
        RuntimeMissingError: If dask.distributed is not installed.
        InputError: If no scheduler answers.
        CegateError: If workers can't be started here.
    """
    distributed = _distributed()
    with ExitStack() as stack:
        stack.enter_context(_silence())
        if place.scheduler is None:
            local = stack.enter_context(_local_cluster(distributed, place.workers))
            name, where = "of this machine", {"address": local}
        elif place.scheduler.endswith(".json"):
            if not Path(place.scheduler).exists():  # Dask would wait for it
                raise InputError(
                    f"There is no file {place.scheduler} of a Dask scheduler.",
                    hint="Start it with dask scheduler --scheduler-file, and wait until the file is there.",
                )
            name, where = place.scheduler, {"scheduler_file": place.scheduler}
        else:
            name, where = place.scheduler, {"address": place.scheduler}
        try:
            client = distributed.Client(**where, set_as_default=False, name="cegate-geo", timeout=CONNECT_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"No Dask scheduler answers at {name}: {_first_line(error)}.",
                hint="Check the address, and that the scheduler runs and can be reached from here.",
            ) from error
        stack.callback(_close, client)
        yield Cluster(client, name=name, wanted=place.workers)


@contextmanager
def _local_cluster(distributed: Any, workers: int) -> Iterator[Any]:
    import dask

    with tempfile.TemporaryDirectory(prefix="cegate-dask-", ignore_cleanup_errors=True) as folder:
        try:
            with dask.config.set({"temporary-directory": folder, **QUIET}):  # the scheduler's, too
                cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    # There is always an HTTP server; without an address it would listen to the whole network.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    memory_limit=0,  # nothing is spilled, paused or ended: --max-memory plans for each
                    silence_logs=logging.CRITICAL,
                    preload=[__name__],
                )
        except Exception as error:
            raise CegateError(
                f"{workers} Dask workers can't be started here: {_first_line(error)}.",
                hint='In a script of yours, call predict below `if __name__ == "__main__":`. Else try fewer workers.',
            ) from error
        try:
            yield cluster
        finally:
            with suppress(OSError, TimeoutError):
                cluster.close(timeout=CONNECT_S)


def dask_setup(_: Any) -> None:
    """Called by Dask in each worker that we start: it ends with us, not by the interrupt that is meant for us."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_back_freed_memory()


@contextmanager
def _silence() -> Iterator[None]:
    """Without Dask's log: what matters of it becomes our errors and warnings."""
    # Dask gives several of its loggers a level of their own.
    names = ["distributed", *(name for name in logging.root.manager.loggerDict if name.startswith("distributed."))]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _close(client: Any) -> None:
    with suppress(OSError, TimeoutError):
        client.close(timeout=CONNECT_S)


class WorkerView:
    """The worker that runs the calling function, as far as that has to know it."""

    def __init__(self) -> None:
        self._worker = _distributed().get_worker()
        self.key = str(self._worker.get_current_task())
        """Of the call."""

    @property
    def threads(self) -> int:
        """What it may use, as its owner said when it was started (`--nthreads`)."""
        return int(self._worker.state.nthreads)

    @property
    def folder(self) -> str:
        """Its own, for what is temporary (`--local-directory`).

        Dask removes it with the worker. Of one that was killed its nanny does, or the next worker that starts there.
        """
        return str(self._worker.local_directory)

    def is_wanted(self) -> bool:
        """Whether somebody waits for the call: False once it was cancelled, its client died, or the worker ends."""
        task = self._worker.state.tasks.get(self.key)
        is_open = self._worker.status.name in ("running", "paused", "closing_gracefully")
        return is_open and task is not None and task.state in ("executing", "long-running")

    def say(self, **values: int | str) -> None:
        """Tell the client how far the call is."""
        self._worker.log_event(TOPIC, {"call": self.key, **values})


def this_worker() -> WorkerView:
    """The worker that runs the calling function."""
    return WorkerView()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
