"""The one wiring point of `predict`: scene → feed → session → stitch → writer, a shard at a time, then the finish."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.errors import GeoreferenceWarning, InputError
from cegate_geo.infer import budget
from cegate_geo.infer.assemble import Assembler, Band, Canvas, Restorer
from cegate_geo.infer.atomic import JobFolder, check_outputs, job_folder
from cegate_geo.infer.class_rule import ClassRule
from cegate_geo.infer.feed import Batch, Feed, InputForm, middle_tile
from cegate_geo.infer.job import PredictOptions, PredictResult, checked_output
from cegate_geo.infer.normalisation import Normalisation
from cegate_geo.infer.predictor import Predictor, SessionOptions, file_sha256, load_predictor
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.qml import aux_xml, style_qml
from cegate_geo.infer.reader import Scene
from cegate_geo.infer.remote import remote_settings
from cegate_geo.infer.streams import Prefetch, Worker
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.tiles import TilePlan, column_shards
from cegate_geo.infer.view import Shard, View, settle_view
from cegate_geo.infer.writer import (
    BLOCK_SIZE,
    RasterKind,
    RasterWriter,
    class_raster,
    confidence_raster,
    make_cog,
    probability_raster,
)

SIDECARS = (".aux.xml", ".ovr", ".msk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that is settled before the first pixel is read."""

    options: PredictOptions
    predictor: Predictor
    view: View
    plan: TilePlan
    shards: tuple[Shard, ...]
    form: InputForm

    @property
    def scene(self) -> Scene:
        """What is predicted."""
        return self.view.scene

    @property
    def tiles(self) -> int:
        """Tiles of all shards."""
        rows, cols, regions = self.plan.rows, self.plan.cols, [s.region for s in self.shards]
        return sum(len(rows.over(r.row_off, r.row_end)) * len(cols.over(r.col_off, r.col_end)) for r in regions)


@contextmanager
def gdal_settings(scene_path: str) -> Iterator[None]:
    """GDAL as we need it: a small cache, and what remote scenes take."""
    with rasterio.Env(GDAL_CACHEMAX=budget.CACHE_MB, **remote_settings(scene_path)):
        yield


def predict_scene(
    scene_path: str,
    output: Path,
    *,
    model: Path,
    options: PredictOptions,
    monitor: Monitor,
    predictor: Predictor | None = None,
) -> PredictResult:
    """Predict one scene into one mask; see `cegate_geo.api.predict`. `predictor` is the model, if it is loaded yet."""
    started = time.monotonic()
    rasters = [checked_output(p) for p in (output, options.confidence, options.probabilities) if p is not None]
    wanted = [*rasters, *side_files(output), *([options.vector] if options.vector is not None else [])]
    local = [Path(p) for p in (scene_path, (options.aoi or "").partition("|")[0], str(model)) if p and "://" not in p]
    check_outputs(wanted, inputs=local, overwrite=options.overwrite)
    predictor = predictor or load_predictor(
        model,
        session_options(options),
        stated=options.stated,
        tile_size=options.tile_size,
    )
    bands = options.bands or predictor.contract.scene_bands
    with (
        gdal_settings(scene_path),
        closing(Scene(scene_path, predictor.manifest, bands=bands, nodata=options.nodata)) as scene,
    ):
        check_outputs(wanted, inputs=scene.files, overwrite=options.overwrite)
        run = decide(settle(scene, predictor, options))
        predictor = run.predictor  # lets go of the session that it was compared with
        tally = Tally(predictor.manifest.legend, run.view.ground)
        sha256 = file_sha256(predictor.path)
        with job_folder(output, overwrite=options.overwrite) as job:
            monitor.start(run.tiles)
            skipped = _predict_shards(run, job, tally, monitor, tags=_tags(run, sha256))
            polygons = _finish(run, job, output, tally, monitor)
            if not tally.pixels:
                warnings.warn(
                    "No pixel got a class: all is nodata, or the area of interest holds the centre of no pixel.",
                    GeoreferenceWarning,
                    stacklevel=3,
                )
            monitor.check()
            job.commit()
        monitor.finish()
    return PredictResult(
        output=output,
        grid=_describe_grid(run),
        classes=tally.shares(),
        nodata_pixels=run.view.georeference.shape[0] * run.view.georeference.shape[1] - tally.pixels,
        tiles=run.tiles,
        skipped_tiles=skipped,
        seconds=round(time.monotonic() - started, 3),
        provider=run.predictor.provider,
        provider_reason=run.predictor.reason,
        model=str(model),
        model_sha256=sha256,
        resampled=run.view.describe(),
        vector=options.vector,
        confidence=options.confidence,
        probabilities=options.probabilities,
        polygons=polygons,
    )


def session_options(options: PredictOptions) -> SessionOptions:
    """What of the options is the session's."""
    return SessionOptions(
        provider=options.provider, require_gpu=options.require_gpu, threads=options.threads, tta=options.tta
    )


