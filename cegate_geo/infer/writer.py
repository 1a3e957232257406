"""Data leaves here: streams bands of rows into rasters, and makes COGs of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError
from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
from cegate_geo.infer.providers import usable_cores

BLOCK_SIZE = 512
"""Side of the output's blocks in pixels. Shards are aligned to it."""
COG_CACHE_BYTES = 2**24
"""GDAL's block cache while COGs are made: block by block, they are in need of few."""
COG_BLOCK_BYTES = 3 * 2**19
"""What a block of a COG holds at most: it has all bands, and GDAL keeps several of each level of overviews."""
OVERVIEW_PIXELS = 2**24
"""Pixels from which overviews are made at once."""
COG_THREADS = 2
"""Threads that make a COG of one band, at most; of several bands it is one, as each holds a chunk of all bands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterKind:
    """What is written: one of the three functions below makes it."""

    dtype: str
    count: int
    nodata: int | None
    resampling: str
    """How overviews are made."""
    legend: Legend | None = None
    descriptions: tuple[str, ...] = ()
    has_mask: bool = False


def class_raster(legend: Legend) -> RasterKind:
    """Class ids: uint8 with nodata 255, or uint16 with nodata 65535 where an id exceeds 254."""
    dtype, nodata = ("uint8", 255) if max(legend.ids) < 255 else ("uint16", 65535)
    return RasterKind(dtype=dtype, count=1, nodata=nodata, resampling="MODE", legend=legend, descriptions=("class",))


def confidence_raster() -> RasterKind:
    """Probability of the winning class, 1..255 = 0..1; 0 is nodata, no winner can have it."""
    return RasterKind(dtype="uint8", count=1, nodata=0, resampling="AVERAGE", descriptions=("confidence",))


def probability_raster(legend: Legend) -> RasterKind:
    """Probability of each class, 0..255 = 0..1, with a mask band: every value is data."""
    return RasterKind(
        dtype="uint8",
        count=len(legend),
        nodata=None,
        resampling="AVERAGE",
        descriptions=legend.names,
        has_mask=True,
    )


class RasterWriter:
    """An uncompressed tiled GeoTIFF that is filled window by window; what is not written stays nodata.

    Its mask band lies in a file of its own, `.msk` beside it. GDAL's block cache lets any thread write dirty blocks of
    any raster, and locks each dataset apart: a mask within the file is a second dataset on the same handle, and blocks
    of both get lost when two threads write them at once.
    """

    def __init__(self, path: Path, georeference: Georeference, kind: RasterKind, *, tags: Mapping[str, str]) -> None:
        self.path, self.kind, self._georeference = path, kind, georeference
        with write_errors(path), quiet_about_georeference():
            self._dataset = rasterio.open(
                path,
                "w",
                driver="GTiff",
                count=kind.count,
                dtype=kind.dtype,
                nodata=kind.nodata,
                tiled=True,
                blockxsize=BLOCK_SIZE,
                blockysize=BLOCK_SIZE,
                interleave="band",
                bigtiff="IF_SAFER",
                sparse_ok=True,
                **georeference.creation(),
            )
            if kind.has_mask:  # before there are blocks: making it goes through the file's directories without a lock
                self._write_mask(np.zeros((1, 1), np.bool_), RasterioWindow(0, 0, 1, 1))
            self._describe(tags)

    def _write_mask(self, valid: npt.NDArray[np.bool_], area: RasterioWindow) -> None:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
            self._dataset.write_mask(valid, window=area)

    def _describe(self, tags: Mapping[str, str]) -> None:
        dataset, kind = self._dataset, self.kind
        dataset.update_tags(**tags)
        if self._georeference.area_or_point:
            dataset.update_tags(AREA_OR_POINT=self._georeference.area_or_point)
        for band, text in enumerate(kind.descriptions, start=1):
            dataset.set_band_description(band, text)
        if kind.legend is not None and kind.nodata is not None:
            table = {c.id: (*c.color, 255) for c in kind.legend}
            if kind.nodata < 256:
                table[kind.nodata] = (0, 0, 0, 0)
            dataset.write_colormap(1, table)
        else:
            dataset.colorinterp = [ColorInterp.gray, *[ColorInterp.undefined] * (kind.count - 1)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with write_errors(self.path):
            self._dataset.close()

    def write(
        self, window: Window, values: npt.NDArray[np.generic], *, valid: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Write (H, W) or (bands, H, W) to a window; `valid` (H, W) goes to the mask band, where there is one."""
        area = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        with write_errors(self.path):
            self._dataset.write(values.reshape(self.kind.count, *window.shape), window=area)
            if self.kind.has_mask and valid is not None:
                self._write_mask(valid, area)


