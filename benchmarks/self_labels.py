"""Labels for self-training: where a model is sure of its own prediction, outside of windows that are left out.

    python benchmarks/self_labels.py MASK.tif CONFIDENCE.tif LABELS.tif [--least 0.9 ...] [--leave-out ROWS,COLS ...]

MASK and CONFIDENCE come from `cegate-geo predict --confidence`. LABELS is a class raster on their grid, 255 = ignore:
another [[source]] of a configuration. Leave out what is labelled, and what is to be measured on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import rasterio

IGNORE = 255


def main() -> None:
    """Write the labels block by block, and print what share of each class is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mask", type=Path)
    parser.add_argument("confidence", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument(
        "--least", action="append", default=[], metavar="[ID=]P", help="least probability of the winner; default 0.9"
    )
    parser.add_argument("--leave-out", action="append", default=[], metavar="ROWS,COLS", help="as 0:512,0:512")
    given = parser.parse_args()
    limits = {int(name) if name else None: float(p) for name, _, p in (text.rpartition("=") for text in given.least)}
    windows = [[slice(*map(int, part.split(":"))) for part in text.split(",")] for text in given.leave_out]
    with rasterio.open(given.mask) as mask, rasterio.open(given.confidence) as confidence:
        ids = mask.read(1)
        certain = confidence.read(1)
        kept = np.zeros(ids.shape, np.bool_)
        for value in np.unique(ids[ids != IGNORE]):
            least = limits.get(int(value), limits.get(None, 0.9))
            kept |= (ids == value) & (certain >= round(least * 255))
        for rows, cols in windows:
            kept[rows, cols] = False
        profile = {**mask.profile, "driver": "GTiff", "compress": "deflate", "nodata": IGNORE}
    for value in np.unique(ids[ids != IGNORE]):
        here = ids == value
        print(f"class {value}: {(here & kept).sum() / here.sum():.1%} of {here.sum():,} px")
    ids[~kept] = IGNORE
    with rasterio.open(given.labels, "w", **profile) as labels:
        labels.write(ids, 1)


if __name__ == "__main__":
    main()
