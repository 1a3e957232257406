"""Writes polygons to a GeoPackage or a FlatGeobuf."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyogrio.errors
import pyogrio.raw
import shapely

from cegate_geo.errors import CegateError
from cegate_geo.infer.job import VECTOR_FORMATS

LAYER = "segments"
GPKG_VERSION = "1.2"
"""Nothing newer is used, and GDAL before 3.7, in QGIS 3.22 for one, warns of files that say 1.4."""
FIELDS = ("class", "name", "area_m2", "confidence")
ARROW_ROWS = 2_000
"""Polygons that are copied at once."""


class PolygonFile:
    """Polygons with their attributes, added batch by batch.

    A FlatGeobuf can't be added to: its polygons are collected in a GeoPackage beside it and copied at the end.
    """

    def __init__(self, path: Path, *, crs: str | None) -> None:
        self._path, self._crs = path, crs
        self._driver = VECTOR_FORMATS[path.suffix.lower()]
        self._collected = path if self._driver == "GPKG" else path.with_name(path.name + ".collected.gpkg")
        self._is_new = True
        self.count = 0
        """Polygons so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._close()
        finally:
            if self._collected != self._path:
                self._collected.unlink(missing_ok=True)

    def add(
        self,
        polygons: npt.NDArray[Any],
        *,
        class_id: npt.NDArray[np.integer],
        name: npt.NDArray[np.object_],
        area_m2: npt.NDArray[np.float64],
        confidence: npt.NDArray[np.float64],
    ) -> None:
        """Write (N,) shapely polygons in map coordinates; `confidence` is 0 to 1."""
        columns = [class_id.astype(np.int32), name, area_m2, confidence]
        with _write_errors():
            pyogrio.raw.write(
                self._collected,
                shapely.to_wkb(polygons),
                columns,
                list(FIELDS),
                layer=LAYER,
                driver="GPKG",
                geometry_type="Polygon",
                crs=self._crs,
                append=not self._is_new,
                dataset_options={"VERSION": GPKG_VERSION} if self._is_new else None,
            )
        self._is_new = False
        self.count += len(polygons)

    def _close(self) -> None:
        if self._is_new:
            none, no_class = np.empty(0), np.empty(0, np.int32)
            self.add(none.astype(object), class_id=no_class, name=none.astype(object), area_m2=none, confidence=none)
        if self._collected == self._path:
            return
        with (
            _write_errors(),
            pyogrio.raw.open_arrow(self._collected, layer=LAYER, batch_size=ARROW_ROWS) as (meta, stream),
        ):
            pyogrio.raw.write_arrow(
                stream,
                self._path,
                driver=self._driver,
                geometry_type="Polygon",
                geometry_name=meta["geometry_name"] or "wkb_geometry",
                crs=self._crs,
            )


@contextmanager
def _write_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # A scene without CRS gives polygons without CRS; that was said once already.
            warnings.filterwarnings("ignore", message="'crs' was not provided")
            yield
    except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, OSError, RuntimeError) as error:
        raise CegateError(
            f"The polygons can't be written: {error}.", hint="Check the free space and the rights there."
        ) from error
