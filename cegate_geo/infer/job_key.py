"""Which shards belong together: what decides their bytes, by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

import numpy as np

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.infer.ensemble import members_of
from cegate_geo.infer.mosaic import Mosaic
from cegate_geo.infer.reader import AnyScene
from cegate_geo.infer.settle import Run
from cegate_geo.infer.view import View

WITHOUT_SAY = frozenset(
    {
        "vector",
        "confidence",
        "probabilities",
        "min_area_m2",
        "simplify_m",
        "vector_classes",
        "aoi",
        "bands",
        "tile_size",
        "halo",
        "batch_size",
    }
    | {"provider", "require_gpu", "threads", "max_memory_mb", "overwrite", "force", "stated", "gsd", "resample"}
    | {"resume", "shard", "shard_rows", "dask", "workers"}
)
"""Options that change no shard, or are in its key as what became of them."""


def job_key(run: Run, sha256: str) -> dict[str, Any]:
    """Everything that decides the bytes of a shard, by names that people know. Equal keys, equal bytes."""
    options, predictor, view = run.options, run.predictor, run.view
    stated = [[model.manifest.to_json(), repr(model.contract.form)] for model in members_of(predictor)]
    contract = json.dumps(stated[0] if len(stated) == 1 else [predictor.manifest.to_json(), *stated])
    # Whatever option there will be counts, unless it is known to change nothing.
    rest = {f.name: str(getattr(options, f.name)) for f in fields(options) if f.name not in WITHOUT_SAY}
    return {
        "engine": __version__,
        "runtime": _runtime_version(),
        "provider": predictor.computed_on,
        "model": sha256,
        "contract": hashlib.sha256(contract.encode()).hexdigest(),
        "scene": scene_identity(run.scene),
        "grid": describe_place(view),
        "bands": list(run.scene.bands),
        "tile": list(run.plan.tile_shape),
        "halo": predictor.manifest.halo if options.halo is None else options.halo,
        "batch": run.form.batch_size,
        "resampled": list(view.tile_grid) if view.resampling is not None else None,
        "area": run.area_digest,
        "layers": sorted(run.kinds),
        **rest,
    }


def _runtime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def describe_place(view: View) -> str:
    """Where outputs lie, in so few words that a change shows."""
    place, (height, width) = view.georeference, view.output_grid
    points = [(p.row, p.col, p.x, p.y, p.z) for p in place.gcps]
    crs = place.crs.to_wkt() if place.crs else ""
    said = json.dumps([list(place.transform)[:6], crs, points, str(place.rpcs), place.area_or_point])
    return f"{width} x {height} px, {hashlib.sha256(said.encode()).hexdigest()[:16]}"


SIDE_FILES = (".aux.xml", ".ovr")
"""What GIS programs write beside a raster that they open; the georeference in them is looked at for itself."""
SAMPLES = 3
"""Along each axis so many places of a remote scene are looked at."""
SAMPLE_PX = 64


def scene_identity(scene: AnyScene) -> str:
    """What tells a scene from another one, or from the same file after a change.

    Name, size and time of last change of its files, but not their folders: other machines may see them elsewhere.
    Remote files tell no time, so pixels at a few places stand for them.
    """
    if isinstance(scene, Mosaic):  # in their order, which says what counts where they overlap
        members = [scene_identity(member) for member in scene.members]
        return f"{len(members)} rasters, {hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16]}"
    files = [path for path in scene.files if not path.name.endswith(SIDE_FILES) and path.exists()]
    if files:
        said = []
        for path in sorted(files):
            status = path.stat()
            said.append(f"{path.name} ({status.st_size} bytes, {status.st_mtime_ns})")
        text = ", ".join(said)
        return text if len(said) == 1 else f"{len(said)} files, {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    digest, (height, width) = hashlib.sha256(), scene.shape
    for row in np.linspace(0, max(height - SAMPLE_PX, 0), SAMPLES, dtype=int):
        for col in np.linspace(0, max(width - SAMPLE_PX, 0), SAMPLES, dtype=int):
            window = Window(
                col_off=int(col), row_off=int(row), width=min(SAMPLE_PX, width), height=min(SAMPLE_PX, height)
            )
            strip = scene.read(window)
            digest.update(np.ascontiguousarray(strip.values).tobytes() + strip.valid.tobytes())
    return f"{scene.path.partition('?')[0]}, {digest.hexdigest()[:16]}"
