"""All or nothing: files are made in a hidden job folder and get their names when everything is complete."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cegate_geo.errors import CegateError, InputError, OutputExistsError

SUFFIX = ".part"
_under_way: set[Path] = set()
"""Job folders of this process."""
_taking_names = threading.Lock()
"""Held while the results of a job get their names."""


def check_outputs(outputs: list[Path], *, inputs: list[Path], overwrite: bool) -> None:
    """Refuse outputs that can't be written, before any work is done.

    Raises:
        OutputExistsError: If one exists and may not be overwritten.
        InputError: If one has no folder, is named twice, or is an input.
    """
    for path in (*outputs, *inputs):
        _require_name(path)
    resolved = [_resolved(p) for p in outputs]
    given = [_resolved(p) for p in inputs]
    for path, real in zip(outputs, resolved, strict=True):
        if "\n" in path.name or "\r" in path.name:
            raise InputError(f"The name {str(path)!a} has a line break, which GeoPackages can't.", hint="Leave it out.")
        if resolved.count(real) > 1:
            raise InputError(f"{path} is named for two outputs.", hint="Give each its own name.")
        if real in given:
            raise InputError(f"{path} is an input and an output.", hint="Choose another name for the output.")
        if path.is_dir():
            raise InputError(f"{path} is a folder.", hint="Name a file in it.")
        if not path.parent.is_dir():
            raise InputError(f"The folder {path.parent} does not exist.", hint="Make it first, or choose another.")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"The folder {path.parent} can't be written to.", hint="Choose another.")
        if os.path.lexists(path) and not overwrite:
            raise OutputExistsError(f"{path} exists already.", hint="Use --overwrite, or choose another name.")


def _resolved(path: Path) -> Path:
    """The file that a path stands for.

    Raises:
        InputError: If links lead in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} can't be found: its links lead in a circle.", hint="Name the file itself.") from error


def _require_name(path: Path) -> None:
    """Refuse names that are no text, or too long for a disk: GDAL, JSON and logs can't take them."""
    try:
        str(path).encode("utf-8")
        os.lstat(path)
    except (UnicodeEncodeError, ValueError) as error:
        raise InputError(f"The name {str(path)!a} is no text.", hint="Rename it.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"The name {path} is too long.", hint="Choose a shorter one.") from error


class JobFolder:
    """A hidden folder beside the output, on the same file system."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self._overwrite = overwrite
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
        """Bring all results next to their names and to the disk, then rename them; what fails is undone.

        Raises:
            OutputExistsError: If an output has appeared since the job began, and may not be overwritten.
            CegateError: If the disk is full, or a name can't be taken.
        """
        with _taking_names:
            self._take_names(_Names(overwrite=self._overwrite))

    def _take_names(self, names: _Names) -> None:
        try:
            near = [(names.bring(scratch, target), target) for scratch, target in self._results]
            for scratch, target in near:
                names.place(scratch, target)
            for path in set(self._stale) - {target for _, target in self._results}:
                path.unlink(missing_ok=True)
            names.settle({target.parent for _, target in near})
        except CegateError:
            names.undo()
            raise
        except OSError as error:
            names.undo()
            raise CegateError(
                f"The results can't be put in place: {error}.", hint="Check the free space and the rights there."
            ) from error
        except BaseException:
            names.undo()
            raise


class _Names:
    """Takes names for finished files, and gives them back."""

    def __init__(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._copies: list[Path] = []
        self._placed: list[tuple[Path, Path | None]] = []
        """Names that were taken, with what had them before."""

    def bring(self, scratch: Path, target: Path) -> Path:
        """The file, on the disk and on the file system of its target."""
        if scratch.parent.stat().st_dev != target.parent.stat().st_dev:
            near = _hidden(target, "new")
            self._copies.append(near)
            shutil.copyfile(scratch, near)
            scratch = near
        sync(scratch)
        return scratch

    def place(self, near: Path, target: Path) -> None:
        """Give a file its name."""
        if not self._overwrite:
            _link(near, target)
            self._placed.append((target, None))
            return
        old = _hidden(target, "old")
        try:
            os.link(target, old)
        except FileNotFoundError:
            self._placed.append((target, None))
        except OSError:  # no hard links there: a failure of a later output can't bring this one back
            pass
        else:
            self._placed.append((target, old))
        near.replace(target)

    def settle(self, folders: set[Path]) -> None:
        """Keep what was placed in these folders."""
        for folder in folders:
            sync(folder)
        for _, old in self._placed:
            if old is not None:
                old.unlink(missing_ok=True)

    def undo(self) -> None:
        """Bring back what had the names before."""
        for target, old in reversed(self._placed):
            with suppress(OSError):
                if old is not None:
                    old.replace(target)
                elif target.is_file():
                    target.unlink()
        for path in self._copies:
            path.unlink(missing_ok=True)


def _link(near: Path, target: Path) -> None:
    """Give a file a name that nobody else has taken."""
    taken = OutputExistsError(f"{target} has appeared while this ran.", hint="Use --overwrite, or choose another name.")
    try:
        os.link(near, target)
    except FileExistsError as error:
        raise taken from error
    except OSError:  # no hard links there
        if target.exists():
            raise taken from None
        near.replace(target)
    else:
        near.unlink()


def _hidden(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.{os.getpid()}.{what}{SUFFIX}"


@contextmanager
def job_folder(output: Path, *, overwrite: bool = False) -> Iterator[JobFolder]:
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
    _under_way.add(path)
    try:
        yield JobFolder(path, overwrite=overwrite)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _under_way.discard(path)


def abandon() -> None:
    """Remove the job folders of this process, which is about to end, from whatever thread.

    Results that are getting their names get all of them before; none gets one afterwards.
    """
    _taking_names.acquire()  # for good
    for _ in range(3):  # other threads may still be writing
        for path in tuple(_under_way):
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


def sync(path: Path) -> None:
    """Bring a file or a folder's names to the disk."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
