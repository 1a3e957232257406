"""Class rasters as labels: ids, or colours, on the grid of the raster that they label, or brought onto it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.grid import RasterGrid
from cegate_geo.domain.legend import IGNORE_INDEX, parse_color
from cegate_geo.domain.windows import Window, iter_blocks
from cegate_geo.errors import LabelError
from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
from cegate_geo.infer.reader import raster_errors
from cegate_geo.train.labels import ANYTHING, ClassMap, Labels

GRID_TOLERANCE = 0.01
"""How far the corners of two grids may lie apart to count as the same, in pixels."""
UNKNOWN = -1
PLACED_ROWS = 64
"""Rows whose places in another grid are computed at a time."""
MAX_TABLE = 2**24
"""Values are looked up in a table up to this range, and sorted beyond it: all colours fit."""


class ClassRaster:
    """A class raster: see `labels.LabelReader`.

    Values are ids of the legend, or keys of `remap`. With '#rrggbb' keys in `remap` its palette or its first three
    bands are looked up as colours. 255 and nodata are not labelled, unless `remap` names them.

    Args:
        path: The class raster.
        grid: Grid of the raster that it labels.
        classes: What its values mean.
        may_differ: Whether it may have a CRS and a grid of its own, where both say where they lie: a pixel then has the
            class that its centre lies in, and none beyond the class raster.

    Raises:
        LabelError: If the grids differ, or it holds no whole numbers.
    """

    def __init__(self, path: Path, grid: RasterGrid, classes: ClassMap, *, may_differ: bool = False) -> None:
        self.path, self._classes = path, classes
        self._dataset: Any = None
        self.extent = grid.window
        colors = [key for key in classes.remap if key.startswith("#")]
        dataset = self._open()
        own = Georeference.read(dataset).grid
        self._places: _Places | None = None
        if may_differ and own.crs_wkt and grid.crs_wkt and not _is_same_grid(own, grid):
            self._places = _Places(grid, own)
        else:
            require_same_grid(own, grid, str(path))
        if dataset.dtypes[0] not in ("uint8", "int8", "uint16", "int16", "uint32", "int32"):
            raise LabelError(f"{path} holds {dataset.dtypes[0]}.", hint="Store class ids as whole numbers.")
        self._palette: dict[int, int] | None = None
        self._colors: dict[int, int] = {}
        self._bands: tuple[int, ...] | None = None
        self._ignored: list[int] = []
        if colors:
            self._by_color(dataset, colors)
        elif dataset.count > 1:
            raise LabelError(
                f"{path} has {dataset.count} bands; a class raster has one.",
                hint='If classes are colours, name them: remap = { "#3c1098" = "building", ... }.',
            )
        else:
            self._by_id(dataset)
        self.close()

    def _by_id(self, dataset: Any) -> None:
        remap = self._classes.remap
        if dataset.nodata is not None and float(dataset.nodata).is_integer():
            self._ignored.append(int(dataset.nodata))
        self._ignored.append(IGNORE_INDEX)
        self._ignored = [v for v in self._ignored if str(v) not in remap]
        wrong = [k for k in remap if k != ANYTHING and not k.removeprefix("-").isdecimal()]
        if wrong:
            raise LabelError(
                f"remap has the keys {wrong}, but {self.path} holds numbers.", hint='Write ids as keys, as in "70".'
            )

    def _by_color(self, dataset: Any, colors: list[str]) -> None:
        self._colors = {_packed(parse_color(k)): self._classes.target(self._classes.remap[k], k) for k in colors}
        if dataset.count == 1:
            if dataset.colorinterp[0].name != "palette":
                raise LabelError(f"{self.path} has no colours.", hint="Use ids as keys of remap.")
            self._palette = {index: _packed(color) for index, color in dataset.colormap(1).items()}
        elif dataset.count >= 3:
            self._bands = (1, 2, 3)
        else:
            raise LabelError(f"{self.path} has {dataset.count} bands.", hint="Colours need three, or a palette.")

    def read(self, window: Window) -> Labels:
        """(H, W) uint8 channel indices.

        Raises:
            LabelError: If a value is no class.
        """
        if self._places is None:
            return self._to_channels(self._values(window))
        result = np.full(window.shape, IGNORE_INDEX, np.uint8)
        for part in iter_blocks(window.shape, block_height=PLACED_ROWS, block_width=window.width):
            rows, cols, is_there = self._places.of(window, part)
            if not is_there.any():
                continue
            first, last = (int(rows.min()), int(cols.min())), (int(rows.max()), int(cols.max()))
            around = Window(
                col_off=first[1], row_off=first[0], width=last[1] - first[1] + 1, height=last[0] - first[0] + 1
            )
            found = self._values(around)[rows - first[0], cols - first[1]]
            strip = result[part.row_off : part.row_end]
            strip[is_there] = self._to_channels(found[None])[0]
        return result

    def _values(self, window: Window) -> npt.NDArray[Any]:
        """(H, W) values of a window of its own grid; colours in one number."""
        area = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        with raster_errors(str(self.path)):
            values: npt.NDArray[Any] = self._open().read(self._bands or 1, window=area)
        if self._bands:
            values = values.astype(np.int32)
            values = (values[0] << 16) | (values[1] << 8) | values[2]
        return values

    def _to_channels(self, values: npt.NDArray[Any]) -> Labels:
        present, places, index = _distinct(values)
        channels = [self._channel(v) for v in present]
        strange = [v for v, c in zip(present, channels, strict=True) if c == UNKNOWN]
        if strange:
            raise self._classes.unknown([self._shown(v) for v in strange], str(self.path))
        table = np.zeros(int(places[-1]) + 1, np.uint8)
        table[places] = channels
        return table[index]

    def _channel(self, value: int) -> int:
        if self._colors:
            color = value if self._palette is None else self._palette.get(value, -1)
            rest = self._classes.remap.get(ANYTHING)
            otherwise = UNKNOWN if rest is None else self._classes.target(rest, f"remap of {ANYTHING!r}")
            return self._colors.get(color, otherwise)
        if value in self._ignored:
            return IGNORE_INDEX
        channel = self._classes.channel(str(value))
        return UNKNOWN if channel is None else channel

    def _shown(self, value: int) -> str:
        color = value if self._palette is None else self._palette.get(value, -1)
        return f"#{color:06x}" if self._colors and color >= 0 else str(value)

    def _open(self) -> Any:
        if self._dataset is None:
            with raster_errors(str(self.path)), quiet_about_georeference():
                self._dataset = rasterio.open(self.path)
        return self._dataset

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""
        if self._dataset is not None:
            self._dataset.close()
        self._dataset = None


class _Places:
    """Which pixels of a class raster the centres of another grid's pixels lie in.

    Args:
        grid: The other grid.
        own: That of the class raster; both have a CRS.
    """

    def __init__(self, grid: RasterGrid, own: RasterGrid) -> None:
        self._grid, self._own, self._inverse = grid, own, ~own.transform
        is_same = CRS.from_wkt(grid.crs_wkt) == CRS.from_wkt(own.crs_wkt)
        self._move = None if is_same else Transformer.from_crs(grid.crs_wkt, own.crs_wkt, always_xy=True)

    def of(
        self, window: Window, part: Window
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """For a part of a window of the grid: rows and columns of what lies there, and (H, W) whether any does."""
        cols = window.col_off + part.col_off + np.arange(part.width)[None, :] + 0.5
        rows = window.row_off + part.row_off + np.arange(part.height)[:, None] + 0.5
        x, y = _at(self._grid.transform, cols, rows)
        if self._move is not None:
            x, y = self._move.transform(x, y)  # infinite where there is no such place
        own_cols, own_rows = (np.floor(v) for v in _at(self._inverse, x, y))
        is_there = (own_cols >= 0) & (own_cols < self._own.width) & (own_rows >= 0) & (own_rows < self._own.height)
        return own_rows[is_there].astype(np.intp), own_cols[is_there].astype(np.intp), is_there


def _at(transform: Affine, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    with np.errstate(invalid="ignore"):  # infinity less infinity, of places that are not there
        return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _is_same_grid(labels: RasterGrid, raster: RasterGrid) -> bool:
    try:
        require_same_grid(labels, raster, "")
    except LabelError:
        return False
    return True


def _distinct(values: npt.NDArray[Any]) -> tuple[list[int], npt.NDArray[np.intp], npt.NDArray[Any]]:
    """Distinct values, their places in a lookup table, and the place of each pixel of `values`."""
    if values.dtype == np.uint8:
        places = np.flatnonzero(np.bincount(values.reshape(-1)))
        return places.tolist(), places, values
    values = values.astype(np.int64)
    low = int(values.min())
    span = int(values.max()) - low + 1
    if span > MAX_TABLE:
        found, index = np.unique(values, return_inverse=True)
        return found.tolist(), np.arange(len(found)), index.reshape(values.shape)
    index = values - low
    seen = np.zeros(span, np.bool_)
    seen[index] = True
    places = np.flatnonzero(seen)
    return (places + low).tolist(), places, index


def require_same_grid(labels: RasterGrid, raster: RasterGrid, name: str) -> None:
    """Refuse a class raster that does not lie exactly on the raster that it labels.

    A file without a georeference only has to have the same size.

    Raises:
        LabelError: With the values that differ.
    """
    mend = "Make it on the raster's grid, for example with gdalwarp -r near -te ... -ts ..."
    if labels.shape != raster.shape:
        raise LabelError(
            f"{name} has {labels.width} x {labels.height} pixels, its raster {raster.width} x {raster.height}.",
            hint=mend,
        )
    placed = [g.crs_wkt is not None or not g.transform.is_identity for g in (labels, raster)]
    if not all(placed):
        return
    if labels.crs_wkt and raster.crs_wkt and CRS.from_wkt(labels.crs_wkt) != CRS.from_wkt(raster.crs_wkt):
        raise LabelError(
            f"{name} has another CRS than its raster: {_crs_name(labels)}, {_crs_name(raster)}.", hint=mend
        )
    inverse = ~raster.transform
    for col, row in ((0, 0), (labels.width, 0), (0, labels.height), (labels.width, labels.height)):
        x, y = inverse @ (labels.transform @ (col, row))
        if max(abs(x - col), abs(y - row)) > GRID_TOLERANCE:
            raise LabelError(
                f"{name} lies {x - col:.2f} columns and {y - row:.2f} rows off its raster at pixel ({col}, {row}).",
                hint=mend,
            )


def _crs_name(grid: RasterGrid) -> str:
    return str(CRS.from_wkt(grid.crs_wkt).to_string())[:60]


def _packed(color: tuple[int, ...]) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]
