"""Opens a model file: finds its weights and its contract, and compares the graph with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cegate_geo.domain.contract import Contract, StatedContract
from cegate_geo.domain.manifest import METADATA_KEY, Manifest
from cegate_geo.errors import ModelError
from cegate_geo.infer.footprint import Footprint
from cegate_geo.infer.foreign.open import find_weights, gather, require_no_options
from cegate_geo.infer.foreign.settle import settle
from cegate_geo.infer.heap import resident_bytes
from cegate_geo.infer.predictor import Predictor, SessionOptions, guarded
from cegate_geo.infer.providers import candidates, onnxruntime_module, open_reference

INPUT_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(uint16)": "uint16"}


def load_predictor(
    path: Path,
    options: SessionOptions | None = None,
    *,
    stated: StatedContract | None = None,
    tile_size: int | None = None,
    for_use: bool = True,
) -> Predictor:
    """Load a model file with its contract.

    Args:
        path: ONNX file; or an `.emd`, a STAC item or a sidecar of geoai that names one.
        options: How it is to run.
        stated: What the user states of a model that carries no manifest.
        tile_size: Side of a tile that the user asks for, in pixels; counts where the graph leaves it free.
        for_use: Refuse what has to be stated before a model without a manifest can run; else only describe it.

    Raises:
        ModelError: If it is no model, or its contract is missing, unreadable or does not fit its graph.
        InputError: If what is stated contradicts the model.
        RuntimeMissingError: If onnxruntime, or the provider that was asked for, is missing.
    """
    options, stated = options or SessionOptions(), stated or StatedContract()
    path, beside = find_weights(path)
    available = onnxruntime_module().get_available_providers()
    footprint = Footprint(before=resident_bytes())
    ways = candidates(options.provider, require_gpu=options.require_gpu, available=available)
    reference = guarded(path, lambda: open_reference(path, threads=options.threads))
    metadata = reference.get_modelmeta().custom_metadata_map
    if METADATA_KEY in metadata:
        require_no_options(path, stated)
        predictor = _checked(path, Manifest.from_json(metadata[METADATA_KEY]), reference)
    else:
        facts, sources = gather(path, metadata, beside, stated)
        settled = settle(path, reference, facts, sources, tile_size=tile_size, for_use=for_use)
        predictor = Predictor(
            path=path,
            contract=settled.contract,
            provider="cpu",
            sides=settled.input.shape,
            batch=settled.input.batch,
            input_type=settled.input.dtype,
            session=reference,
        )
    size = path.stat().st_size
    loaded = dataclasses.replace(predictor, file_bytes=size, options=options, reference=reference, footprint=footprint)
    return loaded.on(ways)


def _checked(path: Path, manifest: Manifest, session: Any) -> Predictor:
    """Compare the graph with its manifest."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    problems = []
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        problems.append(f"its inputs are {[(i.name, i.shape) for i in inputs]}, not one of (N, C, H, W)")
    elif inputs[0].type not in INPUT_TYPES:
        problems.append(f"its input is {inputs[0].type}")
    elif isinstance(inputs[0].shape[1], int) and inputs[0].shape[1] != len(manifest.bands):
        problems.append(f"its input has {inputs[0].shape[1]} channels, the manifest {len(manifest.bands)} bands")
    if len(outputs[0].shape) != 4:
        problems.append(f"its output is {outputs[0].shape}, not (N, K, H, W)")
    elif isinstance(outputs[0].shape[1], int) and outputs[0].shape[1] != len(manifest.legend):
        problems.append(f"its output has {outputs[0].shape[1]} channels, the manifest {len(manifest.legend)} classes")
    if manifest.output == "class-map":
        problems.append("it gives a class map, which can't be blended")
    if problems:
        raise ModelError(
            f"{path.name} can't be used: {'; '.join(problems)}.",
            hint="Export it again with cegate-geo export --profile portable.",
        )
    batch, _, height, width = (size if isinstance(size, int) else None for size in inputs[0].shape)
    return Predictor(
        path=path,
        contract=Contract(manifest=manifest),
        provider="cpu",
        sides=(height, width),
        batch=batch,
        input_type=np.dtype(INPUT_TYPES[inputs[0].type]),
        session=session,
    )
