"""Several rasters as one scene: neighbours are seen together, so that nothing shows where they meet.

Each keeps its own way to say what is data (nodata value, NaN, mask, alpha); a virtual raster of GDAL knows one for all.
Where they overlap, the first that holds data counts.
"""

from __future__ import annotations

import glob
import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError, CegateWarning, InputError
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.reader import AnyScene, Scene, Strip, is_plain_path

SCHEME = "mosaic:"
RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".jpg", ".jpeg", ".png", ".webp")
"""What of a folder is taken for a raster."""
OPEN_FILES = 64
"""Rasters that are open at once, of however many."""
ALIGNED_PX = 0.01
"""How far the corners of a raster may lie off the common grid: transforms are written with so many digits only."""


def mosaic_name(sources: Sequence[str | Path]) -> str:
    """The name of the scene that rasters make together, those before others first.

    Args:
        sources: Rasters, folders of rasters, and patterns with `*`, `?` or `[`.

    Raises:
        InputError: If a folder or pattern holds none.
    """
    found = [path for source in sources for path in _rasters(str(source))]
    paths = [str(Path(path).absolute()) if is_plain_path(path) else path for path in dict.fromkeys(found)]
    return SCHEME + json.dumps(paths, ensure_ascii=False)


def mosaic_sources(name: str) -> list[str] | None:
    """The rasters of a mosaic's name; None for that of another scene.

    Raises:
        InputError: If it names none.
    """
    if not name.startswith(SCHEME):
        return None
    try:
        sources = json.loads(name[len(SCHEME) :])
    except ValueError:
        sources = None
    if not sources or not isinstance(sources, list):
        raise InputError(
            f"{name} names no rasters of a mosaic.",
            hint="Use --mosaic and their names; for a file of this name, ./ before.",
        )
    return [str(path) for path in sources]


def scene_label(name: str) -> str:
    """A scene's file name; of a mosaic the first one's, and how many more there are."""
    sources = mosaic_sources(name)
    if sources is None:
        return Path(name).name
    first = Path(sources[0]).name
    return first if len(sources) == 1 else f"{first} and {len(sources) - 1} more"


def _rasters(source: str) -> list[str]:
    folder = Path(source)
    if is_plain_path(source) and folder.is_dir():
        found = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in RASTER_SUFFIXES)
        problem = f"There is no raster in the folder {source}"
    elif is_plain_path(source) and glob.has_magic(source) and not folder.exists():
        found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - absolute patterns, too
        problem = f"No file is named like {source}"
    else:
        return [source]
    if not found:
        raise InputError(f"{problem}.", hint="Name the rasters of the mosaic, a folder of them, or a pattern.")
    return found


def open_scene(name: str, manifest: Manifest, *, bands: Sequence[str] = (), nodata: Sequence[float] = ()) -> AnyScene:
    """Open a raster, an item, or a mosaic; see `Scene` and `Mosaic`."""
    sources = mosaic_sources(name)
    if sources is None:
        return Scene(name, manifest, bands=bands, nodata=nodata)
    return Mosaic(name, sources, manifest, bands=bands, nodata=nodata)


@dataclass(frozen=True, slots=True)
class _Member:
    scene: Scene
    place: Window
    """On the grid of the mosaic."""


