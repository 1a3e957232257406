"""From what a graph of another tool gives to probabilities of each class, over the whole input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import TensorForm
from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import OutputKind
from cegate_geo.errors import ModelError

FloatArray = npt.NDArray[np.float32]


def channels_first(raw: npt.NDArray[Any], form: TensorForm) -> npt.NDArray[Any]:
    """An output (N, C, h, w), whatever its layout."""
    if form.output_layout == "NHW":
        return raw[:, None]
    return raw.transpose(0, 3, 1, 2) if form.output_layout == "NHWC" else raw


def as_probabilities(maps: npt.NDArray[Any], kind: OutputKind, form: TensorForm, legend: Legend) -> FloatArray:
    """Probabilities (N, K, H, W), K classes of the legend.

    H, W are those of the input where the output is stretched over it, else the output's own.

    Args:
        maps: (N, C, h, w), C as `form` says.
        kind: What they mean.
        form: How they lie over the input.
        legend: The model's classes; of a single channel the first is what it does not find.

    Raises:
        ModelError: If class ids are not those of the legend.
    """
    if kind == "class-map":
        return _stretched(_shares(maps[:, 0], legend), form, is_map=True)
    values = _stretched(maps.astype(np.float32), form, is_map=False)
    if values.shape[1] == 1:
        found = sigmoid(values) if kind == "logits" else values
        return np.concatenate([1 - found, found], axis=1)
    return softmax(values) if kind == "logits" else values


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities over axis 1 of (N, K, H, W)."""
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = power / power.sum(axis=1, keepdims=True)
    return result


def sigmoid(logits: FloatArray) -> FloatArray:
    """Probabilities of a class beside its absence; no overflow for any logit."""
    power = np.exp(-np.abs(logits))
    result: FloatArray = np.where(logits >= 0, 1, power) / (1 + power)
    return result.astype(np.float32, copy=False)


def _shares(ids: npt.NDArray[Any], legend: Legend) -> FloatArray:
    """(N, h, w) class ids as (N, K, h, w) of 0 and 1, so that tiles can be blended."""
    shares = np.stack([ids == class_id for class_id in legend.ids], axis=1).astype(np.float32)
    if not shares.any(axis=1).all():
        unknown = sorted({float(value) for value in np.unique(ids)} - set(legend.ids))[:5]
        raise ModelError(
            f"The model gave the class ids {', '.join(f'{value:g}' for value in unknown)}, its contract names "
            f"{', '.join(map(str, legend.ids))}.",
            hint="State all of its classes in order: --classes NAME,NAME.",
        )
    return shares


def _stretched(maps: FloatArray, form: TensorForm, *, is_map: bool) -> FloatArray:
    """Enlarged to the input's size: bilinear, as models with a coarse head are made for; ids by repeating."""
    if form.fit != "stretch":
        return maps
    for axis, size in zip((2, 3), form.input_shape, strict=True):
        maps = _enlarge(maps, axis, size, nearest=is_map)
    return maps


def _enlarge(maps: FloatArray, axis: int, size: int, *, nearest: bool) -> FloatArray:
    """One axis enlarged to `size`; pixels are areas, their centres are what is interpolated between."""
    length = maps.shape[axis]
    if length == size:
        return maps
    centre = (np.arange(size) + 0.5) * (length / size) - 0.5
    if nearest:
        nearest_pixel: FloatArray = np.take(maps, np.arange(size) * length // size, axis=axis)
        return nearest_pixel
    centre = np.clip(centre, 0, length - 1)
    low = np.minimum(centre.astype(np.intp), max(length - 2, 0))
    share = (centre - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(4)])
    first, second = np.take(maps, low, axis=axis), np.take(maps, np.minimum(low + 1, length - 1), axis=axis)
    result: FloatArray = first + (second - first) * share
    return result
