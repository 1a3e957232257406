"""Trained frequency modules as fewer and smaller operations, for export: what they compute stays.

A frequency module multiplies three versions of the tokens x by three matrices. Its low-pass filter P mixes tokens and a
linear layer W mixes channels, so that W (P x) = P (W x), and W (x - P x) = W x - P (W x): the filter may as well run on
the few inner channels of the experts, and the first products of all experts and the router become one. The second ones
become one, too, with the router's weights multiplied in before it, and alpha is part of the matrix. Exact but for the
order of sums, in single precision: in bfloat16 the difference W x - P (W x) loses what the experts live on, which is
why training computes the long form.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cegate_geo.peft.modules import FrequencyModule, SiteModule
from cegate_geo.peft.sites import Kind
from cegate_geo.peft.spectrum import half_side, low_pass_matrices


class FusedFrequency(SiteModule):
    """What a `FrequencyModule` computes, in two products with weights and two small ones of the filter.

    Each expert has one inner channel more than the module's: the constant 1 that carries the bias of its second layer.

    Args:
        module: As trained; it stays as it is.
    """

    kind: ClassVar[Kind] = "frequency"

    @torch.no_grad()
    def __init__(self, module: FrequencyModule) -> None:
        super().__init__()
        self.cutoff = module.cutoff
        experts = (module.low, module.high, module.all)
        dim, hidden = module.all.up.out_features, module.all.down.out_features
        self.width = hidden + 1
        """Inner channels of an expert."""
        self.down = nn.Linear(dim, 3 * self.width + 3, bias=False)
        self.up = nn.Linear(3 * self.width, dim, bias=False)
        self.inner_bias = nn.Parameter(torch.empty(3 * self.width))
        order = [1, 2, 0]  # the router says all, low, high; here low and high stand first, side by side for the filter
        self.router_bias = nn.Parameter(module.router.bias[order].clone())
        constant = torch.zeros(1, dim)
        rows = [torch.cat((expert.down.weight, constant)) for expert in experts]
        self.down.weight.copy_(torch.cat((*rows, module.router.weight[order])))
        self.inner_bias.copy_(torch.cat([F.pad(expert.down.bias, (0, 1), value=1.0) for expert in experts]))
        alpha = module.alpha.double()
        cols = [torch.cat((expert.up.weight, expert.up.bias[:, None]), dim=1) for expert in experts]
        self.up.weight.copy_(alpha * torch.cat(cols, dim=1).double())

    def forward(self, tokens: Tensor, prefix: int, shape: tuple[int, int]) -> Tensor:
        """What is added to all tokens: zeros for the first `prefix`.

        Args:
            tokens: (B, prefix + h * w, dim).
            prefix: Number of tokens that are no patches.
            shape: (h, w) of the token grid.

        Returns:
            Of the shape of `tokens`.
        """
        r = self.width
        inner = self.down(tokens)[:, prefix:]  # (B, N, 3 r + 3)
        filtered, rest, routed = inner.split([2 * r, r, 3], dim=-1)
        low, high_part = low_pass(filtered, shape, self.cutoff).split(r, dim=-1)
        high = filtered[..., r:] - high_part
        hidden = F.relu(torch.cat((low, high, rest), dim=-1) + self.inner_bias)
        weights = (routed + self.router_bias).softmax(dim=-1)  # (B, N, 3)
        gated = (hidden.unflatten(-1, (3, r)) * weights[..., None]).flatten(-2)
        return self.up(F.pad(gated, (0, 0, prefix, 0)) if prefix else gated)

    def add_to(self, tokens: Tensor, prefix: int, shape: tuple[int, int]) -> Tensor:
        """As `FrequencyModule.add_to`."""
        return tokens + self(tokens, prefix, shape)


def low_pass(tokens: Tensor, shape: tuple[int, int], cutoff: float) -> Tensor:
    """The low part of `split_frequencies` in two products, without a transposition.

    The product along the height has real and imaginary part of each row beside each other, so that (B, 2 h, w c) is
    read as (B, h, 2 w, c), over which the product along the width sums.

    Args:
        tokens: (B, h * w, c) patch tokens, row by row, without prefix tokens.
        shape: (h, w) of the token grid.
        cutoff: Share of the shorter side of the grid that counts as low, 0 < cutoff <= 1.

    Returns:
        (B, h * w, c).
    """
    B, N, c = tokens.shape
    h, w = shape
    rows, cols = (torch.from_numpy(m) for m in _paired_matrices(h, w, half_side(shape, cutoff)))
    along_height = rows.to(tokens) @ tokens.reshape(B, h, w * c)  # (B, 2 h, w c)
    return (cols.to(tokens) @ along_height.reshape(B, h, 2 * w, c)).reshape(B, N, c)


@lru_cache(maxsize=64)
def _paired_matrices(h: int, w: int, half: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(2 h, h): real and imaginary part of each row in turn; (w, 2 w): real part, and the negated imaginary part."""
    (real_h, imag_h), (real_w, imag_w) = low_pass_matrices(h, half), low_pass_matrices(w, half)
    rows = np.stack((real_h, imag_h), axis=1).reshape(2 * h, h)
    return rows, np.concatenate((real_w, -imag_w), axis=1)


def fuse(vit: nn.Module) -> int:
    """Put the short form of each frequency module in its place, for inference in single precision; for good.

    Args:
        vit: With modules, such as `attach` leaves it; changed in place.

    Returns:
        How many modules there were.
    """
    found: list[Any] = [b for b in vit.modules() if isinstance(getattr(b, "frequency", None), FrequencyModule)]
    for block in found:
        fused = FusedFrequency(block.frequency)
        fused.is_bypassed = block.frequency.is_bypassed
        block.frequency = fused
    return len(found)