class Mosaic:
    """Rasters of one grid, read as one. Not thread-safe, as `Scene`.

    Args:
        path: What it is called.
        sources: The rasters, those before others first.
        manifest: As of `Scene`, for each of them.
        bands: As of `Scene`.
        nodata: As of `Scene`.

    Raises:
        RasterError: If one can't be opened.
        InputError: If one does not fit the model, or they do not lie on one grid.
    """

    def __init__(
        self, path: str, sources: Sequence[str], manifest: Manifest, *, bands: Sequence[str], nodata: Sequence[float]
    ) -> None:
        self.path = path
        self._open: OrderedDict[int, Scene] = OrderedDict()
        scenes = _opened(sources, manifest, bands=bands, nodata=nodata)
        first = scenes[0]
        corners = [_corner(first, scene) for scene in scenes]
        left, top = (min(corner[axis] for corner in corners) for axis in (0, 1))
        self._members = [
            _Member(
                scene,
                Window(col_off=col - left, row_off=row - top, width=scene.shape[1], height=scene.shape[0]),
            )
            for scene, (col, row) in zip(scenes, corners, strict=True)
        ]
        shape = (max(m.place.row_end for m in self._members), max(m.place.col_end for m in self._members))
        place = first.georeference
        self.georeference: Georeference = replace(
            place, transform=place.transform @ place.transform.translation(left, top), shape=shape, rpcs=None
        )
        self.bands, self.channels = first.bands, first.channels
        self.dtype: np.dtype[np.generic] = np.result_type(*(scene.dtype for scene in scenes))
        self.files = [path for scene in scenes for path in scene.files]
        self.flag = first.flag
        self.tolerance = max(scene.tolerance for scene in scenes)
        rows = max(scene.block_rows for scene in scenes)
        # Strips that end where blocks do decode each block once.
        self.block_rows = rows if all(m.place.row_off % rows == 0 for m in self._members) else 1

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.georeference.shape

    @property
    def members(self) -> tuple[Scene, ...]:
        """The rasters, those before others first."""
        return tuple(member.scene for member in self._members)

    def close(self) -> None:
        """Close all files."""
        for member in self._members:
            member.scene.close()

    def read(self, window: Window) -> Strip:
        """Read a window that lies within the mosaic.

        Raises:
            RasterError: If a file is damaged there.
        """
        values = np.zeros((self.channels, *window.shape), self.dtype)
        valid = np.zeros(window.shape, np.bool_)
        for number, member in enumerate(self._members):
            part = member.place.intersection(window)
            if part is None:
                continue
            rows, cols = part.slices(window)
            missing = ~valid[rows, cols]
            if missing.any():
                own = replace(
                    part, col_off=part.col_off - member.place.col_off, row_off=part.row_off - member.place.row_off
                )
                strip = self._used(number).read(own)
                missing &= strip.valid
                np.copyto(values[:, rows, cols], strip.values, where=missing, casting="unsafe")
                valid[rows, cols] |= missing
        return Strip(window=window, values=values, valid=valid)

    def _used(self, number: int) -> Scene:
        """A member that is about to be read; the ones that were not for the longest time are closed meanwhile."""
        scene = self._members[number].scene
        self._open[number] = scene
        self._open.move_to_end(number)
        while len(self._open) > OPEN_FILES:
            _, idle = self._open.popitem(last=False)
            idle.release()
        return scene


def _opened(
    sources: Sequence[str], manifest: Manifest, *, bands: Sequence[str], nodata: Sequence[float]
) -> list[Scene]:
    """The rasters, looked at and closed again; what is said of many of them is said once."""
    scenes: list[Scene] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CegateWarning)
        for source in sources:
            try:
                scenes.append(Scene(source, manifest, bands=bands, nodata=nodata))
            except CegateError as error:
                error.message = error.message if source in error.message else f"{source}: {error.message}"
                raise
            scenes[-1].release()
    for text, kind in dict.fromkeys((str(warning.message), warning.category) for warning in said):
        warnings.warn(text, kind, stacklevel=4)
    return scenes


def _corner(first: Scene, scene: Scene) -> tuple[int, int]:
    """Column and row of a raster's first pixel on the grid of another.

    Raises:
        InputError: If they do not lie on one grid.
    """
    here, there = first.georeference, scene.georeference
    hint = "Bring them onto one grid first (gdalwarp -t_srs -tr -tap), or predict them one by one."
    for place, path in ((here, first.path), (there, scene.path)):
        if place.kind != "transform":
            raise InputError(f"{path} has no transform, which the rasters of a mosaic need.", hint=hint)
    if here.crs != there.crs:
        raise InputError(
            f"The CRS of {scene.path} is {_crs(there)}, that of {first.path} is {_crs(here)}: they make no mosaic.",
            hint=hint,
        )
    height, width = there.shape
    back = ~here.transform @ there.transform
    col, row = (back.c, back.f)
    corners = [(col, row), back @ (width, 0), back @ (0, height), back @ (width, height)]
    near = round(col), round(row)
    wanted = [near, (near[0] + width, near[1]), (near[0], near[1] + height), (near[0] + width, near[1] + height)]
    off = max(abs(a - b) for at, to in zip(corners, wanted, strict=True) for a, b in zip(at, to, strict=True))
    if off <= ALIGNED_PX:
        return near
    size, other = (f"{abs(g.transform.a):.9g} x {abs(g.transform.e):.9g}" for g in (here, there))
    raise InputError(
        f"{scene.path} does not lie on the grid of {first.path}: pixels of {other} against {size}, "
        f"off by up to {off:.3g} px.",
        hint=hint,
    )


def _crs(place: Georeference) -> str:
    authority = place.crs.to_authority() if place.crs else None
    return ":".join(authority) if authority else str(place.crs or "unknown")
