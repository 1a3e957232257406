"""Small made scenes that a model can learn in a few steps: bright squares on dark ground, with exact polygons."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from shapely.geometry import box

GSD_M = 0.5
ORIGIN = (600_000.0, 4_000_000.0)


def write_squares(folder: Path, *, side: int = 256, seed: int = 0, name: str = "squares") -> tuple[Path, Path]:
    """A raster in UTM 45N and its building polygons in EPSG:4326; returns both paths."""
    rng = np.random.default_rng(seed)
    transform = Affine.translation(*ORIGIN) @ Affine.scale(GSD_M, -GSD_M)
    image = rng.normal(70, 12, (3, side, side))
    polygons = []
    for row in range(8, side - 40, 48):
        for col in range(8, side - 40, 48):
            size = int(rng.integers(20, 36))
            image[:, row : row + size, col : col + size] += np.array([110, 70, 60])[:, None, None]
            left, top = transform @ (col, row)
            polygons.append(box(left, top - size * GSD_M, left + size * GSD_M, top))
    raster, labels = folder / f"{name}.tif", folder / f"{name}.gpkg"
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(raster, "w", crs="EPSG:32645", transform=transform, **profile) as target:
        target.write(image.clip(0, 255).astype(np.uint8))
    frame = gpd.GeoDataFrame({"class": ["building"] * len(polygons)}, geometry=polygons, crs="EPSG:32645")
    frame.to_crs(4326).to_file(labels)
    return raster, labels
