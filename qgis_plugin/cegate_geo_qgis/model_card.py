# SPDX-License-Identifier: GPL-2.0-or-later
"""What a model is, as people read it, and whether it suits a scene. No qgis: it can be tested anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, Mapping, Optional, Sequence

from .outcome import EngineError
from .protocol import parse_color
from .words import tr

TOLERANCE = 1.001
"""The engine's own: up to this factor beyond the range a scene counts as within."""
FAR = 8.0
"""Pixels that many times outside of a model's range are refused by the engine."""


@dataclass(frozen=True)
class CardClass:
    """A class that the model knows."""

    id: int
    name: str
    color: Optional[tuple[int, int, int]]


@dataclass(frozen=True)
class ModelCard:
    """The part of `cegate-geo info --json` that people ask for."""

    name: str
    path: str
    description: str
    classes: tuple[CardClass, ...]
    bands: tuple[str, ...]
    dtype: str
    gsd_m: Optional[float]
    """Metres per pixel that it was made for."""
    gsd_range_m: Optional[tuple[float, float]]
    """Metres per pixel between which a scene is used as it is."""
    tile_size: int
    parameters: Optional[int]
    licence: str
    attribution: str
    validation_miou: Optional[float]
    sources: Mapping[str, str]
    """Part of the contract → where it was found; empty for a model with a manifest of ours."""


