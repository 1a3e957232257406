"""What a model is given: which bands, and how raster values become numbers of the size that a backbone is used to.

A model divides raster values by one number (`scale`, the manifest's `input_maximum`); what else is done to them is part
of its graph. Chips and tiles of training are divided by the same number in the same precision as the engine's tiles, so
that both see the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from cegate_geo.errors import ConfigError, InputError
from cegate_geo.infer.bands import NUMBERED

Band = int | str
"""A band of a raster: its number, from 1, or its name."""
ValueType = Literal["uint8", "uint16", "int16", "float32"]
"""Of raster values, as manifests have it; other floating-point numbers count as float32."""

RGB = ("red", "green", "blue")
RGB_BANDS: tuple[Band, ...] = (1, 2, 3)
FULL_SCALE: Mapping[ValueType, float] = {"uint8": 255.0, "uint16": 65535.0, "int16": 32767.0, "float32": 1.0}
"""What raster values are divided by, where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """[input]: what the bands are, and how their values are scaled. Nothing of it is needed for 8-bit RGB."""

    bands: tuple[str, ...] = ()
    """Names of the model's bands in order, by which predict finds them in other rasters. Empty: those that the first
    source chooses by name; of bands chosen by number what its raster calls them, else "band_4" and the like; three by
    number are red, green, blue."""
    rgb: tuple[str, ...] = ()
    """Names of the red, green and blue band among them: these keep the weights that the backbone was trained with, and
    pictures show them. Empty: those of just these names, if there are."""
    scale: float | None = None
    """Raster value that becomes 1, as 10000 for reflectance; empty: the largest of the raster's type, 1 for floats."""
    mean: tuple[float, ...] = ()
    """Mean of each band, in raster values. Empty: as the labelled area has it; for 8-bit RGB the backbone's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each band, in raster values; goes with `mean`."""

    def __post_init__(self) -> None:
        require_scale(self.scale)
        if _distinct(self.bands) < len(self.bands):
            raise ConfigError(f"input.bands = {list(self.bands)} has a name twice.", hint="Name each band apart.")
        if self.rgb and not len(self.rgb) == _distinct(self.rgb) == len(RGB):
            raise ConfigError(f"input.rgb = {list(self.rgb)} are not three bands.", hint="Name red, green and blue.")
        is_finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != len(self.std) or not is_finite or not all(value > 0 for value in self.std):
            raise ConfigError(
                f"input.mean = {list(self.mean)} and input.std = {list(self.std)} don't go together.",
                hint="Give both, or none, as finite numbers, with a std above 0 for each band.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterInput:
    """What a run's model takes; without arguments 8-bit RGB."""

    bands: tuple[str, ...] = RGB
    dtype: ValueType = "uint8"
    scale: float = 255.0
    """Raster value that becomes 1."""
    mean: tuple[float, ...] = ()
    """Of each band, in units of `scale`; empty: that of the backbone's pre-training."""
    std: tuple[float, ...] = ()
    rgb: tuple[int, ...] = (0, 1, 2)
    """Channels that are red, green and blue; empty where there are none."""

    @property
    def is_plain(self) -> bool:
        """Whether three bands of 8 bits can be shown, and stored, as they are."""
        return self.dtype == "uint8" and self.scale == FULL_SCALE["uint8"] and len(self.bands) == len(RGB)

    @property
    def shown(self) -> tuple[int, int, int]:
        """Channels for red, green and blue of a picture: these, else the first three, else the first one alone."""
        first = self.rgb or (range(3) if len(self.bands) >= len(RGB) else (0, 0, 0))
        red, green, blue = first
        return red, green, blue

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "bands": list(self.bands),
            "dtype": self.dtype,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "rgb": list(self.rgb),
        }

    def require_same(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on with another input than what `to_json` gave before, up to the rounding of sums.

        Raises:
            InputError: What differs, with both values.
        """
        for name, now in self.to_json().items():
            then = before[name]
            is_same = now == then
            if name in ("mean", "std"):
                is_same = len(now) == len(then) and all(map(partial(math.isclose, rel_tol=1e-6), now, then))
            if not is_same:
                raise InputError(
                    f"The rasters have changed since the run was stopped: input.{name} was {then}, and is {now}.",
                    hint="Bring back those that it began with, or start in a new folder.",
                )

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> RasterInput:
        """As a run's facts tell it; those of runs that could take nothing else say nothing of it."""
        table = facts.get("input")
        if table is None:
            return cls()
        return cls(
            bands=tuple(table["bands"]),
            dtype=table["dtype"],
            scale=table["scale"],
            mean=tuple(table["mean"]),
            std=tuple(table["std"]),
            rgb=tuple(table["rgb"]),
        )


def _distinct(names: Iterable[str]) -> int:
    """How many there are; bands are found by their names whatever the case."""
    return len({name.lower() for name in names})


def require_scale(scale: float | None) -> None:
    """Refuse what raster values can't be divided by.

    Raises:
        ConfigError: If it is not above 0.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise ConfigError(f"scale = {scale} is no scale.", hint="Give the raster value that becomes 1.")


def require_same_count(chosen: Iterable[tuple[str, Sequence[Band]]]) -> None:
    """Refuse tables that choose another number of bands than others.

    Args:
        chosen: Name of a table, and its bands; where there are none, it takes what others choose.

    Raises:
        ConfigError: Which one, with both numbers.
    """
    counts = [(kind, bands) for kind, bands in chosen if bands]
    for kind, bands in counts[1:]:
        first, other = counts[0]
        if len(bands) != len(other):
            raise ConfigError(
                f"[{kind}] has {len(bands)} bands, {list(bands)}, and [{first}] {len(other)}, {list(other)}.",
                hint="Choose as many everywhere, in the same order.",
            )


def is_rgb_by_number(chosen: Sequence[Band]) -> bool:
    """Whether bands are three numbers: those are red, green and blue."""
    return len(chosen) == len(RGB) and all(str(band).isdecimal() for band in chosen)


def band_names(config: InputConfig, chosen: Sequence[Band], described: Sequence[str | None]) -> tuple[str, ...]:
    """What a model calls its bands; see `InputConfig.bands`.

    Args:
        config: What was stated.
        chosen: Bands of the first source.
        described: What its raster calls each of them, where it does.

    Raises:
        ConfigError: If two would have the same name, or what is stated does not fit.
    """
    if config.bands:
        return config.bands
    if is_rgb_by_number(chosen):
        return RGB
    numbers = [str(band).isdecimal() for band in chosen]
    names = tuple(
        (own or f"{NUMBERED}{band}") if is_number else str(band)
        for band, own, is_number in zip(chosen, described, numbers, strict=True)
    )
    if len(set(names)) < len(names):
        raise ConfigError(
            f"The bands {list(chosen)} would be called {', '.join(names)}.",
            hint="Name each apart: input.bands = [...].",
        )
    return names


def rgb_channels(config: InputConfig, names: Sequence[str]) -> tuple[int, ...]:
    """Channels that are red, green and blue; empty where nothing says so.

    Raises:
        ConfigError: If one is stated that is not there.
    """
    lower = [name.lower() for name in names]
    wanted = config.rgb or RGB
    missing = [name for name in wanted if name.lower() not in lower]
    if missing and config.rgb:
        raise ConfigError(f"input.rgb names {missing}, the bands are {', '.join(names)}.", hint="Use their names.")
    return () if missing else tuple(lower.index(name.lower()) for name in wanted)
