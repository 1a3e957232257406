"""Writes polygons to a GeoPackage or a FlatGeobuf."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyogrio.errors
import pyogrio.raw
import shapely
from affine import Affine

from cegate_geo.errors import CegateError
from cegate_geo.infer.job import VECTOR_FORMATS

BATCH = 20_000
"""Polygons that are written at once. A FlatGeobuf can't be added to, so all of its polygons wait for the end."""
LAYER = "segments"
GPKG_VERSION = "1.2"
"""Nothing newer is used, and GDAL before 3.7, in QGIS 3.22 for one, warns of files that say 1.4."""
FIELDS = ("class", "name", "area_m2", "confidence")


class PolygonFile:
    """Collects polygons in pixel coordinates, writes them in map coordinates."""

    def __init__(self, path: Path, *, crs: str | None, transform: Affine) -> None:
        self._path, self._crs, self._transform = path, crs, transform
        self._driver = VECTOR_FORMATS[path.suffix.lower()]
        self._rows: list[tuple[Any, int, str, float, float]] = []
        self._is_new = True
        self.count = 0
        """Polygons so far."""

    def __enter__(self) -> Self:
        return self

    def add(self, polygon: Any, *, class_id: int, name: str, area_m2: float, confidence: float) -> None:
        """Add a polygon; `confidence` is 0 to 1."""
        self._rows.append((polygon, class_id, name, area_m2, confidence))
        self.count += 1
        if self._driver != "FlatGeobuf" and len(self._rows) >= BATCH:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and (self._rows or self._is_new):
            self._flush()

    def _flush(self) -> None:
        t = self._transform
        geometry = shapely.transform(
            np.array([row[0] for row in self._rows], object),
            lambda xy: np.stack([t.a * xy[:, 0] + t.b * xy[:, 1] + t.c, t.d * xy[:, 0] + t.e * xy[:, 1] + t.f], axis=1),
        )
        types = (np.int32, object, np.float64, np.float64)
        columns = [np.array([row[n] for row in self._rows], dtype) for n, dtype in enumerate(types, start=1)]
        try:
            with warnings.catch_warnings():
                # A scene without CRS gives polygons without CRS; that was said once already.
                warnings.filterwarnings("ignore", message="'crs' was not provided")
                pyogrio.raw.write(
                    self._path,
                    shapely.to_wkb(geometry),
                    columns,
                    list(FIELDS),
                    layer=LAYER if self._driver == "GPKG" else None,
                    driver=self._driver,
                    geometry_type="Polygon",
                    crs=self._crs,
                    append=not self._is_new,
                    dataset_options={"VERSION": GPKG_VERSION} if self._driver == "GPKG" and self._is_new else None,
                )
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, OSError, RuntimeError) as error:
            raise CegateError(
                f"The polygons can't be written: {error}.", hint="Check the free space and the rights there."
            ) from error
        self._rows, self._is_new = [], False
