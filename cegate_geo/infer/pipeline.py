"""The one wiring point of `predict`: scene → feed → session → stitch → shards and scratch rasters, then the finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cegate_geo.domain.windows import Window
from cegate_geo.errors import CancelledError, CegateError, InputError
from cegate_geo.infer import budget
from cegate_geo.infer.assemble import Band
from cegate_geo.infer.atomic import check_outputs, job_folder
from cegate_geo.infer.cluster import Cluster, open_cluster
from cegate_geo.infer.compute import ShardSink, compute_stack
from cegate_geo.infer.delegate import compute_by_workers
from cegate_geo.infer.ensemble import AnyPredictor, load_models, models_given, models_sha256
from cegate_geo.infer.finish import Product, Scratch, Targets, finish, product_result, scratch_rasters
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.job import PredictOptions, PredictResult, checked_output
from cegate_geo.infer.job_header import job_header, stored_batch, stored_provider, stored_shard_shape
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.mosaic import mosaic_sources, open_scene
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.settle import Run, decide, fitted, session_options, settle, stacks, tags, union
from cegate_geo.infer.shard_store import ShardStore, discard, open_store, store_path
from cegate_geo.infer.shares import cut_for
from cegate_geo.infer.tally import Tally


def predict_scene(
    scene_path: str,
    output: Path,
    *,
    models: Sequence[Path],
    options: PredictOptions,
    monitor: Monitor,
    predictor: AnyPredictor | None = None,
    cluster: Cluster | None = None,
) -> PredictResult:
    """Predict one scene into one mask; see `cegate_geo.api.predict`.

    Of several `models` the mean is taken. `predictor` is what they are loaded to and `cluster` the connection to Dask
    workers, where these are there yet.
    """
    started = time.monotonic()
    targets = targets_of(output, options)
    check_outputs(targets.files, inputs=local_inputs(scene_path, options, models), overwrite=options.overwrite)
    predictor = predictor or load_models(
        models,
        session_options(options),
        stated=options.stated,
        tile_size=options.tile_size,
    )
    bands = options.bands or predictor.contract.scene_bands
    with (
        gdal_settings(scene_path),
        closing(open_scene(scene_path, predictor.manifest, bands=bands, nodata=options.nodata)) as scene,
    ):
        check_outputs(targets.files, inputs=scene.files, overwrite=options.overwrite)
        monitor.start(0)  # the first calls of a slow model take long, and say nothing
        run = decide(settle(scene, as_resumed(predictor, store_path(output), options), options), monitor.wait)
        predictor = run.predictor  # lets go of the session that it was compared with
        sha256, given = models_sha256(predictor), models_given(predictor, models)
        with (
            open_workers(options, cluster, monitor) as cluster,
            _store(run, targets, given, sha256, cluster) as (run, store),
        ):
            if options.shard is not None:
                made = _compute_part(run, store, _product(run, targets, sha256), monitor)
            else:
                made = _compute_whole(run, store, _product(run, targets, sha256), monitor, cluster, models)
    return replace(
        made,
        seconds=round(time.monotonic() - started, 3),
        provider=predictor.provider,
        provider_reason=predictor.reason,
        model=given,
        model_sha256=sha256,
    )


def local_inputs(scene_path: str, options: PredictOptions, models: Sequence[Path]) -> list[Path]:
    """The files that a run is given by name."""
    names = [*(mosaic_sources(scene_path) or [scene_path]), (options.aoi or "").partition("|")[0], *map(str, models)]
    return [Path(name) for name in names if name and "://" not in name]


def targets_of(output: Path, options: PredictOptions) -> Targets:
    """Where the results of a run go.

    Raises:
        InputError: If a raster's name does not end in .tif.
    """
    for path in (output, options.confidence, options.probabilities):
        if path is not None:
            checked_output(path)
    return Targets(
        output=output,
        vector=options.vector,
        confidence=options.confidence,
        probabilities=options.probabilities,
        polygons=options.vector_options,
    )


def _product(run: Run, targets: Targets, sha256: str) -> Product:
    return Product(
        legend=run.predictor.manifest.legend,
        view=run.view,
        kinds=run.kinds,
        tags=tags(run, sha256),
        targets=targets,
        memory=budget.allowed(run.options.max_memory_mb, run.predictor.footprint.before),
    )


@contextmanager
def open_workers(options: PredictOptions, cluster: Cluster | None, monitor: Monitor) -> Iterator[Cluster | None]:
    """The connection to Dask workers: the one that is there, or a new one; None where this process computes."""
    place = options.place
    if cluster is not None or place is None:
        yield cluster
        return
    monitor.check()
    with open_cluster(place) as opened:
        yield opened


@contextmanager
def _store(
    run: Run, targets: Targets, model: str, sha256: str, cluster: Cluster | None
) -> Iterator[tuple[Run, ShardStore | None]]:
    """The folder of finished shards, and the run with its shards cut as they are there.

    None where nothing can be kept: a run of one shard, or one that is not to be resumed. Whatever fails, the error says
    what is kept. Dask workers always put shards there.
    """
    options, path = run.options, store_path(targets.output)
    if not options.resume:
        discard(path)
    is_needed = cluster is not None or options.shard is not None or path.exists() or len(run.windows) > 1
    if cluster is None and not (options.resume and is_needed):
        yield run, None
        return
    if cluster is not None and options.shard_rows is None:
        run = cut_for(run, max(cluster.wanted, len(cluster.workers())))
    with open_store(path, part=options.shard) as store:
        run = fed_as_before(run, store.header)
        store.begin(job_header(run, targets, model=model, sha256=sha256))
        if store.header is not None:
            run = cut_as_before(run, stored_shard_shape(store.header))
        try:
            yield run, store
        except BaseException as error:
            if not options.resume:
                store.clear()
            elif isinstance(error, CegateError):
                _say_what_is_kept(error, store, run)
            raise


def as_resumed(predictor: AnyPredictor, path: Path, options: PredictOptions) -> AnyPredictor:
    """The model on what finished shards were computed on, where it is left open what it runs on, and that is here."""
    if options.provider != "auto" or not options.resume or not path.is_dir():
        return predictor
    header = ShardStore(path).header
    return predictor if header is None else predictor.preferring(stored_provider(header))


def fed_as_before(run: Run, header: Mapping[str, Any] | None) -> Run:
    """The run with as many tiles in a call as finished shards were computed with, where nobody asks for a number.

    That number may decide the last bits of a result, and the memory that is given may have decided the number.
    """
    batch_size = None if header is None else stored_batch(header)
    return run if batch_size is None else fitted(run, batch_size=batch_size)


def cut_as_before(run: Run, shard_shape: tuple[int, int]) -> Run:
    """The run with shards of the size that finished ones have.

    Raises:
        InputError: If the memory that this run is given does not suffice for them.
    """
    width, given = min(shard_shape[1], run.region.width), run.options.max_memory_mb
    needed = run.needs.needed_mb(width)
    if given is not None and needed > given and width > run.shard_shape[1]:
        raise InputError(
            f"Finished shards are {width} px wide, which takes about {needed} MB: --max-memory {given}M does not "
            "suffice.",
            hint=f"Go on with --max-memory {needed}M; --no-resume cuts the scene anew.",
        )
    return replace(run, shard_shape=shard_shape)


def _say_what_is_kept(error: CegateError, store: ShardStore, run: Run) -> None:
    kept = store.kept
    if not kept:
        return
    text = (
        f"{kept} of {len(run.windows)} shards are kept in {store.path.name}: the same command goes on from there, "
        "--no-resume starts afresh."
    )
    error.hint = text if isinstance(error, CancelledError) else f"{error.hint} {text}".strip()


def _compute_whole(
    run: Run,
    store: ShardStore | None,
    product: Product,
    monitor: Monitor,
    cluster: Cluster | None,
    models: Sequence[Path],
) -> PredictResult:
    """Compute what is missing, and make the outputs."""
    tally = Tally(product.legend, product.view.ground)
    entries = _finished(store, run.windows, monitor)
    with job_folder(product.targets.output, overwrite=run.options.overwrite) as job:
        with scratch_rasters(job, product) as scratch:
            if store is not None:
                scratch.copy(store, entries, monitor)
            missing = _count_finished(run.windows, entries, tally)
            if cluster is None or store is None:
                tiles, skipped = _compute_missing(run, missing, store, tally, monitor, scratch=scratch)
            else:
                tiles, skipped = compute_by_workers(
                    cluster, run, missing, store, models=models, tally=tally, scratch=scratch, monitor=monitor
                )
        polygons = finish(product, job, tally, monitor)
    if store is not None:
        store.clear()
    monitor.finish()
    made = product_result(product, tally, polygons=polygons)
    return replace(made, tiles=tiles, skipped_tiles=skipped, resumed_shards=len(entries))


def _compute_part(run: Run, store: ShardStore | None, product: Product, monitor: Monitor) -> PredictResult:
    """Compute what is missing of a part, into the folder of shards only."""
    part = run.options.shard
    if store is None or part is None:
        raise CegateError("A part of a job has no folder to go to.", hint="Report this, with the command.")
    windows, tally = part.of(run.windows), Tally(product.legend, product.view.ground)
    entries = _finished(store, windows, monitor)
    tiles, skipped = _compute_missing(run, _count_finished(windows, entries, tally), store, tally, monitor)
    monitor.finish()
    return replace(
        product_result(replace(product, targets=Targets(output=store.path)), tally),
        nodata_pixels=sum(window.area for window in windows) - tally.pixels,
        tiles=tiles,
        skipped_tiles=skipped,
        resumed_shards=len(entries),
        shard=str(part),
    )


def _finished(store: ShardStore | None, windows: tuple[Window, ...], monitor: Monitor) -> list[Entry]:
    """The shards that need not be computed."""
    return [] if store is None else store.finished(windows, check=monitor.check)


def _compute_missing(
    run: Run,
    missing: list[tuple[Window, ...]],
    store: ShardStore | None,
    tally: Tally,
    monitor: Monitor,
    *,
    scratch: Scratch | None = None,
) -> tuple[int, int]:
    """Compute and count the shards that are not finished. Gives the number of tiles, and of those skipped."""
    tiles, skipped = sum(run.tiles_of(run.view.shard(union(stack))) for stack in missing), 0
    monitor.start(tiles)
    for stack in missing:
        with ExitStack() as context:
            takers = [scratch.write] if scratch is not None else []
            sink = None
            if store is not None:
                sink = context.enter_context(closing(ShardSink(stack, run, store, tally)))
                takers.append(sink.write)
            skipped += compute_stack(run, stack, sink or tally, monitor, write=partial(_hand_on, takers))
            if sink is not None:
                sink.finish()
    return tiles, skipped


def _count_finished(windows: tuple[Window, ...], entries: list[Entry], tally: Tally) -> list[tuple[Window, ...]]:
    """Count what is finished; gives what is missing."""
    for entry in entries:
        tally.include_json(entry.tally)
    done = {entry.window for entry in entries}
    return stacks(tuple(window for window in windows if window not in done))


def _hand_on(takers: Sequence[Callable[[Band], None]], band: Band) -> None:
    for take in takers:
        take(band)
