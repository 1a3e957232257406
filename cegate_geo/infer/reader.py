"""Data enters here: opens a scene and reads strips of it, with what is valid."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError, RasterError
from cegate_geo.infer.bands import alpha_bands, check_values, palette_of, select_bands
from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
from cegate_geo.infer.remote import gdal_name, is_remote, remote_settings
from cegate_geo.infer.stac import is_item, open_item
from cegate_geo.infer.validity import (
    HOLE_MARGIN,
    LOSSY,
    LOSSY_TOLERANCE,
    RIM_TOLERANCE,
    BoolArray,
    can_hold,
    equals_nodata,
    holes,
)

ARCHIVES = {".zip": "/vsizip/", ".tar": "/vsitar/", ".tar.gz": "/vsitar/", ".tgz": "/vsitar/", ".gz": "/vsigzip/"}
"""How the names of archives end → how GDAL calls what is in them."""


class Area(Protocol):
    """The part of a scene that is asked for."""

    def touches(self, window: Window) -> bool:
        """Whether any pixel of the window may be asked for; a quick look."""

    def mask(self, window: Window) -> BoolArray:
        """(H, W), True where a pixel is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Part of a scene, in memory."""

    window: Window
    values: npt.NDArray[np.generic]
    """(C, H, W) in the scene's own type. What is not valid may be anything."""
    valid: BoolArray
    """(H, W), True = data."""


@contextmanager
def raster_errors(path: str) -> Iterator[None]:
    """Turn rasterio's and GDAL's errors into ours; refuse what would never come to an end."""
    if is_plain_path(path) and is_endless(path):
        raise RasterError(f"{path} is a pipe or a device, no file.", hint="Write it to a file first.")
    try:
        yield
    except UnicodeEncodeError as error:
        raise RasterError(f"The name {path!a} is no text.", hint="Rename it.") from error
    except (RasterioError, CPLE_BaseError, MemoryError) as error:
        if is_plain_path(path) and not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for long names
            raise RasterError(f"There is no file {path}.", hint="Check the path.") from error
        lines = str(error.__cause__ or error).strip().splitlines() or [repr(error)]
        raise RasterError(f"{path} can't be read: {lines[0].rstrip('.')}.", hint=_mend(path, lines[0])) from error


def is_endless(path: str) -> bool:
    """Whether opening a path may wait for ever."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - beside os.path.exists
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _mend(path: str, reason: str) -> str:
    """What to do about a raster that can't be read."""
    if is_remote(path):
        return "Check the address, the network, and for object stores the rights (AWS_* and the like)."
    if "crs not found" in reason:
        return "Its CRS, which may stand in a file beside it, is unknown: set another one, gdal_edit.py -a_srs."
    if "not recognized" not in reason:
        return "Check it with gdalinfo -checksum; a damaged or truncated file has to be fetched again."
    if Path(path).is_dir():
        return "It is a folder: name a raster in it."
    archive = next((prefix for suffix, prefix in ARCHIVES.items() if path.lower().endswith(suffix)), None)
    if archive is not None:
        inside = "" if archive == "/vsigzip/" else "/NAME"
        return f"Unpack it, or name the raster in it: {archive}{path}{inside}."
    return "It is no raster, damaged, or of a format that this GDAL has no driver for: convert that to GeoTIFF first."


def compression_of(dataset: Any) -> str:
    """Name of a dataset's compression in lower case; empty for none."""
    kind = dataset.compression  # an enum, or a string where rasterio does not know it
    return str(getattr(kind, "value", kind or "")).lower()


def is_lossy(dataset: Any) -> bool:
    """Whether a dataset's compression may have changed its values."""
    compression = compression_of(dataset)
    return any(name in compression for name in LOSSY) or dataset.driver in ("JPEG", "WEBP", "JP2OpenJPEG")


def is_plain_path(name: str) -> bool:
    """Whether a name is a file's path, not one of GDAL's virtual names or a URL."""
    return not name.startswith("/vsi") and not is_remote(name) and ":" not in name.replace(":\\", "").replace(":/", "")


