"""GDAL's settings while we use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rasterio

from cegate_geo.infer import budget
from cegate_geo.infer.reader import is_remote


@contextmanager
def gdal_settings(scene_path: str) -> Iterator[None]:
    """GDAL as we need it: a small cache, and remote folders are not listed; side files are asked for by name there."""
    with rasterio.Env(GDAL_CACHEMAX=budget.CACHE_MB, GDAL_DISABLE_READDIR_ON_OPEN=is_remote(scene_path)):
        yield
