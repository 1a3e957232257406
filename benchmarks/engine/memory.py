"""The engine's peak memory on a large scene with many classes.

    python benchmarks/engine/memory.py [--size 40000] [--classes 19] [--overlap 64] [--work FOLDER] [-- OPTION ...]

What follows `--` goes to predict. A scene of 40,000 px takes 5 GB in the folder. Memory is the largest sum of resident
memory over the process tree, looked at fifty times a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import made
from measure import commit, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=40_000)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--work", type=Path, help="default: a temporary folder")
    parser.add_argument("options", nargs="*", help="of predict")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        model = made.make_many_classes(folder / "m.onnx", overlap=options.overlap, classes=options.classes)
        scene = made.make_scene(folder / "scene.tif", options.size)
        predict = [sys.executable, "-m", "cegate_geo", "predict", scene, "-o", folder / "mask.tif", "-m", model]
        usage = measure([*predict, "--provider", "cpu", *options.options])
    print(
        f"{options.size:,} x {options.size:,} px, {options.classes} classes: peak {usage.peak_mb:.0f} MB, "
        f"{usage.seconds:.0f} s (others {usage.others:.0%}), commit {commit(Path(__file__).resolve().parents[2])}"
    )


if __name__ == "__main__":
    main()
