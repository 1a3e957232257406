"""Empirical Fisher scores of modules (arXiv 2511.20302; the diagonal as in FISH mask, arXiv 2111.09839).

The score of a module is the sum over its scalar parameters of the mean over samples of the squared gradient of each
sample's loss: squares first, then the mean. Scores are not divided by the number of parameters. Gradients are taken
with `torch.autograd.grad`, which leaves every `.grad` alone: one sample after the other, or several in one pass
(`per_sample`), which gives the same scores in less time.

Several processes may score one part of the samples each: `total` then sums over them, and all get the same scores.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cegate_geo.errors import CegateError, InputError, SiteError
from cegate_geo.peft.attach import Toolbox
from cegate_geo.peft.per_sample import SampleGradients
from cegate_geo.peft.sites import KINDS, ModuleKey

Sample = TypeVar("Sample")

Total = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes that score, the same in each: `torch.distributed.all_reduce`, for example."""

Normalise = Literal["type", "size", "none"]
"""What a module's raw score is divided by; see `normalise_scores`."""


def fisher_scores(
    toolbox: Toolbox,
    samples: Iterable[Sample],
    loss_fn: Callable[[Sample], Tensor],
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    total: Total | None = None,
) -> dict[ModuleKey, float]:
    """Score every module of a toolbox by its empirical Fisher information.

    All modules take part while scoring, active or not. Weights, buffers, `.grad`, requires_grad, training mode and the
    random state of torch, numpy and Python are afterwards what they were before.

    Args:
        toolbox: Modules to score.
        samples: What `loss_fn` takes: one sample at a time (a batch of one), or several. Consumed once.
        loss_fn: Task loss of one sample, a scalar, or losses (n,) of n samples, each of its own sample alone; not
            scaled by any gradient scaler. Each call starts from the same random state, so that a loss that draws points
            at random does not make the ranking flicker.
        model: Whole model that `loss_fn` calls, decoder included: it is scored in evaluation mode, so that dropout
            is off and normalisation statistics stay. The toolbox's ViT if None.
        seed: Random state of each call of `loss_fn`.
        total: Where the samples are those of one process among several, which may have none; None if they are all.

    Returns:
        Raw score of each module, in the order of `toolbox.keys`; see `normalise_scores`.

    Raises:
        InputError: There is no sample, the loss is neither a scalar nor one number a sample, with a gradient, or
            modules can't be scored several samples at a time: those of `rivals`, or those that don't see them apart.
        CegateError: A gradient is not finite.
        SiteError: No gradient reaches any module of a type: the loss does not depend on them.
    """
    sums = dict.fromkeys(toolbox.keys, 0.0)
    tally = _Tally(toolbox)
    for sample in samples:
        with _scoring(toolbox, toolbox.vit if model is None else model, seed=seed):
            found = _squares(toolbox, loss_fn, sample, tally)
        for squares in found:
            for key, square in squares.items():
                sums[key] += square
    count = tally.close(total)
    if total is not None:
        summed = total(torch.tensor(list(sums.values()), dtype=torch.float64))
        sums = dict(zip(sums, summed.tolist(), strict=True))
    return {key: value / count for key, value in sums.items()}


def gradient_norms(
    toolbox: Toolbox,
    samples: Iterable[Sample],
    loss_fn: Callable[[Sample], Tensor],
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    total: Total | None = None,
) -> dict[ModuleKey, float]:
    """Squared norm of the mean gradient of each module: the control that averages first and squares then.

    Args:
        toolbox: Modules to score.
        samples: As in `fisher_scores`.
        loss_fn: As in `fisher_scores`.
        model: As in `fisher_scores`.
        seed: As in `fisher_scores`.
        total: As in `fisher_scores`.

    Returns:
        Raw score of each module, in the order of `toolbox.keys`.

    Raises:
        InputError: As in `fisher_scores`.
        CegateError: As in `fisher_scores`.
        SiteError: As in `fisher_scores`.
    """
    sums = {
        key: [torch.zeros_like(p, dtype=torch.float64) for p in module.parameters()]
        for key, module in toolbox.modules.items()
    }
    tally = _Tally(toolbox)
    for sample in samples:
        with _scoring(toolbox, toolbox.vit if model is None else model, seed=seed):
            losses = _losses(loss_fn, sample, tally)
            gradients = _gradients(toolbox, losses.sum(), tally)
        _check_finite(tally.count, losses.detach().sum(), {key: _square(parts) for key, parts in gradients.items()})
        tally.count += losses.numel()
        for key, parts in gradients.items():
            sums[key] = [a + b.double() for a, b in zip(sums[key], parts, strict=True)]
    count = tally.close(total)
    if total is not None:
        sums = {key: [total(part) for part in parts] for key, parts in sums.items()}
    return {key: sum(float((part / count).square().sum()) for part in sums[key]) for key in toolbox.keys}


def normalise_scores(
    scores: Mapping[ModuleKey, float], how: Normalise = "type", *, sizes: Mapping[ModuleKey, int] | None = None
) -> dict[ModuleKey, float]:
    """Bring the scores of modules of different types to a common scale.

    type: score / sum of the scores of its type over all layers, so that no type dominates (arXiv 2511.20302). Scores of
    each type sum to 1, unless all of them are 0. Types whose scores lie in few layers gain by it.
    size: score / number of the module's parameters: the mean square of a gradient instead of the sum. Modules of one
    type are of one size in a plain ViT, so this changes nothing within a type.
    none: score, as it is. Raw scores of types lie orders of magnitude apart, so one type may take all places.

    Args:
        scores: Raw scores, not negative.
        how: What they are divided by.
        sizes: Number of parameters of each module; needed for "size".

    Returns:
        Normalised scores, in the same order.

    Raises:
        InputError: The size of a module is not given, or not positive.
    """
    if how == "none":
        return dict(scores)
    if how == "size":
        sizes = sizes or {}
        unknown = [str(key) for key in scores if not sizes.get(key)]
        if unknown:
            raise InputError(f"The sizes of {', '.join(unknown[:3])} are not known.", hint="Give one for each module.")
        return {key: score / sizes[key] for key, score in scores.items()}
    totals: dict[str, float] = {}
    for key, score in scores.items():
        totals[key.kind] = totals.get(key.kind, 0.0) + score
    return {key: score / totals[key.kind] if totals[key.kind] > 0 else 0.0 for key, score in scores.items()}


