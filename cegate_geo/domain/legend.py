"""Class ids with their names and colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cegate_geo.errors import InputError

IGNORE_INDEX = 255
"""Label that is left out of loss and metrics. Never a class."""

DEFAULT_COLORS: tuple[tuple[int, int, int], ...] = (
    (228, 228, 222), (214, 69, 65), (72, 133, 237), (56, 142, 60), (244, 180, 0), (142, 68, 173), (0, 150, 136),
    (121, 85, 72), (233, 30, 99), (158, 157, 36), (96, 125, 139), (255, 112, 67), (63, 81, 181), (139, 195, 74),
    (0, 188, 212), (255, 193, 7), (103, 58, 183), (188, 143, 143), (47, 79, 79),
)  # fmt: skip
"""Colours (red, green, blue) that stay apart on screen and on imagery; the first, a quiet grey, suits 'other'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendClass:
    """One class: id, name, colour."""

    id: int
    """0 to 65534; 255 is never a class."""
    name: str
    color: tuple[int, int, int]
    """Red, green, blue, each 0 to 255."""

    def __post_init__(self) -> None:
        if not 0 <= self.id < 65535 or self.id == IGNORE_INDEX:
            raise InputError(f"Class id {self.id} is not allowed.", hint="Use 0 to 65534, without 255 (ignored).")
        if not self.name:
            raise InputError(f"Class {self.id} has no name.", hint="Name it in [classes].")
        if any(not 0 <= c <= 255 for c in self.color):
            raise InputError(f"Class {self.id} has the colour {self.color}.", hint="Use 0 to 255 for each part.")

    @property
    def hex(self) -> str:
        """The colour as '#rrggbb'."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)


@dataclass(frozen=True, slots=True)
class Legend:
    """The classes of a model in the order of its output channels: channel i holds `classes[i]`."""

    classes: tuple[LegendClass, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(f"A legend needs two classes at least, not {len(self.classes)}.")
        for what, values in (("id", [str(i) for i in self.ids]), ("name", list(self.names))):
            twice = {v for v in values if values.count(v) > 1}
            if twice:
                raise InputError(f"The legend has the {what} {sorted(twice)} more than once.")

    @classmethod
    def from_names(cls, names: Sequence[str] | Mapping[int, str], *, colors: Mapping[str, str] | None = None) -> Legend:
        """A legend from names in order, or from id → name; default colours where `colors` (name → '#rrggbb') has none.

        Example:
            >>> Legend.from_names(["other", "building"]).names
            ('other', 'building')
        """
        pairs = sorted(names.items()) if isinstance(names, Mapping) else list(enumerate(names))
        colors = colors or {}
        unknown = set(colors) - {name for _, name in pairs}
        if unknown:
            raise InputError(f"Colours for unknown classes: {sorted(unknown)}.", hint="Use the names of [classes].")
        return cls(
            tuple(
                LegendClass(
                    id=i,
                    name=name,
                    color=parse_color(colors[name]) if name in colors else DEFAULT_COLORS[n % len(DEFAULT_COLORS)],
                )
                for n, (i, name) in enumerate(pairs)
            )
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names in channel order."""
        return tuple(c.name for c in self.classes)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids in channel order."""
        return tuple(c.id for c in self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[LegendClass]:
        return iter(self.classes)


def parse_color(text: str) -> tuple[int, int, int]:
    """'#rrggbb' as (red, green, blue)."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise InputError(f"{text!r} is no colour.", hint="Write it as '#rrggbb', for example '#d64541'.")
    return (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16))
