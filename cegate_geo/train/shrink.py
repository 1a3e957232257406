"""The smallest set of modules that loses at most so much on held-out tiles, and the curve that it was chosen from.

Each module is left out alone to see what it is worth; then modules are left out one after the other, the least worth
first, and every set on the way is measured. Merged LoRA is part of the base weights: it costs nothing, and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cegate_geo.errors import InputError
from cegate_geo.peft import ModuleKey, Toolbox
from cegate_geo.train.job import read_areas, read_tiles
from cegate_geo.train.parity import run_eager
from cegate_geo.train.run import Run
from cegate_geo.train.validation import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A set of modules on the curve."""

    kept: tuple[str, ...]
    """Modules in the forward pass, merged LoRA not counted."""
    parameters: int
    """Parameters of these modules."""
    bytes: int
    """What they need in the file, in single precision."""
    seconds: float
    """Time for one tile, in torch on this machine's CPU."""
    miou: float
    """On the held-out tiles."""


@contextmanager
def bypassing(toolbox: Toolbox, kept: Collection[ModuleKey]) -> Iterator[None]:
    """Leave all modules but some out of the forward pass for a while; afterwards all are in it."""
    try:
        for key, module in toolbox.modules.items():
            module.is_bypassed = key not in kept
        yield
    finally:
        for module in toolbox.modules.values():
            module.is_bypassed = False


def measure_point(
    toolbox: Toolbox, kept: Collection[ModuleKey], *, miou: Callable[[], float], seconds: Callable[[], float]
) -> Point:
    """What a set of modules costs and is worth."""
    count = toolbox.count_parameters(kept)
    with bypassing(toolbox, kept):
        return Point(kept=tuple(map(str, kept)), parameters=count, bytes=4 * count, seconds=seconds(), miou=miou())


def shrink(
    toolbox: Toolbox, *, allowed: float, miou: Callable[[], float], seconds: Callable[[], float]
) -> tuple[frozenset[ModuleKey], tuple[Point, ...]]:
    """Find the smallest set whose mean IoU lies at most `allowed` below that of all modules.

    Args:
        toolbox: Modules of one ViT, LoRA merged; all of them in the forward pass again afterwards.
        allowed: Mean IoU that may be lost, 0 to 1.
        miou: Mean IoU of the model as it is now.
        seconds: Time that the model as it is now takes for a tile.

    Returns:
        The keys to keep, and the curve from all modules to none.

    Raises:
        InputError: `allowed` is no share.
    """
    if not 0 <= allowed < 1:
        raise InputError(f"keep = {allowed:g} is no share of mean IoU.", hint="0.01 loses at most one point of 100.")

    def point(kept: Collection[ModuleKey]) -> Point:
        return measure_point(toolbox, kept, miou=miou, seconds=seconds)

    keys = list(toolbox.keys)
    curve = [point(keys)]
    alone = {key: point([other for other in keys if other != key]).miou for key in keys}
    order = sorted(keys, key=lambda key: (-alone[key], -toolbox.count_parameters([key]), key))
    curve += [point(sorted(order[removed:])) for removed in range(1, len(order) + 1)]
    able = [p for p in curve if p.miou >= curve[0].miou - allowed]
    best = min(able, key=lambda p: (p.parameters, -p.miou))
    return frozenset(ModuleKey.parse(name) for name in best.kept), tuple(curve)


def shrink_run(run: Run, allowed: float, sample: torch.Tensor) -> tuple[frozenset[ModuleKey], tuple[Point, ...]]:
    """The smallest set of the run's modules that loses at most `allowed` mean IoU on its held-out tiles."""
    tiles = read_tiles(read_areas(run.config)[2], run.config.model.tile_size)
    if not tiles:
        raise InputError(
            "The run has no held-out tiles, so what a module is worth is unknown.",
            hint="Adapt with train.validation above 0 or [[validation]], or export with keep all or active.",
        )

    def miou() -> float:
        found = validate(run.segmenter, tiles, run.config.legend, device="cpu", precision="fp32").metrics()["miou"]
        return found or 0.0

    return shrink(run.toolbox, allowed=allowed, miou=miou, seconds=lambda: run_eager(run.segmenter, sample[:2])[1])
