"""Exponential moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch


class Ema:
    """Averaged copies of some parameters; these are what is validated and exported.

    The decay rises from 0.1 at the first step to `decay`, so that short runs are averaged over what they have.

    Args:
        parameters: The trained parameters, in a stable order.
        decay: Share of the old average that stays at each step; 0 makes the average follow the weights.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` + 1 steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for shadow, parameter in zip(self.shadow, self.parameters, strict=True):
            shadow.lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The model computes with the averages inside the block, and with its own weights after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for index, parameter in enumerate(self.parameters):
            own = parameter.detach().clone()
            parameter.copy_(self.shadow[index])
            self.shadow[index] = own

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages, by position."""
        return {str(n): t for n, t in enumerate(self.shadow)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.shadow = [state[str(n)].to(p.device) for n, p in enumerate(self.parameters)]
