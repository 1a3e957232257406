"""Polygons of a mask, strip by strip, exact to the pixel.

Each strip is polygonised by GDAL with 4-connectedness. Pieces that touch the edge between two strips and share pixels'
edges across it are joined; what no longer touches the strip in hand is written. Coordinates stay whole pixels until the
last step, so that joins are exact: no slivers, no gaps, and the sum of all polygons is the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.features import shapes
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError, InputError
from cegate_geo.infer.components import Labels, label_areas
from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.polygon_file import PolygonFile

STRIP_ROWS = 512


@dataclass(slots=True)
class Shape:
    """A polygon in the making: pieces in pixel coordinates that belong together, and their sums."""

    class_id: int
    pixels: int
    area_m2: float
    confidence: float
    """Sum over the pixels, 0..255 each."""
    pieces: list[Any] = field(default_factory=list)
    joined: Shape | None = None
    """The shape that took this one over."""

    @property
    def whole(self) -> Shape:
        """The shape that this one is part of now."""
        shape = self
        while shape.joined is not None:
            shape = shape.joined
        return shape

    def absorb(self, other: Shape) -> None:
        """Take over all of another shape of the same class."""
        other.joined = self
        self.pixels += other.pixels
        self.area_m2 += other.area_m2
        self.confidence += other.confidence
        self.pieces += other.pieces
        other.pieces = []

    def polygon(self) -> Any:
        """The joined polygon."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        return _united(self.pieces)


def _united(pieces: list[Any]) -> Any:
    """The union of pieces of one connected shape, each of its own strip.

    A hole within one strip is a hole of the whole: it is set aside while the outlines are joined, which keeps the union
    of ground that thousands of roofs stand on small. Holes never reach an edge of their strip.
    """
    outlines = [shapely.Polygon(piece.exterior) for piece in pieces]
    united = shapely.simplify(shapely.union_all(outlines), 0)
    holes = [ring for piece in pieces for ring in piece.interiors]
    return shapely.Polygon(united.exterior, [*united.interiors, *holes])


