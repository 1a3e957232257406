"""Metres per pixel and square metres per pixel, on the ellipsoid, for any CRS."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyproj
from rasterio.control import GroundControlPoint
from rasterio.transform import from_gcps

from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.errors import GeoreferenceWarning, GsdWarning, InputError
from cegate_geo.infer.georeference import Georeference

REFUSED_FACTOR = 8
"""How many times coarser or finer than the model's range a scene is refused."""
TOLERANCE = 1.001
"""Up to this factor beyond the range a GSD counts as within: it is measured at the scene's centre only."""
LATTICE_STEP = 64
"""Pixels between the points at which pixel areas are computed; between them they are interpolated."""
LATTICE_DEGREES = 0.05
"""The same in degrees: for coarse pixels the lattice is denser."""

POLE = 90.5
"""Degrees of latitude up to which a pixel may reach: grids of whole degrees put the centres of pixels on the pole."""

FloatArray = npt.NDArray[np.float64]
GridChoice = Literal["source", "model"]
"""Where outputs lie: on the scene's grid, or on one of the model's GSD."""
ResampleMode = Literal["auto", "always", "never"]
"""When a scene is resampled to the model's GSD: where its own lies outside of the model's range, always, never."""


@dataclass(frozen=True, slots=True)
class GroundSize:
    """Size of pixels on the ground."""

    x_m: float
    """Metres along a pixel's row."""
    y_m: float
    """Metres along its column."""

    @property
    def gsd_m(self) -> float:
        """Geometric mean of both axes."""
        return float(np.sqrt(self.x_m * self.y_m))


