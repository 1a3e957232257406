"""`cegate-geo adapt`: the one place that knows all stages of training.

Labelled areas → chips → steps with a gate that chooses the modules → validation on held-out blocks of the source, by
which the weights are chosen that are kept. Random numbers of a step depend on the seed and the step alone, so that a
resumed run sees the chips that an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from cegate_geo.domain.confusion import Metrics
from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.errors import CancelledError, CegateError, CollapseWarning, InputError
from cegate_geo.train.config import AdaptConfig, TrainConfig
from cegate_geo.train.config_file import to_table
from cegate_geo.train.job import DATA_STREAM, SCORE_STREAM, Job, make_job
from cegate_geo.train.run import load_weights
from cegate_geo.train.run_files import make_run_folder, write_text
from cegate_geo.train.state import load_state, save_state
from cegate_geo.train.validation import autocast, save_pictures, validate

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (N, 3, H, W) float32 in 0-1 units, labels (N, H, W) int64."""

PICTURES = 6
"""Validation tiles that are drawn for the report."""

CONFIG = "config.json"
COLLAPSE_AFTER = 100
"""Steps before which a model that says one class everywhere has only not begun to learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptProgress:
    """Where a run stands."""

    step: int
    """Steps done."""
    steps: int
    loss: float
    miou: float | None
    """Last mean IoU on validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptResult:
    """What a run came to."""

    folder: Path
    metrics: Metrics | None
    """On validation, of the weights that were kept; None without validation."""
    best_step: int
    seconds: float


Progress = Callable[[AdaptProgress], None]


def adapt(
    config: AdaptConfig,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    provenance: dict[str, Any] | None = None,
) -> AdaptResult:
    """Train, and leave `config.json`, `metrics.jsonl`, `gate.jsonl`, `state/`, `adapter.safetensors`, `result.json`.

    Args:
        config: What to do.
        folder: Folder of the run; made if missing.
        resume: Go on from `folder/state`.
        device: torch device, or "auto".
        progress: Called after each step.
        cancelled: Asked after each step; the state is saved before `CancelledError` is raised.
        provenance: Goes into the exported manifest (command, commit, terms of the data).

    Returns:
        Figures on validation, and where the run lies.

    Raises:
        InputError: If the folder holds another run, or the data can't be used.
        CegateError: If the loss is no number any more.
    """
    began = time.perf_counter()
    _claim(folder, config, resume=resume)
    job = make_job(config, folder, device=device, provenance=provenance)
    make_run_folder(folder)
    start = _resume(job) if resume else 0
    if not resume:
        write_text(folder / CONFIG, _as_text(config))
    with _open_log(folder / "metrics.jsonl", start) as log, _open_log(folder / "gate.jsonl", start) as choices:
        for step, batch in _batches(job, start):
            if _is_stale(job):
                break
            if job.gate.due(step):
                choices.write(json.dumps(_choose(job, step)) + "\n")
            loss = _step(job, step, batch)
            log.write(json.dumps({"step": step, "loss": loss, "lr": learning_rate(step, config.train)}) + "\n")
            _after_step(job, step, log, began)
            if progress is not None:
                progress(AdaptProgress(step=step + 1, steps=config.train.steps, loss=loss, miou=job.miou))
            if cancelled is not None and cancelled():
                _save_state(job, step + 1, began)
                raise CancelledError(f"Cancelled after {step + 1} steps.", hint="Go on with --resume.")
    return _finish(job, job.seconds + time.perf_counter() - began)


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


def training_loss(branches: Sequence[torch.Tensor], labels: torch.Tensor, *, pixels: int | None = None) -> torch.Tensor:
    """Mean of the losses of all branches of a head; see `segmentation_loss`."""
    losses = [segmentation_loss(logits, labels, pixels=pixels) for logits in branches]
    return torch.stack(losses).mean()


