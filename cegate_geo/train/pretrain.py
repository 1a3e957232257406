"""`cegate-geo pretrain`: from unlabelled rasters to `backbone.safetensors`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cegate_geo import __version__
from cegate_geo.errors import CancelledError, ConfigError
from cegate_geo.train.backbone import BackboneSpec, load_backbone, normalise, save_backbone
from cegate_geo.train.byte_rasters import UnlabelledSource
from cegate_geo.train.config_file import to_table
from cegate_geo.train.mim import (
    MaskedAutoencoder,
    fix_positions,
    patchify,
    reconstruction_loss,
    unpatchify,
)
from cegate_geo.train.run_files import make_run_folder, write_text
from cegate_geo.train.state import load_state, save_state
from cegate_geo.train.unlabelled import ChipSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainModel:
    """[model]: what to train."""

    backbone: str = "vit_tiny_patch16_224"
    """timm name of a plain ViT."""
    image_size: int = 512
    """Side in pixels that the position embeddings are made for; chips may be smaller."""
    decoder_dim: int = 128
    decoder_depth: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """[train]: how to train."""

    steps: int = 2400
    batch_size: int = 48
    crop: int = 320
    """Side of a chip in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Chips are cut at `crop` times a factor in this range, and resampled to `crop`."""
    mask_ratio: float = 0.75
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    """Share of the steps in which the rate rises from 0."""
    cooldown: float = 0.25
    """Share of the steps at the end in which the rate falls to 0; between the two it is constant, so that a run can be
    lengthened or shortened when it is resumed."""
    precision: str = "bf16"
    """"bf16" or "fp32"."""
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ConfigError(f"train.precision = {self.precision!r} is no choice.", hint="Use bf16 or fp32.")
        if not 0 < self.mask_ratio < 1 or self.steps < 1 or self.batch_size < 1:
            raise ConfigError("train: mask_ratio lies between 0 and 1, steps and batch_size are at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """A whole pre-training."""

    source: tuple[UnlabelledSource, ...]
    model: PretrainModel = field(default_factory=PretrainModel)
    train: PretrainSettings = field(default_factory=PretrainSettings)


Progress = Callable[[int, int, dict[str, float]], None]


def pretrain(
    config: PretrainConfig,
    run: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Train; `run` gets `config.json`, `metrics.jsonl`, `state/`, `reconstructions.png`, `backbone.safetensors`.

    Args:
        config: What to do.
        run: Folder; made if missing.
        resume: Go on from `run/state`.
        device: torch device.
        progress: Called with (steps done, all steps, figures) now and then.
        cancelled: Asked at each step; the state is saved before `CancelledError` is raised.
        provenance: Goes into the file's metadata.

    Returns:
        Path of `backbone.safetensors`.
    """
    settings = config.train
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    encoder, spec = load_backbone(config.model.backbone, "random", image_size=config.model.image_size)
    fix_positions(encoder)
    spec = dataclasses.replace(spec, positions="sincos")
    model = MaskedAutoencoder(
        encoder, decoder_dim=config.model.decoder_dim, decoder_depth=config.model.decoder_depth
    ).to(device)
    optimizer = make_optimizer(model, settings)
    sampler = ChipSampler(config.source, size=settings.crop, scale=settings.scale)
    make_run_folder(run)
    write_text(run / "config.json", json.dumps(to_table(config), indent=2))
    start = load_state(run / "state", modules={"mae": model}, optimizer=optimizer, rng=rng)[0] if resume else 0
    with (run / "metrics.jsonl").open("a" if resume else "w", encoding="utf-8") as log:
        for step in range(start, settings.steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            loss = _step(model, spec, sampler, optimizer, settings, rng, device)
            figures = {"loss": loss, "lr": learning_rate(step, settings), "seconds": time.perf_counter() - began}
            log.write(json.dumps({"step": step, **figures}) + "\n")
            if progress is not None:
                progress(step + 1, settings.steps, figures)
            stop = cancelled is not None and cancelled()
            if (step + 1) % settings.save_every == 0 or stop:
                log.flush()
                save_state(run / "state", step=step + 1, modules={"mae": model}, optimizer=optimizer, rng=rng)
                save_backbone(encoder, spec, run / "backbone.safetensors", provenance={"steps": step + 1})
            if stop:
                raise CancelledError(f"Cancelled after {step + 1} steps.", hint="Go on with --resume.")
    draw_reconstructions(model, spec, sampler.batch(6, rng), settings, run / "reconstructions.png")
    path = run / "backbone.safetensors"
    facts = {"command": "cegate-geo pretrain", "version": __version__, "config": to_table(config)}
    save_backbone(encoder, spec, path, provenance={**facts, **(provenance or {})})
    return path


def make_optimizer(model: torch.nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    """AdamW without weight decay on vectors and scalars."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95))


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, constant, linear cool-down."""
    rise = (step + 1) / max(1, round(settings.warmup * settings.steps))
    fall = (settings.steps - step) / max(1, round(settings.cooldown * settings.steps))
    return settings.lr * min(1.0, rise, fall)


def draw_order(count: int, patches: int, rng: np.random.Generator) -> torch.Tensor:
    """(count, patches) random permutations."""
    return torch.from_numpy(rng.random((count, patches)).argsort(1))


def _step(
    model: MaskedAutoencoder,
    spec: BackboneSpec,
    sampler: ChipSampler,
    optimizer: torch.optim.Optimizer,
    settings: PretrainSettings,
    rng: np.random.Generator,
    device: str,
) -> float:
    images = normalise(sampler.batch(settings.batch_size, rng).to(device), spec)
    patches = (settings.crop // model.patch) ** 2
    visible = round(patches * (1 - settings.mask_ratio))
    order = draw_order(len(images), patches, rng).to(device)
    bf16 = settings.precision == "bf16"
    with torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else contextlib.nullcontext():
        predicted = model(images, order, visible)
    loss = reconstruction_loss(predicted, images, order, visible)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def draw_reconstructions(
    model: MaskedAutoencoder, spec: BackboneSpec, images: torch.Tensor, settings: PretrainSettings, path: Path
) -> None:
    """A picture with three rows: what the encoder saw, what the decoder made of it, the truth."""
    patches = (settings.crop // model.patch) ** 2
    visible = round(patches * (1 - settings.mask_ratio))
    order = draw_order(len(images), patches, np.random.default_rng(0))
    predicted = model.eval().cpu()(normalise(images, spec), order, visible).float()
    truth = patchify(images, model.patch)
    normed = patchify(normalise(images, spec), model.patch)
    full = torch.zeros_like(normed).scatter_(1, order[:, visible:, None].expand_as(predicted), predicted)
    back = full * normed.std(2, keepdim=True) + normed.mean(2, keepdim=True)
    std, mean = torch.tensor(spec.std), torch.tensor(spec.mean)
    shape = (settings.crop, settings.crop)
    shown = torch.zeros(len(images), patches, 1).scatter_(1, order[:, :visible, None], 1.0)
    seen = unpatchify(truth * shown + 0.5 * (1 - shown), model.patch, shape)
    made = unpatchify(back, model.patch, shape) * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)
    made = torch.where(unpatchify(shown.expand_as(truth), model.patch, shape) > 0, images, made)
    rows = [torch.cat(list(row), 2) for row in (seen, made, images)]
    picture = (torch.cat(rows, 1).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(path)