class GroundMeasure:
    """Measures a raster's pixels on the ellipsoid of its CRS.

    Derivatives of the map projection are taken over one pixel and turned into metres with the ellipsoid's radii of
    curvature at that latitude; the formulas are in Snyder, Map Projections: A Working Manual (1987), chapter 3.
    """

    def __init__(self, georeference: Georeference) -> None:
        transform = georeference.transform
        crs = pyproj.CRS.from_user_input(georeference.crs.to_wkt())
        geodetic = crs.geodetic_crs
        ellipsoid = crs.ellipsoid
        if geodetic is None or ellipsoid is None or crs.is_geocentric:
            raise pyproj.exceptions.CRSError("no ellipsoid, or no plane on it")
        if georeference.gcps and len(georeference.gcps) >= 3:
            transform = from_gcps(_unwrapped(georeference.gcps) if crs.is_geographic else georeference.gcps)
        self._transform, self._shape = transform, georeference.shape
        self._project = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
        self._semi_major = ellipsoid.semi_major_metre
        flattening = 1 / ellipsoid.inverse_flattening if ellipsoid.inverse_flattening else 0.0
        self._eccentricity2 = flattening * (2 - flattening)
        rows, cols = np.array([self._shape[0] / 2]), np.array([self._shape[1] / 2])
        east_x, north_x, east_y, north_y = self._steps(cols, rows)
        self._size = GroundSize(float(np.hypot(east_x, north_x)[0]), float(np.hypot(east_y, north_y)[0]))

    def _degrees(self, cols: FloatArray, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        t = self._transform
        lon, lat = self._project.transform(t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f)
        # Where the CRS does not reach, PROJ says infinite; coordinates in degrees it hands on as they are.
        is_on_earth = np.isfinite(lon) & (np.abs(lat) <= POLE)
        return tuple(np.where(is_on_earth, values, np.nan) for values in (lon, lat))  # type: ignore[return-value]

    def _steps(self, cols: FloatArray, rows: FloatArray) -> tuple[FloatArray, ...]:
        """East and north metres of one pixel along the row, then along the column, around points in pixels."""
        _, lat = self._degrees(cols, rows)
        radians = np.radians(lat)
        curve = 1 - self._eccentricity2 * np.sin(radians) ** 2
        prime = self._semi_major / np.sqrt(curve)
        meridian = self._semi_major * (1 - self._eccentricity2) / curve**1.5
        steps = []
        for d_col, d_row in ((0.5, 0.0), (0.0, 0.5)):
            lon0, lat0 = self._degrees(cols - d_col, rows - d_row)
            lon1, lat1 = self._degrees(cols + d_col, rows + d_row)
            d_lon = (lon1 - lon0 + 180) % 360 - 180
            steps += [np.radians(d_lon) * prime * np.cos(radians), np.radians(lat1 - lat0) * meridian]
        return tuple(steps)

    def size(self) -> GroundSize:
        """At the raster's centre."""
        return self._size

    def areas(self, cols: FloatArray, rows: FloatArray) -> FloatArray:
        """Square metres of the pixels around points, in pixel coordinates (0.5, 0.5 is the first pixel's centre)."""
        east_x, north_x, east_y, north_y = self._steps(cols, rows)
        return np.abs(east_x * north_y - east_y * north_x)

    def row_areas(self, window: Window) -> Iterator[tuple[Window, FloatArray]]:
        """Square metres of a window's pixels: upright parts in which pixels of one row are alike, with (H,) float64.

        Both parts and the points between which areas are interpolated lie on a lattice of the whole raster, so that a
        pixel has the same area in whatever window it is asked for.
        """
        step = self._lattice_step()
        width = 4 * step
        knots = np.arange(window.row_off // step, (window.row_end - 1) // step + 2) * step + 0.5
        rows = np.arange(window.row_off, window.row_end) + 0.5
        starts = np.arange(window.col_off // width, (window.col_end - 1) // width + 1) * width
        middles = (starts + np.minimum(starts + width, self._shape[1])) / 2
        points = np.meshgrid(middles, np.minimum(knots, self._shape[0] - 0.5), indexing="ij")
        # All at once: a call of PROJ costs more than the points of a part.
        areas = self.areas(points[0].ravel(), points[1].ravel()).reshape(points[0].shape)
        for start, of_part in zip(starts.tolist(), areas, strict=True):
            strip = Window(col_off=start, row_off=window.row_off, width=width, height=window.height)
            part = strip.intersection(window)
            if part is not None:
                yield part, np.interp(rows, knots, of_part)

    def _lattice_step(self) -> int:
        size = self._size
        return max(1, min(LATTICE_STEP, int(LATTICE_DEGREES * 111_000 / max(size.x_m, size.y_m))))


def _unwrapped(gcps: Sequence[Any]) -> list[GroundControlPoint]:
    """Control points in degrees without the jump of the longitude at the antimeridian."""
    is_across = max(p.x for p in gcps) - min(p.x for p in gcps) > 180
    return [GroundControlPoint(row=p.row, col=p.col, x=p.x + 360 * (is_across and p.x < 0), y=p.y) for p in gcps]


def measure(georeference: Georeference) -> GroundMeasure | None:
    """How to measure a raster's pixels; None, with a warning, where nothing says how large they are."""
    reason = ""
    if georeference.crs is None or not georeference.crs:
        reason = "has no CRS"
    elif georeference.kind == "gcps" and len(georeference.gcps) < 3:
        reason = "has fewer than three ground control points"
    else:
        try:
            ground = GroundMeasure(georeference)
            if np.isfinite(ground.size().gsd_m) and ground.size().gsd_m > 0:
                return ground
            reason = "has its centre where its CRS does not reach"
        except (pyproj.exceptions.ProjError, ValueError):
            reason = "has a CRS without a place on the ground"
    warnings.warn(
        f"The scene {reason}: areas in square metres and its ground sampling distance are unknown.",
        GeoreferenceWarning,
        stacklevel=2,
    )
    return None


def check_gsd(
    ground: GroundMeasure | None, manifest: Manifest, *, force: bool = False, is_resampled: bool = False
) -> float | None:
    """Compare the scene's GSD with the model's range, warn outside of it. Gives the GSD in metres, if known.

    Where the model does not say its own there is nothing to compare; loading it has warned of that.

    Args:
        ground: How large the scene's pixels are; None where that is unknown.
        manifest: The model's contract.
        force: Warn only, however far off it is.
        is_resampled: Whether the model will see the scene at its own GSD all the same.

    Raises:
        InputError: If it is more than REFUSED_FACTOR times off along an axis and not forced.
    """
    if manifest.gsd_range_m is None:
        return ground.size().gsd_m if ground else None
    low, high = manifest.gsd_range_m
    if ground is None:
        warnings.warn(
            f"The scene's ground sampling distance is unknown; the model was made for {low:g} to {high:g} m per pixel. "
            "Nothing is resampled.",
            GsdWarning,
            stacklevel=2,
        )
        return None
    size = ground.size()
    coarser, finer = factors(size, manifest.gsd_range_m)
    text = f"The scene has {_metres(size)} m per pixel, the model was made for {low:.3g} to {high:.3g} m"
    if max(coarser, finer) > REFUSED_FACTOR and not force:
        raise InputError(
            f"{text}: {max(coarser, finer):.0f} times off.",
            hint="Use a model for such scenes, or adapt one. --force predicts anyway.",
        )
    if max(coarser, finer) > TOLERANCE:
        if not is_resampled:
            ending = "results may be poor. --resample always runs it at the model's GSD."
        elif coarser > TOLERANCE:
            ending = f"it is resampled to {manifest.gsd_m:.3g} m, but detail that its pixels do not hold stays missing."
        else:
            ending = f"it is resampled to {manifest.gsd_m:.3g} m. --resample never runs it as it is."
        warnings.warn(f"{text}; {ending}", GsdWarning, stacklevel=2)
    return size.gsd_m


def factors(size: GroundSize, limits_m: tuple[float, float]) -> tuple[float, float]:
    """How many times a scene's pixels are coarser, and finer, than a model's range, by the worse axis.

    Within the range both are 1 or less.
    """
    low, high = limits_m
    return max(size.x_m, size.y_m) / high, low / min(size.x_m, size.y_m)


def model_shape(
    ground: GroundMeasure | None,
    manifest: Manifest,
    shape: tuple[int, int],
    *,
    resample: ResampleMode = "auto",
) -> tuple[int, int] | None:
    """The shape of a scene's grid at the model's GSD; None where the model is to see the scene as it is.

    With "auto" that is so where both axes lie within the model's range, and where one is more than REFUSED_FACTOR times
    coarser: so many pixels would have to be made up from each that the result would cost much and mean nothing.

    Args:
        ground: How large the scene's pixels are; None where that is unknown: then nothing is resampled.
        manifest: The model's contract.
        shape: (height, width) of the scene.
        resample: "always" and "never" do so whatever the GSD.

    Raises:
        InputError: If it is to be resampled always, and the model does not say its GSD.
    """
    if manifest.gsd_m is None or manifest.gsd_range_m is None:
        if resample == "always":
            raise InputError(
                f"{manifest.name} does not say for which GSD it was made, so nothing can be resampled to it.",
                hint="State it with --gsd-m, or leave out --resample always and --gsd model.",
            )
        return None
    if ground is None or resample == "never":
        return None
    size, gsd_m = ground.size(), manifest.gsd_m
    coarser, finer = factors(size, manifest.gsd_range_m)
    if resample == "auto" and (max(coarser, finer) <= TOLERANCE or coarser > REFUSED_FACTOR):
        return None
    height, width = (
        max(1, round(pixels * metres / gsd_m)) for pixels, metres in zip(shape, (size.y_m, size.x_m), strict=True)
    )
    return None if (height, width) == tuple(shape) else (height, width)


def _metres(size: GroundSize) -> str:
    """Metres per pixel for people: one number, or two where the axes differ."""
    if abs(size.x_m / size.y_m - 1) < 0.01:
        return f"{size.gsd_m:.3g}"
    return f"{size.x_m:.3g} x {size.y_m:.3g}"


def describe(ground: GroundMeasure | None) -> dict[str, Any] | None:
    """Metres per pixel as JSON values."""
    if ground is None:
        return None
    size = ground.size()
    return {"x_m": size.x_m, "y_m": size.y_m, "gsd_m": size.gsd_m}
