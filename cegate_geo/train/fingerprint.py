"""What a run learns from in a few numbers, by which a resumed run knows whether it still sees the same.

They are of what is seen: labels as they lie on pixels, and pixels as they are read where labels are counted, in whole
rows of cells within the labelled rectangle, and in held-out tiles. Of gigabytes with a few labels the rest is not read,
and a change there goes unnoticed, though a chip may look at it. Folders, times, formats and compression do not enter: a
copy elsewhere is the same, and rasters over a network are no other case. CRC-32 finds changes; it is no proof against
somebody who hides one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.errors import InputError
from cegate_geo.train.ranks import Ranks
from cegate_geo.train.splits import Area
from cegate_geo.train.validation import Tile

CHUNK = 2**22
"""Bytes of a file of weights that are looked at together."""
TOLD = 5
"""Changes that a message tells of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A part of what a run learns from."""

    use: str
    """What for: training, validation, looks, weights."""
    name: str
    """Of the raster, or file of weights."""
    pixels: int
    """Check value of its pixels, and of which of them are data; of weights, of the file."""
    labels: int
    """Check value of its labels, as far as they may be used."""


def check_value(array: npt.NDArray[Any], before: int = 0) -> int:
    """CRC-32 of an array's bytes, carried on from that of what came before it."""
    return zlib.crc32(np.ascontiguousarray(array).data, before)


def seen_tiles(places: Sequence[tuple[Area, object]], own: range, tiles: Sequence[Tile], ranks: Ranks) -> list[Seen]:
    """Held-out tiles, by raster: sums of their check values, so that it doesn't matter which process holds which.

    Args:
        places: Area and window of each tile of all processes.
        own: Which of them this process holds.
        tiles: These.
        ranks: All processes.
    """
    scenes = {scene: n for n, scene in enumerate(dict.fromkeys(area.scene for area, _ in places))}
    sums = np.zeros((len(scenes), 2))  # whole numbers up to 2**53 are exact: two million tiles
    for n, (image, labels) in zip(own, tiles, strict=True):
        sums[scenes[places[n][0].scene]] += check_value(image), check_value(labels)
    found = ranks.sums(sums) if len(sums) else sums
    return [
        Seen(use="validation", name=scene.name, pixels=int(pixels), labels=int(labels))
        for scene, (pixels, labels) in zip(scenes, found, strict=True)
    ]


def seen_weights(path: Path) -> list[Seen]:
    """The weights that stay frozen; none that are not in a file, but in timm's hub."""
    if not path.is_file():
        return []
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return [Seen(use="weights", name=path.name, pixels=value, labels=0)]


def to_json(seen: Iterable[Seen]) -> list[Any]:
    """As JSON values."""
    return [list(astuple(part)) for part in seen]


def changes(before: Sequence[Sequence[Any]], now: Iterable[Seen]) -> list[str]:
    """What differs, in words; empty where nothing does.

    Args:
        before: As `to_json` gave it.
        now: What is seen now.
    """
    then, present = [Seen(use=u, name=n, pixels=p, labels=k) for u, n, p, k in before], list(now)
    places = [[(part.use, part.name) for part in parts] for parts in (then, present)]
    old, new = set(places[0]), set(places[1])
    told = [f"{name} is gone ({use})" for use, name in places[0] if (use, name) not in new]
    told += [f"{name} is new ({use})" for use, name in places[1] if (use, name) not in old]
    if not told and places[0] != places[1]:
        told.append("the rasters are others in number or order")
    if told:
        return told
    for one, other in zip(then, present, strict=True):
        what = "contents" if one.use == "weights" else "pixels"
        told += [f"the {what} of {one.name} ({one.use})"] if one.pixels != other.pixels else []
        told += [f"the labels of {one.name} ({one.use})"] if one.labels != other.labels else []
    return told


def summary(told: Sequence[str]) -> str:
    """What `changes` found in a line."""
    return ", ".join(told[:TOLD]) + (f", and {len(told) - TOLD} more" if len(told) > TOLD else "")


def refusal(told: Sequence[str]) -> InputError:
    """The error for what `changes` found."""
    return InputError(
        f"What the run learns from has changed since it was stopped: {summary(told)}.",
        hint="Bring back what it began with, start in a new folder, or go on all the same with --accept-changes.",
    )
