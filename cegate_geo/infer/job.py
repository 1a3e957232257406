"""What a prediction is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from cegate_geo.domain.contract import StatedContract
from cegate_geo.errors import InputError
from cegate_geo.infer.cluster import Place
from cegate_geo.infer.gsd import GridChoice, ResampleMode
from cegate_geo.infer.parts import Part
from cegate_geo.infer.providers import PROVIDER_NAMES, ProviderName
from cegate_geo.infer.tiles import StitchMode
from cegate_geo.infer.tta import TtaMode

DEFAULT_MEMORY_MB = 512
"""What a run takes at most where nothing is said, unless the model alone takes more."""
VECTOR_FORMATS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf"}


def _require(*checks: tuple[bool, str]) -> None:
    """Refuse the first of (whether it is good, what is wrong with it) that is not good."""
    for good, problem in checks:
        if not good:
            raise InputError(f"Option not usable: {problem}.", hint="See cegate-geo predict --help.")


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorOptions:
    """What is made of a mask's areas before they are written as polygons."""

    classes: tuple[str, ...] = ()
    """Names or ids of those to write; empty for all."""
    min_area_m2: float = 0.0
    """Smaller areas join a neighbour."""
    simplify_m: float = 0.0
    """How far outlines may move: metres, or pixels where nothing says how large those are."""

    def __post_init__(self) -> None:
        _require(
            (0 <= self.min_area_m2 < inf, f"min_area_m2={self.min_area_m2} is negative or endless"),
            (0 <= self.simplify_m < inf, f"simplify_m={self.simplify_m} is negative or endless"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions:
    """Everything that `predict` can be told beyond scene, output and model."""

    vector: Path | None = None
    """GeoPackage or FlatGeobuf for polygons."""
    confidence: Path | None = None
    """GeoTIFF for the winning class' probability."""
    probabilities: Path | None = None
    """GeoTIFF for the probabilities of all classes."""
    min_area_m2: float = 0.0
    """Areas smaller than this take the class of the neighbour with the longest shared edge, in `vector` only."""
    simplify_m: float = 0.0
    """How far the outlines of `vector` may move to have fewer points; neighbours still share their edges. Metres, or
    pixels for a scene that does not say how large they are."""
    vector_classes: tuple[str, ...] = ()
    """Names or ids of the classes that `vector` holds; empty for all."""
    aoi: str | None = None
    """Polygons, 'FILE' or 'FILE|layer': elsewhere nothing is predicted."""
    invert_aoi: bool = False
    bands: tuple[str, ...] = ()
    """Band numbers (from 1) or names, one for each of the model's bands."""
    nodata: tuple[float, ...] = ()
    """Value of unflagged holes, one for all bands or one for each."""
    gsd: GridChoice = "source"
    """Grid of the outputs: the scene's, or the one at the model's GSD, which asks for `resample="always"`."""
    resample: ResampleMode = "auto"
    """When the model sees the scene resampled to its own GSD: where the scene's lies outside of the model's range (but
    never where it is more than 8 times coarser), always, or never. A scene that does not say how large its pixels are
    is never resampled."""
    tile_size: int | None = None
    """Side of a tile in pixels; None for the model's own."""
    halo: int | None = None
    """Context in pixels; None for the model's own."""
    stitch: StitchMode = "blend"
    batch_size: int | None = None
    """Tiles in a session call; None lets the provider decide."""
    tta: TtaMode = "none"
    """Views of each tile whose mean is taken: 4 with "flips", 8 with "d4", at that many times the cost."""
    provider: ProviderName = "auto"
    require_gpu: bool = False
    threads: int = 0
    """Session threads; 0 for all usable cores, in a Dask worker for the threads that it was started with."""
    max_memory_mb: int | None = None
    """Memory that a run takes at most: wide scenes are cut into upright shards until the buffers fit, and what can't
    fit is refused. None for 512 MB, or the least that model and scene take where that is more."""
    resume: bool = True
    """Whether to keep finished shards of a run that does not come to its end, and to go on with those of an earlier
    one. False starts afresh and keeps nothing."""
    shard: Part | None = None
    """The part that is computed, into the job folder only; None for everything."""
    shard_rows: int | None = None
    """Rows of a shard, a multiple of 512 or rounded down to one; None for 4096."""
    dask: str | None = None
    """Who computes the shards: 'local' or 'local:N' for workers on this machine, or a Dask scheduler's address or file.
    None for this process."""
    workers: int | None = None
    """Workers that are started here (None: one a core), or that a scheduler must have before anything begins (None: 1).
    """
    overwrite: bool = False
    force: bool = False
    """Predict although the scene's GSD is far from the model's."""
    stated: StatedContract = field(default_factory=StatedContract)
    """What the user says of a model that does not say it itself."""

    @property
    def place(self) -> Place | None:
        """Where Dask workers are; None where this process computes."""
        return None if self.dask is None else Place.parse(self.dask, self.workers)

    @property
    def vector_options(self) -> VectorOptions:
        """What concerns polygons."""
        return VectorOptions(classes=self.vector_classes, min_area_m2=self.min_area_m2, simplify_m=self.simplify_m)

    @property
    def resample_mode(self) -> ResampleMode:
        """When to resample, with what `gsd` implies."""
        return "always" if self.gsd == "model" else self.resample

    def __post_init__(self) -> None:
        checked_vector(self.vector)
        self.vector_options, self.place  # noqa: B018 - checks them
        _require(
            (self.tile_size is None or self.tile_size > 0, f"tile_size={self.tile_size} is not positive"),
            (self.halo is None or self.halo >= 0, f"halo={self.halo} is negative"),
            (self.batch_size is None or self.batch_size > 0, f"batch_size={self.batch_size} is not positive"),
            (self.threads >= 0, f"threads={self.threads} is negative"),
            (
                self.max_memory_mb is None or self.max_memory_mb >= 64,
                f"max_memory_mb={self.max_memory_mb} is less than 64",
            ),
            (self.shard_rows is None or self.shard_rows > 0, f"shard_rows={self.shard_rows} is not positive"),
            (
                self.resume or self.shard is None,
                "a part of a job goes to the job folder that resume=False does without",
            ),
            (self.dask is not None or self.workers is None, "workers is set, but there is no dask"),
            (
                self.dask is None or self.shard is None,
                "a part of a job is computed by one process, dask computes all parts",
            ),
            (not self.invert_aoi or self.aoi is not None, "invert_aoi is set, but there is no aoi"),
            (
                self.vector is not None or self.vector_options == VectorOptions(),
                "min_area_m2, simplify_m or vector_classes is set, but there is no vector",
            ),
            (self.gsd in ("source", "model"), f"gsd={self.gsd!r} is neither 'source' nor 'model'"),
            (self.resample in ("auto", "always", "never"), f"resample={self.resample!r} is not known"),
            (
                (self.gsd, self.resample) != ("model", "never"),
                "gsd='model' asks for another grid than the scene's, resample='never' forbids it",
            ),
            (self.stitch in ("blend", "crop"), f"stitch={self.stitch!r} is neither 'blend' nor 'crop'"),
            (self.tta in ("none", "flips", "d4"), f"tta={self.tta!r} is not known"),
            (self.provider in PROVIDER_NAMES, f"provider={self.provider!r} is not known"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    """How much of the output one class covers."""

    id: int
    name: str
    color: str
    """'#rrggbb'."""
    pixels: int
    area_m2: float | None
    """On the ellipsoid; None where the scene does not say where it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """What a prediction made."""

    output: Path
    grid: Mapping[str, Any]
    """`crs` (authority code or WKT, or None), `transform` (six numbers), `width`, `height`, `gsd_m`."""
    classes: Sequence[ClassShare]
    nodata_pixels: int
    tiles: int
    """Tiles of the plan; the ones that shards share count once for each."""
    skipped_tiles: int
    """Those of them that were not run: empty, or outside the area of interest."""
    seconds: float
    provider: str
    model: str
    model_sha256: str
    provider_reason: str = ""
    """Why that provider ran, in some words."""
    resampled: Mapping[str, Any] | None = None
    """Where the model saw the scene resampled: `width`, `height`, `x_m` and `y_m` of that grid, and which `grid` the
    outputs lie on, "source" or "model"."""
    vector: Path | None = None
    confidence: Path | None = None
    probabilities: Path | None = None
    polygons: int | None = None
    shard: str | None = None
    """The part that was computed, 'I/N'; `output` is the job folder then, and nothing else was written."""
    resumed_shards: int = 0
    """Shards that an earlier run had finished. `tiles` does not count theirs."""

    def to_json(self) -> dict[str, Any]:
        """The object of the `result` event."""
        paths = {
            k: None if (p := getattr(self, k)) is None else str(p) for k in ("vector", "confidence", "probabilities")
        }
        classes = [
            {"id": c.id, "name": c.name, "color": c.color, "pixels": c.pixels, "area_m2": c.area_m2}
            for c in self.classes
        ]
        counts = ("nodata_pixels", "tiles", "skipped_tiles", "seconds", "polygons")
        names = (*counts, "provider", "provider_reason", "model", "model_sha256")
        more = ("shard", "resumed_shards")
        return {
            "output": str(self.output),
            "grid": dict(self.grid),
            "resampled": None if self.resampled is None else dict(self.resampled),
            "classes": classes,
            **paths,
            **{name: getattr(self, name) for name in (*names, *more)},
        }


def checked_vector(vector: Path | None) -> None:
    """Refuse polygons in an unknown format.

    Raises:
        InputError: If the name ends in none that is known.
    """
    if vector is not None and vector.suffix.lower() not in VECTOR_FORMATS:
        raise InputError(f"{vector.name} has no known vector format.", hint=f"Use one of {', '.join(VECTOR_FORMATS)}.")


def checked_output(output: Path) -> Path:
    """The path of a raster that is to be written.

    Raises:
        InputError: If it is no GeoTIFF by name.
    """
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{output.name} does not end in .tif.", hint="Rasters are written as GeoTIFFs: name it so.")
    return output
