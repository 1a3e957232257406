"""Everything that the steps of an adaptation share, built from its configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cegate_geo import __version__
from cegate_geo.domain.confusion import Metrics
from cegate_geo.errors import ConfigError, InputError
from cegate_geo.peft import Gate, GateConfig, build_gate
from cegate_geo.train.chips import ChipSampler, is_byte, validation_tiles
from cegate_geo.train.config import AdaptConfig, TrainConfig
from cegate_geo.train.ema import Ema
from cegate_geo.train.fingerprint import Seen, seen_tiles, seen_weights
from cegate_geo.train.held_out import HeldOutTiles
from cegate_geo.train.mask2former import Mask2FormerHead
from cegate_geo.train.ranks import Ranks
from cegate_geo.train.raster_input import RasterInput
from cegate_geo.train.run import Run, new_run, shipped_base
from cegate_geo.train.scenes import LabelledScene, open_scenes
from cegate_geo.train.settle_input import read_as, settle_input, styles_as
from cegate_geo.train.splits import Area, apart, split_scenes, whole
from cegate_geo.train.styles import StylePool
from cegate_geo.train.targets import open_targets
from cegate_geo.train.validation import Tile, choose_precision

DATA_STREAM, SCORE_STREAM, STYLE_STREAM = 0, 1, 2
"""Random numbers of chips, of the chips that the gate scores, and of looks: independent for the same seed."""

MOST_READERS = 8
"""Chips that are cut at a time, at most: what holds Python's lock leaves no gain beyond."""


BACKBONE_SHARE = 0.1
"""Learning rate of a patch embedding that is trained beside modules, as a share of theirs: weights that were learned
before bear less than those that begin at zero."""


@dataclass(slots=True, kw_only=True)
class Job:
    """All that the steps share."""

    run: Run
    gate: Gate
    ema: Ema
    optimizer: torch.optim.Optimizer
    sampler: ChipSampler
    tiles: Sequence[Tile]
    """Validation tiles of this process."""
    has_validation: bool
    """Whether any process has tiles."""
    seen: list[Seen]
    """What is learned from, and validated on in any process."""
    device: str
    precision: str
    ranks: Ranks
    """The processes that train together."""
    readers: Executor | None = None
    """Who cuts the chips of a batch, several at a time; None for one after the other."""
    miou: float | None = None
    """Mean IoU of the last validation, since the run was started or resumed."""
    best: float = -1.0
    """Best mean IoU on validation so far."""
    best_step: int = 0
    metrics: Metrics | None = None
    stale: int = 0
    """Validations since the best one."""
    collapsed: list[int] = field(default_factory=list)
    """Steps at whose validation the model said one class everywhere."""
    seconds: float = 0.0
    """Time that the run took before it was resumed."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of `seconds` by what they went into beside the steps: see `timed`."""

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds of the block to `spent`: "waiting" for chips, "scoring" with its chips, "validation"."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + time.perf_counter() - began


def read_areas(config: AdaptConfig) -> tuple[list[LabelledScene], list[Area], list[Area]]:
    """All source scenes, training areas, held-out areas."""
    legend, settings = config.legend, config.train
    scenes = [scene for source in config.source for scene in open_scenes(read_as(config, source), legend)]
    if config.validation:
        held_out = [whole(s) for source in config.validation for s in open_scenes(read_as(config, source), legend)]
        return scenes, [whole(s) for s in scenes], held_out
    if settings.validation == 0:
        return scenes, [whole(s) for s in scenes], []
    training, held_out = split_scenes(
        scenes, fraction=settings.validation, block=settings.crop, buffer=settings.crop // 8, seed=settings.seed
    )
    return scenes, training, held_out


def read_tiles(areas: list[Area], side: int) -> Sequence[Tile]:
    """All labelled pixels of the areas once, in tiles of a side in pixels, without augmentation."""
    return HeldOutTiles(validation_tiles(areas, crop=side))


