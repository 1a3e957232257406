"""Who works in a folder: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What a system says when another process holds a lock; anything else means that there are none on that file system."""


@contextmanager
def hold(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on a file, which is made if need be; gives whether it could be had. Does not wait.

    Holds between processes, also of several machines where the file system passes locks on (NFS does). Where it has no
    locks at all, everybody gets it.

    Args:
        path: The file; its folder has to exist.
        shared: Others may hold it too, as long as they share it.
    """
    handle = _open_locked(path, shared=shared)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _open_locked(path: Path, *, shared: bool) -> int | None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, shared=shared)
        except OSError as error:
            if error.errno in TAKEN:
                os.close(handle)
                return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its folder was cleared away meanwhile: what is locked is not what others will open


def _lock(handle: int, *, shared: bool) -> None:
    if sys.platform != "win32":
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif not shared:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
