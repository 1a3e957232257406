"""Deepness and GeoDeep: keys in the metadata of the ONNX file.

Deepness reads them as JSON, some old files hold Python literals; GeoDeep reads the same keys. Both feed uint8 / 255,
Deepness then applies `standardization_mean` and `_std`. Both set what is below `seg_thresh` to 0 before they take the
largest channel, so that an unsure pixel becomes the first class; a single channel is a class where it reaches it.
Documentation: qgis-plugin-deepness.readthedocs.io, "Model metadata".
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from cegate_geo.errors import ModelError
from cegate_geo.infer.foreign.facts import Facts, Scaling, class_names, number, numbers

SOURCE = "Deepness keys"
KEYS = frozenset({
    "model_type", "class_names", "names", "resolution", "tile_size", "tiles_size", "tiles_overlap", "seg_thresh",
    "seg_small_segment", "standardization_mean", "standardization_std", "reg_output_scaling", "det_type", "det_conf",
    "det_iou_thresh", "det_remove_overlap",
})  # fmt: skip
DEFAULT_THRESHOLD = 0.5
"""What both tools use where a file does not say."""
MEND = "Correct the key in the file, or state the value with an option of cegate-geo predict."


def deepness_facts(metadata: Mapping[str, str], *, name: str) -> Facts | None:
    """What the keys say; None where there are none.

    Raises:
        ModelError: If the model does something else than segmentation, or a key can't be read.
    """
    if not KEYS & metadata.keys():
        return None
    _check_type(metadata, name)
    table = {key: _value(metadata[key]) for key in sorted(KEYS & metadata.keys())}
    facts: Facts = {
        "threshold": DEFAULT_THRESHOLD,
        "scaling": _scaling(table),
        "dtype": "uint8",
        "fit": "centre",
    }
    names = next((key for key in ("class_names", "names") if key in table), None)
    if names is not None:
        facts["names"] = _names(table[names], key=names)
    if "resolution" in table:
        facts["gsd_m"] = _positive(table, "resolution") / 100
    size = next((key for key in ("tile_size", "tiles_size") if key in table), None)
    if size is not None:
        side = round(_positive(table, size))
        facts["tile_shape"] = (side, side)
    if "tiles_overlap" in table:
        facts["overlap"] = _between(table, "tiles_overlap", 0, 100, unit=" percent") / 100
    if "seg_thresh" in table:
        facts["threshold"] = _between(table, "seg_thresh", 0, 1)
    if "seg_small_segment" in table and number(table["seg_small_segment"], what="seg_small_segment", mend=MEND) > 0:
        facts["notes"] = (
            f"seg_small_segment={metadata['seg_small_segment']} (small parts are removed) is not applied; polygons "
            "can be filtered with --min-area",
        )
    return facts


def _check_type(metadata: Mapping[str, str], name: str) -> None:
    kind = str(_value(metadata.get("model_type", "Segmentor"))).strip("\"' ").capitalize()
    if "model_type" not in metadata and any(key.startswith("det_") for key in metadata):
        kind = "Detector"
    task = metadata.get("task", "segment")  # Ultralytics writes it beside `names`
    if kind != "Segmentor" or task not in ("segment", "semantic", "semantic-segmentation"):
        what = f"model_type {kind}" if kind != "Segmentor" else f"task {task}"
        raise ModelError(
            f"{name} is not a segmentation model ({what}): it gives no class for each pixel.",
            hint="Use it in the tool that it was made for, or take a model of type Segmentor.",
        )


def _value(text: str) -> Any:
    """JSON, or a Python literal, or the bare word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _names(value: Any, *, key: str) -> tuple[Mapping[int, str], ...]:
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return tuple(class_names(entry, what=key) for entry in value)
    return (class_names(value, what=key),)


def _scaling(table: Mapping[str, Any]) -> Scaling:
    mean, std = (
        numbers(table[key], what=key, mend=MEND) if key in table else ()
        for key in ("standardization_mean", "standardization_std")
    )
    return Scaling(divisor=(255.0,), mean=mean, std=std)


def _positive(table: Mapping[str, Any], key: str) -> float:
    value = number(table[key], what=key, mend=MEND)
    if value <= 0:
        raise ModelError(f"{key} is {value:g}, not more than 0.", hint=MEND)
    return value


def _between(table: Mapping[str, Any], key: str, low: float, high: float, *, unit: str = "") -> float:
    value = number(table[key], what=key, mend=MEND)
    if not low <= value <= high:
        raise ModelError(f"{key} is {value:g}, not between {low:g} and {high:g}{unit}.", hint=MEND)
    return value
