"""Confusion matrix and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.errors import LabelError


class ClassMetrics(TypedDict):
    """Figures of one class; None where the class occurs neither in truth nor in prediction."""

    id: int
    name: str
    iou: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    pixels: int


class Metrics(TypedDict):
    """What `cegate-geo evaluate --json` prints."""

    miou: float | None
    accuracy: float | None
    per_class: list[ClassMetrics]
    confusion: list[list[int]]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(slots=True)
class ConfusionMatrix:
    """Counts of pixels by true (row) and predicted (column) class, over any number of updates.

    mIoU is the mean over the classes that occur in the truth or in the prediction.
    """

    legend: Legend
    counts: npt.NDArray[np.int64] = field(init=False)
    """(K, K): row = truth, column = prediction, in the legend's order."""

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.legend), len(self.legend)), np.int64)

    def update(
        self,
        truth: npt.NDArray[np.integer],
        prediction: npt.NDArray[np.integer],
        *,
        ignore: int = IGNORE_INDEX,
        prediction_nodata: int | None = 255,
    ) -> None:
        """Add two class maps (H, W) of equal shape. Pixels with truth `ignore` or predicted nodata do not count.

        Raises:
            LabelError: If the shapes differ, or a value is no id of the legend.
        """
        if truth.shape != prediction.shape:
            raise LabelError(f"Truth is {truth.shape}, prediction {prediction.shape}: not the same grid.")
        keep = truth != ignore
        if prediction_nodata is not None:
            keep &= prediction != prediction_nodata
        rows, cols = self._indices(truth[keep], "truth"), self._indices(prediction[keep], "prediction")
        k = len(self.legend)
        self.counts += np.bincount(rows * k + cols, minlength=k * k).reshape(k, k)

    def _indices(self, values: npt.NDArray[np.integer], what: str) -> npt.NDArray[np.int64]:
        ids = np.asarray(self.legend.ids, np.int64)
        order = np.argsort(ids)
        position = np.clip(np.searchsorted(ids[order], values), 0, len(ids) - 1)
        index = order[position]
        if values.size and not np.array_equal(ids[index], values):
            strange = sorted(set(np.unique(values).tolist()) - set(ids.tolist()))
            legend = ", ".join(f"{c.id} = {c.name}" for c in self.legend)
            raise LabelError(
                f"The {what} holds the values {strange[:10]}, which are no class of this legend: {legend}.",
                hint=f"Remap them, or set them to {IGNORE_INDEX} to leave them out.",
            )
        return index.astype(np.int64)

    def metrics(self) -> Metrics:
        """All figures; IoU, F1, precision, recall in 0..1."""
        per_class: list[ClassMetrics] = []
        for n, c in enumerate(self.legend):
            hit, true, said = int(self.counts[n, n]), int(self.counts[n].sum()), int(self.counts[:, n].sum())
            per_class.append(
                {
                    "id": c.id,
                    "name": c.name,
                    "iou": _ratio(hit, true + said - hit),
                    "f1": _ratio(2 * hit, true + said),
                    "precision": _ratio(hit, said),
                    "recall": _ratio(hit, true),
                    "pixels": true,
                }
            )
        ious = [c["iou"] for c in per_class if c["iou"] is not None]
        return {
            "miou": sum(ious) / len(ious) if ious else None,
            "accuracy": _ratio(int(np.trace(self.counts)), int(self.counts.sum())),
            "per_class": per_class,
            "confusion": self.counts.tolist(),
        }
