"""The demo where torch is not installed: the shipped model on a made region, and how to get the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio

from cegate_geo.api import default_model_path, describe_model, predict
from cegate_geo.demo.progress import Clock
from cegate_geo.demo.regions import Region, RegionFiles
from cegate_geo.demo.scene import CLASS_NAMES
from cegate_geo.demo.story import Outcome, Story
from cegate_geo.domain.confusion import ConfusionMatrix, Metrics
from cegate_geo.domain.legend import IGNORE_INDEX, Legend

FILES = (
    ("mask.tif", "the classes on the grid of the imagery; open it in any GIS"),
    ("polygons.gpkg", "the same as polygons, with class, area and mean confidence"),
    ("region_a.tif, region_a_labels.gpkg", "the region that was predicted, and its truth"),
    ("region_b.tif, region_b_labels.gpkg", "the region that the whole demo predicts after adapting"),
    ("demo.json", "the figures of this page"),
)
COMMANDS = (
    ("Get the training packages, and run the whole demo:", 'pip install "cegate-geo[cpu,train]"\ncegate-geo demo'),
    (
        "Predict your own scene with the model that is there:",
        "cegate-geo predict scene.tif -o mask.tif --vector polygons.gpkg",
    ),
)


def predict_shipped(folder: Path, region: Region, files: RegionFiles, clock: Clock, *, missing: str) -> Story:
    """Predict a region with the shipped model and measure it on the classes that both know.

    Raises:
        ModelError: If no model is shipped.
    """
    model = default_model_path()
    manifest = describe_model(model).manifest
    with clock.step("predict", f"Predicting {files.scene.name} with the shipped model {model.stem}"):
        result = predict(
            files.scene,
            folder / "mask.tif",
            model=model,
            vector=folder / "polygons.gpkg",
            cancel=clock.cancelled,
            overwrite=True,
        )
    with clock.step("evaluate", "Comparing with the exact truth"):
        with rasterio.open(folder / "mask.tif") as dataset:
            class_map = dataset.read(1)
        truth = shared_truth(region.truth, manifest.legend)
        metrics = _measure(truth, class_map, manifest.legend)
    notes = (
        f"The package {missing} is not installed, so nothing was adapted. What you see is {manifest.name}: "
        f"{manifest.description or 'the shipped demo model'}",
        "This region is drawn by code, and the model was not made for drawings: take the figures as a sign of life.",
    )
    return Story(
        legend=manifest.legend,
        unseen=region if truth is None else replace(region, truth=truth),
        adapted=Outcome(title="Shipped model", class_map=class_map, metrics=metrics),
        model_bytes=model.stat().st_size,
        model_parameters=manifest.parameters,
        polygons=result.polygons,
        timings=tuple(clock.timings),
        files=FILES,
        commands=COMMANDS,
        notes=notes,
    )


def shared_truth(truth: npt.NDArray[np.uint8], legend: Legend) -> npt.NDArray[np.uint8] | None:
    """The demo's truth in the classes of another legend, matched by name; what it does not know is its first class.

    Returns:
        (H, W) ids of `legend`, 255 left as it is; None where no class but the first is known to both.
    """
    ids = {c.name: c.id for c in legend}
    if not set(CLASS_NAMES[1:]) & set(legend.names[1:]) or max(legend.ids) >= IGNORE_INDEX:
        return None
    table = np.full(IGNORE_INDEX + 1, IGNORE_INDEX, np.uint8)
    table[: len(CLASS_NAMES)] = [ids.get(name, legend.ids[0]) for name in CLASS_NAMES]
    return np.asarray(table[truth])


def _measure(truth: npt.NDArray[np.uint8] | None, class_map: npt.NDArray[np.integer], legend: Legend) -> Metrics | None:
    if truth is None:
        return None
    matrix = ConfusionMatrix(legend)
    matrix.update(truth, class_map)
    return matrix.metrics()
