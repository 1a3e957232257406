"""Polygons of a mask: which areas, how simple, into which file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from cegate_geo.domain.legend import Legend
from cegate_geo.errors import CegateError, InputError
from cegate_geo.infer.areas import find_areas, strips
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.heap import resident_bytes
from cegate_geo.infer.job import VectorOptions
from cegate_geo.infer.polygon_file import PolygonFile
from cegate_geo.infer.rings import as_polygons
from cegate_geo.infer.sieve import sieve
from cegate_geo.infer.simplify import Tolerance

POINT_BYTES = 120
"""What it takes to make rings and geometries of a point of an outline, as measured: 70 for rings, 40 for the rest."""


def vectorize(
    mask: Path,
    target: Path,
    *,
    confidence: Path,
    legend: Legend,
    georeference: Georeference,
    ground: GroundMeasure | None,
    options: VectorOptions,
    memory: int | None = None,
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
        options: What is left out, joined, made simpler.
        memory: Bytes that the process may hold; None for however many it takes.
        check: Called again and again; may raise to stop.

    Raises:
        InputError: If the scene has no transform, or an option does not fit it.
        CegateError: If the file can't be written, or outlines take more than `memory`.
    """
    check_vector(georeference, ground, legend, options)
    names = np.array([next((c.name for c in legend if c.id == n), "") for n in range(max(legend.ids) + 1)], object)
    crs = georeference.crs.to_wkt() if georeference.crs else None
    classes = wanted_classes(legend, options.classes)
    tolerance = None
    if options.simplify_m > 0:
        size = ground.size() if ground else None
        tolerance = Tolerance(distance=options.simplify_m, pixel=(size.x_m, size.y_m) if size else (1.0, 1.0))
    with PolygonFile(target, crs=crs) as file, _sieved(mask, target, options, ground=ground, check=check) as source:
        for areas in find_areas(
            source,
            confidence,
            ground=ground,
            classes=classes,
            tolerance=tolerance,
            check=check,
            announce=partial(_require_room, memory),
        ):
            for rings, sums in areas.batches():
                check()
                file.add(
                    as_polygons(rings, georeference.transform),
                    class_id=sums.class_id,
                    name=names[sums.class_id],
                    area_m2=sums.area_m2 if ground else np.full(len(sums.pixels), np.nan),
                    confidence=sums.confidence / sums.pixels / 255,
                )
    return file.count


def _require_room(memory: int | None, points: int) -> None:
    """Refuse to put outlines together that take too much: those of an area are all there when it is complete."""
    held = resident_bytes()
    if memory is None or held is None or held + POINT_BYTES * points <= memory:
        return
    needed = -(-(held + POINT_BYTES * points) // 2**20)
    raise CegateError(
        f"The outlines of polygons take {needed} MB at least, --max-memory allows {memory // 2**20} MB.",
        hint="Leave out the class that covers most (--vector-classes), use --simplify, or raise --max-memory.",
    )


@contextmanager
def _sieved(
    mask: Path, target: Path, options: VectorOptions, *, ground: GroundMeasure | None, check: Callable[[], None]
) -> Iterator[Path]:
    """The class raster that polygons are made of: where small areas are to go, a copy beside the target."""
    if options.min_area_m2 <= 0:
        yield mask
        return
    copy = target.with_name(target.name + ".sieved.tif")
    try:
        sieve(
            mask,
            copy,
            ground=ground,
            min_area=options.min_area_m2,
            strips=lambda shape: (window for window, _, _ in strips(shape)),
            check=check,
        )
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def check_vector(
    georeference: Georeference, ground: GroundMeasure | None, legend: Legend, options: VectorOptions
) -> None:
    """Refuse what can't be vectorised.

    Raises:
        InputError: If the scene has no transform, areas are asked for where they are unknown, or a class is not there.
    """
    if georeference.kind in ("gcps", "rpcs"):
        raise InputError(
            f"Polygons need a scene with a transform, this one has {georeference.kind} only.",
            hint="Warp the scene first (gdalwarp), or leave out --vector.",
        )
    if options.min_area_m2 > 0 and ground is None:
        raise InputError(
            "--min-area needs a scene that says where on Earth it lies.", hint="Leave it out, or give the scene a CRS."
        )
    wanted_classes(legend, options.classes)


def wanted_classes(legend: Legend, asked: Collection[str]) -> tuple[int, ...] | None:
    """Ids of the classes that are asked for by name or id; None where none is: then all are wanted.

    Raises:
        InputError: If one is not in the legend.
    """
    ids = {c.name: c.id for c in legend} | {str(c.id): c.id for c in legend if str(c.id) not in legend.names}
    unknown = [word for word in asked if word not in ids]
    if unknown:
        raise InputError(
            f"--vector-classes: the model has no class {', '.join(map(repr, unknown))}.",
            hint="Its classes are " + ", ".join(f"{c.id} {c.name}" for c in legend) + ".",
        )
    return tuple(ids[word] for word in asked) or None
