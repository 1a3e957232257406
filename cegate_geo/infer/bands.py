"""Which bands of a scene become which channels of a model, and whether their values are what it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import BandWarning, InputError

FLOATS = ("float16", "float32", "float64")
NUMBERED = "band_"
"""Before the number of a band that its raster gave no name."""


def select_bands(dataset: Any, wanted: Sequence[str], *, given: Sequence[str] = ()) -> tuple[int, ...]:
    """Bands (from 1) of an open dataset for the channels named `wanted`.

    Args:
        dataset: Open rasterio dataset.
        wanted: The manifest's band names, in channel order.
        given: The user's choice: band numbers or names; wins over everything else.

    Raises:
        InputError: If bands are missing, or a given one does not exist.
    """
    if given:
        if len(given) != len(wanted):
            raise InputError(
                f"--bands names {len(given)} bands, the model needs {len(wanted)}: {', '.join(wanted)}.",
                hint="Give one band for each, in this order; a band may be named more than once.",
            )
        return tuple(_find_given(dataset, text) for text in given)
    found = [_find_named(dataset, name) for name in wanted]
    if all(found):
        return tuple(found)
    usable = [b for b in dataset.indexes if b not in alpha_bands(dataset)]
    if len(usable) < len(wanted):
        raise InputError(
            f"The scene has {len(usable)} data band(s), the model needs {len(wanted)}: {', '.join(wanted)}.",
            hint=f"Say which to use, for example --bands {','.join(str(usable[0] if usable else 1) for _ in wanted)}.",
        )
    chosen = [band or _numbered(name) for band, name in zip(found, wanted, strict=True)]
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(usable):
        found, chosen = [0] * len(wanted), usable[: len(wanted)]
    assumed = (f"{b} = {n}" for b, n, own in zip(chosen, wanted, found, strict=True) if not own)
    warnings.warn(
        f"The scene does not name {'all of ' if any(found) else ''}its bands; {', '.join(assumed)} is assumed. "
        "Use --bands to choose others.",
        BandWarning,
        stacklevel=2,
    )
    return tuple(chosen)


def _numbered(name: str) -> int:
    """The number in the name of a band that had none where a model learned; 0 for any other name."""
    number = name.removeprefix(NUMBERED)
    return int(number) if number.isdecimal() else 0


def alpha_bands(dataset: Any) -> tuple[int, ...]:
    """Bands that hold transparency."""
    return tuple(b for b, c in zip(dataset.indexes, dataset.colorinterp, strict=True) if c.name == "alpha")


def _find_named(dataset: Any, name: str) -> int:
    """The one band of this name, by description first, then by colour interpretation; 0 if there is none."""
    for labels in (dataset.descriptions, [c.name for c in dataset.colorinterp]):
        hits = [b for b, label in zip(dataset.indexes, labels, strict=True) if (label or "").lower() == name.lower()]
        if len(hits) == 1:
            return int(hits[0])
    return 0


def _find_given(dataset: Any, text: str) -> int:
    band = int(text) if text.isdecimal() else _find_named(dataset, text)
    if band not in dataset.indexes:
        names = [d or c.name for d, c in zip(dataset.descriptions, dataset.colorinterp, strict=True)]
        raise InputError(
            f"The scene has no band {text!r}.",
            hint="It has: " + ", ".join(f"{b} = {n}" for b, n in zip(dataset.indexes, names, strict=True)) + ".",
        )
    return band


def palette_of(dataset: Any, bands: Sequence[str]) -> npt.NDArray[np.uint8] | None:
    """Lookup table (4, 256) uint8 from palette index to red, green, blue, alpha where the scene has to be expanded.

    None unless the scene is one paletted uint8 band and the model wants three channels.
    """
    if (
        dataset.count != 1
        or len(bands) != 3
        or dataset.dtypes[0] != "uint8"
        or dataset.colorinterp[0].name != "palette"
    ):
        return None
    table = np.zeros((4, 256), np.uint8)
    table[3] = 255
    for index, color in dataset.colormap(1).items():
        if index < 256:
            table[:, index] = color
    warnings.warn(
        "The scene has a colour palette; its colours are used as red, green and blue.", BandWarning, stacklevel=2
    )
    return table


def check_values(dataset: Any, bands: Sequence[int], manifest: Manifest) -> None:
    """Refuse values that are not what the model was trained on.

    Raises:
        InputError: If the type differs from the manifest's, with the command that mends it.
    """
    name, wanted = dataset.name, manifest.dtype
    for band in bands:
        dtype = dataset.dtypes[band - 1]
        scale, offset = dataset.scales[band - 1], dataset.offsets[band - 1]
        if "complex" in dtype:
            raise InputError(
                f"{name} holds complex numbers ({dtype}), the model wants {wanted}.",
                hint="Make amplitudes of them first, for example with gdal_calc.py.",
            )
        if dtype == wanted or (wanted == "float32" and dtype in FLOATS):
            if (scale, offset) != (1.0, 0.0):
                warnings.warn(
                    f"Band {band} carries scale {scale} and offset {offset}; the model gets the values as stored. "
                    f"If it was trained on scaled values, apply them first: gdal_translate -unscale.",
                    BandWarning,
                    stacklevel=2,
                )
            continue
        raise InputError(f"{name} holds {dtype}, the model wants {wanted}.", hint=_mend(dtype, manifest))


def _mend(dtype: str, manifest: Manifest) -> str:
    if manifest.dtype == "float32":
        return "Convert it: gdal_translate -ot Float32 -unscale IN.tif OUT.tif."
    if manifest.dtype in ("uint16", "int16") and dtype in ("uint16", "int16"):
        kind = {"uint16": "UInt16", "int16": "Int16"}[manifest.dtype]
        return f"If its values mean the same, convert them: gdal_translate -ot {kind} IN.tif OUT.tif."
    high = f"{manifest.input_maximum:g}"
    if manifest.dtype == "uint8" and dtype not in ("uint8", "int8"):
        return (
            f"Stretch it to the model's range with limits that suit the whole scene, for example: gdal_translate "
            f"-ot Byte -scale 0 3000 0 {high} IN.tif OUT.tif."
        )
    return f"Use the original {manifest.dtype} raster, or a model that was adapted on {dtype}."
