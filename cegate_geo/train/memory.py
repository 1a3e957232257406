"""Memory allocation for training on the CPU."""

from __future__ import annotations

from cegate_geo.infer.heap import tell_allocator

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory instead of giving it back to the system.

    A training step on the CPU frees and takes the same hundreds of megabytes again and again; by default each time
    costs page faults, about a quarter of the step. For a process that trains, not for a library to call.

    Returns:
        Whether the allocator took the settings (Linux with glibc only).
    """
    return tell_allocator({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28})
