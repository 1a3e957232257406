"""`cegate-geo adapt`: the one place that knows all stages of training.

Labels of a teacher for targets, where there are any → labelled areas → chips → steps with a gate that chooses the
modules → validation on held-out blocks of the source, by which the weights are chosen that are kept. Random numbers of
a step depend on the seed and the step alone, so that a resumed run sees the chips that an uninterrupted one would have
seen. Where several processes train together (`ranks`), all of them come through here, each with its part of the chips
and tiles; the first one alone writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from cegate_geo.domain.confusion import Metrics
from cegate_geo.errors import CancelledError, CollapseWarning, InputError
from cegate_geo.train import fingerprint
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import is_same_elsewhere, to_table
from cegate_geo.train.job import Job, make_job
from cegate_geo.train.ranks import Ranks, alone
from cegate_geo.train.run import load_weights
from cegate_geo.train.run_files import make_run_folder, write_text
from cegate_geo.train.scenes import bounded_block_cache
from cegate_geo.train.state import load_state, save_state
from cegate_geo.train.steps import Batch, choose_modules, learning_rate, read_batch, take_step
from cegate_geo.train.targets import FOLDER as TARGETS
from cegate_geo.train.targets import label_targets
from cegate_geo.train.validation import save_pictures, validate

PICTURES = 6
"""Validation tiles that are drawn for the report."""

CONFIG = "config.json"
CHANGES = "changes"
"""Fact: after which steps the data were others."""
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
Resume = bool | Literal["changed"]


@bounded_block_cache()
def adapt(
    config: AdaptConfig,
    folder: Path,
    *,
    resume: Resume = False,
    device: str = "auto",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    provenance: dict[str, Any] | None = None,
    ranks: Ranks | None = None,
) -> AdaptResult:
    """Train, and leave `config.json`, `metrics.jsonl`, `gate.jsonl`, `state/`, `adapter.safetensors`, `result.json`.

    Several processes train what one would have trained, up to the rounding of sums; but the head's batch normalisation
    uses statistics of each process' own chips, which are averaged over the processes after each step.

    Args:
        config: What to do.
        folder: Folder of the run; made if missing.
        resume: Go on from `folder/state`. "changed": also where rasters, labels or frozen weights are others than
            those that the run began with; its figures of before and after don't compare then, and its facts tell why.
        device: torch device, or "auto"; that of `ranks` where they are given.
        progress: Called after each step.
        cancelled: Asked after each step; the state is saved before `CancelledError` is raised. Of several processes it
            is enough that one says so.
        provenance: Goes into the exported manifest (command, commit, terms of the data).
        ranks: The processes that train together, all of them with the same arguments; None for this one alone.

    Returns:
        Figures on validation, and where the run lies.

    Raises:
        InputError: If the folder holds another run, the data can't be used or have changed, or the processes differ.
        CegateError: If the loss is no number any more.
    """
    began = time.perf_counter()
    ranks = alone(device) if ranks is None else ranks
    ranks.require_same("settings", _as_text(config), str(resume))
    self_training = None
    if ranks.is_first:
        _claim(folder, config, resume=resume)
        self_training = label_targets(config, folder, cancel=cancelled)
    ranks.wait()
    facts = {**(provenance or {}), **({} if self_training is None else {"self_training": self_training})}
    job = make_job(config, folder, ranks=ranks, provenance=facts)
    start = _begin(job, resume=resume)
    with _open_log(job, "metrics.jsonl", start) as log, _open_log(job, "gate.jsonl", start) as choices:
        for step, batch in _batches(job, start):
            if _is_stale(job):
                break
            if job.gate.due(step):
                with job.timed("scoring"):
                    choices.write(json.dumps(choose_modules(job, step)) + "\n")
            loss = take_step(job, step, batch)
            log.write(json.dumps({"step": step, "loss": loss, "lr": learning_rate(step, config.train)}) + "\n")
            _after_step(job, step, (log, choices), began)
            if progress is not None:
                progress(AdaptProgress(step=step + 1, steps=config.train.steps, loss=loss, miou=job.miou))
            if cancelled is not None and ranks.any(cancelled()):
                _save_state(job, step + 1, (log, choices), began)
                raise CancelledError(f"Cancelled after {step + 1} steps.", hint="Go on with --resume.")
    return _finish(job, job.seconds + time.perf_counter() - began)


def _claim(folder: Path, config: AdaptConfig, *, resume: Resume) -> None:
    """Refuse a folder that belongs to another run."""
    path = folder / CONFIG
    if resume:
        if not path.is_file() and (folder / TARGETS).is_dir():
            return  # stopped before the first step, while the targets were labelled
        if not path.is_file() or not is_same_elsewhere(path.read_text(encoding="utf-8"), to_table(config)):
            raise InputError(f"{folder} holds no run of this configuration.", hint="Resume with the same settings.")
    elif path.exists():
        raise InputError(f"{folder} holds a run already.", hint="Use --resume, another folder, or remove it.")


def _as_text(config: AdaptConfig) -> str:
    return json.dumps(to_table(config), indent=2)


def _begin(job: Job, *, resume: Resume) -> int:
    """Make the folder, or bring the job to where it was left; gives the step to go on from."""
    if job.ranks.is_first:
        make_run_folder(job.run.folder)
    start = _resume(job, accepts=resume == "changed") if resume else 0
    if job.ranks.is_first:  # also of a run that was moved: it tells where its files are
        write_text(job.run.folder / CONFIG, _as_text(job.run.config))
    weights = [*job.run.segmenter.state_dict().values(), *job.ema.shadow]
    job.ranks.require_same("weights to start from", str(start), json.dumps(job.run.taken.to_json()), *weights)
    return start


def _batches(job: Job, start: int) -> Iterator[tuple[int, Batch]]:
    """(step, batch) from `start` on; the next batch is read while the model works on this one."""
    steps = job.run.config.train.steps
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(read_batch, job, start)
        for step in range(start, steps):
            with job.timed("waiting"):
                batch = upcoming.result()
            if step + 1 < steps:
                upcoming = reader.submit(read_batch, job, step + 1)
            yield step, batch


def _open_log(job: Job, name: str, start: int) -> IO[str]:
    """A file of JSON lines to append to; lines of `start` and later, left by a run that was killed, are dropped."""
    if not job.ranks.is_first:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - the caller closes it
    path = job.run.folder / name
    old = path.read_text(encoding="utf-8").splitlines() if start and path.exists() else []
    log = path.open("w", encoding="utf-8")
    log.writelines(line + "\n" for line in old if line.endswith("}") and json.loads(line)["step"] < start)
    return log


def _is_stale(job: Job) -> bool:
    """Whether validation has not become better for so long that training stops."""
    return 0 < job.run.config.train.patience <= job.stale


def _after_step(job: Job, step: int, logs: tuple[IO[str], IO[str]], began: float) -> None:
    """Validate and save where it is time; `logs` are those of figures and of the gate's choices."""
    settings = job.run.config.train
    last = step + 1 == settings.steps
    if last or (step + 1) % settings.validate_every == 0:
        with job.timed("validation"):
            _validate(job, step, logs[0])
    if last or _is_stale(job) or (step + 1) % settings.save_every == 0:
        _save_state(job, step + 1, logs, began)


