"""A STAC item as a scene: assets picked by the names of the model's bands, put onto one grid.

The grid is that of the finest asset that is wanted; coarser ones are enlarged to it by bilinear interpolation as
they are read (a virtual raster of GDAL does it), so that Sentinel-2's bands of 10, 20 and 60 m go together. Names are
found in `eo:bands` (STAC 1.0), `bands` (1.1) and the assets' keys. https://github.com/radiantearth/stac-spec
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import RasterioError

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, RasterError
from cegate_geo.infer.remote import gdal_name, is_remote, remote_settings

SUFFIXES = (".json", ".geojson")
TIMEOUT_S = 30
LARGEST_ITEM = 16 * 2**20
GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip
ALIGNED_PX = 1e-3
"""By how much of a pixel transforms may be sheared or turned and still count as north-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetBand:
    """A band that an item offers."""

    names: tuple[str, ...]
    """What it may be called, lower case: common name, name, the asset's key."""
    href: str
    """As GDAL has it."""
    band: int
    """In the asset, from 1."""
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    rank: tuple[bool, bool, int] = (False, False, 0)
    """Less is better, where several are called the same."""


@dataclass(frozen=True, slots=True)
class ItemScene:
    """An item, as a virtual raster."""

    vrt: str
    settings: Mapping[str, str]
    """GDAL's options to read it with."""


def is_item(name: str) -> bool:
    """Whether a scene's name is that of a STAC item: JSON, by its ending."""
    path = urllib.parse.urlsplit(name).path if "://" in name else name
    return path.lower().endswith(SUFFIXES)


def open_item(name: str, manifest: Manifest, *, bands: Sequence[str] = ()) -> ItemScene:
    """The virtual raster of the bands that a model wants.

    Args:
        name: Path or http(s) address of the item.
        manifest: Says which bands, and whether scaled values (float32) or stored ones are wanted.
        bands: The user's choice: names of bands or keys of assets.

    Raises:
        RasterError: If item or assets can't be read.
        InputError: If it offers no such bands, or they lie on grids that do not go together.
    """
    item, place = _read(name)
    offered = list(_offered(item, place))
    wanted = tuple(bands) or manifest.bands
    chosen = [_find(name, label, offered) for label in wanted]
    settings = {option: value for band in chosen for option, value in remote_settings(band.href).items()}
    with rasterio.Env(**settings):
        return ItemScene(_virtual_raster(name, chosen, wanted, is_scaled=manifest.dtype == "float32"), settings)


