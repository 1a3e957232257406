"""Finished shards between runs: the folder MASK.tif.job beside the output, its lock and its journals.

MASK.tif.job/lock                    held by whoever works here; parts of one job share it
MASK.tif.job/journal.jsonl           of whole runs, and of what a client fetched from Dask workers
MASK.tif.job/journal-2-of-4.jsonl    of the second of four parts
MASK.tif.job/journal-HOST-PID-ID.jsonl   of a Dask worker
MASK.tif.job/r0c4096.shard           a shard whose first row is 0 and first column 4096
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cegate_geo.domain.joint import NAME_SEPARATOR
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer.atomic import SUFFIX
from cegate_geo.infer.journal import FORMAT, Entry, Journal, Written, read_journal
from cegate_geo.infer.lock import hold
from cegate_geo.infer.parts import Part
from cegate_geo.infer.writer import write_errors

FOLDER_SUFFIX = ".job"
WHOLE = "journal.jsonl"
OURS = re.compile(r"lock|journal.*\.jsonl|r\d+c\d+\.shard|.*\.part|\.journal.*\.lock")
"""Names of the files in such a folder."""
TOKEN = ".dask-"
"""A file that begins so tells Dask workers that their client wants shards in this folder."""
SHOWN, SHOWN_EACH = 60, 12
"""Characters of a value that an error shows; of each part, where it has several."""


def shard_file(folder: Path, window: Window) -> Path:
    """Where a shard lies."""
    return folder / f"r{window.row_off}c{window.col_off}.shard"


def store_path(output: Path) -> Path:
    """The folder of an output's shards."""
    return output.with_name(output.name + FOLDER_SUFFIX)


class ShardStore:
    """An open folder of shards, locked.

    Args:
        path: The folder.
        part: The part that is computed; None for a whole run.
    """

    def __init__(self, path: Path, part: Part | None = None) -> None:
        self.path, self._part = path, part
        self._journal: Journal | None = None
        self.written: dict[str, Written] = {}
        """What the journals say, by their names."""
        self.begun: Mapping[str, Any] = {}
        """The header of this run."""
        self.read()

    def read(self) -> None:
        """Read all journals."""
        found = {path.name: read_journal(path) for path in sorted(self.path.glob("journal*.jsonl"))}
        self.written = {name: written for name, written in found.items() if written is not None}

    @property
    def header(self) -> Mapping[str, Any] | None:
        """The first line of a journal; None while there is none."""
        return next((written.header for written in self.written.values()), None)

    def begin(self, header: Mapping[str, Any]) -> None:
        """Open this run's journal; it says that shards are cut as in those that are there.

        Raises:
            InputError: If the folder holds shards of another job.
        """
        for written in self.written.values():
            require_same_job(self.path, written.header, header)
        if self.header is not None:
            header = {**header, "shard_shape": self.header["shard_shape"]}
        for remains in self.path.glob(f"*{SUFFIX}"):
            # Without a part nobody else works here; with one, still no client of Dask workers.
            if self._part is None or remains.name.startswith(TOKEN):
                remains.unlink(missing_ok=True)
        self.begun = header
        self._journal = Journal(self.path / (self._part.journal if self._part else WHOLE), header)

    def entries(self) -> dict[Window, Entry]:
        """The finished shards, by journal; whether their files are whole is to be seen."""
        return {entry.window: entry for written in self.written.values() for entry in written.entries}

    def finished(self, windows: Iterable[Window], *, check: Callable[[], None] = lambda: None) -> list[Entry]:
        """Those of some shards that a journal holds and whose files are whole; `check` may raise to stop."""
        entries, found = self.entries(), []
        for window in windows:
            check()
            entry = entries.get(window)
            if entry is not None and entry.seal.fits(self.file(window)):
                found.append(entry)
        return found

    def file(self, window: Window) -> Path:
        """Where a shard lies."""
        return shard_file(self.path, window)

    @contextmanager
    def token(self) -> Iterator[str]:
        """A file for Dask workers to see that it is this folder, and that its client still wants shards: its name."""
        path = self.path / f"{TOKEN}{uuid.uuid4().hex}{SUFFIX}"
        with write_errors(path):
            path.touch()
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)

    def add(self, entry: Entry) -> None:
        """Say that a shard is finished."""
        if self._journal is not None:
            self._journal.add(entry)

    def close(self, *, keep_empty: bool = False) -> None:
        """Close the journal; one that holds no shard goes, unless it is to be kept."""
        if self._journal is None:
            return
        self._journal.close()
        written = read_journal(self._journal.path)
        if written is not None and not written.entries and not keep_empty:
            self._journal.path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the folder: all that it was for is done. What is not of a job stays, in the folder."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        _remove(self.path)

    @property
    def kept(self) -> int:
        """Shards that a later run finds here."""
        self.read()
        return len(self.entries())