def make_job(config: AdaptConfig, folder: Path, *, ranks: Ranks, provenance: dict[str, Any] | None) -> Job:
    """Read the data and build the model of a run.

    Args:
        config: What to do.
        folder: Folder of the run, in which the targets are labelled.
        ranks: The processes that train together.
        provenance: Extra facts for the manifest.

    Raises:
        InputError: If the data can't be used.
        ConfigError: If a batch can't be shared between the processes.
    """
    parts = ranks.count * config.train.accumulate
    if config.train.batch_size % parts:
        raise ConfigError(
            f"{ranks.count} processes and accumulate={config.train.accumulate} don't divide "
            f"batch_size={config.train.batch_size}.",
            hint=f"Set train.batch_size to a multiple of {parts}.",
        )
    device = ranks.device
    scenes, training, held_out = read_areas(config)
    targets = open_targets(config, folder, scenes)
    training += apart(targets, held_out, buffer=config.train.crop // 8)
    settings, peft = config.train, config.peft
    sampler = _make_sampler(config, training)
    learned_from = [*scenes, *(area.scene for area in held_out), *targets]
    statistics = sampler.image_statistics()
    taken = settle_input(config, learned_from, (statistics["mean"], statistics["std"]))
    torch.manual_seed(settings.seed)
    run = new_run(folder, config, taken)
    run.segmenter.to(device)
    if settings.checkpointing:
        run.segmenter.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    if torch.device(device).type == "cpu":
        _unfuse_attention(run.segmenter.backbone)
    method = "frozen" if peft.method == "full" else peft.method
    gate = build_gate(run.toolbox, method, _gate_config(config), seed=settings.seed, model=run.segmenter)
    places = validation_tiles(held_out, crop=config.model.tile_size)
    own = ranks.part(len(places))
    tiles = HeldOutTiles([places[n] for n in own])
    run.facts = collect_facts(config, scenes, sampler, taken, provenance)
    return Job(
        run=run,
        gate=gate,
        ema=Ema([*run.trained_parameters(), *run.running_statistics()], decay=settings.ema),
        optimizer=_optimizer(run, settings),
        sampler=sampler,
        tiles=tiles,
        has_validation=bool(places),
        seen=[*sampler.seen(), *seen_tiles(places, own, tiles, ranks), *_frozen_weights(run)],
        device=device,
        ranks=ranks,
        readers=_make_readers(count_readers(device)),
        precision=choose_precision(settings.precision, device),
    )


def _frozen_weights(run: Run) -> list[Seen]:
    """The weights that a state does not hold."""
    weights = run.config.model.weights
    if run.keeps_backbone or not weights:
        return []
    return seen_weights(shipped_base() if weights == "shipped" else Path(weights))


def count_readers(device: str) -> int:
    """How many chips are cut at a time: on a CPU one, as the steps take all of it; for a GPU what its process may use.

    A chip of 512 pixels takes ten milliseconds of one processor and more; steps on a GPU may be shorter.
    """
    if torch.device(device).type == "cpu":
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this training on this machine
    return max(1, min(MOST_READERS, usable // neighbours))


def _make_readers(count: int) -> Executor | None:
    return ThreadPoolExecutor(count, thread_name_prefix="reader") if count > 1 else None


def _make_sampler(config: AdaptConfig, training: Sequence[Area]) -> ChipSampler:
    settings = config.train
    return ChipSampler(
        training,
        crop=settings.crop,
        scale=settings.scale,
        balance=settings.balance,
        classes=len(config.legend),
        photometric=settings.photometric,
        styles=_read_styles(config, training),
        style=settings.style,
    )


def _gate_config(config: AdaptConfig) -> GateConfig:
    peft = config.peft
    return GateConfig(
        budget=peft.share,
        every=peft.every,
        start=peft.start,
        until_step=round(peft.until * config.train.steps),
        normalise=peft.normalise,
        memory=peft.memory,
        quota=peft.quota,
        inactive=peft.inactive,
        gradients="skip",
    )


def _read_styles(config: AdaptConfig, training: Sequence[Area]) -> StylePool | None:
    """The same pool for the same seed; None where there is no [[style]], or it is not used."""
    if not config.style or not config.train.style:
        return None
    other = next((a.scene for a in training if not is_byte(a.scene)), None)
    if other is not None:
        raise ConfigError(
            f"There is a [[style]], but {other.name} holds {other.dtype} in units of {other.scale:g}: looks are put on "
            "8 bits only, in units of 255.",
            hint="Leave [[style]] out, or set train.style = 0.",
        )
    rng = np.random.default_rng([config.train.seed, STYLE_STREAM])
    return StylePool(styles_as(config), side=config.train.crop, rng=rng, method=config.train.style_method)


def _unfuse_attention(vit: torch.nn.Module) -> None:
    """On CPUs torch's fused attention trains a fifth slower than the matrix products that it replaces."""
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def _optimizer(run: Run, settings: TrainConfig) -> torch.optim.Optimizer:
    """AdamW: modules and bands that are new at `lr`, the head at `head_lr`, else the backbone at `backbone_lr`.

    No decay on vectors, scalars, and embeddings of head, modules and backbone.
    """
    head = list(run.segmenter.head.parameters())
    backbone = [p for name, p in run.unfrozen().items() if name not in run.new_bands()]
    elsewhere = {id(p) for p in [*head, *backbone]}
    modules = [p for p in run.trained_parameters() if id(p) not in elsewhere]
    is_full = run.config.peft.method == "full"
    backbone_lr = settings.lr * (1 if is_full else BACKBONE_SHARE)
    backbone_lr = backbone_lr if settings.backbone_lr is None else settings.backbone_lr
    head_lr = settings.lr if settings.head_lr is None else settings.head_lr
    plain = _embeddings(run)
    groups = []
    for parameters, lr in ((modules, settings.lr), (backbone, backbone_lr), (head, head_lr)):
        for decays in (False, True):
            chosen = [p for p in parameters if (p.ndim > 1 and id(p) not in plain) == decays]
            if chosen:
                decay = settings.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999))


def _embeddings(run: Run) -> set[int]:
    """Identities of the parameters that stand for tokens and positions."""
    head = run.segmenter.head
    found = head.embeddings() if isinstance(head, Mask2FormerHead) else []
    found += [p for module in run.toolbox.modules.values() for p in module.embeddings()]
    vit: Any = run.segmenter.backbone
    found += [p for name, p in vit.named_parameters() if name in vit.no_weight_decay()]
    return {id(p) for p in found}


def collect_facts(
    config: AdaptConfig,
    scenes: list[LabelledScene],
    sampler: ChipSampler,
    taken: RasterInput,
    provenance: dict[str, Any] | None,
) -> dict[str, Any]:
    """What the manifest will tell of this run."""
    sizes = [s.gsd_m for s in scenes if s.gsd_m is not None]
    if not sizes:
        raise InputError(
            "No source has a CRS, so the ground size of a pixel is unknown.", hint="Give the rasters a CRS (gdal_edit)."
        )
    low, high = config.train.scale
    return {
        "gsd_m": float(np.exp(np.mean(np.log(sizes)))),
        "gsd_range_m": [min(sizes) * low, max(sizes) * high],
        "bands": list(taken.bands),
        "input": taken.to_json(),
        "version": __version__,
        "sources": [s.name or Path(s.images).name for s in config.source],
        "styles": [Path(s.images).name for s in config.style] if config.train.style else [],
        "pixels": sampler.pixel_counts(),
        "statistics": sampler.image_statistics(),
        **(provenance or {}),
    }
