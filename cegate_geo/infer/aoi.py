"""Areas of interest: polygons in any CRS that say where to predict."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.errors
import pyproj
import shapely
import shapely.errors
from affine import Affine
from rasterio.features import geometry_mask

from cegate_geo.domain.windows import Window
from cegate_geo.errors import GeoreferenceWarning, InputError
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.reader import is_endless
from cegate_geo.infer.validity import BoolArray

EDGE_PARTS = 64
"""Long edges are split before they are projected: in at least so many parts over the extent of the polygons."""


class PolygonArea:
    """Polygons in pixel coordinates. A pixel is inside where its centre is.

    Args:
        polygons: Geometry in pixel coordinates (x = column, y = row) of the scene.
        shape: (height, width) of the scene.
        invert: Ask for what lies outside of the polygons.
    """

    def __init__(self, polygons: list[Any], *, shape: tuple[int, int], invert: bool = False) -> None:
        self._polygons = [p for p in polygons if not p.is_empty]
        self._union = shapely.union_all(self._polygons)
        shapely.prepare(self._union)
        self._shape, self._invert = shape, invert

    @property
    def bounds(self) -> Window | None:
        """Smallest window of the scene that holds all that is asked for; None where that is nothing."""
        whole = Window.of_shape(self._shape)
        if self._invert:
            return whole
        if self._union.is_empty:
            return None
        left, top, right, bottom = self._union.bounds
        col, row = int(np.floor(left)), int(np.floor(top))
        return Window(
            col_off=col,
            row_off=row,
            width=max(1, int(np.ceil(right)) - col),
            height=max(1, int(np.ceil(bottom)) - row),
        ).intersection(whole)

    def digest(self) -> str:
        """What tells it from other areas on the same grid."""
        said = hashlib.sha256(b"outside" if self._invert else b"inside")
        for polygon in self._polygons:
            said.update(shapely.to_wkb(polygon))
        return said.hexdigest()[:16]

    def touches(self, window: Window) -> bool:
        """Whether any pixel of the window may be asked for."""
        box = shapely.box(window.col_off, window.row_off, window.col_end, window.row_end)
        if self._invert:
            return not bool(self._union.contains(box))
        return bool(self._union.intersects(box))

    def mask(self, window: Window) -> BoolArray:
        """(H, W), True where a pixel is asked for."""
        shift = Affine.translation(window.col_off, window.row_off)
        if not self._polygons:
            return np.full(window.shape, self._invert)
        inside: BoolArray = geometry_mask(self._polygons, out_shape=window.shape, transform=shift, invert=True)
        return ~inside if self._invert else inside


def read_area(source: str, georeference: Georeference, *, invert: bool = False) -> PolygonArea:
    """Read polygons from a vector file, 'FILE' or 'FILE|layer', and project them to a scene's pixels.

    Raises:
        InputError: If the file can't be read, holds no polygons, or none that meets the scene.
    """
    path, _, layer = source.partition("|")
    layer = layer.removeprefix("layername=")
    if georeference.kind != "transform":
        raise InputError(
            "An area of interest needs a scene with a transform; this one has none.",
            hint="Warp the scene first (gdalwarp), or predict all of it.",
        )
    if "://" not in path and not Path(path).exists():
        raise InputError(f"There is no file {path}.", hint="Check the path given with --aoi.")
    if is_endless(path):
        raise InputError(
            f"The area of interest {path} is a pipe or a device, no file.", hint="Write it to a file first."
        )
    try:
        meta, _, wkb, _ = pyogrio.raw.read(path, layer=layer or None, columns=[])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise InputError(
            f"The area of interest {source} can't be read: {str(error).rstrip('.')}.",
            hint="Use FILE or FILE|layer of a vector format.",
        ) from error
    if bool(meta["crs"]) != bool(georeference.crs):
        lacking, other = ("scene", "area of interest") if meta["crs"] else ("area of interest", "scene")
        warnings.warn(
            f"The {lacking} has no CRS: its coordinates are taken for those of the {other}.",
            GeoreferenceWarning,
            stacklevel=2,
        )
    try:
        geometries = [] if wkb is None else shapely.from_wkb(wkb)
    except shapely.errors.GEOSException as error:
        raise InputError(f"{source} holds a shape that is none: {error}.", hint="Draw it anew.") from error
    shapes = [g for g in geometries if g is not None and g.geom_type in ("Polygon", "MultiPolygon")]
    if not shapes:
        raise InputError(f"{source} holds no polygons.", hint="Draw at least one polygon.")
    try:
        polygons = [_to_pixels(g, meta["crs"], georeference) for g in shapes]
    except pyproj.exceptions.ProjError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"{source} can't be brought from {meta['crs']} to the scene's CRS: {reason}.",
            hint="Draw it on the scene, in its CRS.",
        ) from error
    area = PolygonArea(polygons, shape=georeference.shape, invert=invert)
    if area.bounds is None:
        raise InputError(
            f"None of the {len(shapes)} polygons of {source} meets the scene.",
            hint="Check their CRS; the file says " + str(meta["crs"] or "none") + ".",
        )
    return area


def _to_pixels(geometry: Any, crs: str | None, georeference: Georeference) -> Any:
    """A polygon in the scene's pixels; of one that reaches far beyond the scene the part around it."""
    if crs and georeference.crs:
        target = pyproj.CRS.from_wkt(georeference.crs.to_wkt())
        if pyproj.CRS.from_user_input(crs) != target:
            project = pyproj.Transformer.from_crs(crs, target, always_xy=True)
            geometry = _near(geometry, project, georeference)
            left, bottom, right, top = geometry.bounds if not geometry.is_empty else (0, 0, 0, 0)
            step = max(right - left, top - bottom) / EDGE_PARTS
            geometry = shapely.segmentize(geometry, step) if step > 0 else geometry
            geometry = shapely.transform(geometry, lambda xy: np.stack(project.transform(xy[:, 0], xy[:, 1]), axis=1))
            if not np.isfinite(shapely.get_coordinates(geometry)).all():
                raise InputError("The area of interest reaches out of the scene's CRS.", hint="Cut it to the scene.")
    inverse = ~georeference.transform
    geometry = shapely.transform(
        geometry,
        lambda xy: np.stack(
            [
                inverse.a * xy[:, 0] + inverse.b * xy[:, 1] + inverse.c,
                inverse.d * xy[:, 0] + inverse.e * xy[:, 1] + inverse.f,
            ],
            axis=1,
        ),
    )
    return geometry if geometry.is_valid else shapely.make_valid(geometry)


def _near(geometry: Any, project: pyproj.Transformer, georeference: Georeference) -> Any:
    """Cut a polygon to the scene's surroundings: elsewhere the scene's CRS may not reach."""
    left, bottom, right, top = georeference.grid.bounds
    wide, high = (right - left) / 4, (top - bottom) / 4
    around = project.transform_bounds(left - wide, bottom - high, right + wide, top + high, direction="INVERSE")
    if not np.isfinite(around).all() or around[0] >= around[2]:
        return geometry  # around a pole, or across the date line
    good = geometry if geometry.is_valid else shapely.make_valid(geometry)
    return shapely.intersection(good, shapely.box(*around))
