"""Mask2Former (arXiv 2112.01527) on the token maps of a ViT: queries that each say a class and draw a mask.

Pixel decoder and transformer decoder are those of the library `transformers`, as published and used by CrossEarth-Gate:
4 maps at strides 4, 8, 16, 32 (here: the token maps, resampled), multi-scale deformable attention, masked attention.
What is not the library's: the first 1x1 convolutions run on the token grid and their output is resampled, which is the
same as resampling their input (both are linear, and the weights of bilinear resampling sum to 1) at a fraction of the
work; weights start as in its authors' code; position embeddings are made once for all images of a batch.

The head normalises by groups and layers, by the statistics of each tile, as published; see `heads` on what that does to
tiles of bare ground.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from cegate_geo.errors import ConfigError, RuntimeMissingError
from cegate_geo.train.config import QueryConfig

GROUPS = 32
"""Groups of the normalisation, and width of a head of attention: `dim` is a multiple of it."""
LEVELS = 4
"""Maps that the pixel decoder takes: the coarser three attend to each other, the finest one is added."""
PUBLISHED = {"queries": 100, "pixel_layers": 6, "decoder_layers": 9}
"""Sizes at `dim` 256."""
SMALL = {"queries": 50, "pixel_layers": 3, "decoder_layers": 3}
"""Sizes of narrower heads: one round of the decoder over the three coarser maps instead of three."""
LEAST = 1e-6
"""Scores below it are taken for it, so that their logarithm is finite: where no query claims a pixel, all classes are
equally likely."""


class QueryPredictions(NamedTuple):
    """What the queries say, before the first layer of the decoder and after each of them; the last one counts."""

    classes: tuple[torch.Tensor, ...]
    """Logits (N, Q, K + 1) of Q queries; the last channel is "no object"."""
    masks: tuple[torch.Tensor, ...]
    """Logits (N, Q, h, w) of the queries' masks, at stride 4."""


