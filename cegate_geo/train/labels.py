"""What a value in a label file means: class ids, names and colours → output channels of the model.

Labels are arrays (H, W) uint8 of channel indices 0 to K - 1 of the legend; 255 is left out of loss and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import ConfigError, LabelError

IGNORE = "ignore"
"""Name of the ignore index wherever a class name is asked for."""
ANYTHING = "*"
"""Key of `remap` for all values that nothing else explains."""

Labels = npt.NDArray[np.uint8]


class LabelReader(Protocol):
    """Labels on the pixel grid of one raster."""

    @property
    def extent(self) -> Window:
        """Outside of it nothing is labelled."""

    def read(self, window: Window) -> Labels:
        """(H, W) uint8 channel indices of a window that lies within the raster; 255 = not labelled."""

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""


@dataclass(frozen=True, slots=True)
class ClassMap:
    """From values in a label file to channels of a legend.

    A value is looked up in `remap` first, then among the names and then among the ids of the legend; `"*"` in `remap`
    takes what is left.
    """

    legend: Legend
    remap: Mapping[str, str] = field(default_factory=dict)
    """Value, name or '#rrggbb' → class name or "ignore". The empty string stands for an empty field."""

    def __post_init__(self) -> None:
        if len(self.legend) >= IGNORE_INDEX:
            raise ConfigError(f"The legend has {len(self.legend)} classes.", hint=f"Train {IGNORE_INDEX - 1} at most.")
        for key, name in self.remap.items():
            self.target(name, f"remap of {key!r}")

    def target(self, name: str, what: str) -> int:
        """Channel of a class name, 255 for "ignore".

        Raises:
            ConfigError: If the legend has no such class; `what` says whose name it is.
        """
        if name in self.legend.names:
            return self.legend.names.index(name)
        if name == IGNORE:
            return IGNORE_INDEX
        known = ", ".join(self.legend.names)
        raise ConfigError(f"The {what} names {name!r}, which is no class.", hint=f"Use one of: {known}, {IGNORE}.")

    def channel(self, value: str) -> int | None:
        """Channel of a value, 255 to leave it out, None if nothing explains it."""
        if value in self.remap:
            return self.target(self.remap[value], f"remap of {value!r}")
        if value in self.legend.names:
            return self.legend.names.index(value)
        if value.isdecimal() and int(value) in self.legend.ids:
            return self.legend.ids.index(int(value))
        if value == IGNORE:
            return IGNORE_INDEX
        if ANYTHING in self.remap:
            return self.target(self.remap[ANYTHING], f"remap of {ANYTHING!r}")
        return None

    def unknown(self, values: Iterable[str], where: str) -> LabelError:
        """The error for values that nothing explains."""
        strange = list(values)
        shown = ", ".join(repr(v) for v in strange[:10]) + (", ..." if len(strange) > 10 else "")
        legend = ", ".join(f"{c.id} = {c.name}" for c in self.legend)
        return LabelError(
            f"{where} holds {shown}, which is no class of the legend ({legend}).",
            hint=f"Say what each means, for example remap = {{ {strange[0]!r} = {self.legend.names[-1]!r} }}, "
            f"or {IGNORE!r} to leave it out; the key {ANYTHING!r} takes all that is left.",
        )


def value_text(value: Any) -> str:
    """A field's value as `ClassMap` looks it up: 1, 1.0 and "1 " are "1"; nothing is "".

    Example:
        >>> value_text(1.0), value_text(None), value_text(" house")
        ('1', '', 'house')
    """
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()
