"""The small stable Python surface: `predict`, `predict_many`, `merge`, `plan`, `check` and `describe_model`.

Example:
    >>> from cegate_geo.api import predict
    >>> result = predict("scene.tif", "mask.tif", model="model.onnx")  # doctest: +SKIP
    >>> [(c.name, c.area_m2) for c in result.classes]  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from cegate_geo.domain.contract import StatedContract, TensorForm
from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import ContractWarning, InputError
from cegate_geo.infer.forecast import PredictPlan, forecast
from cegate_geo.infer.job import ClassShare, PredictOptions, PredictResult
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.many import SceneFailure, SceneJob, ScenesResult, predict_scenes
from cegate_geo.infer.merge import MergeOptions, merge_job
from cegate_geo.infer.models import default_model_path, resolve_model
from cegate_geo.infer.mosaic import mosaic_name
from cegate_geo.infer.onnx_header import read_header
from cegate_geo.infer.parts import Part
from cegate_geo.infer.pipeline import predict_scene
from cegate_geo.infer.predictor import SessionOptions
from cegate_geo.infer.progress import Monitor, Progress
from cegate_geo.infer.providers import ProviderName
from cegate_geo.infer.selftest import check_scene
from cegate_geo.infer.tta import TtaMode
from cegate_geo.infer.verdicts import CheckReport

__all__ = [
    "CheckReport",
    "ClassShare",
    "ContractKeywords",
    "ModelInfo",
    "PredictKeywords",
    "PredictPlan",
    "PredictResult",
    "Progress",
    "SceneFailure",
    "SceneJob",
    "ScenesResult",
    "check",
    "default_model_path",
    "describe_model",
    "merge",
    "plan",
    "predict",
    "predict_many",
]


class ContractKeywords(TypedDict, total=False):
    """What is stated of a model that does not say it itself; `domain.contract.StatedContract` says what each means."""

    classes: Sequence[str]
    scale: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]
    gsd_m: float | None
    output_kind: Literal["probabilities", "logits", "class-map"] | None
    threshold: float | None
    head: str
    dtype: Literal["uint8", "uint16", "float32"] | None


class PredictKeywords(ContractKeywords, total=False):
    """Keywords of `predict` beyond scene, output and model; `PredictOptions` says what each means."""

    vector: str | Path | None
    confidence: str | Path | None
    probabilities: str | Path | None
    min_area_m2: float
    simplify_m: float
    vector_classes: Sequence[int | str]
    aoi: str | Path | None
    invert_aoi: bool
    bands: Sequence[int | str]
    nodata: Sequence[float]
    gsd: Literal["source", "model"]
    resample: Literal["auto", "always", "never"]
    tile_size: int | None
    halo: int | None
    stitch: Literal["blend", "crop"]
    batch_size: int | None
    tta: TtaMode
    provider: ProviderName
    require_gpu: bool
    threads: int
    max_memory_mb: int | None
    resume: bool
    shard: str | tuple[int, int] | None
    shard_rows: int | None
    dask: str | None
    workers: int | None
    overwrite: bool
    force: bool


def predict(
    scene: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    model: str | Path | Sequence[str | Path] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    **options: Unpack[PredictKeywords],
) -> PredictResult:
    """Predict the class of every pixel of a scene, of any size, into a georeferenced mask.

    A large scene is computed shard by shard (see `docs/shards.md`). A run that does not come to its end leaves the
    finished ones in the folder `<output>.job`, and the same call goes on from there: the result has the same bytes as
    that of one run. `resume=False` starts afresh and leaves nothing. `shard="2/4"` computes the second of four parts
    into that folder only; `merge` joins them. `dask="local:4"`, or a Dask scheduler's address, lets workers compute the
    shards, to the same bytes; a script of yours needs `if __name__ == "__main__":` for local ones.

    Args:
        scene: Raster that GDAL opens (a file, a VRT, a URL, `s3://`), or a STAC item, whose assets are found by the
            names of the model's bands. A sequence of rasters, folders and patterns is one scene, a mosaic: they have
            to lie on one grid, and where they overlap the first that holds data counts.
        output: GeoTIFF to write. It appears when it is complete, or not at all.
        model: ONNX file, the name of a shipped model, or a file that names an ONNX file: an `.emd` of ArcGIS, a STAC
            item of the MLM extension. None for the shipped demo model. A file that carries no manifest of ours runs by
            what Deepness, GeoDeep or geoai left in it or beside it, or by what `ContractKeywords` state. A sequence of
            models is run in one pass, and the mean of their probabilities taken: they have to agree on classes, bands,
            scaling, tile size and metres per pixel. Their order decides nothing but the colours, which are the first's.
        progress: Called with a `Progress` after each batch, from the calling thread.
        cancel: Asked several times a second; return True to stop.
        **options: See `PredictKeywords`.

    Returns:
        What was made: paths, grid, pixels and square metres of each class. Of a part (`shard`), `output` is the job
        folder, and pixels and areas are those of the part.

    Raises:
        InputError: If scene, options or outputs can't be used, another run works on the same output, or its job folder
            holds shards that other options, another model or another scene gave; nothing has been written then.
        ModelError: If the model can't be used.
        CancelledError: If `cancel` said so.
        RuntimeMissingError: If `dask` is asked for and dask.distributed is not installed.
        CegateError: If anything else failed; no output is left behind, finished shards aside.
    """
    paths, settings = _model_paths(model), PredictOptions(**_as_options(dict(options)))
    monitor = Monitor(progress, cancel)
    return predict_scene(_scene_name(scene), Path(output), models=paths, options=settings, monitor=monitor)


def merge(
    job: str | Path,
    output: str | Path | None = None,
    *,
    vector: str | Path | None = None,
    confidence: str | Path | None = None,
    probabilities: str | Path | None = None,
    min_area_m2: float | None = None,
    simplify_m: float | None = None,
    vector_classes: Sequence[int | str] | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> PredictResult:
    """Join the shards that `predict(..., shard="I/N")` computed: the same bytes as one run.

    The model is not needed, the scene only for its georeference. The job folder goes when the outputs are in place.

    Args:
        job: The job folder, `<output>.job`.
        output: The mask to write. None, here and below, for what the parts were told.
        vector: Polygons to write.
        confidence: Winner's probability to write; the parts must have been asked for it, or for polygons.
        probabilities: All probabilities to write; the parts must have been asked for them.
        min_area_m2: Smaller areas join a neighbour, in polygons only.
        simplify_m: How far outlines of polygons may move.
        vector_classes: Names or ids of the classes that polygons are written of.
        overwrite: Replace outputs that exist.
        progress: Called with a `Progress`, from the calling thread.
        cancel: Asked several times a second; return True to stop.

    Returns:
        What was made, as of one run; its `tiles` are 0.

    Raises:
        InputError: If shards are missing or damaged, with which parts to compute; if the folder is none, somebody works
            in it, or an output can't be used.
        CancelledError: If `cancel` said so; the job folder is as it was.
        CegateError: If anything else failed; likewise.

    Example:
        >>> for part in ("1/2", "2/2"):  # in two processes, on any machines that share the folder
        ...     predict("scene.tif", "mask.tif", model="model.onnx", shard=part)  # doctest: +SKIP
        >>> merge("mask.tif.job").output  # doctest: +SKIP
    """

    def path(given: str | Path | None) -> Path | None:
        return None if given is None else Path(given)

    options = MergeOptions(
        output=path(output),
        vector=path(vector),
        confidence=path(confidence),
        probabilities=path(probabilities),
        min_area_m2=min_area_m2,
        simplify_m=simplify_m,
        vector_classes=None if vector_classes is None else tuple(str(word) for word in vector_classes),
        overwrite=overwrite,
    )
    return merge_job(Path(job), options, monitor=Monitor(progress, cancel))


def predict_many(
    scenes: Sequence[str | Path],
    folder: str | Path,
    *,
    model: str | Path | Sequence[str | Path] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    on_start: Callable[[SceneJob], None] = lambda _: None,
    on_result: Callable[[PredictResult], None] = lambda _: None,
    on_failure: Callable[[SceneFailure], None] = lambda _: None,
    **options: Unpack[PredictKeywords],
) -> ScenesResult:
    """Predict several scenes with the same model, each into `folder`/STEM_mask.tif.

    A scene that fails does not lose the others: look at `failures`, or call `raise_failures`.

    Args:
        scenes: Rasters, as in `predict`; their names have to differ.
        folder: Made if it is missing.
        model: As in `predict`; loaded once.
        progress: As in `predict`, with the fraction of all scenes; tiles are those of the current one.
        cancel: As in `predict`; what is complete by then stays.
        on_start: Called with each scene and its outputs before it is predicted.
        on_result: Called with each result.
        on_failure: Called with each scene that failed.
        **options: As in `predict`; `vector`, `confidence` and `probabilities` are names without folder, which are put
            behind each scene's: "houses.gpkg" gives STEM_houses.gpkg.
    """
    paths, settings = _model_paths(model), PredictOptions(**_as_options(dict(options)))
    return predict_scenes(
        [str(scene) for scene in scenes],
        Path(folder),
        models=paths,
        options=settings,
        progress=progress,
        cancel=cancel,
        on_start=on_start,
        on_result=on_result,
        on_failure=on_failure,
    )


def plan(
    scene: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    model: str | Path | Sequence[str | Path] | None = None,
    cancel: Callable[[], bool] | None = None,
    **options: Unpack[PredictKeywords],
) -> PredictPlan:
    """Say what `predict` would do with the same arguments: grids, tiles, memory, time and outputs. Writes nothing.

    Raises:
        InputError: As `predict` before its first tile.
        ModelError: As `predict`.
    """
    paths, settings = _model_paths(model), PredictOptions(**_as_options(dict(options)))
    return forecast(_scene_name(scene), Path(output), models=paths, options=settings, monitor=Monitor(None, cancel))


def check(
    scene: str | Path,
    *,
    model: str | Path | None = None,
    cancel: Callable[[], bool] | None = None,
    **options: Unpack[PredictKeywords],
) -> CheckReport:
    """Test whether a model, a scene and this machine suit each other, on six tiles of the scene at most.

    Args:
        scene: As in `predict`.
        model: As in `predict`.
        cancel: As in `predict`.
        **options: As in `predict`; those that name outputs are not used.

    Returns:
        A verdict for each test, with what was measured, the limit, and what to do.

    Raises:
        RasterError: If the scene can't be opened.
        ModelError: If the model can't be used at all.
    """
    (path,), settings = _model_paths(model), PredictOptions(**_as_options(dict(options)))
    return check_scene(str(scene), model=path, options=settings, monitor=Monitor(None, cancel))


def _scene_name(scene: str | Path | Sequence[str | Path]) -> str:
    """A scene's name; one for all rasters of a mosaic."""
    return str(scene) if isinstance(scene, str | Path) else mosaic_name(scene)


