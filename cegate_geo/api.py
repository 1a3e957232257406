"""The small stable Python surface: `predict` and `describe_model`.

Example:
    >>> from cegate_geo.api import predict
    >>> result = predict("scene.tif", "mask.tif", model="model.onnx")  # doctest: +SKIP
    >>> [(c.name, c.area_m2) for c in result.classes]  # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import ContractWarning
from cegate_geo.infer.job import ClassShare, PredictOptions, PredictResult
from cegate_geo.infer.models import default_model_path, resolve_model
from cegate_geo.infer.onnx_header import read_header
from cegate_geo.infer.pipeline import predict_scene
from cegate_geo.infer.predictor import SessionOptions, load_predictor
from cegate_geo.infer.progress import Monitor, Progress

__all__ = [
    "ClassShare",
    "ModelInfo",
    "PredictKeywords",
    "PredictResult",
    "Progress",
    "default_model_path",
    "describe_model",
    "predict",
]


class PredictKeywords(TypedDict, total=False):
    """Keywords of `predict` beyond scene, output and model; `PredictOptions` says what each means."""

    vector: str | Path | None
    confidence: str | Path | None
    probabilities: str | Path | None
    min_area_m2: float
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
    provider: Literal["auto", "cpu", "cuda"]
    require_gpu: bool
    threads: int
    max_memory_mb: int
    overwrite: bool
    force: bool


def predict(
    scene: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    **options: Unpack[PredictKeywords],
) -> PredictResult:
    """Predict the class of every pixel of a scene, of any size, into a georeferenced mask.

    Args:
        scene: Raster that GDAL opens: a file, a VRT, a URL.
        output: GeoTIFF to write. It appears when it is complete, or not at all.
        model: ONNX file with a manifest, or the name of a shipped model; None for the shipped demo model.
        progress: Called with a `Progress` after each batch, from the calling thread.
        cancel: Asked several times a second; return True to stop.
        **options: See `PredictKeywords`.

    Returns:
        What was made: paths, grid, pixels and square metres of each class.

    Raises:
        InputError: If scene, options or outputs can't be used; nothing has been written then.
        ModelError: If the model can't be used.
        CancelledError: If `cancel` said so.
        CegateError: If anything else failed; no output is left behind.
    """
    path = resolve_model(model) if model is not None else default_model_path()
    if model is None:
        warnings.warn(
            f"No model was named: the shipped demo model {path.stem} is used. It suits what its card says and little "
            "else.",
            ContractWarning,
            stacklevel=2,
        )
    settings = PredictOptions(**_as_options(dict(options)))
    return predict_scene(str(scene), Path(output), model=path, options=settings, monitor=Monitor(progress, cancel))


def _as_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `predict` as `PredictOptions` has them: paths as Path, sequences as tuples."""
    for name in ("vector", "confidence", "probabilities"):
        if keywords.get(name) is not None:
            keywords[name] = Path(keywords[name])
    if keywords.get("aoi") is not None:
        keywords["aoi"] = str(keywords["aoi"])
    keywords["bands"] = tuple(str(band) for band in keywords.get("bands", ()))
    keywords["nodata"] = tuple(float(value) for value in keywords.get("nodata", ()))
    return keywords


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model file says of itself."""

    path: Path
    manifest: Manifest
    opset: int
    """Of the standard ONNX operators."""
    ir_version: int
    inputs: tuple[tuple[str, str, tuple[int | str | None, ...]], ...]
    """Name, type, shape of each input."""
    outputs: tuple[tuple[str, str, tuple[int | str | None, ...]], ...]
    """The same of each output."""


def describe_model(path: str | Path) -> ModelInfo:
    """Read a model file's contract.

    Args:
        path: ONNX file, or the name of a shipped model.

    Raises:
        ModelError: If it is no usable model.
    """
    file = resolve_model(path)
    predictor = load_predictor(file, SessionOptions(provider="cpu", threads=1))
    header = read_header(file)
    return ModelInfo(
        path=file,
        manifest=predictor.manifest,
        opset=header.opset,
        ir_version=header.ir_version,
        inputs=tuple((i.name, i.type, tuple(i.shape)) for i in predictor.session.get_inputs()),
        outputs=tuple((o.name, o.type, tuple(o.shape)) for o in predictor.session.get_outputs()),
    )
