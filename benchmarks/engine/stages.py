"""Where the engine's CPU time goes: seconds of each stage, by the clock of the thread that runs it.

    python benchmarks/engine/stages.py SCENE MODEL

Threads of the session and of GDAL have clocks of their own: what they take is in the total only. SCENE and
MODEL may be any; `made.py` makes those of the benchmark.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

STARTED = time.process_time()
from cegate_geo import api  # noqa: E402 - importing is a stage, too
from cegate_geo.infer import assemble, feed, finish, heap, pipeline, predictor, reader, stitch, tally, writer  # noqa: E402

IMPORTED = time.process_time() - STARTED
STAGES: tuple[tuple[Any, str, str], ...] = (
    (pipeline, "load_models", "load the model"),
    (feed.StripReader, "read", "read strips"),
    (reader.Scene, "read", "  of it GDAL and what is valid"),
    (feed.Feed, "_put", "cut and scale tiles"),
    (predictor.Predictor, "run", "session, calling thread"),
    (stitch.Stitcher, "add", "blend"),
    (assemble.Canvas, "place", "choose classes"),
    (assemble.Canvas, "close", "finish bands"),
    (tally.Tally, "add", "  of it count pixels and areas"),
    (writer.RasterWriter, "write", "write the scratch raster"),
    (finish, "make_cog", "make the COG, calling thread"),
)


def clocked(function: Callable[..., Any], stage: str, spent: Counter[str]) -> Callable[..., Any]:
    """The function, whose time is added to a stage."""

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            spent[stage] += time.thread_time() - started

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    spent: Counter[str] = Counter()
    for owner, name, stage in STAGES:
        setattr(owner, name, clocked(getattr(owner, name), stage, spent))
    warnings.simplefilter("ignore")
    heap.give_back_freed_memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        api.predict(options.scene, Path(folder) / "mask.tif", model=options.model, provider="cpu")
    seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    print(f"{'import':<34}{IMPORTED:>8.2f} s")
    for _, _, stage in STAGES:
        print(f"{stage:<34}{spent[stage]:>8.2f} s")
    print(f"{'all threads, user':<34}{usage.ru_utime:>8.2f} s")
    print(f"{'all threads, system':<34}{usage.ru_stime:>8.2f} s, {usage.ru_minflt:,} page faults")
    print(f"{'elapsed':<34}{seconds:>8.2f} s")


if __name__ == "__main__":
    main()
