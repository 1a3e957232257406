"""Labelled scenes: a raster with its labels, read by window, held in memory where it fits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.io import MemoryFile

from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError, LabelError
from cegate_geo.infer.bands import FLOATS, select_bands
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.reader import Scene, raster_errors
from cegate_geo.infer.stac import is_item, open_item
from cegate_geo.train.byte_rasters import expand
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.labels import Labels
from cegate_geo.train.raster_input import FULL_SCALE, RGB_BANDS, ValueType
from cegate_geo.train.regions import LabelFiles, RegionLabels, strips

HELD_MARGIN = 512
"""Pixels around the labelled part that are held with it: what chips at its edge look at."""
MANY = 100
"""Rasters of a source beyond which their files are closed between reads: a process may have only so many open."""
BLOCK_CACHE_MB = 256
"""GDAL's block cache, whose default of 5 % of the machine's memory would look like a leak. It holds a row of blocks of
512 px of a scene 100,000 px wide, which is gone through in strips and tiles lower than that."""
MASKS = 2
"""Bytes of a pixel beside its values: validity, labels."""

Pixels = npt.NDArray[np.generic]
"""(C, H, W) raster values, in the raster's own type."""


@contextmanager
def bounded_block_cache() -> Iterator[None]:
    """GDAL with a block cache of BLOCK_CACHE_MB in all threads, unless whoever started the process says its size."""
    own = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": BLOCK_CACHE_MB * 2**20}  # rasterio takes bytes
    with rasterio.Env(**own):
        yield


class PixelReader:
    """Bands of a raster and what is valid, exactly as inference reads them. One thread at a time."""

    def __init__(self, path: Path, config: SourceConfig, legend: Legend) -> None:
        self._path, self._config = path, config
        self.bands = config.bands or RGB_BANDS
        """As they were chosen."""
        self._chosen = [str(band) for band in self.bands]
        self._manifest = Manifest(
            name="labels",
            legend=legend,
            bands=tuple(f"channel {n}" for n in range(len(self.bands))),
            gsd_m=1,
            gsd_range_m=(1, 1),
            tile_size=1,
            halo=0,
        )
        dtype, self.described = self._look()
        self.dtype: ValueType = dtype
        self.scale = config.scale if config.scale is not None else FULL_SCALE[dtype]
        """Raster value that becomes 1."""
        self._manifest = replace(self._manifest, dtype=dtype)
        self._scene: Scene | None = None
        scene = self._open()
        self.values_type, georeference = scene.dtype, scene.georeference
        self.grid = georeference.grid
        self.gsd_m = GroundMeasure(georeference).size().gsd_m if georeference.crs else config.gsd_m
        """Metres per pixel at the centre, geodesic, geometric mean of both axes; as stated without CRS, or None."""

    def read(self, window: Window) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        """(C, H, W) raster values and (H, W) valid of a window within the raster."""
        strip = self._open().read(window)
        return strip.values, strip.valid

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""
        if self._scene is not None:
            self._scene.close()
        self._scene = None

    def _open(self) -> Scene:
        if self._scene is None:
            self._scene = Scene(str(self._path), self._manifest, bands=self._chosen, nodata=self._config.nodata)
        return self._scene

    def _look(self) -> tuple[ValueType, tuple[str | None, ...]]:
        """The type of the values, and what the raster calls each of the bands, where it does.

        Raises:
            InputError: If a band is missing, or what they hold can't be learned from.
        """
        with self._dataset() as dataset:
            try:
                numbers = select_bands(dataset, self._manifest.bands, given=self._chosen)
            except InputError as error:
                raise InputError(f"{self._path.name}: {error.message}", hint=error.hint) from error
            kinds = {number: str(dataset.dtypes[number - 1]) for number in numbers}
            described = tuple(dataset.descriptions[number - 1] or None for number in numbers)
        if len(set(kinds.values())) > 1:
            told = ", ".join(f"{kind} in band {number}" for number, kind in kinds.items())
            raise InputError(
                f"{self._path.name} holds {told}.", hint="Bring its bands to one type first: gdal_translate -ot."
            )
        found = kinds[numbers[0]]
        dtype = next((kind for kind in FULL_SCALE if kind == found or (kind == "float32" and found in FLOATS)), None)
        if dtype is None:
            raise InputError(
                f"{self._path.name} holds {found}; models learn from {', '.join(FULL_SCALE)}.",
                hint="Convert it: gdal_translate -ot Float32 IN.tif OUT.tif.",
            )
        return dtype, described

    @contextmanager
    def _dataset(self) -> Iterator[Any]:
        """The raster as rasterio has it; a STAC item as the raster that its bands make."""
        name = str(self._path)
        with ExitStack() as stack:
            stack.enter_context(raster_errors(name))
            stack.enter_context(quiet_about_georeference())
            if not is_item(name):
                yield stack.enter_context(rasterio.open(name))
                return
            item = open_item(name, self._manifest, bands=self._chosen)
            stack.enter_context(rasterio.Env(**item.settings))
            memory = stack.enter_context(MemoryFile(item.vrt.encode(), ext=".vrt"))
            yield stack.enter_context(memory.open())


