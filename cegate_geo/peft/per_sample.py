"""Squared norms of the gradients of single samples, from one forward and one backward pass over all of them.

Where samples do not see each other, the gradient of the sum of their losses with respect to a layer's output holds that
of each sample apart. For a linear layer y = x W^T + b with input x (n, T, d_in) and gradient g (n, T, d_out) at its
output, sample i's gradient is g_i^T x_i for W and the sum of g_i over tokens for b: n small matrix products in place of
n backward passes (arXiv 1510.01799, and for sequences arXiv 2009.03106). Each sample gets a view of scalars that scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from cegate_geo.errors import InputError
from cegate_geo.peft.modules import SiteModule
from cegate_geo.peft.sites import ModuleKey


class SampleGradients:
    """Watches modules during one forward pass, and tells their gradients sample by sample.

        with SampleGradients(toolbox.modules) as watched:
            losses = loss_fn(batch)  # (n,)
            squares = watched.squares(losses)

    Args:
        modules: Modules whose parameters are the weights and biases of linear layers, and scalars.
    """

    def __init__(self, modules: Mapping[ModuleKey, SiteModule]) -> None:
        self._modules = modules
        self._parts: dict[ModuleKey, list[_Part]] = {key: [] for key in modules}
        self._hooks: list[Any] = []

    @staticmethod
    def fit(modules: Collection[nn.Module]) -> bool:
        """Whether all parameters of some modules are those of linear layers, or scalars."""
        return all(
            isinstance(child, nn.Linear) or parameter.ndim == 0
            for module in modules
            for child in module.modules()
            for parameter in child.parameters(recurse=False)
        )

    def __enter__(self) -> SampleGradients:
        for key, module in self._modules.items():
            for child in module.modules():
                if isinstance(child, nn.Linear):
                    part: _Part = _Linear(child)
                elif list(child.parameters(recurse=False)):
                    part = _Scalars(child)
                else:
                    continue
                self._parts[key].append(part)
                self._hooks += part.watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for parts in self._parts.values():
            for part in parts:
                part.release()

    def squares(self, losses: Tensor) -> dict[ModuleKey, Tensor]:
        """Sums of the squares of all numbers of each module's gradient.

        Args:
            losses: (n,), one of each sample, each of its own sample alone.

        Returns:
            (n,) float64 for each module that the losses depend on.

        Raises:
            InputError: A layer was not called with the samples along its first axis.
        """
        watched = [(key, part, *call) for key, parts in self._parts.items() for part in parts for call in part.calls]
        for key, _, _, value in watched:
            if value.shape[0] != len(losses):
                raise InputError(
                    f"{key} was called with {value.shape[0]} rows for {len(losses)} samples.",
                    hint="Score one sample at a time: let loss_fn return a single number.",
                )
        for _, part, _, _ in watched:
            part.is_over = True
        values = [value for *_, value in watched]
        found = torch.autograd.grad(losses.sum(), values, allow_unused=True) if values else ()
        own: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for (_, part, source, _), gradient in zip(watched, found, strict=True):
            if gradient is not None:
                own.setdefault(id(part), []).append((source, gradient))
        result: dict[ModuleKey, Tensor] = {}
        for key, parts in self._parts.items():
            reached = [part.squares(own[id(part)]) for part in parts if id(part) in own]
            if reached:
                result[key] = torch.stack(reached).sum(dim=0)
        return result


class _Part(ABC):
    """A layer that is watched: each call leaves a source, and the value that a gradient is asked for at."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.is_over = False
        """Whether further calls are those of activations that are computed again."""

    @abstractmethod
    def watch(self) -> list[Any]:
        """Register hooks; gives their handles."""

    def release(self) -> None:
        """Leave the layer as it was."""
        self.calls.clear()

    @abstractmethod
    def squares(self, found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """(n,) float64 sums of squares, from sources and the gradients at their values."""


class _Linear(_Part):
    """A linear layer: inputs are the sources, outputs the values."""

    def watch(self) -> list[Any]:
        return [self.module.register_forward_hook(self._after)]

    def _after(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG002
        if not self.is_over:
            self.calls.append((inputs[0].detach(), output))

    def squares(self, found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        weights, biases = [], []
        for source, gradient in found:
            g = _tokens(gradient)  # (n, T, d_out)
            weights.append(g.transpose(1, 2) @ _tokens(source.to(g.dtype)))  # (n, d_out, d_in)
            biases.append(g.sum(dim=1))
        total = _square(weights)
        return total if self.module.bias is None else total + _square(biases)


class _Scalars(_Part):
    """A module with scalars of its own, the sources. While it computes, each sample has views of them: the values."""

    def watch(self) -> list[Any]:
        before = self.module.register_forward_pre_hook(self._before)
        return [before, self.module.register_forward_hook(lambda *_: self._restore())]

    def _before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shape = (inputs[0].shape[0],) + (1,) * (inputs[0].ndim - 1)
        for name, parameter in module.named_parameters(recurse=False):
            module.__dict__[name] = parameter.expand(shape)  # found before the parameter, which stays registered
            if not self.is_over:
                self.calls.append((parameter, module.__dict__[name]))

    def release(self) -> None:
        self._restore()
        super().release()

    def squares(self, found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        calls: dict[int, list[Tensor]] = {}
        for source, gradient in found:
            calls.setdefault(id(source), []).append(gradient)
        return torch.stack([_square(gradients) for gradients in calls.values()]).sum(dim=0)

    def _restore(self) -> None:
        for name, _ in self.module.named_parameters(recurse=False):
            self.module.__dict__.pop(name, None)


def _tokens(x: Tensor) -> Tensor:
    """(n, ..., d) → (n, T, d)."""
    return x.reshape(len(x), -1, x.shape[-1])


def _square(calls: Sequence[Tensor]) -> Tensor:
    """Gradients (n, ...) of the same weights in several calls → (n,) sums of the squares of their sum, in float64."""
    total = calls[0] if len(calls) == 1 else torch.stack(tuple(calls)).sum(dim=0)
    return torch.linalg.vector_norm(total.flatten(1), dim=1, dtype=torch.float64).square()