def _squares(
    toolbox: Toolbox, loss_fn: Callable[[Sample], Tensor], sample: Sample, tally: _Tally
) -> list[dict[ModuleKey, float]]:
    """Sums of squares of each module's gradient, for each of the samples that are given together."""
    can_watch = SampleGradients.fit(toolbox.modules.values())
    with SampleGradients(toolbox.modules if can_watch else {}) as watched:
        losses = _losses(loss_fn, sample, tally)
        if losses.ndim == 0:
            gradients = _gradients(toolbox, losses, tally)
            found = [{key: _square(parts) for key, parts in gradients.items()}]
        elif can_watch:
            squares = watched.squares(losses)
            tally.reached |= {key.kind for key in squares}
            table = torch.stack(list(squares.values())).T.tolist() if squares else [[] for _ in losses]
            found = [dict(zip(squares, values, strict=True)) for values in table]
        else:
            kinds = sorted({key.kind for key in toolbox.keys} - set(KINDS))
            raise InputError(
                f"Modules of the kind {', '.join(kinds)} can't be scored on {len(losses)} samples together.",
                hint="Score one sample at a time: let loss_fn return a single number.",
            )
    for number, squared in enumerate(found):
        _check_finite(tally.count + number, losses.detach().reshape(-1)[number], squared)
    tally.count += len(found)
    return found


def _losses(loss_fn: Callable[[Sample], Tensor], sample: Sample, tally: _Tally) -> Tensor:
    """Scalar, or (n,)."""
    if not tally.kinds:
        raise InputError("The toolbox is empty: there is nothing to score.", hint="Attach modules first.")
    losses = loss_fn(sample)
    if losses.ndim > 1 or not losses.numel() or not losses.requires_grad:
        raise InputError(
            f"The loss of sample {tally.count} has shape {tuple(losses.shape)}, requires_grad={losses.requires_grad}.",
            hint="loss_fn returns one number for each sample that it is given, computed with gradients enabled.",
        )
    return losses


def _gradients(toolbox: Toolbox, loss: Tensor, tally: _Tally) -> dict[ModuleKey, list[Tensor]]:
    """Gradients of all parameters of all modules."""
    names = [(key, parameter) for key, module in toolbox.modules.items() for parameter in module.parameters()]
    found = torch.autograd.grad(loss, [parameter for _, parameter in names], allow_unused=True)
    gradients: dict[ModuleKey, list[Tensor]] = {key: [] for key in toolbox.keys}
    for (key, parameter), gradient in zip(names, found, strict=True):
        if gradient is not None:
            tally.reached.add(key.kind)
        gradients[key].append(torch.zeros_like(parameter) if gradient is None else gradient)
    return gradients


class _Tally:
    """What was scored: how many samples, and which kinds of modules their gradients reach."""

    def __init__(self, toolbox: Toolbox) -> None:
        self.count = 0
        self.reached: set[str] = set()
        self.kinds = {key.kind for key in toolbox.keys}

    def close(self, total: Total | None) -> int:
        """Number of samples of all processes.

        Raises:
            InputError: If there was none.
            SiteError: If this process had some, and they reach no module of a kind.
        """
        missed = sorted(self.kinds - self.reached)
        if self.count and missed:
            raise SiteError(
                f"No gradient reaches any module of the kind {', '.join(missed)}: the loss does not depend on them.",
                hint="Check that loss_fn calls the ViT that carries the toolbox, through its blocks.",
            )
        count = self.count if total is None else int(total(torch.tensor([self.count])))
        if not count:
            raise InputError("There is no sample to score with.", hint="Give at least one; 16 is usual.")
        return count


def _square(parts: Collection[Tensor]) -> float:
    """Sum of the squares of all numbers, in double precision, where those of single ones can't overflow."""
    flat = torch.cat([part.reshape(-1) for part in parts]).double()
    return float(flat.dot(flat))


def _check_finite(index: int, loss: Tensor, squares: Mapping[ModuleKey, float]) -> None:
    for key, square in squares.items():
        if not math.isfinite(square):
            raise CegateError(
                f"The gradient of {key} for sample {index} is not finite (loss {float(loss):g}).",
                hint="Lower the learning rate, or look for damaged pixels in the sample.",
            )


@contextmanager
def _scoring(toolbox: Toolbox, model: nn.Module, *, seed: int) -> Iterator[None]:
    """All modules in the forward pass and with gradients, evaluation mode, fixed random state; then as before."""
    flags = [(parameter, parameter.requires_grad) for parameter in toolbox.parameters()]
    bypassed = [(module, module.is_bypassed) for module in toolbox.modules.values()]
    modes = [(module, module.training) for root in (model, toolbox.vit) for module in root.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index for p in toolbox.parameters() if p.device.type == "cuda"})
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        for module, _ in bypassed:
            module.is_bypassed = False
        for child, _ in modes:
            child.training = False
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it reaches devices that are not in use
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for child, mode in modes:
            child.training = mode
        for module, was in bypassed:
            module.is_bypassed = was
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
