"""Rasters by pattern, and their bytes whatever their place: what chips are drawn from. Knows no torch."""

from __future__ import annotations

import contextlib
import glob
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from cegate_geo.errors import InputError, RasterError
from cegate_geo.infer.bands import select_bands
from cegate_geo.train.raster_input import RGB_BANDS, Band

SIDECARS = (".aux.xml", ".ovr", ".msk", ".qml")
"""Endings of files that belong to a raster and are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlabelledSource:
    """Rasters to draw chips from."""

    images: str
    """Path or glob pattern."""
    weight: float = 1.0
    """Share of the chips relative to other sources."""
    bands: tuple[Band, ...] = ()
    """Bands by number, from 1, or by name, in the order of the model's. Empty: as a source of a run without them; for
    `pretrain` 1, 2, 3."""


def expand(pattern: str) -> list[Path]:
    """Files that match a path or glob pattern, sorted, without what GDAL and QGIS lay beside a raster.

    Raises:
        InputError: If none does.
    """
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns, too
    paths = [Path(p) for p in found if not p.lower().endswith(SIDECARS)]
    if not paths:
        raise InputError(
            f"No file matches {pattern!r}.", hint="Check the path; patterns are relative to where you are."
        )
    return paths


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning for files that lie nowhere: chips need no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


class Uint8Raster:
    """Bands of an open raster of 8 bits. Made by `open_uint8`."""

    def __init__(self, dataset: Any, bands: tuple[int, ...]) -> None:
        self._dataset, self._bands = dataset, bands
        self.shape: tuple[int, int] = dataset.shape

    def read(self, row: int, col: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """(C, height, width) of a window within the raster."""
        values: npt.NDArray[np.uint8] = self._dataset.read(self._bands, window=Window(col, row, width, height))
        return values


@contextlib.contextmanager
def open_uint8(path: Path, bands: Sequence[Band] = ()) -> Iterator[Uint8Raster]:
    """Open a raster to look at its pixels only: whatever its place, as long as the bands hold bytes.

    Args:
        path: The raster.
        bands: Bands by number or name; red, green and blue as 1, 2, 3 if empty.

    Raises:
        InputError: If it has no band of a name.
        RasterError: If it can't be read, lacks a band, or holds other numbers.
    """
    try:
        with _quiet(), rasterio.open(path) as dataset:
            yield Uint8Raster(dataset, _byte_bands(dataset, path, bands or RGB_BANDS))
    except rasterio.errors.RasterioIOError as error:
        raise RasterError(f"{path} can't be read: {error}.", hint="Check that it is a raster.") from error


def _byte_bands(dataset: Any, path: Path, wanted: Sequence[Band]) -> tuple[int, ...]:
    if dataset.count < max((band for band in wanted if isinstance(band, int)), default=1):
        inside = ", ".join(dataset.subdatasets[:3])
        raise RasterError(
            f"{path} has {dataset.count} bands; bands {list(wanted)} are needed.",
            hint=f"Name one of its subdatasets: {inside}." if inside else "Choose other bands.",
        )
    given = [str(band) for band in wanted]
    try:
        numbers = select_bands(dataset, given, given=given)
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error
    others = sorted({dataset.dtypes[number - 1] for number in numbers} - {"uint8"})
    if others:
        raise RasterError(
            f"{path} holds {', '.join(others)} in the bands {list(wanted)}; uint8 is needed.",
            hint="Choose other bands, or scale it to 8 bits first (gdal_translate -ot Byte -scale).",
        )
    return numbers
