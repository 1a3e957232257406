"""Which modules an export keeps where nothing else is said: all of them while they cost little, else the worthiest.

Modules of a large ViT cost next to nothing beside it. Their sizes do not shrink with its width, so that those of a
ViT-Ti cost 7 to 8 % of its time. There, what changes the model's answers least for its cost is left out until the
rest is cheap, and only if held-out tiles of the source show that nothing is lost by it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cegate_geo.errors import InputError, ModulesWarning
from cegate_geo.peft import Kind, ModuleKey, Toolbox
from cegate_geo.train.chips import read_tile, validation_tiles
from cegate_geo.train.job import read_areas
from cegate_geo.train.parity import Probabilities, run_eager
from cegate_geo.train.run import Run
from cegate_geo.train.segmenter import Segmenter
from cegate_geo.train.shrink import Point, bypassing, measure_point
from cegate_geo.train.validation import Tile, validate

AFFORDED = 0.05
"""Share of the frozen model's time that kept modules may cost."""
ALLOWED = 0.002
"""Mean IoU that leaving the others out may cost on held-out tiles."""
HELD_OUT_TILES = 24
"""At most so many held-out tiles are looked at, spread over all: two passes over them."""
WORTH_TILES = 2
"""Tiles on which it is measured what a module changes."""
SLOWNESS: Mapping[Kind, float] = {"semantic": 1.5, "frequency": 2.0}
"""Time of a multiplication by a module's weights beside one of the frozen model: small products are slower than large
ones, and stand between many small steps. Of a ViT-Ti, on the safe side; wider ones lose less (`benchmarks/pruned.py`).
Models with modules of other kinds keep all."""


@torch.no_grad()
def costs(segmenter: Segmenter, toolbox: Toolbox, side: int) -> dict[ModuleKey, float]:
    """What each module costs, as a share of the time of the model without modules.

    Counted, not measured, so that an export does not depend on the machine and what else it does: each weight of a
    module is multiplied once for each token. Merged LoRA costs nothing.

    Args:
        segmenter: On the CPU, in evaluation mode.
        toolbox: Its modules, of the kinds in `SLOWNESS`.
        side: Of a tile in pixels.
    """
    with bypassing(toolbox, []), FlopCounterMode(display=False) as counter:
        segmenter(torch.zeros(1, segmenter.channels, side, side))
    tokens = (side // segmenter.patch) ** 2
    whole = counter.get_total_flops() / 2
    return {key: SLOWNESS[key.kind] * tokens * toolbox.count_parameters([key]) / whole for key in toolbox.keys}


def changes(toolbox: Toolbox, answers: Callable[[], Probabilities]) -> dict[ModuleKey, float]:
    """What leaving each module out alone changes: the mean absolute difference of `answers`."""
    with bypassing(toolbox, toolbox.keys):
        whole = answers()
    found = {}
    for key in toolbox.keys:
        with bypassing(toolbox, [other for other in toolbox.keys if other != key]):
            found[key] = float(np.abs(answers() - whole).mean())
    return found


def choose(worth: Mapping[ModuleKey, float], cost: Mapping[ModuleKey, float], limit: float) -> tuple[ModuleKey, ...]:
    """The modules of the most worth for their cost, while what they cost together stays within a limit.

    Returns:
        Their keys, ordered by key.
    """
    kept: list[ModuleKey] = []
    for key in sorted(worth, key=lambda key: (-worth[key] / cost[key], key)):
        if sum(cost[k] for k in (*kept, key)) <= limit:
            kept.append(key)
    return tuple(sorted(kept))


def afford(
    toolbox: Toolbox,
    *,
    cost: Mapping[ModuleKey, float],
    answers: Callable[[], Probabilities],
    miou: Callable[[], float],
    seconds: Callable[[], float],
) -> tuple[frozenset[ModuleKey], tuple[Point, ...]]:
    """The modules that are worth most within `AFFORDED`, if leaving the others out loses at most `ALLOWED`; else all.

    Args:
        toolbox: Modules of one ViT, LoRA merged; all of them in the forward pass again afterwards.
        cost: See `costs`.
        answers: Probabilities of the model as it is now on some tiles.
        miou: Its mean IoU on held-out tiles.
        seconds: Time that it takes for a tile.

    Returns:
        The keys to keep, and the two sets that were compared: all, and the cheap one.
    """
    cheap = choose(changes(toolbox, answers), cost, AFFORDED)
    curve = tuple(measure_point(toolbox, kept, miou=miou, seconds=seconds) for kept in (toolbox.keys, cheap))
    return frozenset(cheap if curve[1].miou >= curve[0].miou - ALLOWED else toolbox.keys), curve


def afford_run(run: Run, sample: torch.Tensor) -> tuple[frozenset[ModuleKey], tuple[Point, ...]]:
    """The modules of a run to keep: all where they cost little or no held-out tile can judge, else as `afford` says.

    Args:
        run: On the CPU, LoRA merged.
        sample: (N, C, S, S) as the model takes them: tiles to compare answers on.

    Returns:
        The keys to keep, and the two sets that were compared; empty where none were.
    """
    toolbox, side, config = run.toolbox, run.config.model.tile_size, run.config
    everything = frozenset(toolbox.keys)
    if not everything or any(key.kind not in SLOWNESS for key in everything):
        return everything, ()
    cost = costs(run.segmenter, toolbox, side)
    tiles = _held_out(run) if sum(cost.values()) > AFFORDED else []
    if not tiles:
        return everything, ()

    def miou() -> float:
        return validate(run.segmenter, tiles, config.legend, device="cpu", precision="fp32").metrics()["miou"] or 0.0

    return afford(
        toolbox,
        cost=cost,
        answers=lambda: run_eager(run.segmenter, sample[:WORTH_TILES])[0],
        miou=miou,
        seconds=lambda: run_eager(run.segmenter, sample[:1])[1],
    )


def _held_out(run: Run) -> list[Tile]:
    """Held-out tiles, spread over all; none where the run has none, or they can't be read any more."""
    try:
        windows = validation_tiles(read_areas(run.config)[2], crop=run.config.model.tile_size)
        return [read_tile(area, window) for area, window in windows[:: -(-len(windows) // HELD_OUT_TILES) or 1]]
    except (InputError, OSError) as error:
        warnings.warn(
            f"All modules are kept: without held-out tiles nobody knows what can be left out ({error}). --keep all "
            "says so at once.",
            ModulesWarning,
            stacklevel=2,
        )
        return []
