"""The end of a run: scratch rasters become COGs, side files and polygons, and get their names all together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError, GeoreferenceWarning
from cegate_geo.infer.assemble import Band
from cegate_geo.infer.atomic import JobFolder
from cegate_geo.infer.job import PredictResult, VectorOptions
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.qml import aux_xml, crs_beside, crs_xml, style_qml
from cegate_geo.infer.shard_file import read_shard
from cegate_geo.infer.shard_store import ShardStore
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.view import View
from cegate_geo.infer.writer import RasterKind, RasterWriter, make_cog

SIDECARS = (".aux.xml", ".ovr", ".msk")
COPIED = 2**23
"""Values of finished shards that are in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Where results go; `PredictOptions` says what each is."""

    output: Path
    vector: Path | None = None
    confidence: Path | None = None
    probabilities: Path | None = None
    polygons: VectorOptions = field(default_factory=VectorOptions)
    """What is made of areas before they go to `vector`."""

    @property
    def rasters(self) -> dict[str, Path]:
        """By the scratch raster that each is made of. The mask goes last."""
        named = {"probabilities": self.probabilities, "confidence": self.confidence, "classes": self.output}
        return {name: path for name, path in named.items() if path is not None}

    @property
    def files(self) -> list[Path]:
        """All of them, and what stands beside the mask."""
        return [*self.rasters.values(), *side_files(self.output), *([self.vector] if self.vector is not None else [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What a run makes, whoever computes it."""

    legend: Legend
    view: View
    kinds: Mapping[str, RasterKind]
    """The rasters, by the name of the band's attribute that fills them."""
    tags: Mapping[str, str]
    targets: Targets
    memory: int | None = None
    """Bytes that the process may hold; None for what it takes."""


class Scratch:
    """The rasters of a whole scene, while they are filled."""

    def __init__(self, writers: Mapping[str, RasterWriter]) -> None:
        self._writers = writers

    def write(self, band: Band) -> None:
        """Put a band in its place."""
        for name, writer in self._writers.items():
            writer.write(band.window, getattr(band, name), valid=band.wanted)

    def copy(self, store: ShardStore, entries: Iterable[Entry], monitor: Monitor) -> None:
        """Put finished shards in their places."""
        kinds = {name: writer.kind for name, writer in self._writers.items()}
        for entry in entries:
            if not entry.seal.size:
                continue
            path = store.file(entry.window)
            try:
                for window, layers in read_shard(path, entry.window, kinds, pixels=COPIED):
                    monitor.check()
                    self._put(window, layers)
            except OSError as error:
                raise CegateError(f"{path} can't be read: {error}.", hint="Run the same command again.") from error

    def _put(self, window: Window, layers: Mapping[str, Any]) -> None:
        classes = self._writers["classes"].kind
        valid = layers["classes"][0] != classes.nodata
        if not valid.any():
            return
        for name, writer in self._writers.items():
            writer.write(window, layers[name], valid=valid)


@contextmanager
def scratch_rasters(job: JobFolder, product: Product) -> Iterator[Scratch]:
    """Open the rasters that are filled before they become what was asked for."""
    with ExitStack() as stack:
        writers = {
            name: RasterWriter(job.file(f"{name}.tif"), product.view.georeference, kind, tags=product.tags)
            for name, kind in product.kinds.items()
        }
        for writer in writers.values():
            stack.enter_context(writer)
        yield Scratch(writers)


def finish(product: Product, job: JobFolder, tally: Tally, monitor: Monitor) -> int | None:
    """Make COGs, side files and polygons in the job folder, and give them their names. Gives the number of polygons."""
    targets, polygons = product.targets, None
    steps, done = len(targets.rasters) + (targets.vector is not None), 0
    if targets.vector is not None:
        from cegate_geo.infer.vectorize import vectorize

        scratch = job.file("vector" + targets.vector.suffix.lower())
        polygons = vectorize(
            job.file("classes.tif"),
            scratch,
            confidence=job.file("confidence.tif"),
            legend=product.legend,
            georeference=product.view.georeference,
            ground=product.view.ground,
            options=targets.polygons,
            memory=product.memory,
            check=monitor.check,
        )
        job.publish(scratch, targets.vector)
        done += 1
        monitor.finishing(done / steps)
    for name, target in targets.rasters.items():
        source, cog, kind = job.file(f"{name}.tif"), job.file(f"{name}.cog.tif"), product.kinds[name]
        monitor.wait(lambda source=source, cog=cog, kind=kind: make_cog(source, cog, kind))  # type: ignore[misc]
        for suffix in SIDECARS:
            job.remove(target.with_name(target.name + suffix))
        crs = crs_beside(cog)
        if name == "classes":
            _add_side_files(product, job, tally, crs)
        elif crs is not None:
            side_file = job.file(f"{name}.aux.xml")
            side_file.write_text(crs_xml(crs), encoding="utf-8")
            job.publish(side_file, target.with_name(target.name + ".aux.xml"))
        job.publish(cog, target)
        done += 1
        monitor.finishing(done / steps)
    if not tally.pixels:
        warnings.warn(
            "No pixel got a class: all is nodata, or the area of interest holds the centre of no pixel.",
            GeoreferenceWarning,
            stacklevel=4,
        )
    monitor.check()
    job.commit()
    return polygons


def side_files(output: Path) -> tuple[Path, Path]:
    """QGIS' style and GDAL's attribute table of a mask."""
    return output.with_suffix(".qml"), output.with_name(output.name + ".aux.xml")


def _add_side_files(product: Product, job: JobFolder, tally: Tally, crs: Element | None) -> None:
    legend = product.legend
    style, table = job.file("mask.qml"), job.file("mask.aux.xml")
    style.write_text(style_qml(legend), encoding="utf-8")
    counts = {share.id: share.pixels for share in tally.shares()}
    table.write_text(aux_xml(legend, counts, crs=crs), encoding="utf-8")
    for scratch, target in zip((style, table), side_files(product.targets.output), strict=True):
        job.publish(scratch, target)


def product_result(product: Product, tally: Tally, *, polygons: int | None = None) -> PredictResult:
    """What was made; who ran it, and for how long, is to be filled in."""
    targets, view = product.targets, product.view
    return PredictResult(
        output=targets.output,
        grid=describe_grid(view),
        classes=tally.shares(),
        nodata_pixels=view.output_grid[0] * view.output_grid[1] - tally.pixels,
        tiles=0,
        skipped_tiles=0,
        seconds=0.0,
        provider="",
        model="",
        model_sha256="",
        resampled=view.describe(),
        vector=targets.vector,
        confidence=targets.confidence,
        probabilities=targets.probabilities,
        polygons=polygons,
    )


def describe_grid(view: View) -> dict[str, Any]:
    """The outputs' grid, as `PredictResult.grid` has it."""
    reference = view.georeference
    crs = None
    if reference.crs:
        authority = reference.crs.to_authority()
        crs = ":".join(authority) if authority else reference.crs.to_wkt()
    return {
        "crs": crs,
        "transform": list(reference.transform)[:6],
        "width": reference.shape[1],
        "height": reference.shape[0],
        "gsd_m": view.ground.size().gsd_m if view.ground else None,
    }
