"""A STAC item beside a model, with the Machine Learning Model extension (github.com/stac-extensions/mlm, v1.5.0).

The contract of the ONNX file itself stays the one that counts; the item is for catalogues, and for tools that know no
other. It says nothing of where the model was trained, so that its geometry is null.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from cegate_geo.api import describe_model
from cegate_geo.domain.legend import LegendClass
from cegate_geo.domain.manifest import Manifest
from cegate_geo.train.run_files import write_text

EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json",
)
SUFFIX = ".stac.json"


def write_item(model: Path) -> Path:
    """Write `MODEL.stac.json` beside a model that this package exported.

    Args:
        model: The ONNX file.

    Returns:
        The item's path.

    Raises:
        ModelError: If the model can't be read, or its contract is another than that of our exports.
        InputError: If the item can't be written.
    """
    manifest = describe_model(model).manifest
    path = model.with_name(model.stem + SUFFIX)
    write_text(path, json.dumps(make_item(manifest, model.name), indent=2, ensure_ascii=False) + "\n")
    return path


def make_item(manifest: Manifest, weights: str, *, created: datetime.datetime | None = None) -> dict[str, Any]:
    """The item as JSON values.

    Args:
        manifest: What the model expects and gives.
        weights: The ONNX file, relative to the item.
        created: Time of the item; now if None.

    Raises:
        ModelError: If the model takes values that are scaled otherwise, or gives no probabilities.
    """
    manifest.require_portable("an item")
    now = (created or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    is_identifier = re.fullmatch(r"[\w\-.+]+", manifest.licence) is not None
    told = [manifest.description, "" if is_identifier or not manifest.licence else f"Licence: {manifest.licence}"]
    told.append(f"Attribution: {manifest.attribution}" if manifest.attribution else "")
    properties: dict[str, Any] = {
        "datetime": now,
        "title": manifest.name,
        "description": " ".join(part for part in told if part) or manifest.name,
        **({"license": manifest.licence if is_identifier else "other"} if manifest.licence else {}),
        **({} if manifest.gsd_m is None else {"gsd": manifest.gsd_m}),
        "bands": [{"name": band, "data_type": manifest.dtype} for band in manifest.bands],
        "mlm:name": _model_name(manifest.name),
        "mlm:architecture": manifest.architecture or "Vision Transformer",
        "mlm:framework": "ONNX",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:total_parameters": manifest.parameters,
        "mlm:pretrained": True,
        "mlm:input": [_input(manifest)],
        "mlm:output": [_output(manifest)],
    }
    asset = {
        "href": f"./{weights}",
        "type": "application/octet-stream; framework=onnx",
        "title": "ONNX model with its contract",
        "roles": ["mlm:model", "mlm:weights", "data"],
        "mlm:artifact_type": "onnx",
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": re.sub(r"[^\w.-]+", "-", manifest.name),
        "geometry": None,
        "properties": properties,
        "links": [],
        "assets": {"model": asset},
    }


def _input(manifest: Manifest) -> dict[str, Any]:
    shape = [-1, len(manifest.bands), manifest.tile_size, manifest.tile_size]
    return {
        "name": "image",
        "bands": list(manifest.bands),
        "input": {"shape": shape, "dim_order": ["batch", "bands", "height", "width"], "data_type": "float32"},
        "value_scaling": [{"type": "min-max", "minimum": 0, "maximum": manifest.input_maximum}],
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(manifest: Manifest) -> dict[str, Any]:
    shape = [-1, len(manifest.legend), manifest.tile_size, manifest.tile_size]
    return {
        "name": "probabilities",
        "tasks": ["semantic-segmentation"],
        "result": {"shape": shape, "dim_order": ["batch", "class", "height", "width"], "data_type": "float32"},
        "classification:classes": [_class(entry) for entry in manifest.legend],
        "post_processing_function": None,
    }


def _class(entry: LegendClass) -> dict[str, Any]:
    """The extension's names are letters, digits, dashes and underscores: others stand in the description in full."""
    name = re.sub(r"[^0-9A-Za-z_-]+", "-", entry.name) or str(entry.id)
    return {
        "value": entry.id,
        "name": name,
        "description": entry.name,
        "color_hint": entry.hex.removeprefix("#").upper(),
    }


def _model_name(name: str) -> str:
    """As the extension wants it: a letter first, a letter or digit last, three characters and more."""
    plain = re.sub(r"[^a-zA-Z0-9_.\-\s]", "-", name).strip("-._ ")
    plain = plain if plain[:1].isalpha() else f"model {plain}".strip()
    return plain if len(plain) >= 3 else f"model {plain}"
