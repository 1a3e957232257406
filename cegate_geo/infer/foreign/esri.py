r"""ArcGIS: the Esri model definition `.emd`, a JSON file beside the weights.

`ExtractBands` counts bands from 0, or names them. `ModelFile` lies beside the file, often written `.\\model.onnx`.
Documentation: github.com/Esri/raster-deep-learning, docs/writing_model_definition.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cegate_geo.errors import ModelError
from cegate_geo.infer.foreign.facts import Facts, NamedClass, read_object

SOURCE = "ArcGIS .emd"
PIXEL_TYPES = ("imageclassification", "classifypixels", "pixelclassification", "semanticsegmentation", "")
"""What `ModelType` may be: ArcGIS calls the classification of pixels 'ImageClassification', its error 00322
'ClassifyPixels'."""


def read_emd(path: Path) -> tuple[Path, Facts]:
    """The weights that the definition names, and what it says of them.

    Raises:
        ModelError: If it can't be read, names another framework than ONNX, another task, or a file that is not there.
    """
    table = read_object(path)
    weights = _weights(path, table)
    kind = str(table.get("ModelType") or "").replace(" ", "").replace("_", "")
    if kind.lower() not in PIXEL_TYPES:
        raise ModelError(
            f"{path.name} defines a model of type {table['ModelType']}: it gives no class for each pixel.",
            hint="Use ArcGIS, or take a model of type ImageClassification.",
        )
    facts: Facts = {"name": path.stem}
    if table.get("Classes"):
        facts["classes"] = tuple(_class(entry, path) for entry in table["Classes"])
    sides = (table.get("ImageHeight"), table.get("ImageWidth"))
    if all(isinstance(side, int) and side > 0 for side in sides):
        facts["tile_shape"] = (int(sides[0] or 0), int(sides[1] or 0))
    bands = table.get("ExtractBands")
    if isinstance(bands, list) and bands:
        if all(isinstance(band, int) for band in bands):
            facts["scene_bands"] = tuple(str(band + 1) for band in bands)
        else:
            facts["bands"] = tuple(str(band) for band in bands)
    if table.get("Description"):
        facts["description"] = str(table["Description"])
    if table.get("NormalizationStats"):
        facts["unscalable"] = f"{path.name} holds NormalizationStats, whose use depends on ArcGIS' own functions"
    return weights, facts


def _weights(path: Path, table: Mapping[str, Any]) -> Path:
    file = str(table.get("ModelFile") or "").replace("\\", "/")
    framework = str(table.get("Framework") or ("ONNX" if file.lower().endswith(".onnx") else "none"))
    if framework.lower() != "onnx" or not file.lower().endswith(".onnx"):
        raise ModelError(
            f"{path.name} defines a model of framework {framework} ({file or 'no ModelFile'}); only ONNX runs here.",
            hint="Export the model to ONNX and name the .onnx file, or use ArcGIS.",
        )
    weights = path.parent / file
    if not weights.is_file():
        raise ModelError(f"{path.name} names the file {file}, which is not there.", hint=f"Put it beside {path.name}.")
    return weights


def _class(entry: Any, path: Path) -> NamedClass:
    try:
        color = entry.get("Color")
        parts = tuple(int(part) for part in color[:3]) if color else None
        return NamedClass(
            id=int(entry["Value"]),
            name=str(entry["Name"]),
            color=(parts[0], parts[1], parts[2]) if parts else None,
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path.name} has the class {entry!r}, which lacks Value, Name or three parts of Color.",
            hint="Correct it, or state the names: --classes NAME,NAME.",
        ) from error
