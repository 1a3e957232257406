"""The wiring point of `merge`: finished shards, of however many runs and machines, become the outputs of one."""

from __future__ import annotations

import time
import warnings
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cegate_geo.errors import CegateWarning, InputError
from cegate_geo.infer.atomic import check_outputs, job_folder
from cegate_geo.infer.finish import Product, Targets, finish, product_result, scratch_rasters
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.job import PredictResult, checked_output, checked_vector
from cegate_geo.infer.job_header import StoredJob
from cegate_geo.infer.job_key import describe_place
from cegate_geo.infer.mosaic import mosaic_sources, open_scene, scene_label
from cegate_geo.infer.parts import Part
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.settle import raster_kinds
from cegate_geo.infer.shard_store import ShardStore, open_store, require_same_job
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.view import settle_view

FINISHING = 0.7
"""Part of a merge that comes after the last shard: overviews and compression take longer than copying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """Where outputs go; None for where the parts were told that they would."""

    output: Path | None = None
    vector: Path | None = None
    confidence: Path | None = None
    probabilities: Path | None = None
    min_area_m2: float | None = None
    simplify_m: float | None = None
    vector_classes: tuple[str, ...] | None = None
    overwrite: bool = False


def merge_job(folder: Path, options: MergeOptions, *, monitor: Monitor) -> PredictResult:
    """Join the shards of a job; see `cegate_geo.api.merge`."""
    started = time.monotonic()
    if not folder.is_dir() or not any(folder.glob("journal*.jsonl")):
        raise InputError(
            f"{folder} is no job folder.", hint="Give the folder that predict --shard named, MASK.tif.job."
        )
    with open_store(folder, make=False) as store:
        job = _read_job(store)
        _require_agreement(store, options)
        targets = _targets(job, options)
        sources = [Path(source) for source in mosaic_sources(job.scene) or [job.scene]]
        check_outputs(targets.files, inputs=sources, overwrite=options.overwrite)
        require_complete(store, job, monitor)
        with gdal_settings(job.scene):
            result = _join(store, job, targets, options, monitor)
        store.clear()
    monitor.finish()
    return replace(
        result,
        resumed_shards=len(job.windows),
        seconds=round(time.monotonic() - started, 3),
        provider=job.provider,
        provider_reason=job.provider_reason,
        model=job.model,
        model_sha256=str(job.key["model"]),
    )


def _read_job(store: ShardStore) -> StoredJob:
    header = store.header
    if header is None:
        raise InputError(f"No journal in {store.path} is whole.", hint="Compute the shards anew.")
    for written in store.written.values():
        require_same_job(store.path, header, written.header)
    return StoredJob.read(header, path=store.path)


POLYGON_OPTIONS = {"min_area_m2": "--min-area", "simplify_m": "--simplify", "classes": "--vector-classes"}


def _require_agreement(store: ShardStore, options: MergeOptions) -> None:
    """Refuse parts that were told different things of polygons, unless the merge is told.

    Raises:
        InputError: What which of them was told.
    """
    said = {"min_area_m2": options.min_area_m2, "simplify_m": options.simplify_m, "classes": options.vector_classes}
    for name, option in POLYGON_OPTIONS.items():
        if said[name] is not None:
            continue
        told = {journal: written.header["targets"]["polygons"][name] for journal, written in store.written.items()}
        first, *others = told.items()
        other = next((pair for pair in others if pair[1] != first[1]), None)
        if other is not None:
            raise InputError(
                f"The parts in {store.path} were told different things: {option} is {_words(first[1])} in {first[0]}, "
                f"{_words(other[1])} in {other[0]}.",
                hint=f"Say to merge which holds, with {option}.",
            )


def _words(value: Any) -> str:
    """The value of an option."""
    return (",".join(value) or "all") if isinstance(value, list) else f"{value:g}"


def _targets(job: StoredJob, options: MergeOptions) -> Targets:
    """Where results go.

    Raises:
        InputError: If what is asked for was not computed, or a name is wrong.
    """
    given = {
        name: value
        for name in ("output", "vector", "confidence", "probabilities")
        if (value := getattr(options, name)) is not None
    }
    said: dict[str, Any] = {
        "classes": options.vector_classes,
        "min_area_m2": options.min_area_m2,
        "simplify_m": options.simplify_m,
    }
    polygons = replace(job.targets.polygons, **{name: value for name, value in said.items() if value is not None})
    targets = replace(job.targets, polygons=polygons, **given)
    for raster in targets.rasters.values():
        checked_output(raster)
    checked_vector(targets.vector)
    needs = {"confidence": targets.confidence or targets.vector, "probabilities": targets.probabilities}
    for layer, target in needs.items():
        if target is not None and layer not in job.key["layers"]:
            raise InputError(
                f"{target} needs the {layer}, which the parts were not asked for.",
                hint=f"Compute them with --{layer}, or leave it out.",
            )
    return targets


def require_complete(store: ShardStore, job: StoredJob, monitor: Monitor) -> None:
    """Refuse a job of which shards are missing.

    Raises:
        InputError: Which are.
    """
    done = {entry.window for entry in store.finished(job.windows, check=monitor.check)}
    missing = [window for window in job.windows if window not in done]
    if not missing:
        return
    counts = [Part.parse(w.header["part"]).count for w in store.written.values() if w.header.get("part")]
    count = max(counts, default=1)
    parts = [
        str(part)
        for part in (Part(number, count) for number in range(1, count + 1))
        if any(window in missing for window in part.of(job.windows))
    ]
    shown = ", ".join(store.file(window).name for window in missing[:4]) + (", ..." if len(missing) > 4 else "")
    raise InputError(
        f"{len(missing)} of {len(job.windows)} shards are missing in {store.path}: {shown}.",
        hint=f"Compute them with --shard {', '.join(parts)}, or all that is missing without --shard.",
    )


def _join(
    store: ShardStore, job: StoredJob, targets: Targets, options: MergeOptions, monitor: Monitor
) -> PredictResult:
    with closing(open_scene(job.scene, job.manifest, bands=job.bands, nodata=job.nodata)) as scene:
        check_outputs(targets.files, inputs=scene.files, overwrite=options.overwrite)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CegateWarning)  # the parts have said it
            view = settle_view(scene, job.manifest, gsd=job.gsd, resample=job.resample, force=True)
        if describe_place(view) != job.key["grid"]:
            raise InputError(
                f"{scene_label(job.scene)} is not the scene that the shards were computed from: its grid is another.",
                hint="Bring it back, or compute the shards anew.",
            )
        legend = job.manifest.legend
        made = raster_kinds(legend, job.key["layers"])
        product = Product(legend=legend, view=view, kinds=made, tags=job.tags, targets=targets)
        tally = Tally(legend, view.ground)
        entries = store.entries()
        monitor.start(len(job.windows), finishing=FINISHING)
        with job_folder(targets.output, overwrite=options.overwrite) as work:
            with scratch_rasters(work, product) as scratch:
                for window in job.windows:
                    tally.include_json(entries[window].tally)
                    scratch.copy(store, [entries[window]], monitor)
                    monitor.advance(run=1, skipped=0)
            polygons = finish(product, work, tally, monitor)
        return product_result(product, tally, polygons=polygons)
