"""How the graph of another tool lays out its tensors: read from its shapes, and from one run on zeros."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Fit, Layout, TensorForm
from cegate_geo.errors import ContractWarning, ModelError
from cegate_geo.infer.foreign.facts import Facts

INPUT_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16",
}  # fmt: skip
DEFAULT_SIDE = 512
"""Of a tile, where the graph takes any and nothing says which it was made for."""
LARGEST_STRIDE = 32
"""Input pixels for one output pixel: beyond, an output is no map of classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInput:
    """What a graph is fed with."""

    name: str
    dtype: np.dtype[np.generic]
    layout: Layout
    batch: int | None
    """None where it is free."""
    channels: int | None
    """None where nothing says it."""
    shape: tuple[int, int]
    """(height, width) of a tile."""
    is_free: tuple[bool, bool]
    """Whether the graph would take another height, another width."""

    def zeros(self, channels: int) -> npt.NDArray[np.generic]:
        """An input of this form."""
        batch, (height, width) = self.batch or 1, self.shape
        sides = (height, width, channels) if self.layout == "NHWC" else (channels, height, width)
        return np.zeros((batch, *sides), self.dtype)


def read_input(path: Path, session: Any, facts: Facts, *, tile_size: int | None) -> GraphInput:
    """The one input of a graph.

    Raises:
        ModelError: If it has several, or one that is no stack of rasters.
    """
    inputs = session.get_inputs()
    described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in INPUT_TYPES:
        raise ModelError(
            f"{path.name} can't be fed with rasters: its inputs are {described}.",
            hint="Export it with one input (batch, bands, height, width) of floats, uint8 or uint16.",
        )
    sizes = [size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape]
    layout = facts.get("input_layout") or _input_layout(sizes)
    batch, channels, height, width = (sizes[layout.index(axis)] for axis in "NCHW")
    asked = (tile_size, tile_size) if tile_size else facts.get("tile_shape", (DEFAULT_SIDE, DEFAULT_SIDE))
    return GraphInput(
        name=inputs[0].name,
        dtype=np.dtype(INPUT_TYPES[inputs[0].type]),
        layout=layout,
        batch=batch,
        channels=channels,
        shape=(height or asked[0], width or asked[1]),
        is_free=(height is None, width is None),
    )


def _input_layout(sizes: list[int | None]) -> Layout:
    """Channels are fewer than pixels along a side; where the shape leaves it open they come first."""
    _, first, _, last = sizes
    if last is None or (first is not None and first <= last):
        return "NCHW"
    return "NHWC" if first is not None or last <= LARGEST_STRIDE else "NCHW"


def read_form(path: Path, session: Any, given: GraphInput, facts: Facts, *, bands: int) -> tuple[TensorForm, str]:
    """The form of the tensors, and the type of the output's numbers.

    Raises:
        ModelError: If no output is a map over the input.
    """
    head = _choose_head(path, session, facts)
    try:
        (raw,) = session.run([head], {given.name: given.zeros(bands)})
    except Exception as error:  # onnxruntime's exceptions share no base class
        sides = " x ".join(map(str, given.shape))
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ModelError(
            f"{path.name} failed on {bands} bands of {sides} px: {lines[0].rstrip('.')}.",
            hint="Its sides are free: name one that it takes with --tile-size."
            if any(given.is_free)
            else "Export it again.",
        ) from error
    raw = np.asarray(raw)
    layout, fit = _lie(path, head, raw.shape, given, facts)
    shape = tuple(raw.shape[layout.index(axis)] for axis in "HW")
    form = TensorForm(
        input_layout=given.layout,
        input_shape=given.shape,
        output=head,
        output_layout=layout,
        output_shape=(shape[0], shape[1]),
        channels=raw.shape[layout.index("C")] if "C" in layout else 1,
        fit=fit,
    )
    return form, raw.dtype.name


def _choose_head(path: Path, session: Any, facts: Facts) -> str:
    outputs = {o.name: o.shape for o in session.get_outputs()}
    listed = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
    head = facts.get("head", "")
    if head in outputs:
        return head
    if head:
        raise ModelError(f"{path.name} has no output {head!r}, only {listed}.", hint="Name one of them with --head.")
    first = next((name for name, shape in outputs.items() if len(shape or ()) in (0, 3, 4)), next(iter(outputs)))
    if len(outputs) > 1:
        warnings.warn(
            f"{path.name} has {len(outputs)} outputs: {listed}. {first} is used; --head chooses another.",
            ContractWarning,
            stacklevel=2,
        )
    return str(first)


def _lie(path: Path, head: str, shape: tuple[int, ...], given: GraphInput, facts: Facts) -> tuple[Layout, Fit]:
    """Which axes of an output are height and width, and how it lies over the input."""
    candidates: tuple[Layout, ...] = {3: ("NHW",), 4: ("NCHW", "NHWC")}.get(len(shape), ())  # type: ignore[assignment]
    if given.layout == "NHWC":
        candidates = tuple(reversed(candidates))
    for layout in candidates:
        height, width = (shape[layout.index(axis)] for axis in "HW")
        fit = _fit((height, width), given.shape, facts)
        if fit is not None and shape[0] == (given.batch or 1):
            return layout, fit
    sides = " x ".join(map(str, given.shape))
    raise ModelError(
        f"{path.name} gives no map of classes: for a tile of {sides} px its output {head} has the shape {list(shape)}.",
        hint="Detectors, classifiers of whole tiles and models that enlarge can't run; --head names another output.",
    )


def _fit(output: tuple[int, int], given: tuple[int, int], facts: Facts) -> Fit | None:
    """How an output of one size lies over an input of another; None where it can't be a map of it."""
    if output == given:
        return "same"
    (out_h, out_w), (in_h, in_w) = output, given
    strides = in_h / out_h, in_w / out_w
    if not all(1 <= stride <= LARGEST_STRIDE for stride in strides):
        return None
    is_whole = out_h * in_w == in_h * out_w
    is_centre = in_h - out_h == in_w - out_w
    if not is_whole and not is_centre:
        return None
    stated = facts.get("fit")
    if stated == "stretch" and is_whole:
        return "stretch"
    if stated == "centre" and is_centre:
        return "centre"
    return "stretch" if is_whole and strides[0].is_integer() else "centre" if is_centre else "stretch"
