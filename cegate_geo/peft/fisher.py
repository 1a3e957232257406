"""Empirical Fisher scores of modules (arXiv 2511.20302; the diagonal as in FISH mask, arXiv 2111.09839).

The score of a module is the sum over its scalar parameters of the mean over samples of the squared gradient of each
sample's loss: squares first, then the mean. Scores are not divided by the number of parameters. Gradients are taken
with `torch.autograd.grad`, one sample after the other, which leaves every `.grad` alone.

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
from cegate_geo.peft.sites import ModuleKey

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
        samples: What `loss_fn` takes, one sample at a time (a batch of one). Consumed once.
        loss_fn: Task loss of one sample, a scalar, not scaled by any gradient scaler. Each call starts from the same
            random state, so that a loss that draws points at random does not make the ranking flicker.
        model: Whole model that `loss_fn` calls, decoder included: it is scored in evaluation mode, so that dropout
            is off and normalisation statistics stay. The toolbox's ViT if None.
        seed: Random state of each call of `loss_fn`.
        total: Where the samples are those of one process among several, which may have none; None if they are all.

    Returns:
        Raw score of each module, in the order of `toolbox.keys`; see `normalise_scores`.

    Raises:
        InputError: There is no sample, or the loss is not a scalar with a gradient.
        CegateError: A gradient is not finite.
        SiteError: No gradient reaches any module of a type: the loss does not depend on them.
    """
    sums = dict.fromkeys(toolbox.keys, 0.0)
    tally = _Tally(toolbox)
    for _, squares in _sample_gradients(toolbox, samples, loss_fn, model=model, seed=seed, tally=tally):
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
    for gradients, _ in _sample_gradients(toolbox, samples, loss_fn, model=model, seed=seed, tally=tally):
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


def _sample_gradients(
    toolbox: Toolbox,
    samples: Iterable[Sample],
    loss_fn: Callable[[Sample], Tensor],
    *,
    model: nn.Module | None,
    seed: int,
    tally: _Tally,
) -> Iterator[tuple[dict[ModuleKey, list[Tensor]], dict[ModuleKey, float]]]:
    """Yield, one sample after the other, the gradients of all parameters of all modules, and the sums of squares."""
    names = [(key, parameter) for key, module in toolbox.modules.items() for parameter in module.parameters()]
    parameters = [parameter for _, parameter in names]
    if not parameters:
        raise InputError("The toolbox is empty: there is nothing to score.", hint="Attach modules first.")
    for index, sample in enumerate(samples):
        with _scoring(toolbox, toolbox.vit if model is None else model, seed=seed):
            loss = loss_fn(sample)
            if loss.numel() != 1 or not loss.requires_grad:
                raise InputError(
                    f"The loss of sample {index} has shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}.",
                    hint="loss_fn returns one number for one sample, computed with gradients enabled.",
                )
            found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        gradients: dict[ModuleKey, list[Tensor]] = {key: [] for key in toolbox.keys}
        for (key, parameter), gradient in zip(names, found, strict=True):
            if gradient is not None:
                tally.reached.add(key.kind)
            gradients[key].append(torch.zeros_like(parameter) if gradient is None else gradient)
        squares = {key: _square(parts) for key, parts in gradients.items()}
        _check_finite(index, float(loss.detach()), squares)
        tally.count += 1
        yield gradients, squares


class _Tally:
    """What was scored: how many samples, and which kinds of modules their gradients reach."""

    def __init__(self, toolbox: Toolbox) -> None:
        self.count = 0
        self.reached: set[str] = set()
        self._kinds = {key.kind for key in toolbox.keys}

    def close(self, total: Total | None) -> int:
        """Number of samples of all processes.

        Raises:
            InputError: If there was none.
            SiteError: If this process had some, and they reach no module of a kind.
        """
        missed = sorted(self._kinds - self.reached)
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


def _check_finite(index: int, loss: float, squares: Mapping[ModuleKey, float]) -> None:
    for key, square in squares.items():
        if not math.isfinite(square):
            raise CegateError(
                f"The gradient of {key} for sample {index} is not finite (loss {loss:g}).",
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
