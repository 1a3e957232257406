"""One step of training, and one choice of the gate: several processes do them together, each with its chips.

Random numbers of a chip depend on the seed, the step and its place in the batch alone: any process, and any number of
readers, draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.errors import CegateError
from cegate_geo.train.config import TrainConfig
from cegate_geo.train.job import DATA_STREAM, SCORE_STREAM, Job
from cegate_geo.train.validation import autocast

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (N, 3, H, W) float32 in 0-1 units, labels (N, H, W) int64."""


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Factor of the learning rates: linear warm-up, then (1 - t) to the power of 0.9."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    return (1 - (step - warmup) / max(1, settings.steps - warmup)) ** 0.9


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, *, pixels: int | None = None) -> torch.Tensor:
    """Mean cross entropy over labelled pixels; 0 where a batch has none.

    Args:
        logits: (N, K, H, W).
        labels: (N, H, W) channel indices; 255 is left out.
        pixels: Labelled pixels of the whole batch, where this is a part of one; those of `labels` if None.
    """
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / max(1, int((labels != IGNORE_INDEX).sum()) if pixels is None else pixels)


def segmentation_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As `segmentation_loss`, of each chip alone: (N,)."""
    found = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none").flatten(1)
    return found.sum(dim=1) / (labels != IGNORE_INDEX).flatten(1).sum(dim=1).clamp(min=1)


def training_loss(branches: Sequence[torch.Tensor], labels: torch.Tensor, *, pixels: int | None = None) -> torch.Tensor:
    """Mean of the losses of all branches of a head; see `segmentation_loss`."""
    losses = [segmentation_loss(logits, labels, pixels=pixels) for logits in branches]
    return torch.stack(losses).mean()


def read_batch(job: Job, step: int) -> Batch:
    """This process' part of the chips of a step."""
    settings = job.run.config.train
    return _draw(job, [settings.seed, DATA_STREAM, step], settings.batch_size)


def choose_modules(job: Job, step: int) -> dict[str, Any]:
    """Let the gate choose, on chips that only depend on the seed and the step; gives what `gate.jsonl` keeps."""
    settings, count = job.run.config.train, job.run.config.peft.samples
    images, labels = _draw(job, [settings.seed, SCORE_STREAM, step], count)

    def losses_of(part: Batch) -> torch.Tensor:
        with autocast(job.device, job.precision):
            branches = job.run.segmenter.branches(part[0].to(job.device))
        return torch.stack([segmentation_losses(logits, part[1].to(job.device)) for logits in branches]).mean(dim=0)

    # As many chips at a time as a step has in memory. Where it saves memory, one: inputs of all modules are kept.
    size = 1 if settings.checkpointing else settings.batch_size // settings.accumulate // job.ranks.count
    samples = ((images[n : n + size], labels[n : n + size]) for n in range(0, len(images), size))
    total = job.ranks.total if job.ranks.count > 1 else None
    return job.gate.rescore(step, samples, losses_of, total=total).to_json()


def take_step(job: Job, step: int, batch: Batch) -> float:
    """Change the weights by one step; gives the loss of the whole batch.

    Raises:
        CegateError: If loss or gradient are no number; the weights are then as they were.
    """
    factor = learning_rate(step, job.run.config.train)
    for group in job.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    job.run.segmenter.train()
    job.optimizer.zero_grad(set_to_none=True)
    value = _backward(job, batch)
    if not math.isfinite(value):
        raise CegateError(
            f"The loss is {value} at step {step}.", hint="Lower train.lr, or set train.precision to fp32."
        )
    job.gate.mask_gradients()
    job.ranks.sum_gradients(job.run.trained_parameters())
    norm = float(torch.nn.utils.clip_grad_norm_(job.run.trained_parameters(), 1.0))
    if not math.isfinite(norm):
        raise CegateError(
            f"The gradient is {norm} at step {step}.", hint="Lower train.lr, or set train.precision to fp32."
        )
    job.optimizer.step()
    job.ranks.average(job.run.running_statistics())
    job.ema.update(step)
    return value


def _draw(job: Job, stream: list[int], count: int) -> Batch:
    """This process' part of `count` chips."""
    return job.sampler.batch([np.random.default_rng([*stream, n]) for n in job.ranks.part(count)])


def _backward(job: Job, batch: Batch) -> float:
    """Gradients of this process' part of the mean loss over a batch, in `accumulate` parts; gives the whole loss."""
    pixels = int(job.ranks.sums([int((batch[1] != IGNORE_INDEX).sum())])[0])
    size = len(batch[0]) // job.run.config.train.accumulate
    value = 0.0
    for images, labels in zip(batch[0].split(size), batch[1].split(size), strict=True):
        with autocast(job.device, job.precision):
            branches = job.run.segmenter.branches(images.to(job.device))
        loss = training_loss(branches, labels.to(job.device), pixels=pixels)
        loss.backward()
        value += float(loss.detach())
    return float(job.ranks.sums([value])[0])