def settle(scene: Scene, predictor: Predictor, options: PredictOptions) -> Run:
    """Plan grids, tiles and shards; warn of or refuse what does not fit."""
    manifest, legend = predictor.manifest, predictor.manifest.legend
    view = settle_view(scene, manifest, gsd=options.gsd, resample=options.resample_mode, force=options.force)
    if options.vector is not None:
        from cegate_geo.infer.vectorize import check_vector

        check_vector(view.georeference, view.ground, options.min_area_m2)
    halo, size = manifest.halo if options.halo is None else options.halo, options.tile_size or manifest.tile_size
    if 2 * halo >= size:
        raise InputError(f"A halo of {halo} px leaves nothing of tiles of {size} px.", hint="Use a smaller --halo.")
    plan = TilePlan.of_shape(
        view.tile_grid,
        tile_shape=predictor.tile_shape(view.tile_grid, asked=options.tile_size),
        halo=halo,
        stitch=options.stitch,
    )
    region = Window.of_shape(view.output_grid)
    if options.aoi is not None:
        from cegate_geo.infer.aoi import read_area

        area = read_area(options.aoi, view.georeference, invert=options.invert_aoi)
        view, region = replace(view, asked=area), area.bounds or region
    batch_size = predictor.batch or options.batch_size or predictor.default_batch
    needs = budget.estimate(
        plan,
        view,
        classes=len(legend),
        batch_size=batch_size,
        model_bytes=predictor.path.stat().st_size,
        extra_channels=bool(options.confidence or options.vector) + (len(legend) if options.probabilities else 0),
        margin=predictor.margin,
    )
    width = budget.shard_width(needs, options.max_memory_mb, least=min(region.width, BLOCK_SIZE))
    is_unit = manifest.scaling == "unit" and np.issubdtype(predictor.input_type, np.floating)
    shards = column_shards(view.output_grid, max_width=width, align=BLOCK_SIZE, within=region)
    return Run(
        options=options,
        predictor=predictor,
        view=view,
        plan=plan,
        shards=tuple(view.shard(target) for target in shards),
        form=InputForm(
            batch_size=batch_size,
            dtype=predictor.input_type,
            divisor=manifest.input_maximum if is_unit else 1.0,
            normalisation=Normalisation.of(manifest),
            margin=predictor.margin,
        ),
    )


def decide(run: Run) -> Run:
    """The run once a tile of the scene has shown what the model gives, and that its provider can be trusted."""
    predictor = run.predictor
    is_decided, is_proven = predictor.manifest.output != "undecided", predictor.is_proven
    if is_decided and is_proven:
        return run
    tile = middle_tile(run.view, run.plan, run.form)
    if tile is None:
        return run
    if not is_decided:
        predictor = predictor.decided(tile)
    predictor = predictor.proven(tile)
    batch_size = predictor.batch or run.options.batch_size or predictor.default_batch
    return replace(run, predictor=predictor, form=replace(run.form, batch_size=min(run.form.batch_size, batch_size)))


def _predict_shards(run: Run, job: JobFolder, tally: Tally, monitor: Monitor, *, tags: dict[str, str]) -> int:
    """Predict all shards into scratch rasters. Gives the number of skipped tiles."""
    skipped = 0
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(RasterWriter(job.file(f"{name}.tif"), run.view.georeference, kind, tags=tags))
            for name, kind in _kinds(run).items()
        }

        def write(band: Band) -> None:
            for name, writer in writers.items():
                writer.write(band.window, getattr(band, name), valid=band.wanted)

        for shard in run.shards:
            skipped += _predict_shard(run, shard, tally, monitor, write=write)
    return skipped


def _predict_shard(run: Run, shard: Shard, tally: Tally, monitor: Monitor, *, write: Callable[[Band], None]) -> int:
    """Predict one shard: reader, session, stitch and writer at the same time, in four threads."""
    skipped = 0
    feed = Feed(run.view, run.plan, shard, form=run.form)
    with (
        Worker(write, depth=budget.QUEUE_DEPTH, name="write") as writer,
        Worker(_assembler(run, shard, tally, emit=writer.put), depth=budget.QUEUE_DEPTH, name="stitch") as stitcher,
        Prefetch(feed, depth=budget.QUEUE_DEPTH) as batches,
    ):
        for batch in batches:
            monitor.check()
            # One call may take many seconds; nobody who cancels has to wait for it.
            probabilities = monitor.wait(partial(_probabilities, run.predictor, batch))
            stitcher.put((batch, probabilities))
            skipped += batch.skipped
            monitor.advance(run=batch.tiles, skipped=batch.skipped)
    return skipped


def _assembler(
    run: Run, shard: Shard, tally: Tally, *, emit: Callable[[Band], None]
) -> Callable[[tuple[Batch, npt.NDArray[np.float32]]], None]:
    """What makes bands of the outputs from batches."""
    kinds, back = _kinds(run), run.view.back
    canvas = Canvas(
        run.predictor.manifest.legend,
        rule=ClassRule.of(run.predictor.contract),
        tally=tally,
        emit=emit,
        with_confidence="confidence" in kinds,
        with_probabilities="probabilities" in kinds,
    )
    if back is None:
        return Assembler(run.plan, shard.region, canvas=canvas)
    return Restorer(run.plan, shard, back=back, canvas=canvas)


