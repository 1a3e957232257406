"""The patch embedding of a backbone that learned from three bands, for any others.

Red, green and blue keep the weights that they were learned with, bit by bit, in whatever order they come.
Each other band starts from the mean of the three, shared out among these bands, so that light that is the same in all
of them excites a patch by at most a third more than the backbone is used to. Where none is known to be red, green or
blue, all start from the backbone's weights as timm adapts them (`timm.models._manipulate.adapt_input_conv`: their sum
for one band, repeated and scaled by 3 / C for more). Bands that the backbone has never seen are trained: frozen, a mean
says nothing of what is different in them. Known ones are trained where `peft.patch_embed` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from timm.models._manipulate import adapt_input_conv
from torch import nn
from torch.nn import functional as F

from cegate_geo.errors import ModelError

RGB = 3
PROJECTION = "patch_embed.proj."
"""How the names of its parameters begin in a timm ViT."""
T = TypeVar("T")


class BandProjection(nn.Module):
    """A convolution over C bands: weights of known bands beside those of new ones.

    Args:
        convolution: Of three bands, those that the backbone was trained with.
        channels: Number of bands C, not three.
        rgb: Channels that are red, green and blue; empty for none.
    """

    def __init__(self, convolution: nn.Conv2d, *, channels: int, rgb: Sequence[int] = ()) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        others = [n for n in range(channels) if n not in rgb]
        order = [*rgb, *others]
        self._place = [order.index(n) for n in range(channels)]
        self._stride = cast(tuple[int, int], convolution.stride)
        self.bias = convolution.bias
        if rgb:
            self.known = nn.Parameter(weight.clone())  # (D, 3, p, p)
            self.new = nn.Parameter(weight.mean(1, keepdim=True).repeat(1, len(others), 1, 1) / len(others))
        else:
            self.known = nn.Parameter(weight[:, :0].clone())
            self.new = nn.Parameter(adapt_input_conv(channels, weight).clone())

    @property
    def weight(self) -> torch.Tensor:
        """(D, C, p, p) in the order of the bands."""
        return torch.cat([self.known, self.new], 1)[:, self._place]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, D, H / p, W / p)."""
        return F.conv2d(images, self.weight, self.bias, self._stride)

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """The same as one plain convolution, for export."""
        weight = self.weight
        width, channels, rows, cols = weight.shape
        plain = nn.Conv2d(channels, width, (rows, cols), self._stride, bias=self.bias is not None)
        plain.weight.copy_(weight)
        if self.bias is not None and plain.bias is not None:
            plain.bias.copy_(self.bias)
        return plain.to(weight.device)


def take_bands(vit: nn.Module, *, channels: int, rgb: Sequence[int] = ()) -> None:
    """Let a timm ViT of three bands take others, in place.

    Three bands take its weights, in their own order where they are red, green and blue, as they are where they are not.

    Args:
        vit: Pre-trained on three bands.
        channels: Number of bands C.
        rgb: Channels that are red, green and blue; empty for none.

    Raises:
        ModelError: If the ViT takes another number of bands.
    """
    patches = vit.patch_embed
    convolution = patches.proj  # type: ignore[union-attr]
    if not isinstance(convolution, nn.Conv2d) or convolution.in_channels != RGB:
        found = getattr(convolution, "in_channels", type(convolution).__name__)
        raise ModelError(f"The backbone takes {found} bands, not three.", hint="Use one that was trained on RGB.")
    if channels == RGB == len(rgb):
        with torch.no_grad():
            convolution.weight.copy_(convolution.weight[:, in_order(range(RGB), rgb)])
    if channels != RGB:
        patches.proj = BandProjection(convolution, channels=channels, rgb=rgb)  # type: ignore[union-attr]


def in_order(values: Sequence[T], rgb: Sequence[int]) -> list[T]:
    """Values for red, green and blue in the order of three channels that are these."""
    return [values[rgb.index(channel)] for channel in range(RGB)]


def projection_of(vit: nn.Module) -> BandProjection | None:
    """What `take_bands` put into a ViT, if anything."""
    found = vit.patch_embed.proj  # type: ignore[union-attr]
    return found if isinstance(found, BandProjection) else None


def projection_parameters(vit: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and bias of the patch embedding by name, of known and of new bands."""
    # Where no band is known, the weights of known ones are there, but empty.
    return {name: p for name, p in vit.named_parameters() if name.startswith(PROJECTION) and p.numel()}


def fold_bands(vit: nn.Module) -> None:
    """Make one plain convolution of the patch embedding, in place."""
    projection = projection_of(vit)
    if projection is not None:
        vit.patch_embed.proj = projection.folded()  # type: ignore[union-attr]
