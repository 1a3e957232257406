"""The georeferenced pixel grid of a raster: CRS, transform, shape."""

from __future__ import annotations

from dataclasses import dataclass

from affine import Affine

from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterGrid:
    """Where each pixel of a raster lies: the CRS, the affine transform from (column, row) to map x and y, the shape."""

    crs_wkt: str | None
    """CRS as WKT; None where the raster has none."""
    transform: Affine
    """(column, row) of a pixel's upper left corner to map (x, y); may be rotated or south-up."""
    shape: tuple[int, int]
    """(height, width) in pixels."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise InputError(f"A grid needs at least one pixel, not shape={self.shape}.")
        if self.transform.is_degenerate:
            raise InputError(f"The transform {tuple(self.transform)[:6]} maps all pixels onto one line.")

    @property
    def height(self) -> int:
        """Rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.shape[1]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Map coordinates (left, bottom, right, top) of the smallest upright rectangle around all pixels."""
        corners = [self.transform @ (col, row) for col in (0, self.width) for row in (0, self.height)]
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        return (min(xs), min(ys), max(xs), max(ys))

    @property
    def window(self) -> Window:
        """The window that covers the whole grid."""
        return Window.of_shape(self.shape)

    def crop(self, window: Window) -> RasterGrid:
        """The grid of a window of this one; the window may look past the edge.

        Law: pixel (c, r) of the crop lies where pixel (c + col_off, r + row_off) of this grid lies.
        """
        shift = Affine.translation(window.col_off, window.row_off)
        return RasterGrid(crs_wkt=self.crs_wkt, transform=self.transform @ shift, shape=window.shape)
