"""STAC items with the Machine Learning Model extension (MLM): the weights are an asset, the contract is in properties.

Specification: github.com/stac-extensions/mlm, v1.5.2. `value_scaling` holds one operation for all bands, or one
for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cegate_geo.domain.contract import Layout
from cegate_geo.domain.legend import parse_color
from cegate_geo.errors import InputError, ModelError
from cegate_geo.infer.foreign.facts import Facts, NamedClass, Scaling, number, read_object

SOURCE = "STAC MLM item"
TASKS = frozenset({"semantic-segmentation", "segmentation"})
UNLIMITED = float("inf")
IDENTITY = {"mean": 0.0, "std": 1.0, "low": -UNLIMITED, "high": UNLIMITED}


def is_item(table: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a STAC item with the extension."""
    properties = table.get("properties")
    return isinstance(properties, dict) and any(key.startswith("mlm:") for key in properties)


def read_item(path: Path) -> tuple[Path, Facts]:
    """The weights that the item names, and what it says of them.

    Raises:
        ModelError: If it can't be read, is about another framework than ONNX or another task, or its weights are not on
            this machine.
    """
    table = read_object(path)
    if not is_item(table):
        raise ModelError(
            f"{path.name} is no STAC item with mlm: properties.",
            hint="Name an .onnx file, an .emd, or an item of the STAC extension MLM.",
        )
    try:
        return _read(path, table)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path.name} is not as the MLM extension wants it: {error!r}.", hint="Validate it with pystac."
        ) from error


def _read(path: Path, table: Mapping[str, Any]) -> tuple[Path, Facts]:
    properties = table["properties"]
    tasks = properties.get("mlm:tasks") or ["segmentation"]
    if not TASKS & set(tasks):
        raise ModelError(
            f"{path.name} describes a model for {', '.join(tasks)}: it gives no class for each pixel.",
            hint=f"Take a model whose mlm:tasks hold one of {', '.join(sorted(TASKS))}.",
        )
    asset = _asset(path, table)
    inputs, outputs = properties["mlm:input"], properties["mlm:output"]
    if len(inputs) != 1:
        raise ModelError(
            f"{path.name} describes a model of {len(inputs)} inputs; one raster is all that can be given here.",
            hint="Take a model of one input.",
        )
    facts: Facts = {"name": str(properties["mlm:name"])}
    if properties.get("description"):
        facts["description"] = str(properties["description"])
    if properties.get("license"):
        facts["licence"] = str(properties["license"])
    output = next((entry for entry in outputs if TASKS & set(entry.get("tasks", tasks))), outputs[0])
    if len(outputs) > 1:
        facts["head"] = str(output["name"])
    _read_bands(facts, path, inputs[0], [asset, properties])
    _read_input(facts, path, inputs[0])
    _read_output(facts, path, output)
    return _weights(path, asset), facts


