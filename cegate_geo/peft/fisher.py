"""Empirical Fisher scores of modules (arXiv 2511.20302; the diagonal as in FISH mask, arXiv 2111.09839).

The score of a module is the sum over its scalar parameters of the mean over samples of the squared gradient of each
sample's loss: squares first, then the mean. Scores are not divided by the number of parameters. Gradients are taken
with `torch.autograd.grad`, one sample after the other, which leaves every `.grad` alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cegate_geo.errors import CegateError, InputError, SiteError
from cegate_geo.peft.attach import Toolbox
from cegate_geo.peft.sites import ModuleKey

Sample = TypeVar("Sample")


def fisher_scores(
    toolbox: Toolbox,
    samples: Iterable[Sample],
    loss_fn: Callable[[Sample], Tensor],
    *,
    model: nn.Module | None = None,
    seed: int = 0,
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

    Returns:
        Raw score of each module, in the order of `toolbox.keys`; see `normalise_scores`.

    Raises:
        InputError: There is no sample, or the loss is not a scalar with a gradient.
        CegateError: A gradient is not finite.
        SiteError: No gradient reaches any module of a type: the loss does not depend on them.
    """
    totals = dict.fromkeys(toolbox.keys, 0.0)
    count = 0
    for gradients in _sample_gradients(toolbox, samples, loss_fn, model=model, seed=seed):
        count += 1
        for key, parts in gradients.items():
            totals[key] += sum(float(part.double().square().sum()) for part in parts)
    return {key: total / count for key, total in totals.items()}


def gradient_norms(
    toolbox: Toolbox,
    samples: Iterable[Sample],
    loss_fn: Callable[[Sample], Tensor],
    *,
    model: nn.Module | None = None,
    seed: int = 0,
) -> dict[ModuleKey, float]:
    """Squared norm of the mean gradient of each module: the control that averages first and squares then.

    Args:
        toolbox: Modules to score.
        samples: As in `fisher_scores`.
        loss_fn: As in `fisher_scores`.
        model: As in `fisher_scores`.
        seed: As in `fisher_scores`.

    Returns:
        Raw score of each module, in the order of `toolbox.keys`.

    Raises:
        InputError: As in `fisher_scores`.
        CegateError: As in `fisher_scores`.
        SiteError: As in `fisher_scores`.
    """
    sums: dict[ModuleKey, list[Tensor]] = {}
    count = 0
    for gradients in _sample_gradients(toolbox, samples, loss_fn, model=model, seed=seed):
        count += 1
        for key, parts in gradients.items():
            doubles = [part.double() for part in parts]
            sums[key] = [a + b for a, b in zip(sums[key], doubles, strict=True)] if key in sums else doubles
    return {key: sum(float((part / count).square().sum()) for part in sums[key]) for key in toolbox.keys}


def normalise_scores(scores: Mapping[ModuleKey, float]) -> dict[ModuleKey, float]:
    """Divide each score by the sum over all layers of its module type, so that no type dominates.

    Law: the scores of each type sum to 1, unless all of them are 0.

    Args:
        scores: Raw scores, not negative.

    Returns:
        Normalised scores, in the same order.
    """
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
) -> Iterator[dict[ModuleKey, list[Tensor]]]:
    """Yield the gradients of all parameters of all modules for one sample after the other."""
    names = [(key, parameter) for key, module in toolbox.modules.items() for parameter in module.parameters()]
    parameters = [parameter for _, parameter in names]
    if not parameters:
        raise InputError("The toolbox is empty: there is nothing to score.", hint="Attach modules first.")
    reached: set[str] = set()
    index = -1
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
                reached.add(key.kind)
            gradients[key].append(torch.zeros_like(parameter) if gradient is None else gradient)
        _check_finite(index, float(loss.detach()), gradients)
        yield gradients
    if index < 0:
        raise InputError("There is no sample to score with.", hint="Give at least one; 16 is usual.")
    missed = sorted({key.kind for key in toolbox.keys} - reached)
    if missed:
        raise SiteError(
            f"No gradient reaches any module of the kind {', '.join(missed)}: the loss does not depend on them.",
            hint="Check that loss_fn calls the ViT that carries the toolbox, through its blocks.",
        )


def _check_finite(index: int, loss: float, gradients: Mapping[ModuleKey, Collection[Tensor]]) -> None:
    for key, parts in gradients.items():
        if not all(bool(torch.isfinite(part).all()) for part in parts):
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
