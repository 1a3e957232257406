"""The three module types. Each returns what is to be added at its site, and returns exact zeros at its start.

- spatial: LoRA (arXiv 2106.09685) on q and v,
- semantic: parallel adapter (AdaptFormer, arXiv 2205.13535) with GELU and biases, unscaled,
- frequency: Earth-Adapter (arXiv 2504.06220) on patch tokens, with zero-initialised up-projections,

as CrossEarth-Gate (arXiv 2511.20302) combines them.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cegate_geo.errors import InputError
from cegate_geo.peft.sites import Kind
from cegate_geo.peft.spectrum import split_frequencies


class SiteModule(nn.Module):
    """A small trainable part at a site."""

    kind: ClassVar[Kind]
    is_bypassed: bool
    """True while the module is left out of the forward pass (only with inactive='bypass')."""

    def __init__(self) -> None:
        super().__init__()
        self.is_bypassed = False

    def embeddings(self) -> list[nn.Parameter]:
        """Parameters that stand for tokens, which weight decay is to leave alone; none in most modules."""
        return []


class LowRank(nn.Module):
    """down: d_in -> rank, up: rank -> d_out, no biases. The product starts at zero.

    Args:
        dim_in: Input channels.
        dim_out: Output channels.
        rank: Inner channels.
    """

    def __init__(self, dim_in: int, dim_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim_in, rank, bias=False)
        self.up = nn.Linear(rank, dim_out, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) to (..., dim_out)."""
        return self.up(self.down(x))

    @torch.no_grad()
    def weight_delta(self) -> Tensor:
        """The product as one matrix: (dim_out, dim_in), float64."""
        return self.up.weight.double() @ self.down.weight.double()


class SpatialModule(SiteModule):
    """LoRA on q and v, of a fused qkv layer or of two; alpha equals the rank, so that the scale is 1.

    Args:
        dim: Input channels of the qkv layer.
        dim_out: Channels of q (a third of the qkv layer's outputs).
        rank: Rank of both updates.
    """

    kind: ClassVar[Kind] = "spatial"

    def __init__(self, dim: int, dim_out: int, rank: int) -> None:
        super().__init__()
        self.q = LowRank(dim, dim_out, rank)
        self.v = LowRank(dim, dim_out, rank)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the output of qkv.

        Args:
            x: (..., dim), the input of the qkv layer.

        Returns:
            (..., 3 * dim_out): q, zeros for k, v.
        """
        q, v = self.q(x), self.v(x)
        return torch.cat((q, torch.zeros_like(q), v), dim=-1)

    @torch.no_grad()
    def weight_delta(self) -> Tensor:
        """What is added to the weight of qkv by a merge: (3 * dim_out, dim), float64."""
        q, v = self.q.weight_delta(), self.v.weight_delta()
        return torch.cat((q, torch.zeros_like(q), v), dim=0)


class SemanticModule(SiteModule):
    """Adapter beside the MLP; reads the un-normalised residual stream after attention and skips LayerScale.

    Args:
        dim: Channels of the token stream.
        hidden: Inner channels.
    """

    kind: ClassVar[Kind] = "semantic"

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        _init_adapter(self.down, self.up)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) tokens to what is added to the block's output, of the same shape."""
        return self.up(F.gelu(self.down(x)))


class FrequencyExpert(nn.Module):
    """Linear, ReLU, Linear; starts at zero.

    Args:
        dim: Channels of the token stream.
        hidden: Inner channels.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        _init_adapter(self.down, self.up)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to (B, N, dim)."""
        return self.up(F.relu(self.down(x)))


class FrequencyModule(SiteModule):
    """Earth-Adapter: three experts for all, low and high frequencies, mixed for each token by a router.

    `delta = alpha * (w0 * E_all(x) + w1 * E_low(low(x)) + w2 * E_high(high(x)))`, w = softmax(router(x)) per token.

    Args:
        dim: Channels of the token stream.
        hidden: Inner channels of each expert.
        cutoff: Share of the shorter side of the token grid that counts as low frequency, 0 < cutoff <= 1.
    """

    kind: ClassVar[Kind] = "frequency"

    def __init__(self, dim: int, hidden: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.all = FrequencyExpert(dim, hidden)
        self.low = FrequencyExpert(dim, hidden)
        self.high = FrequencyExpert(dim, hidden)
        self.router = nn.Linear(dim, 3)
        self.alpha = nn.Parameter(torch.tensor(0.1))

    def forward(self, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """What is added to the patch tokens.

        Args:
            tokens: (B, h * w, dim) patch tokens, without prefix tokens.
            shape: (h, w) of the token grid.

        Returns:
            (B, h * w, dim).

        Raises:
            InputError: The number of tokens is not h * w.
        """
        if tokens.shape[1] != shape[0] * shape[1]:
            raise InputError(
                f"{tokens.shape[1]} patch tokens do not fill a grid of {shape[0]} x {shape[1]}.",
                hint="Frequency modules need all patch tokens: no token dropping, and prefix tokens split off.",
            )
        low, high = split_frequencies(tokens, shape, self.cutoff)
        weights = self.router(tokens).softmax(dim=-1)  # (B, N, 3)
        w_all, w_low, w_high = weights.unbind(dim=-1)  # each (B, N)
        delta = (
            w_all[..., None] * self.all(tokens) + w_low[..., None] * self.low(low) + w_high[..., None] * self.high(high)
        )
        return self.alpha * delta

    def add_to(self, tokens: Tensor, prefix: int, shape: tuple[int, int]) -> Tensor:
        """All tokens with what is added to the patch tokens.

        Args:
            tokens: (B, prefix + h * w, dim).
            prefix: Number of tokens that are no patches; they stay as they are.
            shape: (h, w) of the token grid.

        Returns:
            Of the shape of `tokens`.
        """
        patches = tokens[:, prefix:] + self(tokens[:, prefix:], shape)
        return torch.cat((tokens[:, :prefix], patches), dim=1) if prefix else patches


def _init_adapter(down: nn.Linear, up: nn.Linear) -> None:
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)
    for linear in (down, up):
        nn.init.zeros_(linear.bias)
