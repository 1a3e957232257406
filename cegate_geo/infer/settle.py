"""What a run is: grids, tiles, shards and buffers, all decided before the first pixel is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from cegate_geo import __version__
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer import budget
from cegate_geo.infer.ensemble import AnyPredictor, members_of
from cegate_geo.infer.feed import InputForm, middle_tile
from cegate_geo.infer.job import DEFAULT_MEMORY_MB, PredictOptions
from cegate_geo.infer.mosaic import scene_label
from cegate_geo.infer.normalisation import Normalisation
from cegate_geo.infer.predictor import SessionOptions
from cegate_geo.infer.reader import AnyScene
from cegate_geo.infer.tiles import TilePlan, shard_windows
from cegate_geo.infer.view import Shard, View, settle_view
from cegate_geo.infer.writer import (
    BLOCK_SIZE,
    RasterKind,
    class_raster,
    confidence_raster,
    probability_raster,
)

SHARD_ROWS = 4096
"""Rows of a shard, unless more parts than that gives are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that is settled before the first pixel is read."""

    options: PredictOptions
    predictor: AnyPredictor
    view: View
    plan: TilePlan
    region: Window
    """What is to be predicted, on the outputs' grid."""
    form: InputForm
    shard_shape: tuple[int, int] = (BLOCK_SIZE, BLOCK_SIZE)
    """(height, width) of a shard, at most."""
    needs: budget.Budget = field(default_factory=lambda: budget.Budget(fixed=0, per_column=1))
    """What it takes of memory."""
    area_digest: str | None = None
    """Of the area of interest; None where there is none."""

    @property
    def scene(self) -> AnyScene:
        """What is predicted."""
        return self.view.scene

    @property
    def windows(self) -> tuple[Window, ...]:
        """All shards, on the outputs' grid: column strip by column strip, each from the top down."""
        cut = shard_windows(self.view.output_grid, largest=self.shard_shape, align=BLOCK_SIZE, within=self.region)
        return tuple(cut)

    @property
    def streams(self) -> tuple[Shard, ...]:
        """What is computed in one go each, if all of it is."""
        return tuple(self.view.shard(union(stack)) for stack in stacks(self.windows))

    @property
    def tiles(self) -> int:
        """Tiles of all streams; those that two column strips share count twice."""
        return sum(self.tiles_of(stream) for stream in self.streams)

    def tiles_of(self, shard: Shard) -> int:
        """Tiles that have weight in a shard."""
        rows, cols, region = self.plan.rows, self.plan.cols, shard.region
        return len(rows.over(region.row_off, region.row_end)) * len(cols.over(region.col_off, region.col_end))

    @property
    def kinds(self) -> dict[str, RasterKind]:
        """The rasters that are made, by the name of the band's attribute that fills them."""
        options, layers = self.options, ["classes"]
        if options.confidence is not None or options.vector is not None:
            layers.append("confidence")
        if options.probabilities is not None:
            layers.append("probabilities")
        return raster_kinds(self.predictor.manifest.legend, layers)


def raster_kinds(legend: Legend, layers: Collection[str]) -> dict[str, RasterKind]:
    """The rasters of `layers`, always in the same order."""
    kinds = {
        "classes": class_raster(legend),
        "confidence": confidence_raster(),
        "probabilities": probability_raster(legend),
    }
    return {name: kind for name, kind in kinds.items() if name in layers}


def stacks(windows: tuple[Window, ...]) -> list[tuple[Window, ...]]:
    """Shards, column strip by column strip from the top down, gathered where one follows right below the other.

    They are computed in one go: no tile between them is computed twice.
    """
    found: list[tuple[Window, ...]] = []
    for window in windows:
        above = found[-1][-1] if found else None
        if above is not None and (above.col_off, above.width, above.row_end) == (
            window.col_off,
            window.width,
            window.row_off,
        ):
            found[-1] = (*found[-1], window)
        else:
            found.append((window,))
    return found


def union(stack: tuple[Window, ...]) -> Window:
    """The window of shards that follow one below the other."""
    first, last = stack[0], stack[-1]
    return Window(col_off=first.col_off, row_off=first.row_off, width=first.width, height=last.row_end - first.row_off)


def session_options(options: PredictOptions) -> SessionOptions:
    """What of the options is the session's."""
    return SessionOptions(
        provider=options.provider, require_gpu=options.require_gpu, threads=options.threads, tta=options.tta
    )


def settle(scene: AnyScene, predictor: AnyPredictor, options: PredictOptions) -> Run:
    """Plan grids, tiles and shards; warn of or refuse what does not fit."""
    manifest, legend = predictor.manifest, predictor.manifest.legend
    view = settle_view(scene, manifest, gsd=options.gsd, resample=options.resample_mode, force=options.force)
    if options.vector is not None:
        from cegate_geo.infer.vectorize import check_vector

        check_vector(view.georeference, view.ground, legend, options.vector_options)
    halo, size = manifest.halo if options.halo is None else options.halo, options.tile_size or manifest.tile_size
    if 2 * halo >= size:
        raise InputError(f"A halo of {halo} px leaves nothing of tiles of {size} px.", hint="Use a smaller --halo.")
    plan = TilePlan.of_shape(
        view.tile_grid,
        tile_shape=predictor.tile_shape(view.tile_grid, asked=options.tile_size),
        halo=halo,
        stitch=options.stitch,
    )
    region, digest = Window.of_shape(view.output_grid), None
    if options.aoi is not None:
        from cegate_geo.infer.aoi import read_area

        area = read_area(options.aoi, view.georeference, invert=options.invert_aoi)
        view, region, digest = replace(view, asked=area), area.bounds or region, area.digest()
    is_unit = manifest.scaling == "unit" and np.issubdtype(predictor.input_type, np.floating)
    return fitted(
        Run(
            options=options,
            predictor=predictor,
            view=view,
            plan=plan,
            region=region,
            form=InputForm(
                batch_size=1,
                dtype=predictor.input_type,
                divisor=manifest.input_maximum if is_unit else 1.0,
                normalisation=Normalisation.of(manifest),
                margin=predictor.margin,
            ),
            area_digest=digest,
        )
    )


