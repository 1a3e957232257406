"""Labels for self-training: a model's own predictions, where it is sure of them. Knows no torch.

A pixel is kept where the winner's probability reaches the class's threshold, and where it is among the surest pixels
of its class: the same share of each. Without that share the easy classes crowd out the others, because a model is
rarely as sure of a roof as of a field; class-balanced self-training (arXiv 1810.07911) was made against this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window as RasterioWindow

from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import ConfigError, InputError
from cegate_geo.infer.atomic import check_outputs, job_folder
from cegate_geo.infer.georeference import Georeference, quiet_about_georeference
from cegate_geo.infer.reader import raster_errors
from cegate_geo.train.class_rasters import require_same_grid
from cegate_geo.train.evaluate import read_legend
from cegate_geo.train.polygons import PixelPolygons, read_polygons
from cegate_geo.train.regions import strips

TAG = "CEGATE_SELF_LABELS"
"""Tag of a label raster that says how it was made, as JSON."""
LEVELS = 256
"""Levels of the confidence raster: 0..255 are probabilities of 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """Which predictions become labels."""

    threshold: float = 0.9
    """Least probability of the winning class."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Class name → its own threshold."""
    share: float = 1.0
    """At most this share of the predicted pixels of each class is kept: the surest. 1 keeps all above the threshold."""

    def __post_init__(self) -> None:
        for name, value in {"threshold": self.threshold, **self.thresholds}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"The threshold {name} = {value} is no probability.", hint="It lies between 0 and 1.")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share = {self.share} is no share.", hint="It is more than 0, and at most 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What `predict --confidence` wrote of a scene, and where its labels go."""

    mask: Path
    confidence: Path
    labels: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptClass:
    """What became of the pixels that were predicted as one class."""

    id: int
    name: str
    predicted: int
    """Pixels, those that are left out not counted."""
    kept: int
    least: float
    """Least probability that was kept."""


def write_self_labels(
    predictions: Sequence[Prediction], rule: KeepRule, *, leave_out: Path | None = None, overwrite: bool = False
) -> list[KeptClass]:
    """Turn predictions into class rasters on their grids; 255 = not labelled.

    Shares are of all predictions together. Reads everything twice, in strips.

    Args:
        predictions: Masks of one model, with the probabilities of their winners.
        rule: What is kept.
        leave_out: Polygons in any CRS; nothing in them is labelled.
        overwrite: Replace label rasters that exist.

    Returns:
        One entry a class of the legend, in its order.

    Raises:
        InputError: If mask and confidence do not belong together, masks have different classes, or outputs can't be
            written; nothing is left behind.
        ConfigError: If the rule names a class that the legend does not have.
    """
    legend = read_legend(predictions[0].mask)
    unknown = set(rule.thresholds) - set(legend.names)
    if unknown:
        raise ConfigError(
            f"There is no class {', '.join(map(repr, sorted(unknown)))}.", hint=f"Use {', '.join(legend.names)}."
        )
    inputs = [path for p in predictions for path in (p.mask, p.confidence)]
    check_outputs([p.labels for p in predictions], inputs=inputs, overwrite=overwrite)
    polygons = None if leave_out is None else read_polygons(leave_out)
    histogram = np.zeros((IGNORE_INDEX + 1, LEVELS), np.int64)
    for prediction in predictions:
        if read_legend(prediction.mask).names != legend.names:
            raise InputError(f"{prediction.mask} has other classes than {predictions[0].mask}.", hint="Use one model.")
        with _open(prediction, polygons) as pair:
            for _, ids, sure in pair.read():
                places = ids.astype(np.int64) * LEVELS + sure
                histogram += np.bincount(places.reshape(-1), minlength=histogram.size).reshape(histogram.shape)
    least = {c.id: _least(histogram[c.id], rule.thresholds.get(c.name, rule.threshold), rule.share) for c in legend}
    kept = [
        KeptClass(
            id=c.id,
            name=c.name,
            predicted=int(histogram[c.id].sum()),
            kept=int(histogram[c.id, least[c.id] :].sum()),
            least=least[c.id] / (LEVELS - 1),
        )
        for c in legend
    ]
    table = np.full(IGNORE_INDEX + 1, LEVELS, np.int64)
    table[list(least)] = list(least.values())
    for prediction in predictions:
        with job_folder(prediction.labels, overwrite=overwrite) as job, _open(prediction, polygons) as pair:
            scratch = job.file("labels.tif")
            _write(scratch, pair, table, legend, rule)
            job.publish(scratch, prediction.labels)
            job.commit()
    return kept


def read_self_labels(labels: Path) -> dict[str, Any] | None:
    """How a label raster was made, as `write_self_labels` tells it; None for labels that are not of this kind."""
    with raster_errors(str(labels)), quiet_about_georeference(), rasterio.open(labels) as dataset:
        text = dataset.tags().get(TAG)
    return None if text is None else dict(json.loads(text))


def _least(levels: npt.NDArray[np.int64], threshold: float, share: float) -> int:
    """The lowest level that is kept: at or above the threshold, and of a share of the pixels only.

    Where more pixels than the share have the highest level that occurs, all of them are kept: nothing tells them apart.
    """
    lowest = math.ceil(threshold * (LEVELS - 1) - 1e-9)
    above = np.cumsum(levels[::-1])[::-1]
    if share < 1 and above[0]:
        fits = int(np.argmax(np.append(above, 0) <= share * above[0]))
        lowest = max(lowest, min(fits, int(np.flatnonzero(levels)[-1])))
    return lowest


class _Pair:
    """An open mask with its confidence."""

    def __init__(self, mask: Any, confidence: Any, name: str, area: PixelPolygons | None) -> None:
        self.mask, self._confidence, self._name, self._area = mask, confidence, name, area
        self.grid = Georeference.read(mask).grid
        self._nodata = IGNORE_INDEX if mask.nodata is None else int(mask.nodata)

    def read(self) -> Iterator[tuple[RasterioWindow, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
        """Window, class ids and confidence of strip after strip; ids are 255 where nothing may be labelled."""
        for strip in strips(self.grid.window):
            area = RasterioWindow(strip.col_off, strip.row_off, strip.width, strip.height)
            with raster_errors(self._name):
                ids, sure = self.mask.read(1, window=area), self._confidence.read(1, window=area)
            ids[ids == self._nodata] = IGNORE_INDEX
            ids[self._left_out(strip)] = IGNORE_INDEX
            yield area, ids, sure

    def _left_out(self, strip: Window) -> npt.NDArray[np.bool_]:
        if self._area is None or self._area.extent is None:
            return np.zeros(strip.shape, np.bool_)
        burned: npt.NDArray[np.bool_] = self._area.burn(strip, fill=0) != 0
        return burned


@contextmanager
def _open(prediction: Prediction, polygons: Any) -> Iterator[_Pair]:
    """Open mask and confidence, and see that they belong together."""
    with ExitStack() as stack:
        stack.enter_context(quiet_about_georeference())
        datasets = []
        for path in (prediction.mask, prediction.confidence):
            with raster_errors(str(path)):
                datasets.append(stack.enter_context(rasterio.open(path)))
            if datasets[-1].count != 1 or datasets[-1].dtypes[0] != "uint8":
                raise InputError(
                    f"{path} has {datasets[-1].count} bands of {datasets[-1].dtypes[0]}; one of uint8 is needed.",
                    hint="Give the mask and the confidence that cegate-geo predict wrote.",
                )
        mask, confidence = datasets
        grid = Georeference.read(mask).grid
        require_same_grid(Georeference.read(confidence).grid, grid, str(prediction.confidence))
        yield _Pair(mask, confidence, str(prediction.mask), None if polygons is None else polygons.on(grid))


def _write(path: Path, pair: _Pair, least: npt.NDArray[np.int64], legend: Legend, rule: KeepRule) -> None:
    mask = pair.mask
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "width": mask.width, "height": mask.height,
        "crs": mask.crs, "transform": mask.transform, "nodata": IGNORE_INDEX,
        "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate",
    }  # fmt: skip
    tags = {k: v for k, v in mask.tags().items() if k in ("CEGATE_MODEL", "CEGATE_MODEL_SHA256", "CEGATE_LEGEND")}
    with raster_errors(str(path)), rasterio.open(path, "w", **profile) as target:
        target.write_colormap(1, {c.id: (*c.color, 255) for c in legend})
        target.update_tags(**tags, **{TAG: json.dumps(asdict(rule), sort_keys=True)})
        for window, ids, sure in pair.read():
            ids[sure < least[ids]] = IGNORE_INDEX
            target.write(ids, 1, window=window)
