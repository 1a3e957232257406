# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of the engine's environment: replaced as a whole or not at all, by one process at a time. No qgis.

The environment can't be moved once it is made (its scripts hold its path), so it is made in its place, and an older one
waits beside it under another name until the new one has said hello. A marker file is written last: what lacks it is
half-made, is never used, and is removed by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator, Mapping

from .engine import READY
from .outcome import EngineError
from .words import tr


class Place:
    """A folder, with what lies beside it: an older one that was set aside, temporary files, a lock."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Nothing is touched yet. The folder's parent belongs to the plugin too; `say` takes a line for the log."""
        self.folder, self._say = folder, say
        self.scratch = folder.with_name("scratch")
        self._previous = folder.with_name(f"{folder.name}.previous")
        self._lock_file = folder.with_name("setup.lock")

    def is_ready(self) -> bool:
        """Whether the marker is there: all of the environment is."""
        return (self.folder / READY).is_file()

    def remove(self) -> bool:
        """Remove the environment and all that belongs to it; False if there was nothing.

        Raises:
            EngineError: If a file is in use.
        """
        with self.alone():
            there = [path for path in (self.folder, self._previous, self.scratch) if path.exists()]
            for path in there:
                _remove_tree(path)
        with suppress(OSError):  # other files of the user's keep the folder
            self._lock_file.unlink()
            self.folder.parent.rmdir()
        return bool(there)

    def mark(self, told: Mapping[str, object]) -> None:
        """Write the marker, with what is good to know later."""
        half = self.folder / f"{READY}.part"
        with half.open("w", encoding="utf-8") as file:
            json.dump(told, file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(self.folder / READY)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other QGIS with this profile may do the same meanwhile; the lock ends with its process."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock_file.open("a+b")
        except OSError as error:
            raise EngineError(tr("The profile can't be written to: {error}.").format(error=error)) from error
        with lock:
            try:
                _lock(lock.fileno())
            except OSError as error:
                raise EngineError(
                    tr("Another QGIS is setting up the engine of this profile. Wait for its end.")
                ) from error
            yield

    def _recover(self) -> None:
        """Tidy what a run left that was killed: half of an environment goes, a whole one that was set aside returns."""
        if self.folder.exists() and not self.is_ready():
            self._say(tr("An earlier set-up was not finished: starting afresh."))
            _remove_tree(self.folder)
        if self._previous.exists():
            if self.folder.exists() or not (self._previous / READY).is_file():
                _remove_tree(self._previous)
            else:
                _rename(self._previous, self.folder)
        _remove_tree(self.scratch)

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """A folder for what pip and uv unpack, on the profile's disk: the system's own is often small."""
        self._recover()
        try:
            self.scratch.mkdir()
            yield
        except OSError as error:
            raise EngineError(tr("The profile can't be written to: {error}.").format(error=error)) from error
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Set an older environment aside; it comes back unless what is done here ends well."""
        if self.folder.exists():
            _rename(self.folder, self._previous)
        try:
            yield
        except BaseException:
            self._restore()
            raise
        with self._telling():
            _remove_tree(self._previous)

    def _restore(self) -> None:
        with self._telling():
            _remove_tree(self.folder)
            if self._previous.exists():
                _rename(self._previous, self.folder)
                self._say(tr("The engine that was installed before is back in its place."))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What can't be tidied now is told only: the next run tidies."""
        try:
            yield
        except EngineError as error:
            self._say(str(error))


def _remove_tree(path: Path) -> None:
    """Remove a folder, its marker first: what fails midway never looks whole."""
    for _ in range(5):  # on Windows a program that was just ended holds its files for a moment
        if not path.exists():
            return
        with suppress(OSError):
            (path / READY).unlink()
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            time.sleep(0.2)
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise EngineError(
            tr("{path} can't be removed: {error}. Close running jobs and other QGIS windows.").format(
                path=path, error=error
            )
        ) from error


def _rename(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        raise EngineError(
            tr("{path} is in use: {error}. Close running jobs and other QGIS windows.").format(path=path, error=error)
        ) from error


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