class LabelledScene:
    """One raster with its labels. Windows may look past its edge: there it is 0, not valid, not labelled.

    Reading is thread-safe.

    Args:
        name: For messages and reports.
        pixels: The raster.
        labels: Its labels, on its grid.
        classes: Number of classes K.
        budget: Bytes that it may hold in memory; if the labelled part does not fit, it is read from the file.
        stays_open: Whether files that are read from again and again stay open between.
    """

    def __init__(
        self,
        name: str,
        pixels: PixelReader,
        labels: RegionLabels,
        *,
        classes: int,
        budget: int,
        stays_open: bool = True,
    ) -> None:
        self.name, self.grid, self.weight = name, pixels.grid, 1.0
        self.bands, self.described = pixels.bands, pixels.described
        """Its bands as they were chosen, and what the raster calls each of them, where it does."""
        self.dtype, self.scale = pixels.dtype, pixels.scale
        """Type of its values, and the one that becomes 1."""
        self._bytes_per_pixel = pixels.values_type.itemsize * len(pixels.bands) + MASKS
        self._pixels, self._labels, self._classes = pixels, labels, classes
        self._lock, self._stays_open = threading.RLock(), stays_open
        self.extent, self.class_counts = self._survey()
        around = self.extent.expanded(HELD_MARGIN).intersection(self.grid.window)
        self._held: Window | None = around if around and around.area * self._bytes_per_pixel <= budget else None
        self._memory: tuple[Pixels, npt.NDArray[np.bool_], Labels] | None = None
        if self._held is not None or not stays_open:
            self._close()

    @property
    def held_bytes(self) -> int:
        """Memory that it takes once it is in use."""
        return self._held.area * self._bytes_per_pixel if self._held is not None else 0

    @property
    def gsd_m(self) -> float | None:
        """Metres per pixel at the centre, geodesic, geometric mean of both axes; as stated without CRS, or None."""
        return self._pixels.gsd_m

    def image(self, window: Window) -> Pixels:
        """(C, H, W) raster values."""
        return self.read(window)[0]

    def valid(self, window: Window) -> npt.NDArray[np.bool_]:
        """(H, W), True = data."""
        return self.read(window)[1]

    def labels(self, window: Window) -> Labels:
        """(H, W) uint8 channel indices of the legend; 255 = left out: not labelled, not valid, outside."""
        return self.read(window)[2] if self.may_be_labelled(window) else np.full(window.shape, IGNORE_INDEX, np.uint8)

    def may_be_labelled(self, window: Window) -> bool:
        """False where nothing is labelled for sure, by the label file alone: pixels cost more, and most lie between."""
        inside = window.intersection(self.grid.window)
        if inside is None or self.is_held(inside):
            return inside is not None
        with self._lock, self._closing():
            return bool((self._labels.read(inside) != IGNORE_INDEX).any())

    def is_held(self, window: Window) -> bool:
        """Whether a window, within the raster, is read from memory."""
        return self._held is not None and self._held.contains(window)

    def read(self, window: Window) -> tuple[Pixels, npt.NDArray[np.bool_], Labels]:
        """Image, valid and labels of one window at once. The arrays may be views: do not write into them."""
        inside = window.intersection(self.grid.window)
        if inside == window:
            return self._read(window)
        image = np.zeros((len(self.bands), *window.shape), self._pixels.values_type)
        valid, labels = np.zeros(window.shape, np.bool_), np.full(window.shape, IGNORE_INDEX, np.uint8)
        if inside is not None:
            rows, cols = inside.slices(window)
            image[:, rows, cols], valid[rows, cols], labels[rows, cols] = self._read(inside)
        return image, valid, labels

    def _read(self, window: Window) -> tuple[Pixels, npt.NDArray[np.bool_], Labels]:
        if self._held is None or not self.is_held(window):
            with self._lock, self._closing():
                return self._read_file(window)
        with self._lock:
            if self._memory is None:
                self._memory = self._load(self._held)
        rows, cols = window.slices(self._held)
        image, valid, labels = self._memory
        return image[:, rows, cols], valid[rows, cols], labels[rows, cols]

    def _read_file(self, window: Window) -> tuple[Pixels, npt.NDArray[np.bool_], Labels]:
        image, valid = self._pixels.read(window)
        labels = self._labels.read(window)
        labels[~valid] = IGNORE_INDEX
        return image, valid, labels

    def _load(self, held: Window) -> tuple[Pixels, npt.NDArray[np.bool_], Labels]:
        image = np.empty((len(self.bands), *held.shape), self._pixels.values_type)
        valid, labels = np.empty(held.shape, np.bool_), np.empty(held.shape, np.uint8)
        for strip in strips(held):
            rows, _ = strip.slices(held)
            image[:, rows], valid[rows], labels[rows] = self._read_file(strip)
        self._close()
        return image, valid, labels

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Files are open within, and afterwards if they stay so."""
        try:
            yield
        finally:
            if not self._stays_open:
                self._close()

    def _close(self) -> None:
        self._pixels.close()
        self._labels.close()

    def _survey(self) -> tuple[Window, npt.NDArray[np.int64]]:
        """The smallest window that holds all labels, and pixels per class. Reads the whole label file once."""
        counts = np.zeros(IGNORE_INDEX + 1, np.int64)
        tops, bottoms, lefts, rights = [], [], [], []
        for strip in strips(self._labels.window):
            labels = self._labels.read(strip)
            labelled = labels != IGNORE_INDEX
            rows = np.flatnonzero(labelled.any(1))
            if len(rows):
                cols = np.flatnonzero(labelled.any(0))
                counts += np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)
                tops.append(strip.row_off + rows[0])
                bottoms.append(strip.row_off + rows[-1] + 1)
                lefts.append(strip.col_off + cols[0])
                rights.append(strip.col_off + cols[-1] + 1)
        if not tops:
            raise LabelError(
                f"{self.name} has no labelled pixel.",
                hint="Check aoi, rows, cols, remap and that the labels lie on it.",
            )
        col, row = int(min(lefts)), int(min(tops))
        extent = Window(col_off=col, row_off=row, width=int(max(rights)) - col, height=int(max(bottoms)) - row)
        return extent, counts[: self._classes]


def open_scenes(config: SourceConfig, legend: Legend, *, cache_mb: int = 1024) -> list[LabelledScene]:
    """The labelled scenes of one [[source]] or [[validation]].

    Args:
        config: What to read.
        legend: Classes of the model.
        cache_mb: Megabytes of pixels and labels that may be held in memory, in all; scenes beyond are read from file.

    Raises:
        LabelError: If labels do not fit their rasters, or nothing is labelled.
        InputError: If a file or band is missing, or a raster holds what can't be learned from.
    """
    images = expand(config.images)
    files = LabelFiles(config, legend, count=len(images), may_differ=True, is_near=True)
    scenes: list[LabelledScene] = []
    empty: list[str] = []
    budget = cache_mb * 2**20
    for n, path in enumerate(images):
        pixels = PixelReader(path, config, legend)
        labels = files.on(pixels.grid, n, path)
        if labels is None:
            empty.append(path.name)
            pixels.close()
            continue
        stays_open = len(images) <= MANY
        scene = LabelledScene(path.name, pixels, labels, classes=len(legend), budget=budget, stays_open=stays_open)
        scenes.append(scene)
        budget -= scenes[-1].held_bytes
    if not scenes:
        raise LabelError(
            f"No raster of {config.images!r} lies within aoi={config.aoi!r}, rows={config.rows}, cols={config.cols}: "
            f"{', '.join(empty[:5])}.",
            hint="Check them; rows and cols count from 0.",
        )
    files.require_polygons()
    _share_weight(scenes, config.weight)
    return scenes


def _share_weight(scenes: Sequence[LabelledScene], weight: float) -> None:
    """Split a source's weight over its scenes by their labelled pixels."""
    pixels = [int(s.class_counts.sum()) for s in scenes]
    for scene, count in zip(scenes, pixels, strict=True):
        scene.weight = weight * count / sum(pixels)