class Mask2FormerHead(nn.Module):
    """Pixel decoder, queries, and their sum as logits of a semantic map.

    The logits are logarithms of the scores sum over queries of p(class | query) * p(pixel in mask), so that a softmax
    gives scores that sum to 1. The class of a pixel is that of the published inference; the probability is the share of
    a class in all scores of the pixel, not a calibrated one.

    Args:
        in_dim: Width D of the tokens.
        levels: Number of feature maps, 4 or fewer; the shallowest is used again where there are fewer.
        dim: Width of the head, a multiple of 32; 256 is the published one.
        classes: Number of classes K.
        sizes: Queries and layers; what is None is chosen by `dim`.

    Raises:
        ConfigError: If a size can't be built.
        RuntimeMissingError: If transformers or scipy are not installed.
    """

    def __init__(self, *, in_dim: int, levels: int, dim: int, classes: int, sizes: QueryConfig | None = None) -> None:
        super().__init__()
        library = _library()
        if dim % GROUPS:
            raise ConfigError(
                f"model.head_dim = {dim} is no multiple of {GROUPS}, as mask2former needs it.",
                hint="Use 64, 96, 128, ..., 256.",
            )
        queries, pixel_layers, decoder_layers = complete(sizes or QueryConfig(), dim)
        if queries < classes:
            raise ConfigError(
                f"model.mask2former.queries = {queries}, but there are {classes} classes.",
                hint="Each class of an image needs a query of its own: use more queries than classes.",
            )
        config = library.Mask2FormerConfig(
            feature_size=dim,
            mask_feature_size=dim,
            hidden_dim=dim,
            encoder_feedforward_dim=4 * dim,
            dim_feedforward=8 * dim,
            num_attention_heads=dim // GROUPS,
            num_queries=queries,
            encoder_layers=pixel_layers,
            decoder_layers=decoder_layers + 1,  # it counts the prediction before the first one
            dropout=0.0,
        )
        self.missing = LEVELS - levels
        self.pixels = library.Mask2FormerPixelDecoder(config, feature_channels=[in_dim] * LEVELS)
        self.narrow = _take_projections(self.pixels)
        self.queries = library.Mask2FormerTransformerModule(in_features=dim, config=config)
        self.classify = nn.Linear(dim, classes + 1)
        self.pixels.position_embedding = self.queries.position_embedder = Positions(dim)
        _initialise(self)

    def predictions(self, features: Sequence[torch.Tensor]) -> QueryPredictions:
        """Levels (N, D, h, w), shallow to deep → what the queries say, masks at (4h, 4w)."""
        height, width = features[0].shape[-2:]
        sizes = [(4 * height, 4 * width), (2 * height, 2 * width), (height, width)]
        sizes.append((max(1, height // 2), max(1, width // 2)))
        levels = [features[0]] * self.missing + list(features)
        with _single_precision(features[0].device.type):
            maps = [
                narrow(x.float())
                if x.shape[-2:] == size
                else F.interpolate(narrow(x.float()), size=size, mode="bilinear", align_corners=False)
                for narrow, x, size in zip(self.narrow, levels, sizes, strict=True)
            ]
            decoded = self.pixels(maps)
        found = self.queries(decoded.multi_scale_features, decoded.mask_features)
        hidden = found.intermediate_hidden_states  # (Q, N, dim) each
        return QueryPredictions(
            tuple(self.classify(x.transpose(0, 1)) for x in hidden), tuple(found.masks_queries_logits)
        )

    def forward(self, features: Sequence[torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        """Levels (N, D, h, w) and the image (N, 3, H, W), of which only the size counts → (N, K, H, W)."""
        found = self.predictions(features)
        with _single_precision(image.device.type):
            classes = found.classes[-1].float().softmax(-1)[..., :-1]
            masks = found.masks[-1].float().sigmoid()
            scores = (classes.transpose(1, 2) @ masks.flatten(2)).unflatten(2, masks.shape[-2:])
            scores = F.interpolate(scores, size=image.shape[-2:], mode="bilinear", align_corners=False)
            return scores.clamp_min(LEAST).log()

    def embeddings(self) -> list[nn.Parameter]:
        """Those of queries and levels, which weight decay leaves alone."""
        found = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        return [*found, self.pixels.level_embed]


def complete(sizes: QueryConfig, dim: int) -> tuple[int, int, int]:
    """Queries, layers of the pixel decoder and of the decoder; what is not given is chosen by the head's width."""
    default = PUBLISHED if dim >= 256 else SMALL
    given = (sizes.queries, sizes.pixel_layers, sizes.decoder_layers)
    queries, pixel_layers, decoder_layers = (g or d for g, d in zip(given, default.values(), strict=True))
    return queries, pixel_layers, decoder_layers


class Positions(nn.Module):
    """Sines and cosines of a map's rows and columns, normalised to a whole turn: the library's, made once for a batch.

    The library makes them for each image of a batch, and keeps the last ones, which does not go with tracing.

    Args:
        dim: Channels, a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channels = dim // 2

    def forward(self, shape: torch.Size, device: torch.device, *_: Any) -> torch.Tensor:
        """(N, D, h, w) as a shape → (1, dim, h, w) in float32; first half rows, second half columns."""
        exponents = torch.arange(0, self.channels, 2, device=device, dtype=torch.float32) / self.channels
        parts = []
        for axis, size in enumerate(shape[-2:]):
            turns = 2 * math.pi * torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6)
            angles = turns[:, None] / 10_000**exponents
            waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1).T
            waves = waves[:, :, None] if axis == 0 else waves[:, None, :]
            parts.append(waves.expand(-1, *shape[-2:]))
        return torch.cat(parts)[None]


def _take_projections(pixels: Any) -> nn.ModuleList:
    """Move the 1x1 convolutions that narrow the maps out of a pixel decoder; gives them from fine to coarse."""
    coarse = [part[0] for part in pixels.input_projections]
    pixels.input_projections = nn.ModuleList([part[1] for part in pixels.input_projections])
    finest, norm = pixels.adapter_1
    pixels.adapter_1 = norm
    pixels.lateral_convolutions = [norm]
    return nn.ModuleList([finest, *reversed(coarse)])


@torch.no_grad()
def _initialise(head: Mask2FormerHead) -> None:
    """Start as the authors' code does; what is not named here keeps torch's start."""
    for module in [*head.narrow.modules(), *head.pixels.modules()]:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layers in (head.pixels.encoder.layers, head.queries.decoder.layers):
        for parameter in layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    for layer in head.pixels.encoder.layers:
        _look_around(layer.self_attn)
    nn.init.normal_(head.pixels.level_embed)


def _look_around(attention: Any) -> None:
    """Deformable attention begins with points on rays, one direction for each head, all of the same weight."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angles = torch.arange(heads) * (2 * math.pi / heads)
    rays = torch.stack([angles.cos(), angles.sin()], -1)
    rays = rays / rays.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1, dtype=rays.dtype).view(1, 1, points, 1)
    attention.sampling_offsets.bias.copy_((rays.view(heads, 1, 1, 2) * steps).expand(-1, levels, -1, -1).reshape(-1))
    for zero in (attention.sampling_offsets.weight, attention.attention_weights.weight):
        nn.init.zeros_(zero)
    for part in (attention.attention_weights, attention.value_proj, attention.output_proj):
        nn.init.zeros_(part.bias)


def _single_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Without autocast, as the authors' pixel decoder: places to sample at are no matter of 8 bits, nor are scores."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()  # a context of its own would stop the exporter


def _library() -> Any:
    """The module of transformers that holds Mask2Former.

    Raises:
        RuntimeMissingError: If it, or scipy, which the loss needs, is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
        from transformers.models.mask2former import modeling_mask2former
    except ImportError as error:
        raise RuntimeMissingError(
            f"The head 'mask2former' can't be built: {error}.", hint="pip install 'cegate-geo[mask2former]'"
        ) from error
    return modeling_mask2former