def fitted(run: Run, *, batch_size: int | None = None) -> Run:
    """The run with batches and shards of sizes that fit into its memory.

    Args:
        run: What is settled otherwise.
        batch_size: Tiles in a call, where that is settled, too.

    Raises:
        InputError: If none do.
    """
    options, predictor, least = run.options, run.predictor, min(run.region.width, BLOCK_SIZE)

    def needs(batch_size: int) -> budget.Budget:
        return budget.estimate(
            run.plan,
            run.view,
            classes=len(predictor.manifest.legend),
            batch_size=batch_size,
            session_bytes=predictor.session_bytes,
            layers=run.kinds.values(),
            margin=predictor.margin,
        )

    given = DEFAULT_MEMORY_MB if options.max_memory_mb is None else options.max_memory_mb
    fixed = predictor.batch or options.batch_size or batch_size
    batch_size = fixed or predictor.default_batch
    while not fixed and batch_size > 1 and needs(batch_size).width_for(given) < least:
        batch_size //= 2
    needed = needs(batch_size)
    width = budget.shard_width(needed, options.max_memory_mb, least=least)
    return replace(
        run,
        shard_shape=_shard_shape(run.region, width, options),
        form=replace(run.form, batch_size=batch_size),
        needs=needed,
    )


def _shard_shape(region: Window, width: int, options: PredictOptions) -> tuple[int, int]:
    """(height, width) of a shard: lower than usual where else there were fewer shards than parts."""
    rows = options.shard_rows or SHARD_ROWS
    if options.shard is not None:
        strips = -(-region.width // max(width, BLOCK_SIZE))
        rows = min(rows, region.height // -(-options.shard.count // strips))
    return max(rows // BLOCK_SIZE, 1) * BLOCK_SIZE, min(width, -(-region.col_end // BLOCK_SIZE) * BLOCK_SIZE)


Wait = Callable[[Callable[[], AnyPredictor]], AnyPredictor]
"""Runs what may take long and can't be interrupted; it may raise to stop."""


def decide(run: Run, wait: Wait = lambda work: work()) -> Run:
    """The run once a tile has shown what the model gives, that its provider can be trusted, and what it takes.

    Args:
        run: What is settled.
        wait: See `Wait`.
    """
    run = proven(run, wait)
    seen = run.form.margin.around(Window.of_shape(run.plan.tile_shape))
    shape = (run.form.batch_size, run.scene.channels, *seen.shape)

    def looked_at() -> AnyPredictor:
        run.predictor.look_at_memory(shape)
        return run.predictor

    return fitted(replace(run, predictor=wait(looked_at)))


def proven(run: Run, wait: Wait = lambda work: work()) -> Run:
    """The run once a tile of the scene has shown what the model gives, and that its provider can be trusted.

    Args:
        run: What is settled.
        wait: See `Wait`.
    """
    predictor = run.predictor
    is_decided, is_proven = predictor.manifest.output != "undecided", predictor.is_proven
    tile = None if is_decided and is_proven else middle_tile(run.view, run.plan, run.form)
    if tile is not None:
        if not is_decided:
            predictor = wait(partial(predictor.decided, tile))
        predictor = wait(partial(predictor.proven, tile))
    return replace(run, predictor=predictor)


def tags(run: Run, sha256: str) -> dict[str, str]:
    """What the outputs say of where they come from."""
    options, manifest, models = run.options, run.predictor.manifest, members_of(run.predictor)
    parameters = {
        "tile": list(run.plan.tile_shape),
        "halo": manifest.halo if options.halo is None else options.halo,
        "stitch": options.stitch,
        **({} if options.tta == "none" else {"tta": options.tta}),
        **({} if len(models) == 1 else {"mean_of": [model.manifest.name for model in models]}),
        "computed": run.predictor.computed_on,
        "bands": list(run.scene.bands),
        "nodata": list(options.nodata),
        "aoi": None if options.aoi is None else Path(options.aoi).name,
    }
    resampled = run.view.describe()
    contracts = [model.manifest.to_json() for model in models if model.contract.form]
    return {
        **({"CEGATE_CONTRACT": "\n".join(contracts)} if contracts else {}),
        # Nothing where the model saw the scene as it is.
        **({} if resampled is None else {"CEGATE_RESAMPLED": json.dumps(resampled, sort_keys=True)}),
        "CEGATE_VERSION": __version__,
        "CEGATE_MODEL": manifest.name,
        "CEGATE_MODEL_SHA256": sha256,
        "CEGATE_SCENE": scene_label(run.scene.path),
        "CEGATE_PARAMETERS": json.dumps(parameters, sort_keys=True),
        "CEGATE_LEGEND": json.dumps([{"id": c.id, "name": c.name, "color": c.hex} for c in manifest.legend]),
        "CEGATE_ATTRIBUTION": manifest.attribution,
    }
