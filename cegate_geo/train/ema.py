"""Exponential moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch


class Ema:
    """Averaged copies of some weights; these are what is validated and exported.

    The decay rises from 0.1 at the first step to `decay`, so that short runs are averaged over what they have.

    Args:
        tensors: The trained parameters, and the statistics that belong to them, in a stable order.
        decay: Share of the old average that stays at each step; 0 makes the average follow the weights.
    """

    def __init__(self, tensors: Iterable[torch.Tensor], *, decay: float) -> None:
        self.tensors = list(tensors)
        self.decay = decay
        self.shadow = [t.detach().clone() for t in self.tensors]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` + 1 steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for shadow, tensor in zip(self.shadow, self.tensors, strict=True):
            shadow.lerp_(tensor, 1 - decay)

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
        for index, tensor in enumerate(self.tensors):
            own = tensor.detach().clone()
            tensor.copy_(self.shadow[index])
            self.shadow[index] = own

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages, by position."""
        return {str(n): t for n, t in enumerate(self.shadow)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.shadow = [state[str(n)].to(t.device) for n, t in enumerate(self.tensors)]
