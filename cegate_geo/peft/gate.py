"""The gate: which modules may be trained, chosen anew every N steps within a budget (arXiv 2511.20302).

One loop:

    gate = Gate(toolbox, GateConfig(budget=0.25, every=100), policy="fisher", model=model)
    for step in range(steps):
        if gate.due(step):
            gate.rescore(step, samples, loss_of_one_sample)  # or batches, and a loss for each of their samples
        loss.backward()
        gate.mask_gradients()      # before clipping and before the optimiser's step
        optimizer.step()           # over toolbox.parameters(), all of them

Inactive modules stay as they are because their gradient is None when the optimiser steps; a gradient of zero would not
do, as weight decay would move them. Their moments in the optimiser are kept.

Every default of `GateConfig` is the paper's. The state of a memory are the scores of the last selection, so that the
history holds all that is needed to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from torch import Tensor, nn

from cegate_geo.errors import ConfigError, InputError
from cegate_geo.peft.attach import Gradients, Inactive, Toolbox
from cegate_geo.peft.fisher import Normalise, Total, fisher_scores, gradient_norms, normalise_scores
from cegate_geo.peft.selection import Quota, Selection, blend, select, select_by_type
from cegate_geo.peft.sites import ModuleKey

Sample = TypeVar("Sample")

Policy = Literal["fisher", "random", "fixed", "grad-norm", "all", "none"]
"""How modules are chosen. fisher: by Fisher score, again and again. fixed: by Fisher score, once. random: by lot.
grad-norm: by the squared norm of the mean gradient. all, none: every module, no module; never chosen again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """How many modules the gate lets through, and how often it chooses."""

    budget: float = 0.25
    """Share of all modules that may be active, 0 < budget <= 1."""
    every: int = 100
    """Steps between selections."""
    start: int = 0
    """Step before which the first selection is made. Until then no module is trained: the decoder learns alone, so that
    the first scores are gradients of a loss that means something."""
    until_step: int | None = None
    """Step from which on no selection is made but the first one, so that the last choice stays; None: never."""
    normalise: Normalise = "type"
    """What makes scores of modules of different types comparable; see `normalise_scores`."""
    memory: float = 0.0
    """Share of the earlier scores in those that decide, 0 <= memory < 1: with m, normalised scores x_t become
    s_t = m s_(t-1) + (1 - m) x_t from selection to selection, with s_0 = x_0. 0: the newest alone."""
    quota: Quota = "global"
    """How the budget is shared between the module types."""
    inactive: Inactive = "frozen"
    """What inactive modules do in the forward pass; the same as in the toolbox's configuration."""
    gradients: Gradients = "mask"
    """How inactive modules are kept from training."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ConfigError(f"budget={self.budget} is not allowed.", hint="Use a share: more than 0, at most 1.")
        if self.every < 1:
            raise ConfigError(f"every={self.every} is not allowed.", hint="Use 1 step or more.")
        if self.start < 0 or (self.until_step or 0) < 0:
            raise ConfigError(
                f"start={self.start}, until_step={self.until_step} is not allowed.", hint="Use steps from 0 on."
            )
        if not 0 <= self.memory < 1:
            raise ConfigError(f"memory={self.memory} is not allowed.", hint="Use a share: 0 or more, less than 1.")
        for name, choices in (("normalise", get_args(Normalise)), ("quota", get_args(Quota))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not allowed.", hint=f"Use one of {', '.join(choices)}."
                )
        if self.gradients not in get_args(Gradients):
            raise ConfigError(f"gradients={self.gradients!r} is not allowed.", hint="Use 'mask' or 'skip'.")


class Gate:
    """Chooses the active modules of a toolbox.

    Args:
        toolbox: The modules.
        config: Budget and rhythm.
        policy: How modules are chosen.
        seed: For the lots of 'random', and for random draws inside the loss while scoring.
        model: Whole model that the loss calls, decoder included; see `fisher_scores`.

    Raises:
        ConfigError: The policy is not known, or gate and toolbox disagree on inactive modules.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        config: GateConfig,
        *,
        policy: Policy = "fisher",
        seed: int = 0,
        model: nn.Module | None = None,
    ) -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"policy={policy!r} is not known.", hint=f"Use one of {', '.join(get_args(Policy))}.")
        if config.inactive != toolbox.config.inactive:
            raise ConfigError(
                f"The gate says inactive={config.inactive!r}, the toolbox {toolbox.config.inactive!r}.",
                hint="Give both the same value.",
            )
        self.toolbox = toolbox
        self.config = config
        self.policy = policy
        self.seed = seed
        self._model = model
        self._history: list[Selection] = []
        self._active: tuple[ModuleKey, ...] = ()
        self._apply(toolbox.keys if policy == "all" else ())

    @property
    def count(self) -> int:
        """How many modules the budget allows: at least 1, unless the toolbox is empty."""
        total = len(self.toolbox.keys)
        return min(total, max(1, round(self.config.budget * total)))

    @property
    def has_choice(self) -> bool:
        """Whether the budget leaves any module out. If not, nothing is scored, and the first selection stays."""
        return self.count < len(self.toolbox.keys)

    @property
    def active(self) -> tuple[ModuleKey, ...]:
        """Modules that are trained now, ordered by key; none before the first selection."""
        return self._active

    @property
    def ever_active(self) -> tuple[ModuleKey, ...]:
        """Modules that were trained at any time, ordered by key."""
        return tuple(sorted({*self._active, *(key for past in self._history for key in past.active)}))

    @property
    def history(self) -> tuple[Selection, ...]:
        """All selections, oldest first."""
        return tuple(self._history)

    def due(self, step: int) -> bool:
        """Whether a selection is to be made before a step.

        Args:
            step: Training step, from 0.

        Returns:
            True from `config.start` on where no selection was made yet, and every `config.every` steps after that,
            up to `config.until_step`; 'fixed' and who has no choice only once, 'all' and 'none' never.
        """
        start, end = self.config.start, self.config.until_step
        if self.policy in ("all", "none") or not self.toolbox.keys or step < start:
            return False
        if not self._history:
            return True
        is_over = self.policy == "fixed" or not self.has_choice or (end is not None and step >= end)
        return not is_over and (step - start) % self.config.every == 0

    def rescore(
        self,
        step: int,
        samples: Iterable[Sample],
        loss_fn: Callable[[Sample], Tensor],
        *,
        total: Total | None = None,
    ) -> Selection:
        """Score all modules and choose those to train from now on.

        Nothing of the model changes but which modules are active; see `fisher_scores`.

        Args:
            step: Training step before which this happens.
            samples: Samples to score with, one or several at a time. Not touched where the policy measures nothing, or
                there is no choice.
            loss_fn: Task loss of one sample, or the losses of several; see `fisher_scores`.
            total: Where the samples are those of one process among several; see `fisher_scores`.

        Returns:
            The selection, also added to the history.

        Raises:
            InputError: See `fisher_scores`.
            CegateError: See `fisher_scores`.
            SiteError: See `fisher_scores`.
        """
        raw: dict[ModuleKey, float] = {}
        if self.policy in ("fisher", "fixed", "grad-norm") and self.has_choice:
            measure = gradient_norms if self.policy == "grad-norm" else fisher_scores
            raw = measure(self.toolbox, samples, loss_fn, model=self._model, seed=self.seed, total=total)
        sizes = {key: self.toolbox.count_parameters([key]) for key in raw}
        scores = normalise_scores(raw, self.config.normalise, sizes=sizes)
        scores = blend(self._history[-1].scores if self._history else {}, scores, self.config.memory)
        self._apply(self._choose(step, scores))
        selection = Selection(step=step, active=self._active, scores=scores, raw_scores=raw)
        self._history.append(selection)
        return selection

    def mask_gradients(self) -> None:
        """Drop the gradients of inactive modules. Call it after backward, before clipping and the optimiser's step."""
        self.toolbox.mask_gradients()

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on after an interruption: numbers, strings, lists and dictionaries."""
        return {
            "policy": self.policy,
            "seed": self.seed,
            "active": [str(key) for key in self._active],
            "history": [selection.to_json() for selection in self._history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Args:
            state: As `state_dict` gives.

        Raises:
            ConfigError: The state belongs to another policy or seed.
            InputError: It names modules that are not in the toolbox.
        """
        if (state["policy"], state["seed"]) != (self.policy, self.seed):
            raise ConfigError(
                f"The state was written with policy={state['policy']!r}, seed={state['seed']}, "
                f"not policy={self.policy!r}, seed={self.seed}.",
                hint="Resume with the configuration of the run.",
            )
        history = [Selection.from_json(data) for data in state["history"]]
        self._apply(tuple(ModuleKey.parse(name) for name in state["active"]))
        self._history = history

    def _choose(self, step: int, scores: Mapping[ModuleKey, float]) -> tuple[ModuleKey, ...]:
        keys = self.toolbox.keys
        if self.policy == "none":
            return ()
        if self.policy == "all" or not self.has_choice:
            return keys
        if self.policy == "random":  # a generator for each step, so that resuming needs no random state
            lots = np.random.default_rng([self.seed, step]).permutation(len(keys))
            scores = {keys[index]: -float(place) for place, index in enumerate(lots)}
        return (select_by_type if self.config.quota == "type" else select)(scores, self.count)

    def _apply(self, active: tuple[ModuleKey, ...]) -> None:
        if unknown := set(active) - set(self.toolbox.keys):
            raise InputError(
                f"{len(unknown)} selected modules are not in the toolbox: {sorted(map(str, unknown))[:3]}.",
                hint="Attach the toolbox that the gate's state was written with.",
            )
        self.toolbox.set_active(active, gradients=self.config.gradients)
        self._active = tuple(sorted(active))