def _validate(job: Job, step: int, log: IO[str]) -> None:
    """Measure the averaged weights on held-out tiles, and keep them if they are the best so far.

    Without held-out tiles the last weights are kept.
    """
    run, legend = job.run, job.run.config.legend
    with job.ema.swapped():
        miou = math.inf
        if job.has_validation:
            matrix = validate(run.segmenter, job.tiles, legend, device=job.device, precision=job.precision)
            matrix.counts = job.ranks.sums(matrix.counts)
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
        job.stale = 0 if miou > job.best or not job.has_validation else job.stale + 1
        if miou >= job.best:
            job.best, job.best_step = miou, step + 1
            job.metrics = metrics if job.has_validation else None
            run.active, run.ever_active = frozenset(job.gate.active), frozenset(job.gate.ever_active)
            run.facts["validation"], run.facts["best_step"] = job.metrics, job.best_step
            if job.ranks.is_first:
                run.save()


def _save_state(job: Job, step: int, logs: tuple[IO[str], IO[str]], began: float) -> None:
    """Let the first process write the state, and the others wait until it lies there.

    The logs go first: a run that is killed right after it goes on from the state, and never writes these lines again.
    """
    if job.ranks.is_first:
        for log in logs:
            log.flush()
        _write_state(job, step, began)
    job.ranks.wait()


def _write_state(job: Job, step: int, began: float) -> None:
    extra = {
        "input": job.run.taken.to_json(),
        "seen": fingerprint.to_json(job.seen),
        "changes": job.run.facts.get(CHANGES, []),
        "stale": job.stale,
        "collapsed": job.collapsed,
        "seconds": job.seconds + time.perf_counter() - began,
        "spent": job.spent,
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


def _resume(job: Job, *, accepts: bool) -> int:
    if not (job.run.folder / "state" / "state.json").is_file():
        return 0  # stopped before it was saved for the first time
    step, extra = load_state(
        job.run.folder / "state", modules={"run": job.run, "ema": job.ema}, optimizer=job.optimizer
    )
    if "input" in extra:  # states of runs that were begun before it was kept have none
        job.run.taken.require_same(extra["input"])
    _note_changes(job, step, extra, accepts=accepts)
    job.gate.load_state_dict(extra["gate"])
    job.best, job.best_step, job.metrics = extra["best"], extra["best_step"], cast("Metrics | None", extra["metrics"])
    job.stale, job.collapsed, job.seconds = extra["stale"], extra["collapsed"], extra["seconds"]
    job.spent.update(extra["spent"])
    return step


def _note_changes(job: Job, step: int, extra: dict[str, Any], *, accepts: bool) -> None:
    """Refuse other data than those that the run began with, or let its facts tell of them."""
    told = fingerprint.changes(extra["seen"], job.seen) if "seen" in extra else []
    if told and not accepts:
        raise fingerprint.refusal(told)
    noted = [*extra.get("changes", []), *([{"step": step, "changed": fingerprint.summary(told)}] if told else [])]
    if noted:
        job.run.facts[CHANGES] = noted


def _finish(job: Job, seconds: float) -> AdaptResult:
    run = job.run
    result = AdaptResult(folder=run.folder, metrics=job.metrics, best_step=job.best_step, seconds=seconds)
    if not job.ranks.is_first:
        return result
    load_weights(run)
    legend, tiles = run.config.legend, job.tiles[:PICTURES]
    save_pictures(
        run.segmenter,
        tiles,
        legend,
        run.folder / "pictures",
        taken=run.taken,
        device=job.device,
        precision=job.precision,
    )
    table = {
        **{f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "folder"},
        "modules_total": len(run.toolbox.keys),
        "modules_kept": sorted(str(k) for k in run.ever_active),
        "trained_parameters": sum(p.numel() for p in run.trained_parameters()),
        **_count_parameters(job),
        "collapsed": job.collapsed,
        "backbone_parameters": sum(p.numel() for p in run.segmenter.backbone.parameters()),
        "device": job.device,
        "processes": job.ranks.count,
        "spent_seconds": job.spent,
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
