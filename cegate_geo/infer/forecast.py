"""What `predict --dry-run` says: what a run would do, take and write. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cegate_geo.infer.atomic import check_outputs
from cegate_geo.infer.ensemble import load_models, models_given, models_sha256
from cegate_geo.infer.feed import middle_tile
from cegate_geo.infer.finish import describe_grid
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.gsd import describe, measure
from cegate_geo.infer.job import DEFAULT_MEMORY_MB, PredictOptions
from cegate_geo.infer.job_header import stored_shard_shape
from cegate_geo.infer.job_key import job_key
from cegate_geo.infer.mosaic import mosaic_sources, open_scene, scene_label
from cegate_geo.infer.pipeline import as_resumed, cut_as_before, fed_as_before, local_inputs, targets_of
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.settle import Run, decide, session_options, settle, stacks, union
from cegate_geo.infer.shard_store import ShardStore, require_same_job, store_path
from cegate_geo.infer.view import Shard

PATIENCE_S = 5.0
"""A first call that took longer is not repeated: the time that a session takes to warm up is small beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictPlan:
    """What a prediction would be."""

    scene: str
    outputs: Sequence[Path]
    """Files that would be written; of a part (`shard`) the job folder."""
    grid: Mapping[str, Any]
    """Of the outputs: `crs`, `transform` (six numbers), `width`, `height`, `gsd_m`."""
    ground: Mapping[str, Any] | None
    """Size of the scene's pixels: `x_m`, `y_m`, `gsd_m`; None where nothing says it."""
    model_gsd_m: tuple[float, float] | None
    """Smallest and largest metres per pixel that the model was made for."""
    resampled: Mapping[str, Any] | None
    """The grid that the model would see, where that is not the scene's."""
    tiles: int
    """Of the plan, or of the part; ones that column strips share count once for each. Those of shards that an earlier
    run has finished count, too."""
    skipped_tiles: int
    """Those of them that lie outside the area of interest. Ones without data are found on the way."""
    tile_shape: tuple[int, int]
    batch_size: int
    shards: int
    shard_width: int
    """Of the widest, in pixels of the outputs."""
    memory_mb: int
    """What the process takes at most, libraries and the model included; outlines of polygons aside."""
    max_memory_mb: int
    seconds: float | None
    """For the model alone, by one of the scene's tiles: reading and writing go on beside it. None where no tile holds
    data."""
    provider: str
    provider_reason: str
    model: str

    def to_json(self) -> dict[str, Any]:
        """The object of the `result` event; `dry_run` tells it from that of a run."""
        plain = (
            "scene", "tiles", "skipped_tiles", "batch_size", "shards", "shard_width", "memory_mb", "max_memory_mb",
            "seconds", "provider", "provider_reason", "model",
        )  # fmt: skip
        return {
            "dry_run": True,
            "outputs": [str(path) for path in self.outputs],
            "grid": dict(self.grid),
            "ground": None if self.ground is None else dict(self.ground),
            "model_gsd_m": None if self.model_gsd_m is None else list(self.model_gsd_m),
            "resampled": None if self.resampled is None else dict(self.resampled),
            "tile_shape": list(self.tile_shape),
            **{name: getattr(self, name) for name in plain},
        }


def forecast(
    scene_path: str,
    output: Path,
    *,
    models: Sequence[Path],
    options: PredictOptions,
    monitor: Monitor | None = None,
) -> PredictPlan:
    """Plan a prediction and measure one tile; see `cegate_geo.api.plan`."""
    monitor = monitor or Monitor()
    wanted = targets_of(output, options).files
    check_outputs(wanted, inputs=local_inputs(scene_path, options, models), overwrite=options.overwrite)
    predictor = load_models(models, session_options(options), stated=options.stated, tile_size=options.tile_size)
    bands = options.bands or predictor.contract.scene_bands
    with (
        gdal_settings(scene_path),
        closing(open_scene(scene_path, predictor.manifest, bands=bands, nodata=options.nodata)) as scene,
    ):
        check_outputs(wanted, inputs=scene.files, overwrite=options.overwrite)
        predictor = as_resumed(predictor, store_path(output), options)
        run = decide(settle(scene, predictor, options), monitor.wait)
        run = _as_kept(run, store_path(output))
        windows = run.windows if options.shard is None else options.shard.of(run.windows)
        streams = [run.view.shard(union(stack)) for stack in stacks(windows)]
        tiles, skipped = sum(map(run.tiles_of, streams)), _outside(run, streams)
        width = max((window.width for window in windows), default=0)
        return PredictPlan(
            scene=scene_path if mosaic_sources(scene_path) is None else scene_label(scene_path),
            outputs=wanted if options.shard is None else [store_path(output)],
            grid=describe_grid(run.view),
            ground=_ground(run),
            model_gsd_m=predictor.manifest.gsd_range_m,
            resampled=run.view.describe(),
            tiles=tiles,
            skipped_tiles=skipped,
            tile_shape=run.plan.tile_shape,
            batch_size=run.form.batch_size,
            shards=len(windows),
            shard_width=width,
            memory_mb=run.needs.needed_mb(width),
            max_memory_mb=options.max_memory_mb or max(DEFAULT_MEMORY_MB, run.needs.needed_mb(width)),
            seconds=_seconds(run, tiles - skipped, monitor.wait),
            provider=run.predictor.computed_on,
            provider_reason=run.predictor.reason,
            model=models_given(run.predictor, models),
        )


def _as_kept(run: Run, path: Path) -> Run:
    """The run with its shards cut as those that an earlier one left; refuses those of another job, like `predict`."""
    if not run.options.resume or not path.is_dir():
        return run
    store, sha256 = ShardStore(path), models_sha256(run.predictor)
    run = fed_as_before(run, store.header)
    for written in store.written.values():
        require_same_job(path, written.header, {"key": job_key(run, sha256)})
    return run if store.header is None else cut_as_before(run, stored_shard_shape(store.header))


def _outside(run: Run, streams: Sequence[Shard]) -> int:
    """Tiles that lie outside the area of interest."""
    area, plan = run.view.needed, run.plan
    if area is None:
        return 0
    regions = [shard.region for shard in streams]
    return sum(
        not area.touches(plan.tile(row, col).support)
        for region in regions
        for row in plan.rows.over(region.row_off, region.row_end)
        for col in plan.cols.over(region.col_off, region.col_end)
    )


def _seconds(run: Run, tiles: int, wait: Callable[[Callable[[], float]], float]) -> float | None:
    """What the model takes for so many tiles, by a batch of copies of one of them."""
    tile = middle_tile(run.view, run.plan, run.form)
    if tile is None:
        return None
    count = max(1, min(run.form.batch_size, tiles))
    batch = np.repeat(tile, count, axis=0)

    def once() -> float:
        started = time.perf_counter()
        run.predictor.run(batch)
        return time.perf_counter() - started

    spent = wait(once)
    if spent < PATIENCE_S:
        spent = min(spent, wait(once))
    return round(spent / count * tiles, 6)


def _ground(run: Run) -> Mapping[str, Any] | None:
    if run.view.ground is None:
        return None
    return describe(run.view.ground if run.view.resampling is None else measure(run.scene.georeference))
