"""The file that holds one shard: the raw values of its layers, one after the other.

Values are stored so that nodata is 0. What is never written is a hole of the file, takes no room and reads as nodata.
"""

from __future__ import annotations

import io
import os
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window, iter_blocks
from cegate_geo.errors import CegateError
from cegate_geo.infer.atomic import SUFFIX, sync
from cegate_geo.infer.writer import BLOCK_SIZE, RasterKind, write_errors

CHUNK = 2**22
"""Bytes that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """How to tell that a shard's file is what was written."""

    size: int
    """Bytes; 0 for a shard without any data, which has no file."""
    crc32: int

    def fits(self, path: Path) -> bool:
        """Whether a file is the one that was sealed."""
        if not self.size:
            return True
        try:
            if path.stat().st_size != self.size:
                return False
            with path.open("rb") as file:
                return _crc32(file) == self.crc32
        except OSError:
            return False


class ShardLayout:
    """Where the pixels of a shard lie in its file.

    Args:
        window: The shard.
        kinds: Its layers, by name.
    """

    def __init__(self, window: Window, kinds: Mapping[str, RasterKind]) -> None:
        self.window, self.kinds = window, kinds
        self._starts: dict[str, int] = {}
        self.size = 0
        """Bytes of a file."""
        for name, kind in kinds.items():
            self._starts[name] = self.size
            self.size += kind.count * window.area * np.dtype(kind.dtype).itemsize

    def rows(self, name: str, band: int, row: int) -> int:
        """Where a row of a layer's band begins; both count from 0, rows from the raster's top."""
        kind = self.kinds[name]
        pixels = band * self.window.area + (row - self.window.row_off) * self.window.width
        return self._starts[name] + pixels * np.dtype(kind.dtype).itemsize


class ShardWriter:
    """Fills the file of one shard, under a name of its own until it is sealed."""

    def __init__(self, path: Path, window: Window, kinds: Mapping[str, RasterKind]) -> None:
        self._path, self._layout = path, ShardLayout(window, kinds)
        self._part = _unfinished(path)
        self._file: io.FileIO | None = None

    def write(self, window: Window, layers: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Write rows of the shard: (H, W) or (bands, H, W) by layer, as wide as the shard."""
        with write_errors(self._path):
            if self._file is None:
                self._file = io.FileIO(self._part, "w+")
                self._file.truncate(self._layout.size)
            for name, values in layers.items():
                kind = self._layout.kinds[name]
                stored = _inverted(values.reshape(kind.count, *window.shape), kind)
                for number, band in enumerate(stored):
                    self._file.seek(self._layout.rows(name, number, window.row_off))
                    _write_all(self._file, np.ascontiguousarray(band))

    def seal(self) -> Seal:
        """Bring the file to the disk and give it its name."""
        if self._file is None:
            return Seal(size=0, crc32=0)
        with write_errors(self._path), self._file as file:
            file.seek(0)
            seal = Seal(size=self._layout.size, crc32=_crc32(file))
            os.fsync(file.fileno())
        with write_errors(self._path):
            self._part.replace(self._path)
            sync(self._path.parent)
        return seal

    def drop(self) -> None:
        """Remove what was not sealed."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def write_shard(path: Path, seal: Seal, pieces: Iterable[bytes]) -> None:
    """Bring a shard that was computed elsewhere to the disk, from its bytes in order; nothing stays where that fails.

    Raises:
        CegateError: If it is not what was sealed, or can't be written.
    """
    part, crc32 = _unfinished(path), 0
    try:
        with write_errors(path), part.open("wb", buffering=0) as file:
            for data in pieces:
                crc32 = zlib.crc32(data, crc32)
                if data.count(0) == len(data):  # a hole stays one
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    _write_all(file, np.frombuffer(data, np.uint8))
            is_whole = file.tell() == seal.size and crc32 == seal.crc32
            file.truncate(seal.size)
            os.fsync(file.fileno())
        if not is_whole:
            raise CegateError(
                f"{path.name} did not arrive as it was computed.",
                hint="Check disk and network of the worker, and run the same command again.",
            )
        with write_errors(path):
            part.replace(path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def read_shard(
    path: Path, window: Window, kinds: Mapping[str, RasterKind], *, pixels: int
) -> Iterator[tuple[Window, dict[str, npt.NDArray[Any]]]]:
    """The layers of a shard, (bands, H, W) by name, in parts of whole blocks and about so many values each.

    Raises:
        OSError: If it can't be read.
    """
    layout, bands = ShardLayout(window, kinds), sum(kind.count for kind in kinds.values())
    columns = max(BLOCK_SIZE, pixels // (BLOCK_SIZE * bands) // BLOCK_SIZE * BLOCK_SIZE)
    with path.open("rb") as file:
        for block in iter_blocks(window.shape, block_height=BLOCK_SIZE, block_width=columns):
            part = Window(
                col_off=window.col_off + block.col_off,
                row_off=window.row_off + block.row_off,
                width=block.width,
                height=block.height,
            )
            yield part, {name: _read_part(file, layout, name, part) for name in kinds}


def _read_part(file: io.BufferedReader, layout: ShardLayout, name: str, part: Window) -> npt.NDArray[Any]:
    kind, window = layout.kinds[name], layout.window
    values = np.empty((kind.count, *part.shape), kind.dtype)
    shift = (part.col_off - window.col_off) * values.itemsize
    for band in range(kind.count):
        if part.width == window.width:
            file.seek(layout.rows(name, band, part.row_off))
            _read_all(file, values[band])
            continue
        for row in range(part.height):
            file.seek(layout.rows(name, band, part.row_off + row) + shift)
            _read_all(file, values[band, row])
    return _inverted(values, kind)


def _unfinished(path: Path) -> Path:
    """The name of a shard's file until it is whole: nobody else has it."""
    host = socket.gethostname().split(".")[0] or "host"
    return path.with_name(f"{path.name}.{host}-{os.getpid()}{SUFFIX}")


def _inverted(values: npt.NDArray[Any], kind: RasterKind) -> npt.NDArray[Any]:
    """Values as they are stored, and back: nodata is 0 in the file."""
    return np.bitwise_xor(values, values.dtype.type(kind.nodata)) if kind.nodata else values


def _write_all(file: io.FileIO, values: npt.NDArray[Any]) -> None:
    rest = memoryview(values.data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def _read_all(file: io.BufferedReader, target: npt.NDArray[Any]) -> None:
    rest = memoryview(target.data).cast("B")
    if file.readinto(rest) != len(rest):
        raise OSError(f"{file.name} is shorter than it was")


def _crc32(file: io.FileIO | io.BufferedReader) -> int:
    value = 0
    while data := file.read(CHUNK):
        value = zlib.crc32(data, value)
    return value
