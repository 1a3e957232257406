"""`cegate-geo info`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import click

from cegate_geo.cli.predict import contract_options
from cegate_geo.errors import InputError

MODEL_SUFFIXES = (".onnx", ".emd", ".json")


@click.command("info", short_help="Say what a model, a raster or a run is.")
@click.argument("file", metavar="FILE|NAME|RUN/")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--tile-size", type=int, metavar="PX", help="Side of a tile, where a model leaves it free.")
@contract_options
def command(file: str, *, as_json: bool, **stated: Any) -> None:
    """Describe a model (ONNX, .emd, STAC MLM item, or the NAME of a shipped one), a raster, or the folder of a run.

    Of a model that carries no manifest it says where each part of its contract was found; the options from --classes
    on are those of cegate-geo predict.
    """
    path = Path(file)
    if path.is_dir():
        facts = describe_run(path)
    elif path.suffix.lower() in MODEL_SUFFIXES or (
        not path.exists() and not path.suffix and "/" not in file and ":" not in file
    ):
        facts = describe_model_file(file, **stated)
    else:
        facts = describe_raster(file)
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(_lines(facts)))


def describe_model_file(file: str, **stated: Any) -> dict[str, Any]:
    """A model's contract and graph, as JSON values; `stated` as in `api.describe_model`."""
    from cegate_geo.api import describe_model

    info = describe_model(file, **stated)
    manifest = json.loads(info.manifest.to_json())
    tensors = {
        kind: [{"name": name, "type": dtype, "shape": list(shape)} for name, dtype, shape in values]
        for kind, values in (("inputs", info.inputs), ("outputs", info.outputs))
    }
    return {
        "manifest": manifest,
        "parameters": info.manifest.parameters,
        "modules_kept": list(info.manifest.modules_kept),
        "modules_total": info.manifest.modules_total,
        "opset": info.opset,
        "ir_version": info.ir_version,
        **tensors,
        "contract": dict(info.sources) or {"all": "manifest"},
        "tensors": dataclasses.asdict(info.tensors) if info.tensors else None,
        "file": {"path": str(info.path), "bytes": info.path.stat().st_size},
    }


def describe_raster(file: str) -> dict[str, Any]:
    """A raster's grid, bands and nodata, as JSON values."""
    import warnings

    import rasterio

    from cegate_geo.errors import CegateWarning
    from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
    from cegate_geo.infer.gsd import describe, measure
    from cegate_geo.infer.reader import compression_of, raster_errors

    with raster_errors(file), quiet_about_georeference(), rasterio.open(file) as dataset:
        reference = Georeference.read(dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CegateWarning)
            ground = measure(reference)
        grid = reference.grid
        authority = reference.crs.to_authority() if reference.crs else None
        return {
            "driver": dataset.driver,
            "width": grid.width,
            "height": grid.height,
            "crs": ":".join(authority) if authority else grid.crs_wkt,
            "georeference": reference.kind,
            "transform": list(grid.transform)[:6],
            "bounds": list(grid.bounds),
            "ground": describe(ground),
            "bands": [
                {"band": n, "name": name or color.name, "dtype": dtype, "nodata": _as_json(nodata)}
                for n, name, color, dtype, nodata in zip(
                    dataset.indexes,
                    dataset.descriptions,
                    dataset.colorinterp,
                    dataset.dtypes,
                    dataset.nodatavals,
                    strict=True,
                )
            ],
            "mask": [flag.name for flag in dataset.mask_flag_enums[0]] if dataset.count else [],
            "compression": compression_of(dataset) or None,
            "block": list(dataset.block_shapes[0]) if dataset.count else None,
            "overviews": dataset.overviews(1) if dataset.count else [],
            "tags": {k: v for k, v in dataset.tags().items() if k.startswith("CEGATE_")},
        }


def _as_json(number: float | None) -> float | str | None:
    """A number; what JSON has none for by its name, as in STAC: nan, inf, -inf."""
    return number if number is None or math.isfinite(number) else str(number)


def describe_run(folder: Path) -> dict[str, Any]:
    """What the JSON files of a run's folder say: its settings, the last metrics, the last choice of modules.

    Raises:
        InputError: If it is no run.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} holds no config.json, so it is no run.", hint="Name the folder given to -o.")
    facts: dict[str, Any] = {"run": str(folder), "config": _read_json(config)}
    for name in ("metrics", "gate"):
        path = folder / f"{name}.jsonl"
        if path.is_file():
            records = [_parse(line, path) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            facts[name] = {"records": len(records), "last": records[-1] if records else None}
    facts["files"] = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    return facts


def _read_json(path: Path) -> Any:
    return _parse(path.read_text(encoding="utf-8"), path)


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: {error}.", hint="Restore it, or run again with --resume.") from error


def _lines(value: Any, indent: int = 0) -> list[str]:
    """Nested values for people."""
    pad, lines = "  " * indent, []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{pad}{key}:", *_lines(item, indent + 1)]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines.append(f"{pad}{key}:")
            lines += [f"{pad}  " + ", ".join(f"{k}={v}" for k, v in entry.items()) for entry in item]
        elif item not in (None, "", [], {}):
            lines.append(f"{pad}{key}: {item}")
    return lines
