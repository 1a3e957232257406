"""Where a raster lies on the ground: read from one dataset, written to another, whatever kind it is.

Only the georeference is carried over, never the source's profile: a copied compression, nodata value or photometric
interpretation would ruin class ids.
"""

from __future__ import annotations

import copy
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
        """Read it from an open rasterio dataset."""
        with quiet_about_georeference():
            transform, (gcps, gcps_crs) = dataset.transform, dataset.gcps
        if transform.is_degenerate:
            raise RasterError(
                f"{dataset.name} has the transform {tuple(transform)[:6]}, which maps all its pixels onto one line.",
                hint="Set a right one, for example with gdal_edit.py -a_ullr.",
            )
        use_gcps = bool(gcps) and transform == Affine.identity()
        return cls(
            crs=gcps_crs if use_gcps else dataset.crs,
            transform=transform,
            shape=(dataset.height, dataset.width),
            gcps=tuple(gcps) if use_gcps else (),
            rpcs=dataset.rpcs,
            # GDAL shifts control points of PixelIsPoint files by half a pixel on reading and does not on writing.
            area_or_point=None if use_gcps else dataset.tags().get("AREA_OR_POINT"),
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