def _asset(path: Path, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The asset with ONNX weights."""
    models = [a for a in table["assets"].values() if {"mlm:model", "mlm:weights"} & set(a.get("roles", ()))]
    for asset in models:
        words = (asset["href"], asset.get("type", ""), asset.get("mlm:artifact_type", ""))
        if any("onnx" in str(word).lower() for word in words):
            found: Mapping[str, Any] = asset
            return found
    framework = table["properties"].get("mlm:framework", "not stated")
    raise ModelError(
        f"{path.name} has no asset with ONNX weights (framework {framework}, model assets: "
        f"{', '.join(a['href'] for a in models) or 'none'}).",
        hint="Only ONNX runs here: export the model to ONNX, and name the .onnx file or add it as an asset.",
    )


def _weights(path: Path, asset: Mapping[str, Any]) -> Path:
    href = str(asset["href"])
    parts = urlsplit(href)
    is_local = parts.scheme in ("", "file") or len(parts.scheme) == 1  # a drive letter
    weights = path.parent / (unquote(parts.path) if parts.scheme == "file" else href)
    if not is_local or not weights.is_file():
        where = "is not a file on this machine" if is_local else "lies on the network, and is not fetched"
        raise ModelError(
            f"{path.name} names the weights {href}; that {where}.",
            hint="Fetch the file, and set the asset's href to it, relative to the item.",
        )
    return weights


def _read_bands(facts: Facts, path: Path, given: Mapping[str, Any], holders: Sequence[Mapping[str, Any]]) -> None:
    """Names, types and ground size of the bands; they are described in the asset or in the item's properties."""
    bands = [band if isinstance(band, dict) else {"name": band} for band in given.get("bands") or ()]
    computed = [str(band["name"]) for band in bands if band.get("expression") is not None]
    if computed:
        raise ModelError(
            f"{path.name} has bands that are computed from others: {', '.join(computed)}.",
            hint="Make a raster that holds them, and an item without expressions.",
        )
    if bands:
        facts["bands"] = tuple(str(band["name"]) for band in bands)
    described = {
        str(band.get("name")): band
        for holder in reversed(holders)
        for key in ("bands", "eo:bands", "raster:bands")
        for band in holder.get(key) or ()
    }
    used = [described[str(band["name"])] for band in bands if str(band["name"]) in described]
    types = {str(band["data_type"]) for band in used if band.get("data_type")}
    if len(types) == 1 and types <= {"uint8", "uint16", "float32"}:
        facts["dtype"] = types.pop()  # type: ignore[typeddict-item]  # one of the three
    keys = ("gsd", "raster:spatial_resolution", "spatial_resolution")
    sizes = [h[k] for h in (*holders, *used) for k in keys if h.get(k)]
    if sizes:
        facts["gsd_m"] = number(sizes[0], what=f"The GSD in {path.name}", mend="Correct it, or state --gsd-m.")


def _read_input(facts: Facts, path: Path, given: Mapping[str, Any]) -> None:
    structure = given["input"]
    order, shape = list(structure["dim_order"]), list(structure["shape"])
    layout = _layout(order)
    if layout is not None and layout != "NHW":
        facts["input_layout"] = layout
        height, width = (shape[order.index(side)] for side in ("height", "width"))
        if height > 0 and width > 0:
            facts["tile_shape"] = (int(height), int(width))
    function = given.get("pre_processing_function")
    if function:
        facts["unscalable"] = f"{path.name} prepares values by a function, {function.get('expression', function)!r}"
    operations = given.get("value_scaling") or given.get("scaling") or []
    if any((operation or {}).get("type") == "processing" for operation in operations):
        facts["unscalable"] = f"{path.name} scales values by an expression"
        return
    if operations:
        facts["scaling"], largest = _scaling(operations, path)
        if "dtype" not in facts and largest > 1:
            facts["dtype"] = "uint8" if largest <= 255 else "uint16"
        elif "dtype" not in facts:
            facts["unscalable"] = (
                f"{path.name} scales values of at most {largest:g}, and no band tells its data_type: whether they are "
                "stored so, or divided by 255 before, is not said"
            )
    elif not function:
        facts["scaling"] = Scaling(divisor=(1.0,))


def _layout(order: Sequence[str]) -> Layout | None:
    letters = {"batch": "N", "channel": "C", "bands": "C", "band": "C", "class": "C", "classes": "C"}
    word = "".join({**letters, "height": "H", "width": "W"}.get(name, "?") for name in order)
    return {"NCHW": "NCHW", "NHWC": "NHWC", "NHW": "NHW"}.get(word)  # type: ignore[return-value]


def _scaling(operations: Sequence[Mapping[str, Any] | None], path: Path) -> tuple[Scaling, float]:
    """The operations as one scaling, and the largest raster value that they speak of (0 for none)."""
    steps = [dict(_steps(operation or {}, path)) for operation in operations]
    each = [{**IDENTITY, **step} for step in steps]
    spoken = [abs(v) for step in steps for v in step.values() if abs(v) < UNLIMITED]
    limited = any("low" in step or "high" in step for step in steps)
    scaling = Scaling(
        divisor=(1.0,),
        mean=tuple(e["mean"] for e in each),
        std=tuple(e["std"] for e in each),
        clip=tuple((e["low"], e["high"]) for e in each) if limited else (),
    )
    return scaling, max(spoken, default=0.0)


def _steps(operation: Mapping[str, Any], path: Path) -> Iterator[tuple[str, float]]:
    """One operation as parts of `(clip(x, low, high) - mean) / std`."""
    kind = operation.get("type")
    mend = "Correct the item, or state --scale, --mean and --std."

    def value(key: str) -> float:
        return number(operation[key], what=f"{kind}: {key} in {path.name}", mend=mend)

    if kind in ("clip", "clip-min"):
        yield "low", value("minimum")
    if kind in ("clip", "clip-max"):
        yield "high", value("maximum")
    if kind == "min-max":
        yield "mean", value("minimum")
        yield "std", value("maximum") - value("minimum")
    elif kind == "z-score":
        yield "mean", value("mean")
        yield "std", value("stddev")
    elif kind == "offset":
        yield "mean", value("value")
    elif kind == "scale":
        yield "std", value("value")
    elif kind not in ("clip", "clip-min", "clip-max", None):
        raise ModelError(f"{path.name} scales values by {kind!r}, which is not known.", hint=mend)


def _read_output(facts: Facts, path: Path, output: Mapping[str, Any]) -> None:
    classes = output.get("classification:classes") or output.get("classification_classes")
    if classes:
        facts["classes"] = tuple(
            NamedClass(id=int(c["value"]), name=str(c.get("name") or c.get("title") or c["value"]), color=_color(c))
            for c in classes
        )
    if _layout(list(output["result"]["dim_order"])) == "NHW" and "int" in str(output["result"].get("data_type")):
        facts["output"] = "class-map"
    if output.get("post_processing_function"):
        facts["notes"] = (f"the post_processing_function of {path.name} is not applied",)


def _color(entry: Mapping[str, Any]) -> tuple[int, int, int] | None:
    hint = entry.get("color_hint") or entry.get("color-hint")
    if not hint:
        return None
    try:
        return parse_color("#" + str(hint).lstrip("#"))
    except InputError as error:
        raise ModelError(f"The class {entry.get('name')!r} has the colour {hint!r}.", hint=error.hint) from error
