"""The picture of the README from a folder that `cegate-geo demo` wrote: `python docs/make_demo_picture.py demo-out`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

HEIGHT = 420


def panel(array: np.ndarray) -> Image.Image:
    """(3, H, W) uint8 as a picture of HEIGHT rows."""
    image = Image.fromarray(np.moveaxis(array, 0, 2))
    return image.resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


def painted(path: Path, under: np.ndarray) -> np.ndarray:
    """A class map in its colours over dimmed imagery (3, H, W)."""
    with rasterio.open(path) as source:
        ids, colors = source.read(1), source.colormap(1)
    table = np.zeros((256, 3))
    for index, color in colors.items():
        table[index] = color[:3]
    mixed = 0.35 * under + 0.65 * np.moveaxis(table[ids], 2, 0)
    return np.where(ids == 255, under, mixed).astype(np.uint8)


def main(folder: Path) -> None:
    """Region A, region B, what the adapted model says of it."""
    with rasterio.open(folder / "region_a.tif") as source:
        region_a = source.read()[:3]
    with rasterio.open(folder / "region_b.tif") as source:
        region_b = source.read()[:3]
    panels = [panel(region_a), panel(region_b), panel(painted(folder / "mask.tif", region_b))]
    gap = 8
    canvas = Image.new("RGB", (sum(p.width for p in panels) + gap * (len(panels) - 1), HEIGHT), "white")
    left = 0
    for image in panels:
        canvas.paste(image, (left, 0))
        left += image.width + gap
    target = Path(__file__).parent / "images" / "demo.png"
    canvas.quantize(192).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