def _claim(folder: Path, config: AdaptConfig, *, resume: bool) -> None:
    """Refuse a folder that belongs to another run."""
    path = folder / CONFIG
    if resume:
        if not path.is_file() or path.read_text(encoding="utf-8") != _as_text(config):
            raise InputError(f"{folder} holds no run of this configuration.", hint="Resume with the same settings.")
    elif path.exists():
        raise InputError(f"{folder} holds a run already.", hint="Use --resume, another folder, or remove it.")


def _as_text(config: AdaptConfig) -> str:
    return json.dumps(to_table(config), indent=2)


def _batches(job: Job, start: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` on; the next batch is read while the model works on this one."""
    settings = job.run.config.train

    def read(step: int) -> Batch:
        rng = np.random.default_rng([settings.seed, DATA_STREAM, step])
        return job.sampler.batch(settings.batch_size, rng)

    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(read, start)
        for step in range(start, settings.steps):
            batch = upcoming.result()
            if step + 1 < settings.steps:
                upcoming = reader.submit(read, step + 1)
            yield step, batch


def _open_log(path: Path, start: int) -> IO[str]:
    """A file of JSON lines to append to; lines of `start` and later, left by a run that was killed, are dropped."""
    old = path.read_text(encoding="utf-8").splitlines() if start and path.exists() else []
    log = path.open("w", encoding="utf-8")
    log.writelines(line + "\n" for line in old if line.endswith("}") and json.loads(line)["step"] < start)
    return log


def _choose(job: Job, step: int) -> dict[str, Any]:
    """Let the gate choose on chips that only depend on the seed and the step."""
    settings = job.run.config.train
    rng = np.random.default_rng([settings.seed, SCORE_STREAM, step])
    images, labels = job.sampler.batch(job.run.config.peft.samples, rng)

    def loss_of(sample: Batch) -> torch.Tensor:
        with autocast(job.device, job.precision):
            branches = job.run.segmenter.branches(sample[0].to(job.device))
        return training_loss(branches, sample[1].to(job.device))

    samples = ((images[n : n + 1], labels[n : n + 1]) for n in range(len(images)))
    return job.gate.rescore(step, samples, loss_of).to_json()


def _step(job: Job, step: int, batch: Batch) -> float:
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
    norm = float(torch.nn.utils.clip_grad_norm_(job.run.trained_parameters(), 1.0))
    if not math.isfinite(norm):
        raise CegateError(
            f"The gradient is {norm} at step {step}.", hint="Lower train.lr, or set train.precision to fp32."
        )
    job.optimizer.step()
    job.ema.update(step)
    return value


def _backward(job: Job, batch: Batch) -> float:
    """Gradients of the mean loss over a batch, computed in `accumulate` parts; gives the loss."""
    pixels = int((batch[1] != IGNORE_INDEX).sum())
    size = len(batch[0]) // job.run.config.train.accumulate
    value = 0.0
    for images, labels in zip(batch[0].split(size), batch[1].split(size), strict=True):
        with autocast(job.device, job.precision):
            branches = job.run.segmenter.branches(images.to(job.device))
        loss = training_loss(branches, labels.to(job.device), pixels=pixels)
        loss.backward()
        value += float(loss.detach())
    return value


def _is_stale(job: Job) -> bool:
    """Whether validation has not become better for so long that training stops."""
    return 0 < job.run.config.train.patience <= job.stale


def _after_step(job: Job, step: int, log: IO[str], began: float) -> None:
    settings = job.run.config.train
    last = step + 1 == settings.steps
    if last or (step + 1) % settings.validate_every == 0:
        _validate(job, step, log)
    if last or _is_stale(job) or (step + 1) % settings.save_every == 0:
        _save_state(job, step + 1, began)
        log.flush()


def _validate(job: Job, step: int, log: IO[str]) -> None:
    """Measure the averaged weights on held-out tiles, and keep them if they are the best so far.

    Without held-out tiles the last weights are kept.
    """
    run, legend = job.run, job.run.config.legend
    with job.ema.swapped():
        miou = math.inf
        if job.tiles:
            matrix = validate(run.segmenter, job.tiles, legend, device=job.device, precision=job.precision)
            metrics = matrix.metrics()
            miou = job.miou = metrics["miou"] or 0.0
            log.write(json.dumps({"step": step, "validation": metrics}) + "\n")
            said, true = (matrix.counts.sum(0) > 0).sum(), (matrix.counts.sum(1) > 0).sum()
            if said == 1 < true and step >= COLLAPSE_AFTER:
                job.collapsed.append(step + 1)
                warnings.warn(
                    CollapseWarning(f"At step {step} the model says one class everywhere. Lower train.lr."),
                    stacklevel=2,
                )
        job.stale = 0 if miou > job.best or not job.tiles else job.stale + 1
        if miou >= job.best:
            job.best, job.best_step = miou, step + 1
            job.metrics = metrics if job.tiles else None
            run.active, run.ever_active = frozenset(job.gate.active), frozenset(job.gate.ever_active)
            run.facts["validation"], run.facts["best_step"] = job.metrics, job.best_step
            run.save()


def _save_state(job: Job, step: int, began: float) -> None:
    extra = {
        "stale": job.stale,
        "collapsed": job.collapsed,
        "seconds": job.seconds + time.perf_counter() - began,
        "gate": job.gate.state_dict(),
        "best": job.best,
        "best_step": job.best_step,
        "metrics": job.metrics,
    }
    save_state(
        job.run.folder / "state",
        step=step,
        modules={"run": job.run, "ema": job.ema},
        optimizer=job.optimizer,
        extra=extra,
    )


def _resume(job: Job) -> int:
    if not (job.run.folder / "state" / "state.json").is_file():
        return 0  # stopped before it was saved for the first time
    step, extra = load_state(
        job.run.folder / "state", modules={"run": job.run, "ema": job.ema}, optimizer=job.optimizer
    )
    job.gate.load_state_dict(extra["gate"])
    job.best, job.best_step, job.metrics = extra["best"], extra["best_step"], cast("Metrics | None", extra["metrics"])
    job.stale, job.collapsed, job.seconds = extra["stale"], extra["collapsed"], extra["seconds"]
    return step


def _finish(job: Job, seconds: float) -> AdaptResult:
    run = job.run
    load_weights(run)
    legend, tiles = run.config.legend, job.tiles[:PICTURES]
    save_pictures(run.segmenter, tiles, legend, run.folder / "pictures", device=job.device, precision=job.precision)
    result = AdaptResult(folder=run.folder, metrics=job.metrics, best_step=job.best_step, seconds=seconds)
    table = {
        **{f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "folder"},
        "modules_total": len(run.toolbox.keys),
        "modules_kept": sorted(str(k) for k in run.ever_active),
        "trained_parameters": sum(p.numel() for p in run.trained_parameters()),
        **_count_parameters(job),
        "collapsed": job.collapsed,
        "backbone_parameters": sum(p.numel() for p in run.segmenter.backbone.parameters()),
        "device": job.device,
        "precision": job.precision,
        "facts": run.facts,
    }
    write_text(run.folder / "result.json", json.dumps(table, indent=2))
    return result


def _count_parameters(job: Job) -> dict[str, int]:
    """Parameters that were trained at a time, at most, and those that are kept because they were ever trained."""
    run, gate = job.run, job.gate
    always = sum(p.numel() for p in run.trained_parameters()) - run.toolbox.count_parameters()
    active = max((run.toolbox.count_parameters(s.active) for s in gate.history), default=0)
    active = max(active, run.toolbox.count_parameters(gate.active))
    return {
        "active_parameters": always + active,
        "stored_parameters": always + run.toolbox.count_parameters(run.ever_active),
    }
