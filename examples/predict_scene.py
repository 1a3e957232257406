"""Predict a scene from Python, with progress and cancelling.

    python examples/predict_scene.py demo-out/region_b.tif /tmp/mask.tif --model demo-out/model.onnx

Needs no torch. Ctrl-C stops it within a second and leaves no half-written file.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from cegate_geo.api import Progress, predict
from cegate_geo.errors import CancelledError


def show(progress: Progress) -> None:
    """Called after each batch of tiles, from the thread that called `predict`."""
    left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
    print(f"\r{progress.fraction:4.0%} ({progress.done} of {progress.total} tiles{left})   ", end="", file=sys.stderr)


def main() -> int:
    """Predict, and say how much of each class there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="any raster that GDAL opens")
    parser.add_argument("mask", type=Path, help="GeoTIFF to write")
    parser.add_argument("--model", help="ONNX file; default: the shipped demo model")
    arguments = parser.parse_args()

    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        result = predict(
            arguments.scene,
            arguments.mask,
            model=arguments.model,
            vector=arguments.mask.with_suffix(".gpkg"),
            min_area_m2=2.0,
            progress=show,
            cancel=stop.is_set,
            overwrite=True,
        )
    except CancelledError:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    print(file=sys.stderr)
    for entry in result.classes:
        area = "" if entry.area_m2 is None else f"{entry.area_m2:12,.0f} m²"
        print(f"{entry.name:<12}{entry.pixels:>12,} px{area}")
    print(f"{result.polygons} polygons in {result.vector}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
