# SPDX-License-Identifier: GPL-2.0-or-later
"""What the engine says: JSON lines on its standard output, read into values. No qgis: it can be tested anywhere.

Each line is one object; its key `event` names the kind: hello, progress, warning, result, error. What is no such line
(a stray print of a library) is kept apart and never stops a run; an unknown kind is skipped, so that a newer engine may
say more. An engine that speaks another protocol version is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Union

CREEP = 0.0005
"""Percent: qgis_process notices Ctrl+C only where progress changes, and an engine may be silent for minutes."""
PROTOCOL = 1
"""The version of the protocol that this plugin speaks."""
MAX_LINE = 4 * 1024 * 1024
"""Bytes of one line. More without an end of line is no event of ours."""


@dataclass(frozen=True)
class Hello:
    """First line: who is speaking."""

    protocol: int
    version: str
    command: str


@dataclass(frozen=True)
class Progress:
    """How far the run is."""

    fraction: float
    """0 to 1."""
    done: int
    """Tiles or steps done."""
    total: int
    """Tiles or steps in all."""
    eta_s: Optional[float]
    """Seconds left, where the engine dares to say."""
    loss: Optional[float] = None
    """Of the last step, where a model is trained."""
    miou: Optional[float] = None
    """Last mean IoU on validation, where a model is trained."""


@dataclass(frozen=True)
class Notice:
    """A warning: the run goes on, but the result is not what one would think."""

    code: str
    message: str


@dataclass(frozen=True)
class ClassArea:
    """One class of the result."""

    id: int
    name: str
    color: Optional[tuple[int, int, int]]
    """Red, green, blue, each 0 to 255."""
    pixels: int
    area_m2: Optional[float]


@dataclass(frozen=True)
class Result:
    """The run is done and its files are complete."""

    output: str
    classes: tuple[ClassArea, ...]
    tiles: int
    skipped_tiles: int
    seconds: float
    provider: str
    """The execution provider that really ran."""


@dataclass(frozen=True)
class Done:
    """Another command than `predict` is done, or only its forecast."""

    command: str
    values: Mapping[str, Any]
    """What came of it, as the engine said it."""


@dataclass(frozen=True)
class Failure:
    """The run failed, in the engine's own words."""

    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.message.strip(), self.hint.strip()) if part)


Event = Union[Hello, Progress, Notice, Result, Done, Failure]


def parse_color(value: Any) -> Optional[tuple[int, int, int]]:
    """'#rrggbb' or [r, g, b] as numbers; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return (int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16))
    if isinstance(value, list) and len(value) >= 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value[:3]):
        return (value[0], value[1], value[2])
    return None


def _optional_float(value: Any) -> Optional[float]:
    return None if value is None else float(value)


def _class_area(item: Mapping[str, Any]) -> ClassArea:
    return ClassArea(
        id=int(item["id"]),
        name=str(item["name"]),
        color=parse_color(item.get("color")),
        pixels=int(item.get("pixels", 0)),
        area_m2=_optional_float(item.get("area_m2")),
    )


def _event(item: Mapping[str, Any]) -> Optional[Event]:
    kind = item["event"]
    if kind == "hello":
        return Hello(int(item["protocol"]), str(item["version"]), str(item.get("command", "")))
    if kind == "progress":
        fraction = min(max(float(item["fraction"]), 0.0), 1.0)
        more = (_optional_float(item.get(key)) for key in ("eta_s", "loss", "miou"))
        return Progress(fraction, int(item["done"]), int(item["total"]), *more)
    if kind == "warning":
        return Notice(str(item.get("code", "")), str(item["message"]))
    if kind == "error":
        return Failure(str(item.get("code", "")), str(item["message"]), str(item.get("hint") or ""))
    if kind == "result" and "command" in item:
        return Done(str(item["command"]), {k: v for k, v in item.items() if k not in ("event", "command")})
    if kind == "result" and item.get("dry_run"):
        return Done("predict", {k: v for k, v in item.items() if k not in ("event", "dry_run")})
    if kind == "result":
        return Result(
            output=str(item["output"]),
            classes=tuple(_class_area(c) for c in item["classes"]),
            tiles=int(item.get("tiles", 0)),
            skipped_tiles=int(item.get("skipped_tiles", 0)),
            seconds=float(item.get("seconds", 0.0)),
            provider=str(item.get("provider", "")),
        )
    return None


class NotAnEventError(ValueError):
    """The line is none of the protocol."""


def parse_line(line: bytes) -> Optional[Event]:
    """One line as an event; None for an event of an unknown kind.

    Raises:
        NotAnEventError: If the line is no JSON object with the key `event`, or lacks what its kind needs.
    """
    try:
        item = json.loads(line.decode("utf-8"))
        if not isinstance(item, dict):
            raise NotAnEventError(f"no object: {line[:200]!r}")
        return _event(item)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise NotAnEventError(f"{error}: {line[:200]!r}") from error


class Conversation:
    """All that the engine has said so far: bytes in, events out."""

    def __init__(self) -> None:
        self.hello: Optional[Hello] = None
        self.result: Union[Result, Done, None] = None
        self.failure: Optional[Failure] = None
        self.strays: list[str] = []
        """Lines that are no events: the first 20."""
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """Take what was read, in pieces of any size, and give the events that are complete, in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            self._stray(self._rest)
            self._rest = b""
        return self._events(lines)

    def end(self) -> list[Event]:
        """The output has ended: what stands there without an end of line counts as a line."""
        rest, self._rest = self._rest, b""
        return self._events([rest])

    def _events(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if not line.strip():
                continue
            try:
                event = parse_line(line)
            except NotAnEventError:
                self._stray(line)
                continue
            if event is not None:
                self._remember(event)
                events.append(event)
        return events

    def _remember(self, event: Event) -> None:
        if isinstance(event, Hello):
            self.hello = event
        elif isinstance(event, (Result, Done)):
            self.result = event
        elif isinstance(event, Failure):
            self.failure = event

    def _stray(self, line: bytes) -> None:
        if len(self.strays) < 20:
            self.strays.append(line[:500].decode("utf-8", "replace").strip())