def _model_paths(model: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """The files of models; the shipped one, with a warning, where none is named.

    Raises:
        InputError: If the sequence is empty.
        ModelError: If there is no such file.
    """
    if isinstance(model, str | Path):
        return (resolve_model(model),)
    if model is not None:
        if not model:
            raise InputError("The list of models is empty.", hint="Name one model at least.")
        return tuple(resolve_model(one) for one in model)
    path = default_model_path()
    warnings.warn(
        f"No model was named: the shipped demo model {path.stem} is used. It suits what its card says and little else.",
        ContractWarning,
        stacklevel=3,
    )
    return (path,)


def _as_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `predict` as `PredictOptions` has them: paths as Path, sequences as tuples."""
    for name in ("vector", "confidence", "probabilities"):
        if keywords.get(name) is not None:
            keywords[name] = Path(keywords[name])
    shard = keywords.get("shard")
    if shard is not None:
        keywords["shard"] = Part.parse(shard) if isinstance(shard, str) else Part(*shard)
    if keywords.get("aoi") is not None:
        keywords["aoi"] = str(keywords["aoi"])
    keywords["bands"] = tuple(str(band) for band in keywords.get("bands", ()))
    keywords["vector_classes"] = tuple(str(word) for word in keywords.get("vector_classes", ()))
    keywords["nodata"] = tuple(float(value) for value in keywords.get("nodata", ()))
    names = [field.name for field in dataclasses.fields(StatedContract)]
    keywords["stated"] = _stated({name: keywords.pop(name) for name in names if name in keywords})
    return keywords


def _stated(keywords: Mapping[str, Any]) -> StatedContract:
    """Keywords as the contract that a user states; None and '' say nothing."""
    given = {name: value for name, value in keywords.items() if value is not None}
    sequences: dict[str, Any] = {
        name: tuple(given[name]) for name in ("classes", "scale", "mean", "std") if name in given
    }
    return StatedContract(**{**given, **sequences})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model file says of itself."""

    path: Path
    """The ONNX file."""
    manifest: Manifest
    sources: Mapping[str, str]
    """Part of the contract → where it was found; empty where all of it stands in the file's own manifest."""
    tensors: TensorForm | None
    """How the graph lays out its tensors; None for our own exports."""
    opset: int
    """Of the standard ONNX operators."""
    ir_version: int
    inputs: tuple[tuple[str, str, tuple[int | str | None, ...]], ...]
    """Name, type, shape of each input."""
    outputs: tuple[tuple[str, str, tuple[int | str | None, ...]], ...]
    """The same of each output."""


def describe_model(path: str | Path, *, tile_size: int | None = None, **stated: Unpack[ContractKeywords]) -> ModelInfo:
    """Read a model file's contract.

    Of a model that carries no manifest, parts that nothing states are assumed, and `sources` says so; `predict` wants
    some of them stated.

    Args:
        path: What `predict` takes for a model.
        tile_size: Side of a tile in pixels, where the graph leaves it free.
        **stated: See `ContractKeywords`.

    Raises:
        ModelError: If it is no usable model.
    """
    predictor = load_predictor(
        resolve_model(path),
        SessionOptions(provider="cpu", threads=1),
        stated=_stated(stated),
        tile_size=tile_size,
        for_use=False,
    )
    header = read_header(predictor.path)
    return ModelInfo(
        path=predictor.path,
        manifest=predictor.manifest,
        sources=predictor.contract.sources,
        tensors=predictor.contract.form,
        opset=header.opset,
        ir_version=header.ir_version,
        inputs=tuple((i.name, i.type, tuple(i.shape)) for i in predictor.session.get_inputs()),
        outputs=tuple((o.name, o.type, tuple(o.shape)) for o in predictor.session.get_outputs()),
    )
