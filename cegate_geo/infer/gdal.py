"""GDAL's settings while we use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rasterio

from cegate_geo.infer import budget
from cegate_geo.infer.remote import remote_settings

SAFE_READING = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO"}
"""GDAL's fast way to a whole PNG gives noise for a truncated one, and no error."""


@contextmanager
def gdal_settings(scene_path: str) -> Iterator[None]:
    """GDAL as we need it: a small cache, and what remote scenes take.

    rasterio takes the cache's size in bytes, whatever GDAL's own documentation says of small numbers.
    """
    settings = {"GDAL_CACHEMAX": budget.CACHE_MB * budget.MEGABYTE, **SAFE_READING, **remote_settings(scene_path)}
    with rasterio.Env(**settings):
        yield
