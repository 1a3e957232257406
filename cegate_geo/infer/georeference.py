"""Where a raster lies on the ground: read from one dataset, written to another, whatever kind it is.

Only the georeference is carried over, never the source's profile: a copied compression, nodata value or photometric
interpretation would ruin class ids.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from cegate_geo.domain.grid import RasterGrid
from cegate_geo.errors import RasterError


@contextmanager
def quiet_about_georeference() -> Iterator[None]:
    """Keep rasterio from warning about rasters without a georeference; we warn once ourselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Georeference:
    """CRS and transform, or ground control points, or RPCs, or nothing at all."""

    crs: Any
    """rasterio CRS of the transform, or of the ground control points; None where there is none."""
    transform: Affine
    """Identity where the raster has no transform."""
    shape: tuple[int, int]
    gcps: tuple[Any, ...] = ()
    """rasterio GroundControlPoints, where there is no transform."""
    rpcs: Any = None
    area_or_point: str | None = None
    """GDAL's AREA_OR_POINT tag."""

    @classmethod
    def read(cls, dataset: Any) -> Georeference:
        """Read it from an open rasterio dataset.

        Raises:
            RasterError: If its transform does not give each pixel a place.
        """
        with quiet_about_georeference():
            transform, (gcps, gcps_crs) = dataset.transform, dataset.gcps
        problem = _fault(transform, dataset.shape)
        if problem:
            raise RasterError(
                f"{dataset.name} has the transform {tuple(transform)[:6]}, which {problem}.",
                hint="Set a right one, for example with gdal_edit.py -a_ullr.",
            )
        has_transform = transform != Affine.identity()
        use_gcps = bool(gcps) and not has_transform
        # GDAL shifts control points of PixelIsPoint files by half a pixel on reading and does not on writing. And it
        # makes up a CRS where there is a transform and none to say what it is the point of.
        is_told = not use_gcps and (dataset.crs is not None or not has_transform)
        return cls(
            crs=gcps_crs if use_gcps else dataset.crs,
            transform=transform,
            shape=(dataset.height, dataset.width),
            gcps=tuple(gcps) if use_gcps else (),
            rpcs=dataset.rpcs,
            area_or_point=dataset.tags().get("AREA_OR_POINT") if is_told else None,
        )

    @property
    def kind(self) -> str:
        """'transform', 'gcps', 'rpcs' or 'none': the best that there is."""
        if self.gcps:
            return "gcps"
        if self.transform != Affine.identity() or self.crs is not None:
            return "transform"
        return "rpcs" if self.rpcs is not None else "none"

    @property
    def grid(self) -> RasterGrid:
        """The pixel grid; without CRS where only control points say where it lies."""
        crs = None if self.gcps or not self.crs else self.crs.to_wkt()
        return RasterGrid(crs_wkt=crs, transform=self.transform, shape=self.shape)

    def rescaled(self, shape: tuple[int, int]) -> Georeference:
        """The same ground in a grid of another shape.

        Law: the corners of both grids lie on the same places, by transform, control points and RPCs alike.
        """
        down, right = self.shape[0] / shape[0], self.shape[1] / shape[1]
        points = [
            GroundControlPoint(row=p.row / down, col=p.col / right, x=p.x, y=p.y, z=p.z, id=p.id, info=p.info)
            for p in self.gcps
        ]
        rpcs = copy.copy(self.rpcs)
        if rpcs is not None:
            # RPCs count from the centre of the first pixel, transforms and control points from its corner.
            rpcs.line_off, rpcs.line_scale = (rpcs.line_off + 0.5) / down - 0.5, rpcs.line_scale / down
            rpcs.samp_off, rpcs.samp_scale = (rpcs.samp_off + 0.5) / right - 0.5, rpcs.samp_scale / right
        return replace(
            self,
            transform=self.transform @ Affine.scale(right, down) if self.kind == "transform" else self.transform,
            shape=shape,
            gcps=tuple(points),
            rpcs=rpcs,
        )

    def creation(self) -> dict[str, Any]:
        """What `rasterio.open(..., "w")` needs to know about it."""
        options: dict[str, Any] = {"height": self.shape[0], "width": self.shape[1]}
        if self.gcps:
            options |= {"gcps": list(self.gcps), "crs": self.crs}
        else:
            options["crs"] = self.crs
            if self.transform != Affine.identity():
                options["transform"] = self.transform
        if self.rpcs is not None:
            options["rpcs"] = self.rpcs
        return options


def _fault(transform: Affine, shape: tuple[int, int]) -> str:
    """What keeps a transform from giving each pixel a place; empty for nothing."""
    if transform.is_degenerate:
        return "maps all its pixels onto one line"
    height, width = shape
    ends = ((0, 0), (0, height), (width, 0), (width, height))
    corners = [abs(value) for end in ends for value in transform @ end]
    if not all(map(math.isfinite, corners)):
        return "maps pixels to no number"
    steps = (max(abs(transform.a), abs(transform.d)), max(abs(transform.b), abs(transform.e)))
    return "" if min(steps) > 2 * math.ulp(max(corners)) else "maps neighbouring pixels to the same coordinates"