def _probabilities(predictor: Predictor, batch: Batch) -> npt.NDArray[np.float32]:
    if not batch.tiles:
        return np.empty((0, len(predictor.manifest.legend), 0, 0), np.float32)
    return predictor.run(batch.inputs[: batch.tiles])


def _kinds(run: Run) -> dict[str, RasterKind]:
    """Scratch rasters by the name of the band's attribute that fills them."""
    legend, options = run.predictor.manifest.legend, run.options
    kinds = {"classes": class_raster(legend)}
    if options.confidence is not None or options.vector is not None:
        kinds["confidence"] = confidence_raster()
    if options.probabilities is not None:
        kinds["probabilities"] = probability_raster(legend)
    return kinds


def _finish(run: Run, job: JobFolder, output: Path, tally: Tally, monitor: Monitor) -> int | None:
    """Make COGs, side files and polygons in the job folder, and say where they go. The mask goes last."""
    options, polygons = run.options, None
    if options.vector is not None:
        from cegate_geo.infer.vectorize import vectorize

        scratch = job.file("vector" + options.vector.suffix.lower())
        polygons = vectorize(
            job.file("classes.tif"),
            scratch,
            confidence=job.file("confidence.tif"),
            legend=run.predictor.manifest.legend,
            georeference=run.view.georeference,
            ground=run.view.ground,
            min_area_m2=options.min_area_m2,
            check=monitor.check,
        )
        job.publish(scratch, options.vector)
    targets = {"probabilities": options.probabilities, "confidence": options.confidence, "classes": output}
    for name, target in targets.items():
        if target is None:
            continue
        source, cog, kind = job.file(f"{name}.tif"), job.file(f"{name}.cog.tif"), _kinds(run)[name]
        monitor.wait(lambda source=source, cog=cog, kind=kind: make_cog(source, cog, kind))  # type: ignore[misc]
        for suffix in SIDECARS:
            job.remove(target.with_name(target.name + suffix))
        if name == "classes":
            _add_side_files(run, job, output, tally)
        job.publish(cog, target)
    return polygons


def side_files(output: Path) -> tuple[Path, Path]:
    """QGIS' style and GDAL's attribute table of a mask."""
    return output.with_suffix(".qml"), output.with_name(output.name + ".aux.xml")


def _add_side_files(run: Run, job: JobFolder, output: Path, tally: Tally) -> None:
    legend = run.predictor.manifest.legend
    style, table = job.file("mask.qml"), job.file("mask.aux.xml")
    style.write_text(style_qml(legend), encoding="utf-8")
    table.write_text(aux_xml(legend, {share.id: share.pixels for share in tally.shares()}), encoding="utf-8")
    for scratch, target in zip((style, table), side_files(output), strict=True):
        job.publish(scratch, target)


def _tags(run: Run, sha256: str) -> dict[str, str]:
    options, manifest = run.options, run.predictor.manifest
    parameters = {
        "tile": list(run.plan.tile_shape),
        "halo": manifest.halo if options.halo is None else options.halo,
        "stitch": options.stitch,
        **({} if options.tta == "none" else {"tta": options.tta}),
        "computed": run.predictor.way.label,
        "bands": list(run.scene.bands),
        "nodata": list(options.nodata),
        "aoi": None if options.aoi is None else Path(options.aoi).name,
    }
    resampled = run.view.describe()
    return {
        **({"CEGATE_CONTRACT": manifest.to_json()} if run.predictor.contract.form else {}),
        # Nothing where the model saw the scene as it is.
        **({} if resampled is None else {"CEGATE_RESAMPLED": json.dumps(resampled, sort_keys=True)}),
        "CEGATE_VERSION": __version__,
        "CEGATE_MODEL": manifest.name,
        "CEGATE_MODEL_SHA256": sha256,
        "CEGATE_SCENE": Path(run.scene.path).name,
        "CEGATE_PARAMETERS": json.dumps(parameters, sort_keys=True),
        "CEGATE_LEGEND": json.dumps([{"id": c.id, "name": c.name, "color": c.hex} for c in manifest.legend]),
        "CEGATE_ATTRIBUTION": manifest.attribution,
    }


def _describe_grid(run: Run) -> dict[str, Any]:
    reference = run.view.georeference
    crs = None
    if reference.crs:
        authority = reference.crs.to_authority()
        crs = ":".join(authority) if authority else reference.crs.to_wkt()
    return {
        "crs": crs,
        "transform": list(reference.transform)[:6],
        "width": reference.shape[1],
        "height": reference.shape[0],
        "gsd_m": run.view.ground.size().gsd_m if run.view.ground else None,
    }
