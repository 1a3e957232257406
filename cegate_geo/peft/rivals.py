"""Modules of other methods in the same frame: Rein (arXiv 2312.04265) and deep visual prompts (VPT, arXiv 2203.12119).

Rein starts at zero, by the authors' option of a zero-initialised W_f with a fixed scale of 1 (their default is a scale
that is learned from 0.001). Its link from tokens to the queries of Mask2Former is left out: methods go with every head.
Prompts have no zero start: they take part in every softmax from the first step on, as published.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from cegate_geo.peft.modules import SiteModule
from cegate_geo.peft.sites import Kind

PATCH = 16
"""Patch size in the published ranges of Rein's random starts, whatever the backbone's."""


class ReinProjections(nn.Module):
    """What all layers of Rein share: W_t from tokens to features, W_f from the sum to what is added.

    Args:
        dim: Channels of the token stream.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Linear(dim, dim)
        self.delta = nn.Linear(dim, dim)
        nn.init.kaiming_uniform_(self.token.weight, a=math.sqrt(5))
        nn.init.zeros_(self.delta.weight)
        nn.init.zeros_(self.delta.bias)


class ReinModule(SiteModule):
    """Rein: patch tokens look learnable tokens up, and are refined by what they find.

    With tokens T (m, d): `S = softmax(f T' / sqrt(d))`, `delta = W_f(S[:, 1:] W_t(T[1:]) + f)`. The first token takes
    the attention that no other deserves, and gives nothing.

    Args:
        dim: Channels d of the token stream.
        tokens: Learnable tokens m, 2 or more.
        rank: Inner size of their factors (m, rank) and (rank, d); 0 for tokens in full.
        shared: Projections, the same object for all layers of a ViT.
    """

    kind: ClassVar[Kind] = "rein"

    def __init__(self, dim: int, tokens: int, rank: int, shared: ReinProjections) -> None:
        super().__init__()
        spread = math.sqrt(dim * rank) if rank else dim
        limit = math.sqrt(6 / (3 * PATCH**2 + spread))
        shapes = ((tokens, rank), (rank, dim)) if rank else ((tokens, dim),)
        self.factors = nn.ParameterList([torch.empty(shape).uniform_(-limit, limit) for shape in shapes])
        self.shared = shared

    def embeddings(self) -> list[nn.Parameter]:
        """The factors of the tokens."""
        return list(self.factors)

    @property
    def tokens(self) -> Tensor:
        """(m, d)."""
        first, *rest = self.factors
        return first @ rest[0] if rest else first

    def forward(self, patches: Tensor) -> Tensor:
        """What is added to the patch tokens.

        Args:
            patches: (B, N, d), without prefix tokens.

        Returns:
            (B, N, d).
        """
        tokens = self.tokens
        likeness = (patches @ tokens.T * tokens.shape[1] ** -0.5).softmax(dim=-1)  # (B, N, m)
        found = likeness[..., 1:] @ self.shared.token(tokens[1:])
        return self.shared.delta(found + patches)


class PromptModule(SiteModule):
    """Deep prompts: learnable tokens behind the prefix tokens of a block's input, dropped again behind the block.

    Args:
        dim: Channels d of the token stream.
        tokens: Prompts n.
        patch: Side of a patch in pixels; it sets the range of the random start.
    """

    kind: ClassVar[Kind] = "prompt"

    def __init__(self, dim: int, tokens: int, patch: int) -> None:
        super().__init__()
        limit = math.sqrt(6 / (3 * patch**2 + dim))
        self.tokens = nn.Parameter(torch.empty(tokens, dim).uniform_(-limit, limit))

    def embeddings(self) -> list[nn.Parameter]:
        """The prompts."""
        return [self.tokens]

    def insert(self, x: Tensor, prefix: int) -> Tensor:
        """(B, P + N, d) → (B, P + n + N, d) for P prefix tokens."""
        prompts = self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat((x[:, :prefix], prompts, x[:, prefix:]), dim=1)

    def extend(self, rope: Tensor) -> Tensor:
        """Rotary embeddings (..., N, 2 * c), sines before cosines → (..., n + N, 2 * c): prompts are not turned."""
        rows = (*rope.shape[:-2], self.tokens.shape[0], rope.shape[-1] // 2)
        still = torch.cat((rope.new_zeros(rows), rope.new_ones(rows)), dim=-1)
        return torch.cat((still, rope), dim=-2)

    def drop(self, x: Tensor, prefix: int) -> Tensor:
        """(B, P + n + N, d) → (B, P + N, d)."""
        return torch.cat((x[:, :prefix], x[:, prefix + self.tokens.shape[0] :]), dim=1)


def published_query_link(dim: int, width: int = 256) -> int:
    """Parameters of the link from Rein's tokens to Mask2Former's queries, which this frame leaves out.

    Args:
        dim: Channels of the token stream.
        width: Channels of a query.
    """
    return dim * width + width + 3 * width * width + width
