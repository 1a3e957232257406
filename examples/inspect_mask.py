"""Look at a mask with nothing but rasterio: its classes and colours, how much of each there is, where it came from.

python examples/inspect_mask.py demo-out/mask.tif
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import rasterio


def main(path: str) -> int:
    """Say what a mask holds."""
    with rasterio.open(path) as mask:
        tags, nodata = mask.tags(), mask.nodata
        counts: Counter[int] = Counter()
        for _, window in mask.block_windows(1):
            counts.update(mask.read(1, window=window).ravel().tolist())
        print(f"{path}: {mask.width} x {mask.height} px, {mask.crs}, pixel {mask.res[0]:g} x {mask.res[1]:g}")
    data = sum(n for value, n in counts.items() if value != nodata)
    for entry in json.loads(tags["CEGATE_LEGEND"]):
        share = counts[entry["id"]] / max(data, 1)
        print(f"  {entry['id']:>3}  {entry['name']:<12} {entry['color']}  {share:7.2%}")
    print(f"  {nodata:>3.0f}  {'nodata':<12} {'':7}  {counts[int(nodata)]:>7} px")
    for name in sorted(tags):
        if name.startswith("CEGATE_") and name != "CEGATE_LEGEND":
            print(f"{name} = {tags[name][:80]}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} MASK.tif")
    sys.exit(main(sys.argv[1]))
