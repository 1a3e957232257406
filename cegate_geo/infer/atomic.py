"""All or nothing: files are made in a hidden job folder and get their names when everything is complete."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cegate_geo.errors import CegateError, InputError, OutputExistsError

SUFFIX = ".part"


def check_outputs(outputs: list[Path], *, inputs: list[Path], overwrite: bool) -> None:
    """Refuse outputs that can't be written, before any work is done.

    Raises:
        OutputExistsError: If one exists and may not be overwritten.
        InputError: If one has no folder, is named twice, or is an input.
    """
    resolved = [p.resolve() for p in outputs]
    for path, real in zip(outputs, resolved, strict=True):
        if resolved.count(real) > 1:
            raise InputError(f"{path} is named for two outputs.", hint="Give each its own name.")
        if real in [p.resolve() for p in inputs]:
            raise InputError(f"{path} is an input and an output.", hint="Choose another name for the output.")
        if path.is_dir():
            raise InputError(f"{path} is a folder.", hint="Name a file in it.")
        if not path.parent.is_dir():
            raise InputError(f"The folder {path.parent} does not exist.", hint="Make it first, or choose another.")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"The folder {path.parent} can't be written to.", hint="Choose another.")
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists already.", hint="Use --overwrite, or choose another name.")


class JobFolder:
    """A hidden folder beside the output, on the same file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: list[tuple[Path, Path]] = []
        self._stale: list[Path] = []

    def file(self, name: str) -> Path:
        """Path of a scratch file."""
        return self.path / name

    def publish(self, scratch: Path, target: Path) -> None:
        """Say that `scratch` is to become `target` when the job is complete. The last one said is the last renamed."""
        self._results.append((scratch, target))

    def remove(self, target: Path) -> None:
        """Say that an outdated file beside the output is to go when the job is complete."""
        self._stale.append(target)

    def commit(self) -> None:
        """Sync all results, then rename them one after the other."""
        try:
            folders = set()
            for scratch, _ in self._results:
                _sync(scratch)
            for path in self._stale:
                path.unlink(missing_ok=True)
            for scratch, target in self._results:
                if scratch.parent.stat().st_dev == target.parent.stat().st_dev:
                    scratch.replace(target)
                else:
                    _move_across(scratch, target)
                folders.add(target.parent)
            for folder in folders:
                _sync(folder)
        except OSError as error:
            raise CegateError(
                f"The results can't be put in place: {error}.", hint="Check the free space and the rights there."
            ) from error


@contextmanager
def job_folder(output: Path) -> Iterator[JobFolder]:
    """A job folder for `output`; removed at the end, whatever happened. Remains of killed runs are removed first."""
    host = socket.gethostname().split(".")[0] or "host"
    prefix = f".{output.name}.{host}-"
    for old in output.parent.glob(f"{_escaped(prefix)}*{SUFFIX}"):
        number = old.name[len(prefix) : -len(SUFFIX)]
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(old, ignore_errors=True)
    path = output.parent / f"{prefix}{os.getpid()}{SUFFIX}"
    try:
        path.mkdir()
    except FileExistsError as error:
        raise InputError(
            f"This process is already writing {output}.", hint="Wait for it, or choose another name."
        ) from error
    except OSError as error:
        raise InputError(f"{output.parent} can't be written to: {error}.", hint="Choose another folder.") from error
    try:
        yield JobFolder(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_across(scratch: Path, target: Path) -> None:
    """Copy to a hidden name on the target's file system, then rename."""
    near = target.parent / f".{target.name}.{os.getpid()}{SUFFIX}"
    try:
        shutil.copyfile(scratch, near)
        _sync(near)
        near.replace(target)
    finally:
        near.unlink(missing_ok=True)
