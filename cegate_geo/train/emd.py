"""An Esri model definition (`.emd`) beside a model: what ArcGIS' deep learning tools are given instead of the weights.

Written after github.com/Esri/raster-deep-learning (`docs/writing_model_definition.md`, `python_raster_functions`). It
was read back by our own engine only; no ArcGIS was at hand. What is known of ArcGIS:

- ArcGIS computes by a Python raster function. Without `InferenceFunction` it takes its built-in one, which refuses a
  definition without a `ModelConfiguration` that it knows. None that its documentation lists is for ONNX (the
  repository has two examples, each for one model), so neither key is written: by this file alone ArcGIS can't be
  expected to run the model. Who names a function of their own finds the weights, the tile's size and the bands here.
- That function is given raster values. The model takes them times 1 / `input_maximum`, as `Description` says.
  `DataRange` is left out: it would stretch each raster by its own extremes.
- Channel n of the output belongs to the n-th entry of `Classes`; `Value` is the class id in masks.
- The output is as large as the input, so there is no `ModelPadding`; ArcGIS then asks for a padding in pixels, of which
  the model wants its halo.

Not documented, and not known: whether ArcGIS' own Python has an onnxruntime that loads opset 17.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cegate_geo.api import describe_model
from cegate_geo.domain.manifest import Manifest
from cegate_geo.train.run_files import write_text

SUFFIX = ".emd"


def write_definition(model: Path) -> Path:
    """Write `MODEL.emd` beside a model that this package exported.

    Args:
        model: The ONNX file.

    Returns:
        The definition's path; a file that was there is replaced.

    Raises:
        ModelError: If the model can't be read, or its contract is another than that of our exports.
        InputError: If the definition can't be written.
    """
    manifest = describe_model(model).manifest
    path = model.with_suffix(SUFFIX)
    write_text(path, json.dumps(make_definition(manifest, model.name), indent=4, ensure_ascii=False) + "\n")
    return path


def make_definition(manifest: Manifest, weights: str) -> dict[str, Any]:
    """The definition as JSON values.

    Args:
        manifest: What the model expects and gives. Its bands are said to be the first of a raster, in this order:
            `ExtractBands` counts from 0.
        weights: The ONNX file, relative to the definition.

    Raises:
        ModelError: If the model takes values that are scaled otherwise, or gives no probabilities.
    """
    manifest.require_portable("a definition")
    return {
        "Framework": "ONNX",
        "ModelType": "ImageClassification",
        "Description": _description(manifest),
        "ModelFile": weights,
        "ImageHeight": manifest.tile_size,
        "ImageWidth": manifest.tile_size,
        "ExtractBands": list(range(len(manifest.bands))),
        "Classes": [{"Value": c.id, "Name": c.name, "Color": list(c.color)} for c in manifest.legend],
    }


def _description(manifest: Manifest) -> str:
    """What the format has no keys for, in words."""
    gsd = "" if manifest.gsd_m is None else f"; {manifest.gsd_m:g} m per pixel"
    tensors = (
        f"Takes {', '.join(manifest.bands)} of {manifest.dtype} divided by {manifest.input_maximum:g}, gives "
        f"{len(manifest.legend)} probabilities in the order of Classes; padding {manifest.halo}{gsd}."
    )
    terms = (("Licence", manifest.licence), ("Attribution", manifest.attribution))
    told = [f"{manifest.name}.", manifest.description, tensors, *(f"{what}: {text}" for what, text in terms if text)]
    return " ".join(part for part in told if part)