class StripSource(Protocol):
    """What strips are read from: a scene, or one at another GSD."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""

    @property
    def block_rows(self) -> int:
        """Rows that are best read together."""

    def read(self, window: Window) -> Strip:
        """Read a window."""


class AnyScene(StripSource, Protocol):
    """What is predicted: one raster, or a mosaic of several."""

    path: str
    """What it is called."""
    georeference: Georeference
    bands: tuple[int, ...]
    """Which of its bands are read, from 1."""
    channels: int
    """How many bands a strip has."""
    dtype: np.dtype[np.generic]
    """Of a strip's values."""

    @property
    def files(self) -> list[Path]:
        """The local files that it is made of."""

    @property
    def flag(self) -> str:
        """How it says what is data, in some words."""

    @property
    def tolerance(self) -> float:
        """How far its compression may have moved the value of an even area, in grey levels."""

    def close(self) -> None:
        """Close its files."""


class Scene:
    """An open scene whose bands, values and nodata are settled.

    Not thread-safe: one thread reads at a time.

    Args:
        path: Anything that GDAL opens, or a STAC item.
        manifest: Contract of the model that will see it.
        bands: The user's choice of bands; empty to go by the manifest's names.
        nodata: Values for holes that carry no flag, one for all bands or one for each.

    Raises:
        RasterError: If it can't be opened.
        InputError: If bands or values do not fit the model.
    """

    def __init__(
        self, path: str, manifest: Manifest, *, bands: Sequence[str] = (), nodata: Sequence[float] | None = None
    ) -> None:
        self.path, self._settings = path, dict(remote_settings(path))
        self._item: MemoryFile | None = None
        if is_item(path):
            item = open_item(path, manifest, bands=bands)
            self._settings = dict(item.settings)
            self._item = MemoryFile(item.vrt.encode(), ext=".vrt")
        self._dataset: Any = self._opened()
        try:
            with raster_errors(path):  # GDAL may tell what it found wrong at opening when it is next asked for anything
                self._settle(manifest, bands, nodata)
        except BaseException:
            self.close()
            raise

    def _opened(self) -> Any:
        with raster_errors(self.path), self._options(), quiet_about_georeference():
            return rasterio.open(gdal_name(self.path)) if self._item is None else self._item.open()

    def _options(self) -> AbstractContextManager[Any]:
        """GDAL's options for what is remote: they hold for one thread, and assets of an item are opened when read."""
        return rasterio.Env(**self._settings) if self._settings else nullcontext()

    def _settle(self, manifest: Manifest, bands: Sequence[str], nodata: Sequence[float] | None) -> None:
        dataset = self._dataset
        if dataset.count == 0:
            raise RasterError(
                f"{self.path} has no bands of its own, only {len(dataset.subdatasets)} subdatasets.",
                hint="Name one of them: " + ", ".join(dataset.subdatasets[:3]),
            )
        self.georeference = Georeference.read(dataset)
        self._palette = None if bands else palette_of(dataset, manifest.bands)
        self.bands = (1,) if self._palette is not None else select_bands(dataset, manifest.bands, given=bands)
        check_values(dataset, self.bands, manifest)
        flags = dataset.mask_flag_enums[self.bands[0] - 1]
        self._flagged = tuple(dataset.nodatavals[b - 1] for b in self.bands) if MaskFlags.nodata in flags else ()
        alpha = alpha_bands(dataset)
        self._alpha = alpha[0] if alpha and MaskFlags.all_valid not in flags and alpha[0] not in self.bands else 0
        self._mask_band = self.bands[0] if MaskFlags.per_dataset in flags and not self._alpha else 0
        if not flags:
            self._mask_band = self.bands[0]  # a mask of the band's own
        self._given = tuple(nodata or ())
        if len(self._given) > 1 and len(self._given) != len(manifest.bands):
            raise RasterError(
                f"--nodata has {len(self._given)} values, the model has {len(manifest.bands)} bands.",
                hint="Give one for all, or one for each.",
            )
        self.dtype: np.dtype[np.generic] = np.result_type(*(dataset.dtypes[b - 1] for b in self.bands))
        self._refuse_impossible(self.dtype)
        self._lossy = is_lossy(dataset)
        self.margin = HOLE_MARGIN if self._given and self._lossy else 0
        """Pixels around a window that have a say in what is valid in it."""
        self.channels = len(manifest.bands)
        self.block_rows = int(dataset.block_shapes[0][0])
        self.files = [Path(name) for name in dataset.files if is_plain_path(name)]
        """The local files that it is made of: itself, side files, the sources of a virtual raster."""

    def _refuse_impossible(self, dtype: np.dtype[np.generic]) -> None:
        wrong = [value for value in self._given if not can_hold(dtype, value)]
        if wrong:
            raise InputError(
                f"--nodata {wrong[0]:g} can't be a value of {self.path}, which holds {dtype}.",
                hint="Give the value that its holes have; gdallocationinfo tells it.",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.georeference.shape

    @property
    def flag(self) -> str:
        """How it says what is data, in some words."""
        if self._given:
            return f"nodata {', '.join(f'{value:g}' for value in self._given)} as stated"
        if self._flagged:
            known = sorted({f"{value:g}" for value in self._flagged if value is not None})
            return f"nodata value {', '.join(known)}"
        if self._alpha:
            return f"alpha in band {self._alpha}"
        return "a mask" if self._mask_band else "no flag: all is data"

    @property
    def tolerance(self) -> float:
        """How far its compression may have moved the value of an even area, in grey levels."""
        return LOSSY_TOLERANCE if self._lossy else 0.0

    def close(self) -> None:
        """Close the file."""
        self.release()
        if self._item is not None:
            self._item.close()

    def release(self) -> None:
        """Close the file until it is read."""
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None

    def read(self, window: Window) -> Strip:
        """Read a window that lies within the scene.

        Raises:
            RasterError: If the file is damaged there.
        """
        around = window.expanded(self.margin).intersection(Window.of_shape(self.shape)) if self.margin else window
        if around is None:
            raise RasterError(f"{window} lies outside of {self.path}.")
        area = RasterioWindow(around.col_off, around.row_off, around.width, around.height)
        if self._dataset is None:
            self._dataset = self._opened()
        indexes = [*self.bands, *([self._alpha] if self._alpha else [])]
        with raster_errors(self.path), self._options():
            values = self._values(indexes, area)
            mask = self._dataset.read_masks(self._mask_band, window=area) > 0 if self._mask_band else None
        valid = self._valid(values, mask)
        values = values[: len(self.bands)]
        if self._palette is not None:
            valid &= self._palette[3][values[0]] > 0
            values = self._palette[:3][:, values[0]]
        if self._given:
            valid &= ~self._holes(values)
        rows, cols = window.slices(around)
        return Strip(window=window, values=values[:, rows, cols], valid=valid[rows, cols])

    def _values(self, indexes: list[int], area: RasterioWindow) -> npt.NDArray[np.generic]:
        """(bands, H, W) in the type that holds all of them: rasterio reads bands of one type together only."""
        if len({self._dataset.dtypes[band - 1] for band in indexes}) == 1:
            values: npt.NDArray[np.generic] = self._dataset.read(indexes, window=area)
            return values
        return np.stack([self._dataset.read(band, window=area, out_dtype=self.dtype) for band in indexes])

    def _valid(self, values: npt.NDArray[np.generic], mask: BoolArray | None) -> BoolArray:
        """By mask band, alpha, flagged value and NaN."""
        data = values[: len(self.bands)]
        valid = np.ones(values.shape[1:], np.bool_) if mask is None else mask
        if self._alpha:
            valid &= values[-1] > 0
        floating = np.issubdtype(data.dtype, np.floating)
        if floating:
            for channel in data:
                valid &= np.isfinite(channel)
        if self._flagged:
            if floating or np.issubdtype(data.dtype, np.signedinteger):
                # Such a value can't be data, so one band without data spoils the pixel.
                for channel, nodata in zip(data, self._flagged, strict=True):
                    if nodata is not None:
                        valid &= ~equals_nodata(channel[None], nodata)
            elif None not in self._flagged:
                valid &= ~equals_nodata(data, self._flagged)
        return valid

    def _holes(self, values: npt.NDArray[np.generic]) -> BoolArray:
        if not self._lossy:
            return equals_nodata(values, self._given)
        strict, wide = (equals_nodata(values, self._given, tolerance=t) for t in (LOSSY_TOLERANCE, RIM_TOLERANCE))
        return holes(strict, wide)
