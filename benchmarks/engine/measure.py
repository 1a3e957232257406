"""Runs commands one at a time and says what each took: seconds, CPU seconds, peak memory of the process tree."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_S = 0.02
"""Between two looks at a tree's memory."""
LOOK_FOR_CHILDREN = 25
"""Looks between two searches for new processes of the tree."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one run took."""

    seconds: float
    """From start to end of the process, import of libraries included."""
    cpu_s: float
    """Of the whole tree, user and system."""
    peak_mb: float
    """Largest sum of resident memory over the tree, in MiB."""
    others: float
    """Share of the machine's CPU time in use by anything else meanwhile, 0 to 1: above a few per cent times are those
    of a busy machine."""


def measure(words: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end.

    Raises:
        RuntimeError: If it fails, with the end of what it said.
    """
    busy, spent, started = _busy_s(), _children_s(), time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [str(word) for word in words], stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        tree = _Tree(psutil.Process(process.pid))
        try:
            with tree:
                code = process.wait()
        finally:
            process.kill()  # where this is interrupted
        seconds = time.perf_counter() - started
        if code:
            said.seek(0)
            tail = said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, words))} ended with {code}:\n{tail}")
    cpu = _children_s() - spent
    others = (_busy_s() - busy - cpu) / (seconds * (os.cpu_count() or 1))
    return Usage(seconds=seconds, cpu_s=cpu, peak_mb=tree.peak_mb, others=max(0.0, others))


class _Tree:
    """Watches the memory of a process and its descendants from a thread, while it is entered."""

    def __init__(self, root: psutil.Process) -> None:
        self._root, self._stop = root, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *failure: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        looks, members = 0, [self._root]
        while not self._stop.is_set():
            if looks % LOOK_FOR_CHILDREN == 0:
                with contextlib.suppress(psutil.Error):
                    members = [self._root, *self._root.children(recursive=True)]
            self.peak_mb = max(self.peak_mb, sum(map(_resident_mb, members)))
            looks += 1
            self._stop.wait(SAMPLE_S)


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.Error:
        return 0.0


def _children_s() -> float:
    """CPU seconds of all processes that were started here and have ended, with theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _busy_s() -> float:
    """CPU seconds that the machine has spent on anything, since it started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests are counted within user and nice.
    return float(sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def machine() -> dict[str, Any]:
    """What this runs on."""
    model, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        model += "".join(f", {name}" for name, flag in (("AVX-512", "avx512f"), ("AMX", "amx_tile")) if flag in flags)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit(folder: Path) -> str:
    """The checkout's commit, with a mark where files differ from it; empty outside of git."""
    words = ["git", "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()