def vectorize(
    mask: Path,
    target: Path,
    *,
    confidence: Path,
    legend: Legend,
    georeference: Georeference,
    ground: GroundMeasure | None,
    min_area_m2: float = 0.0,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Write the polygons of a class raster to a GeoPackage or FlatGeobuf. Gives their number.

    Args:
        mask: Class ids with nodata.
        target: File to write, .gpkg or .fgb.
        confidence: Raster of the same grid, 1..255 = 0..1.
        legend: Names of the class ids.
        georeference: Where the rasters lie; needs a transform.
        ground: How to measure pixels; None where that is unknown.
        min_area_m2: Smaller polygons are left out; their place stays empty.
        check: Called after each strip; may raise to stop.
    """
    check_vector(georeference, ground, min_area_m2)
    names = {c.id: c.name for c in legend}
    crs = georeference.crs.to_wkt() if georeference.crs else None
    with PolygonFile(target, crs=crs, transform=georeference.transform) as file:
        for shape in polygons(mask, confidence, ground=ground, check=check):
            if shape.area_m2 < min_area_m2:
                continue
            file.add(
                shape.polygon(),
                class_id=shape.class_id,
                name=names[shape.class_id],
                area_m2=shape.area_m2 if ground else float("nan"),
                confidence=shape.confidence / shape.pixels / 255,
            )
    return file.count


def check_vector(georeference: Georeference, ground: GroundMeasure | None, min_area_m2: float) -> None:
    """Refuse what can't be vectorised.

    Raises:
        InputError: If the scene has no transform, or areas are asked for where they are unknown.
    """
    if georeference.kind in ("gcps", "rpcs"):
        raise InputError(
            f"Polygons need a scene with a transform, this one has {georeference.kind} only.",
            hint="Warp the scene first (gdalwarp), or leave out --vector.",
        )
    if min_area_m2 > 0 and ground is None:
        raise InputError(
            "--min-area needs a scene that says where on Earth it lies.", hint="Leave it out, or give the scene a CRS."
        )


def polygons(
    mask: Path, confidence: Path, *, ground: GroundMeasure | None, check: Callable[[], None] = lambda: None
) -> Iterator[Shape]:
    """The shapes of a class raster, each as soon as it is complete."""
    open_shapes: dict[int, Shape] = {}
    last_row: tuple[Labels, npt.NDArray[np.generic]] | None = None
    with quiet_about_georeference(), rasterio.open(mask) as classes, rasterio.open(confidence) as certainty:
        for start in range(0, classes.height, STRIP_ROWS):
            check()
            height = min(STRIP_ROWS, classes.height - start)
            window = Window(col_off=0, row_off=start, width=classes.width, height=height)
            area = RasterioWindow(0, start, classes.width, height)
            ids = classes.read(1, window=area)
            labels, found = _label(ids, nodata=classes.nodata, window=window)
            _measure(found, labels, certainty.read(1, window=area), window=window, ground=ground)
            if last_row is not None:
                _join(found, open_shapes, above=last_row, below=(labels[0], ids[0]))
            next_open = {int(n): found[int(n)] for n in np.unique(labels[-1]) if n}
            is_last = start + height == classes.height
            yield from _complete([*open_shapes.values(), *found.values()], [] if is_last else [*next_open.values()])
            open_shapes, last_row = next_open, (labels[-1], ids[-1])


def _label(ids: npt.NDArray[np.generic], *, nodata: float, window: Window) -> tuple[Labels, dict[int, Shape]]:
    """Number the connected areas of a strip from 1: labels (H, W), 0 = nodata, and a shape for each number."""
    labels, count = label_areas(ids, nodata=nodata)
    found: dict[int, Shape] = {}
    shift = Affine.translation(0, window.row_off)
    for geometry, value in shapes(ids, mask=labels > 0, connectivity=4, transform=shift):
        rings = geometry["coordinates"]
        # The pixel to the lower right of the first corner of the topmost edge lies inside.
        col, row = min(rings[0], key=lambda xy: (xy[1], xy[0]))
        number = int(labels[int(row) - window.row_off, int(col)])
        piece = shapely.Polygon(rings[0], rings[1:])
        found[number] = Shape(class_id=int(value), pixels=0, area_m2=0.0, confidence=0.0, pieces=[piece])
    if len(found) != count:
        raise CegateError(f"GDAL made {len(found)} polygons of {count} areas.", hint="Report this, with the mask.")
    return labels, found


def _measure(
    found: dict[int, Shape],
    labels: Labels,
    confidence: npt.NDArray[np.uint8],
    *,
    window: Window,
    ground: GroundMeasure | None,
) -> None:
    """Sum pixels, areas and confidence of each shape."""
    size = len(found) + 1
    pixels = np.bincount(labels.ravel(), minlength=size)
    certainty = np.bincount(labels.ravel(), weights=confidence.ravel(), minlength=size)
    areas = np.zeros(size)
    if ground is not None:
        for part, row_areas in ground.row_areas(window):
            inside = labels[part.slices(window)]
            weights = np.broadcast_to(row_areas[:, None], inside.shape)
            areas += np.bincount(inside.ravel(), weights=weights.ravel(), minlength=size)
    for number, shape in found.items():
        shape.pixels, shape.confidence = int(pixels[number]), float(certainty[number])
        shape.area_m2 = float(areas[number])


def _join(
    found: dict[int, Shape],
    open_shapes: dict[int, Shape],
    *,
    above: tuple[Labels, npt.NDArray[np.generic]],
    below: tuple[Labels, npt.NDArray[np.generic]],
) -> None:
    """Join shapes of two strips that touch along their common edge."""
    meets = (above[1] == below[1]) & (above[0] > 0) & (below[0] > 0)
    for upper, lower in np.unique(np.stack([above[0][meets], below[0][meets]]), axis=1).T.tolist():
        kept, gone = open_shapes[upper].whole, found[lower].whole
        if kept is gone:
            continue
        if len(kept.pieces) < len(gone.pieces):
            kept, gone = gone, kept
        kept.absorb(gone)


def _complete(shapes_: list[Shape], still_open: list[Shape]) -> Iterator[Shape]:
    """The shapes that nothing can be added to any more, each once, in a fixed order."""
    seen = {id(shape.whole) for shape in still_open}
    for shape in shapes_:
        if id(shape.whole) not in seen:
            seen.add(id(shape.whole))
            yield shape.whole
