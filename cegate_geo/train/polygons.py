"""Polygons from any vector file, in the pixel coordinates of a raster."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
import shapely.errors
from affine import Affine
from pyproj import CRS, Transformer
from rasterio.features import rasterize

from cegate_geo.domain.grid import RasterGrid
from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.domain.windows import Window
from cegate_geo.errors import LabelError
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.reader import is_endless
from cegate_geo.train.labels import ClassMap, Labels, value_text

VECTOR_SUFFIXES = frozenset({".geojson", ".json", ".gpkg", ".shp", ".fgb", ".gml", ".kml", ".geojsonl", ".parquet"})
LEAST_SIDE = 1024
"""Pixels, each way, of the area around polygons that counts as labelled at least, cut at the raster's edge: ground
enough for chips and held-out blocks where only a few polygons were drawn."""
EDGE_PARTS = 64
"""Long edges are split before they are projected: in so many parts over the extent of all polygons."""


@dataclass(frozen=True, slots=True)
class Polygons:
    """Polygons with a channel each, in map coordinates. Where two overlap, the later one counts."""

    source: str
    crs: Any
    """pyproj CRS; None where the file states none."""
    geometries: npt.NDArray[Any]
    """(n) shapely polygons and multipolygons."""
    channels: npt.NDArray[np.uint8]
    """(n) channel indices, 255 to leave out."""

    def on(self, grid: RasterGrid) -> PixelPolygons:
        """The same polygons in the pixel coordinates of `grid`.

        Raises:
            LabelError: If only one of the two has a CRS.
        """
        if (self.crs is None) != (grid.crs_wkt is None):
            lacking, other = ("polygons", "raster") if self.crs is None else ("raster", "polygons")
            raise LabelError(
                f"{self.source}: the {lacking} have no CRS, the {other} does.".replace("raster have", "raster has"),
                hint="Give both a CRS, or neither; a class raster of the same size needs none.",
            )
        geometries = self.geometries
        if grid.crs_wkt is not None and len(geometries):
            target = CRS.from_wkt(grid.crs_wkt)
            if target != self.crs:
                geometries = _project(geometries, Transformer.from_crs(self.crs, target, always_xy=True))
        finite = np.isfinite(shapely.bounds(geometries)).all(1)  # a polygon at infinity is not in the raster
        inverse = ~grid.transform
        a, b, c, d, e, f = tuple(inverse)[:6]
        pixels = shapely.transform(
            geometries[finite], lambda p: np.stack([a * p[:, 0] + b * p[:, 1] + c, d * p[:, 0] + e * p[:, 1] + f], 1)
        )
        return PixelPolygons(pixels, self.channels[finite], grid.shape)


def _project(geometries: npt.NDArray[Any], transformer: Transformer) -> npt.NDArray[Any]:
    """Polygons in another CRS, with points between on their long edges."""
    left, bottom, right, top = shapely.total_bounds(geometries)
    fine = geometries.copy()
    good = shapely.is_valid(geometries)  # GEOS would mend the others on the way, or fail at those that are points
    fine[good] = shapely.segmentize(geometries[good], max(right - left, top - bottom) / EDGE_PARTS)
    projected: npt.NDArray[Any] = shapely.transform(
        fine, lambda xy: np.stack(transformer.transform(xy[:, 0], xy[:, 1]), axis=1)
    )
    return projected


class PixelPolygons:
    """Polygons in pixel coordinates of a raster, found by window.

    Args:
        geometries: (n) shapely polygons; x is the column, y the row, counted from the upper left corner.
        channels: (n) values to burn.
        shape: (height, width) of the raster.
    """

    def __init__(self, geometries: npt.NDArray[Any], channels: npt.NDArray[np.uint8], shape: tuple[int, int]) -> None:
        self._geometries, self._channels, self._shape = geometries, channels, shape
        self._tree = shapely.STRtree(geometries)

    @property
    def extent(self) -> Window | None:
        """The pixels of the raster that polygons may cover; None if there are none."""
        chosen = self._within(Window.of_shape(self._shape))
        if not len(chosen):
            return None
        left, top, right, bottom = shapely.total_bounds(self._geometries[chosen])
        col, row = math.floor(left), math.floor(top)
        box = Window(
            col_off=col, row_off=row, width=max(1, math.ceil(right) - col), height=max(1, math.ceil(bottom) - row)
        )
        return box.intersection(Window.of_shape(self._shape))

    def burn(self, window: Window, *, fill: int) -> Labels:
        """(H, W) uint8: the channel of the polygon that holds a pixel's centre, `fill` elsewhere.

        Law: burning a part of a window gives that part of the burnt window.
        """
        chosen = self._within(window)
        if not len(chosen):
            return np.full(window.shape, fill, np.uint8)
        shapes = zip(self._geometries[chosen], self._channels[chosen].tolist(), strict=True)
        transform = Affine.translation(window.col_off, window.row_off)
        with quiet_about_georeference():
            burnt: Labels = rasterize(shapes, out_shape=window.shape, fill=fill, transform=transform, dtype="uint8")
        return burnt

    def _within(self, window: Window) -> npt.NDArray[np.intp]:
        box = shapely.box(window.col_off, window.row_off, window.col_end, window.row_end)
        found: npt.NDArray[np.intp] = np.sort(self._tree.query(box, predicate="intersects"))
        return found


@dataclass(frozen=True, slots=True)
class PolygonLabels:
    """Polygons as labels: see `labels.LabelReader`."""

    polygons: PixelPolygons
    background: int
    """Channel where no polygon is; 255: such pixels are not labelled."""
    extent: Window

    @classmethod
    def on(cls, polygons: Polygons, grid: RasterGrid, *, background: int, is_near: bool = False) -> PolygonLabels:
        """Labels on a raster's grid.

        Args:
            polygons: In map coordinates.
            grid: The raster's.
            background: See above.
            is_near: Whether the background ends at the rectangle around the polygons, which has LEAST_SIDE pixels each
                way at least; else it is everywhere.
        """
        pixels = polygons.on(grid)
        around = pixels.extent
        if background != IGNORE_INDEX:
            around = _grown(around).intersection(grid.window) if is_near and around is not None else grid.window
        return cls(pixels, background, around or Window(col_off=0, row_off=0, width=1, height=1))

    def read(self, window: Window) -> Labels:
        """(H, W) uint8 channel indices."""
        return self.polygons.burn(window, fill=self.background)

    def close(self) -> None:
        """Nothing is open."""


def _grown(window: Window) -> Window:
    """A window of LEAST_SIDE pixels each way at least, about the same middle."""
    col, row = (max(0, LEAST_SIDE - side) // 2 for side in (window.width, window.height))
    return Window(
        col_off=window.col_off - col,
        row_off=window.row_off - row,
        width=max(window.width, LEAST_SIDE),
        height=max(window.height, LEAST_SIDE),
    )


def is_vector(path: Path) -> bool:
    """Whether a file holds vectors, by its name; a layer may be named behind '|'."""
    return Path(str(path).partition("|")[0]).suffix.lower() in VECTOR_SUFFIXES


def read_polygons(path: Path, classes: ClassMap | None = None, *, field: str = "", channel: int = 1) -> Polygons:
    """Polygons of a vector file; 'FILE|LAYER' names a layer.

    Args:
        path: Anything that GDAL reads as vectors.
        classes: What the values of `field` mean.
        field: Field with the class name or id; empty: all polygons get `channel`.
        channel: See `field`.

    Raises:
        LabelError: If it can't be read, holds no polygons or other shapes too, lacks the field, or has unknown classes.
    """
    name, _, layer = str(path).partition("|")
    name = os.path.expanduser(name)  # noqa: PTH111 - leaves "~draft.gpkg" alone, where pathlib raises
    if is_endless(name):
        raise LabelError(f"{path} is a pipe or a device, no file.", hint="Write it to a file first.")
    try:
        meta, _, wkb, values = pyogrio.raw.read(name, layer=layer.removeprefix("layername=") or None)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as error:
        raise LabelError(f"{path} can't be read as vectors: {error}.", hint="Check the path and the layer.") from error
    if wkb is None:
        raise LabelError(f"{path} has no geometry.", hint="Choose the layer that has it: FILE|LAYER.")
    try:
        geometries = shapely.from_wkb(wkb)
    except shapely.errors.GEOSException as error:
        raise LabelError(f"{path} holds a shape that is none: {error}.", hint="Draw it anew.") from error
    drawn = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    geometries = geometries[drawn]
    kinds = Counter(geometry.geom_type for geometry in geometries)
    others = kinds.keys() - {"Polygon", "MultiPolygon"}
    if others or not kinds:
        counted = ", ".join(f"{n} {k}" for k, n in kinds.most_common()) or "nothing"
        raise LabelError(f"{path} holds {counted}; labels are polygons.", hint="Keep its polygons only.")
    channels = np.full(len(geometries), channel, np.uint8)
    if field:
        columns = dict(zip(meta["fields"], values, strict=True))
        channels = _channels({name: column[drawn] for name, column in columns.items()}, field, classes, path)
    crs = CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    return Polygons(str(path), crs, shapely.force_2d(geometries), channels)


def _channels(
    columns: Mapping[str, npt.NDArray[Any]], field: str, classes: ClassMap | None, path: Path
) -> npt.NDArray[np.uint8]:
    if field not in columns or classes is None:
        raise LabelError(f"{path} has no field {field!r}.", hint=f"It has: {', '.join(columns)}.")
    texts = [value_text(v) for v in columns[field].tolist()]
    table = {text: classes.channel(text) for text in dict.fromkeys(texts)}
    strange = [text for text, channel in table.items() if channel is None]
    if strange:
        raise classes.unknown(strange, f"The field {field!r} of {path}")
    return np.array([table[text] for text in texts], np.uint8)