def _read(name: str) -> tuple[Mapping[str, Any], str]:
    """An item, and where its relative references start from."""
    is_web = name.lower().startswith(("http://", "https://"))
    if is_remote(name) and not is_web:
        raise RasterError(f"{name} can't be read as a STAC item.", hint="Give its https address, or a copy of it.")
    try:
        if is_web:
            with urllib.request.urlopen(name, timeout=TIMEOUT_S) as answer:
                text = answer.read(LARGEST_ITEM)
        else:
            text = Path(name).read_bytes()
        item = json.loads(text)
    except FileNotFoundError as error:
        raise RasterError(f"There is no file {name}.", hint="Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise RasterError(f"{name} can't be read: {reason}.", hint="Check the address and that it is JSON.") from error
    if not isinstance(item, dict) or item.get("type") != "Feature" or not isinstance(item.get("assets"), dict):
        raise RasterError(f"{name} is no STAC item.", hint="Give a raster, or the JSON of an item with assets.")
    return item, name if is_web else str(Path(name).resolve())


def _offered(item: Mapping[str, Any], place: str) -> Iterator[AssetBand]:
    """All bands of an item's assets."""
    for number, (key, asset) in enumerate(item["assets"].items()):
        href = asset.get("href") if isinstance(asset, dict) else None
        if not isinstance(href, str):
            continue
        bands = _described(asset)
        roles, kind = asset.get("roles") or [], str(asset.get("type") or "")
        rank = ("data" not in roles, "jp2" in kind, number)
        for index, about in enumerate(bands, start=1):
            own = [about.get("common_name"), about.get("eo:common_name"), about.get("name")]
            names = [*own, *([key] if len(bands) == 1 else [])]
            yield AssetBand(
                names=tuple(str(label).lower() for label in names if label),
                href=_resolved(href, place),
                band=index,
                nodata=_number(about.get("nodata")),
                scale=_number(about.get("scale", about.get("raster:scale"))),
                offset=_number(about.get("offset", about.get("raster:offset"))),
                rank=rank,
            )


def _described(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an asset says of each of its bands; one without a name where it says nothing."""
    lists = [entries for name in ("eo:bands", "raster:bands", "bands") if isinstance(entries := asset.get(name), list)]
    count = max((len(entries) for entries in lists), default=1) or 1
    merged: list[dict[str, Any]] = [{} for _ in range(count)]
    for entries in lists:
        for about, entry in zip(merged, entries, strict=False):
            about.update(entry if isinstance(entry, dict) else {})
    if count == 1:  # in STAC 1.1 what all bands share stands with the asset
        shared = {name: asset[name] for name in ("nodata", "raster:scale", "raster:offset") if name in asset}
        merged[0] = {**shared, **merged[0]}
    return merged


def _number(value: Any) -> float | None:
    """A number; 'nan' is one in JSON of STAC."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _resolved(href: str, place: str) -> str:
    """A reference as GDAL has it: absolute, or relative to the item."""
    if "://" in href or href.startswith("/vsi"):
        return gdal_name(href) if not href.startswith("file://") else urllib.request.url2pathname(href[7:])
    if "://" in place:
        return gdal_name(urllib.parse.urljoin(place, href))
    return str((Path(place).parent / href).resolve())


def _find(name: str, label: str, offered: Sequence[AssetBand]) -> AssetBand:
    """The best band of this name."""
    found = sorted((b for b in offered if label.lower() in b.names), key=lambda b: b.rank)
    if found:
        return found[0]
    names = ", ".join(dict.fromkeys(b.names[0] for b in offered if b.names))
    raise InputError(
        f"{name} offers no band {label!r}.",
        hint=f"Name one for each of the model's with --bands. It offers: {names or 'none with a name'}.",
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """An asset's grid and the facts of one band."""

    wkt: str
    transform: Any
    shape: tuple[int, int]
    dtype: str
    nodata: float | None
    is_flagged: bool
    """Whether the asset itself says that nodata value."""
    scale: float
    offset: float


def _look(name: str, band: AssetBand) -> _Source:
    try:
        with rasterio.open(band.href) as dataset:
            if band.band > dataset.count:
                raise InputError(
                    f"{band.href} has {dataset.count} band(s), {name} speaks of band {band.band}.",
                    hint="The item does not fit its assets: mend it, or use the asset itself.",
                )
            turn = dataset.transform
            if abs(turn.b) > ALIGNED_PX * abs(turn.a) or abs(turn.d) > ALIGNED_PX * abs(turn.e) or not dataset.crs:
                raise InputError(
                    f"{band.href} is turned, or has no CRS: bands of an item are put together on north-up grids.",
                    hint="Warp it first: gdalwarp.",
                )
            at = band.band - 1
            nodata = band.nodata if band.nodata is not None else dataset.nodatavals[at]
            return _Source(
                wkt=dataset.crs.to_wkt(),
                transform=turn,
                shape=dataset.shape,
                dtype=dataset.dtypes[at],
                nodata=nodata,
                is_flagged=nodata == dataset.nodatavals[at],
                scale=band.scale if band.scale is not None else dataset.scales[at],
                offset=band.offset if band.offset is not None else dataset.offsets[at],
            )
    except RasterioError as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        raise RasterError(
            f"An asset of {name} can't be read: {lines[0].rstrip('.')}.",
            hint="Check its address, the network, and for object stores the rights (AWS_* and the like).",
        ) from error


def _virtual_raster(name: str, chosen: Sequence[AssetBand], labels: Sequence[str], *, is_scaled: bool) -> str:
    """GDAL's XML of a raster with these bands on the grid of the finest."""
    sources = [_look(name, band) for band in chosen]
    finest = min(sources, key=lambda s: abs(s.transform.a * s.transform.e))
    if any(source.wkt != finest.wkt for source in sources):
        raise InputError(f"The bands of {name} have different CRSs.", hint="Warp them to one first: gdalwarp.")
    root = ElementTree.Element("VRTDataset", rasterXSize=str(finest.shape[1]), rasterYSize=str(finest.shape[0]))
    ElementTree.SubElement(root, "SRS").text = finest.wkt
    place = ElementTree.SubElement(root, "GeoTransform")
    place.text = ", ".join(repr(float(value)) for value in finest.transform.to_gdal())
    for number, (band, source, label) in enumerate(zip(chosen, sources, labels, strict=True), start=1):
        scales = is_scaled and (source.scale, source.offset) != (1.0, 0.0)
        dtype = "Float32" if scales else GDAL_TYPES.get(source.dtype)
        if dtype is None:
            raise InputError(f"{band.href} holds {source.dtype}.", hint="Convert it: gdal_translate -ot.")
        entry = ElementTree.SubElement(root, "VRTRasterBand", dataType=dtype, band=str(number))
        _text(entry, "Description", label)
        if source.nodata is not None:
            _text(entry, "NoDataValue", "nan" if scales else repr(source.nodata))
        if not scales:
            _text(entry, "Offset", repr(source.offset))
            _text(entry, "Scale", repr(source.scale))
        _add_source(entry, band, source, finest, scales=scales)
    return ElementTree.tostring(root, encoding="unicode")


def _add_source(entry: Any, band: AssetBand, source: _Source, finest: _Source, *, scales: bool) -> None:
    is_complex = scales or source.nodata is not None
    is_same = source.transform == finest.transform and source.shape == finest.shape
    made = ElementTree.SubElement(
        entry, "ComplexSource" if is_complex else "SimpleSource", {} if is_same else {"resampling": "bilinear"}
    )
    filename = ElementTree.SubElement(made, "SourceFilename", relativeToVRT="0")
    restates = source.nodata is not None and not source.is_flagged
    filename.text = _restated(band, source) if restates else band.href
    _text(made, "SourceBand", "1" if restates else str(band.band))
    height, width = source.shape
    ElementTree.SubElement(made, "SrcRect", xOff="0", yOff="0", xSize=str(width), ySize=str(height))
    back = ~finest.transform
    left, top = back @ (source.transform @ (0, 0))
    right, bottom = back @ (source.transform @ (width, height))
    sides = {"xOff": left, "yOff": top, "xSize": right - left, "ySize": bottom - top}
    ElementTree.SubElement(made, "DstRect", {side: repr(round(float(value), 9)) for side, value in sides.items()})
    if scales:
        _text(made, "ScaleOffset", repr(source.offset))
        _text(made, "ScaleRatio", repr(source.scale))
    if source.nodata is not None:
        _text(made, "NODATA", repr(source.nodata))


def _restated(band: AssetBand, source: _Source) -> str:
    """A raster of this band alone with the item's nodata value: GDAL mixes no hole in where the source flags it."""
    root = ElementTree.Element("VRTDataset", rasterXSize=str(source.shape[1]), rasterYSize=str(source.shape[0]))
    entry = ElementTree.SubElement(root, "VRTRasterBand", dataType=GDAL_TYPES[source.dtype], band="1")
    _text(entry, "NoDataValue", repr(source.nodata))
    made = ElementTree.SubElement(entry, "SimpleSource")
    filename = ElementTree.SubElement(made, "SourceFilename", relativeToVRT="0")
    filename.text = band.href
    _text(made, "SourceBand", str(band.band))
    return ElementTree.tostring(root, encoding="unicode")


def _text(parent: Any, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