def cog_block_size(kind: RasterKind) -> int:
    """Side of the blocks of a COG in pixels: the less, the more bands there are, but 128 at least."""
    size = BLOCK_SIZE
    while size > 128 and size**2 * kind.count * np.dtype(kind.dtype).itemsize > COG_BLOCK_BYTES:
        size //= 2
    return size


def make_cog(source: Path, target: Path, kind: RasterKind) -> None:
    """Copy a raster to a cloud-optimised GeoTIFF with overviews.

    Overviews are made by GDAL from chunks of full width, several of them in flight with several threads: with few
    threads, of chunks that get lower where a raster is wide, they need the same memory for any raster and on any
    machine. Blocks hold all bands: where these are many, blocks are small. The overviews of one band are not compressed
    on their way into the file: it costs more time and memory than it saves in room on the disk. For those of several,
    LZW takes less memory than GDAL's own choice, ZSTD. None of this changes a byte of what comes out.

    Args:
        source: The raster. Where it has several bands, overviews are added to it: made on the way to the target, of all
            bands at once, they would take memory that grows with the width.
        target: File to write.
        kind: What it holds.
    """
    size = cog_block_size(kind)
    threads = min(COG_THREADS, usable_cores()) if kind.count == 1 else 1
    with quiet_about_georeference(), rasterio.open(source) as raster:
        rows = min(BLOCK_SIZE, max(64, OVERVIEW_PIXELS // raster.width // 64 * 64))
        levels = overview_levels(raster.shape, size)
    settings = rasterio.Env(
        GDAL_TIFF_INTERNAL_MASK=True,
        GDAL_OVR_CHUNKYSIZE=rows,
        GDAL_TIFF_OVR_BLOCKSIZE=BLOCK_SIZE,
        SPARSE_OK_OVERVIEW=True,
        COG_TMP_COMPRESSION="NONE" if kind.count == 1 else "LZW",
        GDAL_CACHEMAX=COG_CACHE_BYTES,
    )
    with write_errors(target), quiet_about_georeference(), settings:
        if kind.count > 1 and levels:
            with rasterio.open(source, "r+") as raster:
                factors = [2**level for level in range(1, levels + 1)]
                raster.build_overviews(factors, Resampling[kind.resampling.lower()])
        rasterio.shutil.copy(
            str(source),
            str(target),
            driver="COG",
            compress="DEFLATE",
            level="6",
            blocksize=size,
            overview_resampling=kind.resampling,
            overviews="AUTO",
            bigtiff="IF_SAFER",
            num_threads=str(threads),
        )


def overview_levels(shape: tuple[int, int], size: int) -> int:
    """Overviews of a COG: each half as large as the one before, until one fits into a block of `size` pixels a side."""
    return max(0, math.ceil(math.log2(max(shape) / size)))


class write_errors:  # noqa: N801 - reads as a statement
    """Turn GDAL's errors while writing into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RasterioError | OSError) and not isinstance(error, CegateError):
            reason = str(error.__cause__ or error).strip() or repr(error)
            space = ""
            with suppress(OSError):
                status = os.statvfs(self._path.parent)
                space = f" {status.f_bavail * status.f_frsize // 2**20} MB are free there."
            raise CegateError(
                f"{self._path.name} can't be written: {reason.rstrip('.')}.{space}",
                hint="Check the free space and the rights of the output's folder.",
            ) from error
