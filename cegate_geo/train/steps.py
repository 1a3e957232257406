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
from cegate_geo.train.mask2former import Mask2FormerHead, QueryPredictions
from cegate_geo.train.query_loss import Amounts, query_loss
from cegate_geo.train.validation import autocast

POINTS = 1
"""Marks the random numbers of a chip that draw the points of a loss, beside those that draw the chip."""

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


def training_loss(
    found: Sequence[torch.Tensor] | QueryPredictions,
    labels: torch.Tensor,
    *,
    amounts: Amounts | None = None,
    seeds: Sequence[int] = (),
) -> torch.Tensor:
    """What a head learns from.

    Args:
        found: As `Segmenter.learn_from` gives it.
        labels: (N, H, W) channel indices; 255 is left out.
        amounts: Those of the whole batch, where this is a part of one; those of `labels` if None.
        seeds: One for each chip, for losses that draw points.

    Returns:
        The mean of the losses of all branches, see `segmentation_loss`; or that of queries, see `query_loss`.
    """
    if isinstance(found, QueryPredictions):
        return query_loss(found, labels, amounts=amounts, seeds=seeds)
    pixels = None if amounts is None else int(amounts.pixels)
    return torch.stack([segmentation_loss(logits, labels, pixels=pixels) for logits in found]).mean()


def losses_of_chips(
    found: Sequence[torch.Tensor] | QueryPredictions, labels: torch.Tensor, *, seeds: Sequence[int] = ()
) -> torch.Tensor:
    """As `training_loss`, of each chip alone: (N,). With queries there may be but one chip."""
    if isinstance(found, QueryPredictions):
        return query_loss(found, labels, seeds=seeds).reshape(len(labels))
    return torch.stack([segmentation_losses(logits, labels) for logits in found]).mean(dim=0)


def read_batch(job: Job, step: int) -> Batch:
    """This process' part of the chips of a step."""
    settings = job.run.config.train
    return _draw(job, [settings.seed, DATA_STREAM, step], settings.batch_size)


def choose_modules(job: Job, step: int) -> dict[str, Any]:
    """Let the gate choose, on chips that only depend on the seed and the step; gives what `gate.jsonl` keeps."""
    config, segmenter = job.run.config, job.run.segmenter
    settings, count = config.train, config.peft.samples
    stream = [settings.seed, SCORE_STREAM, step]
    images, labels = _draw(job, stream, count)
    seeds = _seeds(job, stream, count)

    def losses_of(part: slice) -> torch.Tensor:
        with autocast(job.device, job.precision):
            found = segmenter.learn_from(images[part].to(job.device))
        return losses_of_chips(found, labels[part].to(job.device), seeds=seeds[part])

    # As many chips at a time as a step has in memory. Where it saves memory, one: inputs of all modules are kept.
    is_alone = settings.checkpointing or isinstance(segmenter.head, Mask2FormerHead)
    size = 1 if is_alone else settings.batch_size // settings.accumulate // job.ranks.count
    samples = (slice(n, n + size) for n in range(0, len(images), size))
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
    value = _backward(job, step, batch)
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
    generators = [np.random.default_rng([*stream, n]) for n in job.ranks.part(count)]
    return job.sampler.batch(generators, job.readers)


def _seeds(job: Job, stream: list[int], count: int) -> list[int]:
    """Seeds of what is drawn at random for this process' part of `count` chips beside the chips themselves."""
    return [int(np.random.default_rng([*stream, n, POINTS]).integers(2**62)) for n in job.ranks.part(count)]


def _backward(job: Job, step: int, batch: Batch) -> float:
    """Gradients of this process' part of the mean loss over a batch, in `accumulate` parts; gives the whole loss."""
    settings = job.run.config.train
    amounts = Amounts(*job.ranks.sums(Amounts.of(batch[1])).tolist())
    seeds = _seeds(job, [settings.seed, DATA_STREAM, step], settings.batch_size)
    size = len(batch[0]) // settings.accumulate
    value = 0.0
    for start in range(0, len(batch[0]), size):
        images, labels = (part[start : start + size].to(job.device) for part in batch)
        with autocast(job.device, job.precision):
            found = job.run.segmenter.learn_from(images)
        loss = training_loss(found, labels, amounts=amounts, seeds=seeds[start : start + size])
        loss.backward()
        value += float(loss.detach())
    return float(job.ranks.sums([value])[0])