def require_same_job(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to mix shards of two jobs.

    Raises:
        InputError: If they differ, with what differs.
    """
    if there.get("format") != FORMAT:
        raise InputError(
            f"{path.name} was written by another version of cegate-geo.",
            hint="Go on with that version, or start afresh with --no-resume.",
        )
    told = tell_difference(there["key"], here["key"])
    if told:
        raise InputError(
            f"{path} holds shards of another job: {told}.",
            hint="Repeat the command as it was, choose another output, or start afresh with --no-resume.",
        )


def tell_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What of two job keys differs, for people; empty where nothing does."""
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "; ".join(f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}" for name in differing)


def _shown(value: Any) -> str:
    text = str(value)
    parts = text.split(NAME_SEPARATOR)
    if len(text) > SHOWN and len(parts) > 1:  # models that are averaged: the first may be the same in both
        return NAME_SEPARATOR.join(f"{part[:SHOWN_EACH]}..." for part in parts)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@contextmanager
def open_store(path: Path, *, part: Part | None = None, make: bool = True) -> Iterator[ShardStore]:
    """Open a folder of shards, and lock it; it goes when it is left without any finished shard.

    Args:
        path: The folder; made if need be.
        part: The part that is to be computed: other parts may be computed meanwhile. None for a whole run.
        make: Whether to make it.

    Raises:
        InputError: If another run works there.
    """
    with ExitStack() as locks:
        _enter(locks, path, part=part, make=make)
        store, is_done = ShardStore(path, part), False
        try:
            yield store
            is_done = True
        finally:
            # A part that has nothing to do says so to the merge.
            store.close(keep_empty=is_done and part is not None)
            is_empty = not any(path.glob("journal*.jsonl"))
            locks.close()
            if is_empty:
                with suppress(InputError):
                    discard(path)


def _enter(locks: ExitStack, path: Path, *, part: Part | None, make: bool) -> None:
    with write_errors(path):
        if make:
            path.mkdir(exist_ok=True)
        mine = locks.enter_context(hold(path / "lock", shared=part is not None))
        if mine and part is not None:
            mine = locks.enter_context(hold(path / f".{part.journal}.lock"))
    if not mine:
        what = "another run" if part is None else f"another run, or one for part {part},"
        raise InputError(f"In {path} {what} is at work.", hint="Wait for it, or choose another output.")


def discard(path: Path) -> None:
    """Remove a folder of shards, unless somebody works there.

    Raises:
        InputError: If somebody does, or it holds what is not ours.
    """
    if not path.is_dir():
        return
    others = _others(path)
    if others:
        raise InputError(
            f"{path} holds {others[0].name}, which is no part of a job.", hint="Move it away, or choose another output."
        )
    with hold(path / "lock") as mine:
        if not mine:
            raise InputError(f"In {path} another run is at work.", hint="Wait for it, or choose another output.")
        _remove(path)


def _others(path: Path) -> list[Path]:
    """What lies in a folder of shards and is no part of a job: logs of a batch system, an output."""
    return [entry for entry in path.iterdir() if not OURS.fullmatch(entry.name)]


def _remove(path: Path) -> None:
    """Remove a folder that is locked. Renamed first: who comes meanwhile makes a new one, and works there."""
    others = _others(path)
    if others:
        for entry in set(path.iterdir()) - set(others):
            entry.unlink(missing_ok=True)
        return
    gone = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        path.rename(gone)
    except OSError:  # where open files can't be moved
        gone = path
    shutil.rmtree(gone, ignore_errors=True)
