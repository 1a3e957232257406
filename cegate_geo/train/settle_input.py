"""Which bands each source is read with, and what the model that learns from them takes: decided once for a run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from cegate_geo.errors import BandWarning, ConfigError, InputError
from cegate_geo.train.byte_rasters import UnlabelledSource
from cegate_geo.train.config import AdaptConfig, SourceConfig, TargetConfig
from cegate_geo.train.raster_input import (
    RGB,
    RGB_BANDS,
    Band,
    InputConfig,
    RasterInput,
    band_names,
    is_rgb_by_number,
    rgb_channels,
)
from cegate_geo.train.scenes import LabelledScene

S = TypeVar("S", SourceConfig, TargetConfig)


def default_bands(config: AdaptConfig) -> tuple[Band, ...]:
    """Bands of sources that choose none: see `SourceConfig.bands`."""
    first = config.source[0].bands
    return config.input.bands or (RGB_BANDS if is_rgb_by_number(first) else first) or RGB_BANDS


def read_as(config: AdaptConfig, source: S) -> S:
    """A source, target or validation with the bands and the scale that it is read with."""
    scale = source.scale if source.scale is not None else config.input.scale
    return replace(source, bands=source.bands or default_bands(config), scale=scale)


def styles_as(config: AdaptConfig) -> tuple[UnlabelledSource, ...]:
    """The [[style]] rasters with the bands that they are read with."""
    return tuple(replace(style, bands=style.bands or default_bands(config)) for style in config.style)


def settle_input(
    config: AdaptConfig, scenes: Sequence[LabelledScene], statistics: tuple[Sequence[float], Sequence[float]]
) -> RasterInput:
    """What the model of a run takes.

    Args:
        config: What was stated.
        scenes: Everything that is learned from or validated on; the first is that of the first source.
        statistics: Mean and standard deviation of each band over what is learned from, in units of the scenes' scales.

    Raises:
        InputError: If scenes of different types have no scales that were stated, or a band is constant.
        ConfigError: If what was stated does not fit the bands.
    """
    first, stated = scenes[0], config.input
    _require_one_type(config, scenes)
    names = band_names(stated, first.bands, first.described)
    rgb = rgb_channels(stated, names)
    taken = RasterInput(bands=names, dtype=first.dtype, scale=first.scale, rgb=rgb)
    if stated.mean:
        taken = _stated(stated, taken)
    elif not taken.is_plain or any((scene.dtype, scene.scale) != (first.dtype, first.scale) for scene in scenes):
        _require_contrast(taken, *statistics)
        taken = replace(taken, mean=tuple(statistics[0]), std=tuple(statistics[1]))
    if not rgb and len(names) > len(RGB):
        warnings.warn(
            BandWarning(
                f"None of the bands {', '.join(names)} is known to be red, green or blue: none keeps the backbone's "
                'weights. If these are among them, say so, as in input.rgb = ["B4", "B3", "B2"].'
            ),
            stacklevel=2,
        )
    return taken


def _stated(config: InputConfig, taken: RasterInput) -> RasterInput:
    if len(config.mean) != len(taken.bands):
        raise ConfigError(
            f"input.mean has {len(config.mean)} values for the {len(taken.bands)} bands {', '.join(taken.bands)}.",
            hint="Give one for each.",
        )
    mean, std = (tuple(value / taken.scale for value in values) for values in (config.mean, config.std))
    return replace(taken, mean=mean, std=std)


def _require_one_type(config: AdaptConfig, scenes: Sequence[LabelledScene]) -> None:
    first = scenes[0]
    parts: list[SourceConfig | TargetConfig] = [*config.source, *config.validation, *config.target]
    if all(part.scale is not None for part in parts):
        return
    for scene in scenes[1:]:
        if scene.dtype != first.dtype:
            raise InputError(
                f"{scene.name} holds {scene.dtype}, {first.name} {first.dtype}: their values don't compare.",
                hint="Bring them to one type (gdal_translate -ot, -scale), or state the raster value that becomes 1 in "
                "each [[source]]: scale = 255 and scale = 10000, for example.",
            )


def _require_contrast(taken: RasterInput, mean: Sequence[float], std: Sequence[float]) -> None:
    for name, centre, spread in zip(taken.bands, mean, std, strict=True):
        if not spread > 1e-6 * max(abs(centre), 1e-30):
            raise InputError(
                f"Band {name!r} is {centre * taken.scale:g} everywhere in the labelled area.",
                hint="Leave it out of bands (alpha is no data), or state input.mean and input.std.",
            )
