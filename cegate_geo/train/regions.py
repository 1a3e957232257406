"""Opens label files for rasters, and cuts them to the part that is said to be labelled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cegate_geo.domain.grid import RasterGrid
from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.domain.windows import Window, iter_blocks
from cegate_geo.errors import LabelError
from cegate_geo.train.byte_rasters import expand
from cegate_geo.train.class_rasters import ClassRaster
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.labels import ClassMap, LabelReader, Labels
from cegate_geo.train.polygons import PixelPolygons, PolygonLabels, Polygons, is_vector, read_polygons

HERE = "{}"
"""In `labels`: what the wildcards in the file name of `images` stand for."""
STRIP_ROWS = 512
"""Rows that are read at once where a whole raster is gone through, at most."""
STRIP_PIXELS = 2**23
"""Pixels of it at most, down to LEAST_ROWS rows."""
LEAST_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLabels:
    """Labels of one raster where they count: within rows, columns and aoi."""

    labels: LabelReader
    window: Window
    """Rows and columns; nothing is labelled outside."""
    aoi: PixelPolygons | None = None

    def read(self, window: Window) -> Labels:
        """(H, W) uint8 channel indices of any window; 255 = not labelled."""
        result = np.full(window.shape, IGNORE_INDEX, np.uint8)
        inside = window.intersection(self.window)
        if inside is not None:
            read = self.labels.read(inside)
            if self.aoi is not None:
                read[self.aoi.burn(inside, fill=0) == 0] = IGNORE_INDEX
            result[inside.slices(window)] = read
        return result

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""
        self.labels.close()


class LabelFiles:
    """The label files of a source, one for each raster or one vector file for all; that one is read once.

    Args:
        config: What to read.
        legend: Classes of the model.
        count: Number of rasters.
        may_differ: Whether class rasters may lie on other grids than their rasters, see `ClassRaster`.
        is_near: Whether nothing is known beyond the rectangle around the polygons, unless rows, cols or aoi say what is
            labelled: few people draw all that there is in a scene.

    Raises:
        LabelError: If there are neither as many label files as rasters, nor one vector file.
        ConfigError: If a class is named that does not exist.
    """

    def __init__(
        self, config: SourceConfig, legend: Legend, *, count: int, may_differ: bool = False, is_near: bool = False
    ) -> None:
        self._may_differ = may_differ
        self._config, self._classes = config, ClassMap(legend, config.remap)
        self._is_near = is_near and not (config.aoi or config.rows or config.cols)
        self._files: list[Path] = []
        if not self._is_template:
            self._files = [Path(config.labels)] if "|" in config.labels else expand(config.labels)
        self._is_shared = len(self._files) == 1 and is_vector(self._files[0])
        if len(self._files) != count and not self._is_shared and not self._is_template:
            raise LabelError(
                f"{config.images!r} gives {count} rasters, {config.labels!r} gives {len(self._files)} label files.",
                hint="Give one label file for each raster, or one vector file for all.",
            )
        self._background = self._classes.target(config.background or legend.names[0], "background")
        self._channel = self._classes.target(config.label_class or legend.names[-1], "label_class")
        self._aoi = read_polygons(Path(config.aoi)) if config.aoi else None
        self._vectors: dict[Path, Polygons] = {}
        self._is_met = False

    def on(self, grid: RasterGrid, number: int, raster: Path) -> RegionLabels | None:
        """Labels of the raster with this number, on its grid; None where rows, cols and aoi leave nothing of it.

        Raises:
            LabelError: If the labels do not fit the raster.
        """
        window = _chosen_window(self._config, grid)
        aoi = None if self._aoi is None else self._aoi.on(grid)
        if aoi is not None and window is not None:
            window = window.intersection(aoi.extent) if aoi.extent is not None else None
        if window is None:
            return None
        labels = self._read(self._file_of(number, raster), grid, raster)
        return RegionLabels(labels=labels, window=window.intersection(labels.extent) or window, aoi=aoi)

    @property
    def _is_template(self) -> bool:
        return HERE in self._config.labels

    def _file_of(self, number: int, raster: Path) -> Path:
        if not self._is_template:
            return self._files[0] if self._is_shared else self._files[number]
        path = fill_template(self._config.labels, self._config.images, raster)
        if not path.is_file():
            raise LabelError(
                f"{raster} has no labels: there is no {path}.",
                hint="Leave the raster out of images, or add its labels.",
            )
        return path

    def _read(self, path: Path, grid: RasterGrid, raster: Path) -> LabelReader:
        if not is_vector(path):
            return ClassRaster(path, grid, self._classes, may_differ=self._may_differ)
        if path not in self._vectors:
            field = self._config.label_field
            self._vectors[path] = read_polygons(path, self._classes, field=field, channel=self._channel)
        background, is_near = self._background, self._is_near
        labels = PolygonLabels.on(self._vectors[path], grid, background=background, is_near=is_near)
        self._is_met |= labels.polygons.extent is not None
        if labels.polygons.extent is None and not self._config.aoi:
            raise LabelError(
                f"No polygon of {path} lies in {raster}.",
                hint="Leave the raster out, or say with aoi what is labelled, if there is nothing but background.",
            )
        return labels

    def require_polygons(self) -> None:
        """To be called after all rasters.

        Raises:
            LabelError: If there are polygons, but none lies in any of them.
        """
        if self._vectors and not self._is_met:
            raise LabelError(
                f"No polygon of {self._config.labels!r} lies in any raster of {self._config.images!r}.",
                hint="Check the CRS of both.",
            )


def fill_template(labels: str, images: str, raster: Path) -> Path:
    """The label file of a raster: `{}` in `labels` is what the wildcards in the file name of `images` stand for.

    From the first wildcard to the last, with what is between; what `glob.escape` makes of a character is none.

    Example:
        >>> fill_template("gt/{}_mask.png", "sat/tile_*_sat.jpg", Path("sat/tile_4_7_sat.jpg")).name
        '4_7_mask.png'

    Raises:
        LabelError: If the file name of `images` has no wildcard.
    """
    pattern = Path(images).name
    wild = [m for m in re.finditer(r"\*+|\?|\[[^\]]+\]", pattern) if not re.fullmatch(r"\[[*?[]\]", m[0])]
    if not wild:
        raise LabelError(f"{labels!r} has {HERE}, but {images!r} no wildcard in its file name.", hint="Use a pattern.")
    before, after = _unescaped(pattern[: wild[0].start()]), _unescaped(pattern[wild[-1].end() :])
    found = raster.name[len(before) : len(raster.name) - len(after)]
    return Path(_unescaped(labels).replace(HERE, found))


def _unescaped(pattern: str) -> str:
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def _chosen_window(config: SourceConfig, grid: RasterGrid) -> Window | None:
    rows, cols = config.rows or (0, grid.height), config.cols or (0, grid.width)
    for what, (start, stop) in (("rows", rows), ("cols", cols)):
        if not 0 <= start < stop:
            raise LabelError(f"{what} = [{start}, {stop}] is no range.", hint="Write [first, last + 1], from 0.")
    chosen = Window(col_off=cols[0], row_off=rows[0], width=cols[1] - cols[0], height=rows[1] - rows[0])
    return chosen.intersection(grid.window)


def strips(window: Window) -> list[Window]:
    """A window in strips of STRIP_ROWS rows, of fewer where it is wide."""
    rows = min(STRIP_ROWS, max(LEAST_ROWS, STRIP_PIXELS // window.width))
    blocks = iter_blocks(window.shape, block_height=rows, block_width=window.width)
    return [
        Window(col_off=window.col_off, row_off=window.row_off + b.row_off, width=b.width, height=b.height)
        for b in blocks
    ]