def read_card(told: Mapping[str, Any]) -> ModelCard:
    """The card in what `info --json` printed.

    Raises:
        EngineError: If it describes no model.
    """
    try:
        manifest = told["manifest"]
        given = manifest.get("gsd_range_m")
        validation = (manifest.get("provenance") or {}).get("validation") or {}
        contract = told.get("contract") or {}
        return ModelCard(
            name=str(manifest["name"]),
            path=str((told.get("file") or {}).get("path", "")),
            description=str(manifest.get("description") or ""),
            classes=tuple(
                CardClass(int(c["id"]), str(c["name"]), parse_color(c.get("color"))) for c in manifest["legend"]
            ),
            bands=tuple(str(b) for b in manifest["bands"]),
            dtype=str(manifest.get("dtype") or ""),
            gsd_m=None if manifest.get("gsd_m") is None else float(manifest["gsd_m"]),
            gsd_range_m=(float(given[0]), float(given[1])) if given else None,
            tile_size=int(manifest["tile_size"]),
            parameters=None if not manifest.get("parameters") else int(manifest["parameters"]),
            licence=str(manifest.get("licence") or ""),
            attribution=str(manifest.get("attribution") or ""),
            validation_miou=None if validation.get("miou") is None else float(validation["miou"]),
            sources={} if set(contract.values()) <= {"manifest"} else {str(k): str(v) for k, v in contract.items()},
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise EngineError(
            tr("What the engine says describes no model ({error!r} is missing or wrong).").format(error=error)
        ) from error


def metres(value: float) -> str:
    """'13 cm', '0.6 m', '10 m'."""
    return f"{value * 100:.3g} cm" if value < 0.3 else f"{value:.3g} m"


def _gsd_text(card: ModelCard) -> str:
    if card.gsd_m is None:
        return tr("not stated")
    text = tr("{size} per pixel").format(size=metres(card.gsd_m))
    if not card.gsd_range_m:
        return text
    low, high = card.gsd_range_m
    return tr("{size} ({low} to {high})").format(size=text, low=metres(low), high=metres(high))


def _rows(card: ModelCard) -> list[tuple[str, str]]:
    """What the card says, but for the classes; empty values are left out."""
    miou = ""
    if card.validation_miou is not None:
        miou = tr("{miou:.3f}, on held-out parts of its training area").format(miou=card.validation_miou)
    rows = [
        (tr("About"), card.description),
        (tr("Pixel size"), _gsd_text(card)),
        (tr("Bands"), f"{', '.join(card.bands)} ({card.dtype})" if card.dtype else ", ".join(card.bands)),
        (tr("Tile"), f"{card.tile_size} px"),
        (tr("Mean IoU"), miou),
        (tr("Parameters"), f"{card.parameters:,}" if card.parameters else ""),
        (tr("Licence"), card.licence),
        (tr("Attribution"), card.attribution),
        (tr("File"), card.path),
        *((tr("From {key}").format(key=key), value) for key, value in card.sources.items()),
    ]
    return [(name, value) for name, value in rows if value]


def card_lines(card: ModelCard) -> list[str]:
    """The card for a log."""
    names = [f"{c.id} {c.name}" for c in card.classes]
    return [
        card.name,
        f"  {tr('Classes')}: {', '.join(names)}",
        *(f"  {name}: {value}" for name, value in _rows(card)),
    ]


def class_chip(item: CardClass) -> str:
    """A class as HTML: its colour, then its name."""
    red, green, blue = item.color or (128, 128, 128)
    chip = f'<span style="background-color:#{red:02x}{green:02x}{blue:02x}">&nbsp;&nbsp;&nbsp;&nbsp;</span>'
    return f"{chip}&nbsp;{escape(item.name)}"


def card_html(card: ModelCard) -> str:
    """The card as a page, in HTML that Qt's rich text and any browser show."""
    rows = "".join(
        f'<tr><td valign="top" style="padding:3px 12px 3px 0;color:#666"><b>{escape(name)}</b></td>'
        f'<td style="padding:3px 0">{escape(value)}</td></tr>'
        for name, value in _rows(card)
    )
    classes = "".join(
        f'<tr><td style="padding:3px 12px 3px 0">{item.id}</td><td style="padding:3px 0">{class_chip(item)}</td></tr>'
        for item in card.classes
    )
    return (
        f'<html><head><meta charset="utf-8"><title>{escape(card.name)}</title></head>'
        f'<body style="font-family:sans-serif"><h2>{escape(card.name)}</h2>'
        f"<table>{rows}</table><h3>{escape(tr('Classes'))}</h3><table>{classes}</table></body></html>"
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a model suits a scene in one respect."""

    level: str
    """'good', 'note' (it runs, but read this), or 'bad' (the engine will refuse it)."""
    text: str


GDAL_KINDS = {
    "uint8": ("Byte",), "uint16": ("UInt16",), "int16": ("Int16",), "float32": ("Float32", "Float64"),
}  # fmt: skip
"""Types of values that models may take, and what GDAL calls those that fit."""


def verdicts(card: ModelCard, *, gsd_m: Optional[float], band_count: int, dtypes: Sequence[str] = ()) -> list[Verdict]:
    """Whether a model suits a scene: by pixel size, bands and type of values.

    Args:
        card: The model.
        gsd_m: Metres on the ground along the side of a pixel of the scene; None where its CRS does not tell.
        band_count: Bands of the scene.
        dtypes: Types of its bands, as GDAL names them ('Byte', 'UInt16'); empty where unknown.
    """
    found = [_size_verdict(card, gsd_m)]
    need = len(card.bands)
    if band_count < need:
        found.append(
            Verdict(
                "bad",
                tr("The model wants {need} bands ({names}), the scene has {count}.").format(
                    need=need, names=", ".join(card.bands), count=band_count
                ),
            )
        )
    elif band_count > need:
        found.append(
            Verdict(
                "note",
                tr("The scene has {count} bands, the model takes {need}: {names}.").format(
                    count=band_count, need=need, names=", ".join(card.bands)
                ),
            )
        )
    else:
        found.append(Verdict("good", tr("Bands: {names}.").format(names=", ".join(card.bands))))
    fitting = GDAL_KINDS.get(card.dtype)
    wrong = [kind for kind in dtypes[:need] if fitting and kind not in fitting]
    if wrong and card.dtype == "uint8":
        text = tr("The model takes values of 8 bits, the scene holds {dtype}: scale it first.")
        found.append(Verdict("bad", text.format(dtype=wrong[0])))
    elif wrong:
        text = tr("The model takes {wanted}, the scene holds {dtype}: use the original raster, or convert it.")
        found.append(Verdict("bad", text.format(wanted=card.dtype, dtype=wrong[0])))
    return found


def _size_verdict(card: ModelCard, gsd_m: Optional[float]) -> Verdict:
    if gsd_m is None:
        return Verdict("note", tr("The scene does not tell how large its pixels are: the model sees them as they are."))
    if card.gsd_m is None:
        return Verdict(
            "note",
            tr("The model does not say for which pixels it was made; the scene has {size}.").format(size=metres(gsd_m)),
        )
    low, high = card.gsd_range_m or (card.gsd_m, card.gsd_m)
    low, high = low / TOLERANCE, high * TOLERANCE
    wanted = tr("the model was made for {size}").format(size=_gsd_text(card))
    if low <= gsd_m <= high:
        return Verdict("good", tr("Pixels of {size}: {wanted}.").format(size=metres(gsd_m), wanted=wanted))
    if gsd_m < low / FAR or gsd_m > high * FAR:
        return Verdict("bad", tr("Pixels of {size} are far off: {wanted}.").format(size=metres(gsd_m), wanted=wanted))
    if gsd_m < low:
        return Verdict(
            "note",
            tr("Pixels of {size} are smaller: {wanted}. They are resampled on the way.").format(
                size=metres(gsd_m), wanted=wanted
            ),
        )
    return Verdict(
        "note",
        tr("Pixels of {size} are larger: {wanted}. They are resampled; detail that is not there stays missing.").format(
            size=metres(gsd_m), wanted=wanted
        ),
    )
