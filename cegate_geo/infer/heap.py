"""What this process holds in memory, and how the C library keeps what was freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
LARGE = 4 * 2**20
"""Bytes of a block that goes back to the system when it is freed."""
KEPT = 16 * 2**20
"""Bytes that stay at the end of an arena for what comes next."""
ARENAS = 2
BASE_BYTES = 122 * 2**20
"""Interpreter and libraries, once all is loaded. A program that held more before it called us is not charged for it."""


def give_back_freed_memory() -> bool:
    """Ask glibc to give large freed blocks back, and to let threads share what they keep of small ones.

    By default it learns from the first large blocks that are freed to keep all of that size, and each thread keeps its
    own: the threads of one shard after the other each hold on to holes that the next buffers do not fit into, and a
    process grows with their number (by 70 MB over four strips of a scene of 40,000 columns). Smaller blocks, such as
    the tiles of a batch, come and go all the time: of those a few are kept, or the system would clear their pages anew
    for each. For a process that predicts, before it starts threads; not for a library to call.

    Returns:
        Whether the allocator took the settings (Linux with glibc only).
    """
    return tell_allocator({_M_MMAP_THRESHOLD: LARGE, _M_TRIM_THRESHOLD: KEPT, _M_ARENA_MAX: ARENAS})


def tell_allocator(settings: Mapping[int, int]) -> bool:
    """Give settings to glibc's `mallopt`, by the numbers of malloc.h; says whether it took them all."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def resident_bytes() -> int | None:
    """Memory of this process; None where nothing tells it (Linux does)."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return None
