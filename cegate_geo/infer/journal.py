"""The journal of a job: what it computes, then one line for each shard that is safely on the disk.

A process writes a journal of its own, so that several can work in one folder on any file system; together they are read
as one. A line that is torn, because the process or the machine ended while it was written, does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cegate_geo.domain.windows import Window
from cegate_geo.infer.atomic import SUFFIX, sync
from cegate_geo.infer.shard_file import Seal
from cegate_geo.infer.writer import write_errors

FORMAT = 1
"""Raised when a journal, or a shard's file, changes its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A finished shard."""

    window: Window
    seal: Seal
    tally: Mapping[str, Any]
    """What `Tally.to_json` gave for it."""

    def to_json(self) -> dict[str, Any]:
        """The line, as JSON values."""
        window = self.window
        return {
            "shard": [window.col_off, window.row_off, window.width, window.height],
            "size": self.seal.size,
            "crc32": self.seal.crc32,
            "tally": dict(self.tally),
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Entry:
        """What `to_json` gave."""
        col, row, width, height = (int(n) for n in line["shard"])
        window = Window(col_off=col, row_off=row, width=width, height=height)
        seal = Seal(size=int(line["size"]), crc32=int(line["crc32"]))
        return cls(window=window, seal=seal, tally={"pixels": line["tally"]["pixels"], "areas": line["tally"]["areas"]})


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a journal says."""

    header: Mapping[str, Any]
    entries: tuple[Entry, ...]


def read_journal(path: Path) -> Written | None:
    """Read a journal; None where even its first line is not whole: nothing in it counts then."""
    lines = path.read_bytes().split(b"\n")[:-1]
    header = _parsed(lines[0]) if lines else None
    if header is None or "format" not in header:
        return None
    entries = []
    for line in lines[1:]:
        try:
            entries.append(Entry.from_json(_parsed(line) or {}))
        except (KeyError, TypeError, ValueError):
            continue  # torn
    return Written(header=header, entries=tuple(entries))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Journal:
    """Writes a journal, each line to the disk before it says so.

    Args:
        path: The file; gone on with where it is whole, else begun.
        header: Its first line, where it is begun.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        with write_errors(path):
            if not path.exists() or read_journal(path) is None:
                self._begin(header)
            self._file = path.open("ab", buffering=0)
            if path.read_bytes()[-1:] != b"\n":
                self._file.write(b"\n")  # ends a torn line

    def _begin(self, header: Mapping[str, Any]) -> None:
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}{SUFFIX}")
        part.write_text(json.dumps({"format": FORMAT, **header}) + "\n", encoding="utf-8")
        sync(part)
        part.replace(self.path)
        sync(self.path.parent)

    def add(self, entry: Entry) -> None:
        """Say that a shard's file is on the disk."""
        with write_errors(self.path):
            self._file.write(json.dumps(entry.to_json()).encode() + b"\n")
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
