"""The first line of a journal: what decides the bytes, and what `merge` needs to make outputs without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer.finish import Targets
from cegate_geo.infer.gsd import GridChoice, ResampleMode
from cegate_geo.infer.job import VectorOptions
from cegate_geo.infer.job_key import job_key
from cegate_geo.infer.parts import Part
from cegate_geo.infer.reader import is_plain_path
from cegate_geo.infer.settle import Run, tags
from cegate_geo.infer.tiles import shard_windows
from cegate_geo.infer.writer import BLOCK_SIZE


def job_header(run: Run, targets: Targets, *, model: str | Path, sha256: str) -> dict[str, Any]:
    """The header of a run's journal, as JSON values."""
    options, region = run.options, run.region
    place = {name: getattr(targets, name) for name in ("output", "vector", "confidence", "probabilities")}
    path = run.scene.path
    return {
        "key": job_key(run, sha256),
        "part": str(options.shard) if options.shard is not None else None,
        "scene": str(Path(path).absolute()) if is_plain_path(path) else path,
        "bands": list(options.bands or run.predictor.contract.scene_bands),
        "nodata": list(options.nodata),
        "gsd": options.gsd,
        "resample": options.resample_mode,
        "grid": list(run.view.output_grid),
        "region": [region.col_off, region.row_off, region.width, region.height],
        "shard_shape": list(run.shard_shape),
        "model": str(model),
        "provider": [run.predictor.provider, run.predictor.reason],
        "manifest": run.predictor.manifest.to_json(),
        "tags": tags(run, sha256),
        "targets": {name: None if path is None else str(path.absolute()) for name, path in place.items()}
        | {"polygons": asdict(targets.polygons)},
    }


def _polygons(stored: Mapping[str, Any]) -> VectorOptions:
    return VectorOptions(
        classes=tuple(str(word) for word in stored["classes"]),
        min_area_m2=float(stored["min_area_m2"]),
        simplify_m=float(stored["simplify_m"]),
    )


def stored_shard_shape(header: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a job's shards."""
    height, width = header["shard_shape"]
    return int(height), int(width)


def stored_provider(header: Mapping[str, Any]) -> str:
    """What a job's shards were computed on: the label of its way; empty where it does not say."""
    return str(header.get("key", {}).get("provider", ""))


def stored_batch(header: Mapping[str, Any]) -> int | None:
    """Tiles in a session call; None where it does not say."""
    batch = header.get("key", {}).get("batch")
    return batch if isinstance(batch, int) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job as its journal tells it."""

    scene: str
    manifest: Manifest
    bands: tuple[str, ...]
    nodata: tuple[float, ...]
    gsd: GridChoice
    resample: ResampleMode
    windows: tuple[Window, ...]
    """All shards."""
    part: Part | None
    """The part whose journal it is."""
    key: Mapping[str, Any]
    model: str
    provider: str
    provider_reason: str
    tags: Mapping[str, str]
    targets: Targets

    @classmethod
    def read(cls, header: Mapping[str, Any], *, path: Path) -> StoredJob:
        """Read a header.

        Raises:
            InputError: If it is none.
        """
        try:
            col, row, width, height = (int(n) for n in header["region"])
            region = Window(col_off=col, row_off=row, width=width, height=height)
            grid = int(header["grid"][0]), int(header["grid"][1])
            shape = stored_shard_shape(header)
            provider, reason = (str(text) for text in header["provider"])
            more = {name: Path(value) for name, value in header["targets"].items() if isinstance(value, str)}
            return cls(
                scene=str(header["scene"]),
                manifest=Manifest.from_json(header["manifest"]),
                bands=tuple(str(band) for band in header["bands"]),
                nodata=tuple(float(value) for value in header["nodata"]),
                gsd=header["gsd"],
                resample=header["resample"],
                windows=tuple(shard_windows(grid, largest=shape, align=BLOCK_SIZE, within=region)),
                part=Part.parse(header["part"]) if header["part"] else None,
                key=header["key"],
                model=str(header["model"]),
                provider=provider,
                provider_reason=reason,
                tags=header["tags"],
                targets=Targets(
                    output=more["output"],
                    vector=more.get("vector"),
                    confidence=more.get("confidence"),
                    probabilities=more.get("probabilities"),
                    polygons=_polygons(header["targets"]["polygons"]),
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The journal of {path} can't be used: {error}.", hint="Compute the shards anew."
            ) from error
