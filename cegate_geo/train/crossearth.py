"""Weights of CrossEarth (arXiv 2410.22629) as they were released: whole checkpoints of a training run.

`state_dict` holds a DINOv2 with patches of 16 px (`backbone.`), Rein's tokens and projections (`backbone.reins.`), a
Mask2Former head (`decode_head.`) and parts of a training code that was not released: a style augmentor, an auxiliary
head, and a stack of convolutions in Rein's adapter (`high_extractor`). The authors' own tools drop these without a
word. Here each key is used or belongs to what is named as left out; any other of backbone and Rein is refused.

Layout: `CrossEarth/models/backbones/reins.py`, `reins_dinov2.py` of the authors' repository; what the training log in
the pickle is made of: github.com/bradleylab/ml-containers, `crossearth/scripts/convert_checkpoint.py`. It is tested on
made files of this layout, not on the released ones: they were not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from cegate_geo.errors import ModelError

BACKBONE = "backbone."
REIN = "backbone.reins."
UNUSED = ("transform.", "merge.", "high_extractor.")
"""Below `REIN`: the link from tokens to the queries of Mask2Former, and the convolutions of the training code."""
LOGGED = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
)
"""What a training log of mmengine beside the weights is made of; none of it is imported, called or kept."""


class _Nothing:
    """Stands for an object of the training log: takes anything, does nothing."""

    def __new__(cls, *_: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def without_log() -> AbstractContextManager[None]:
    """Within it `torch.load(weights_only=True)` reads over the training log of mmengine, instead of refusing the file.

    Nothing more is run than without it: each name of `LOGGED` stands for an object that does nothing.
    """
    context: AbstractContextManager[None] = torch.serialization.safe_globals([(_Nothing, name) for name in LOGGED])
    return context


def is_checkpoint(table: Mapping[str, Any]) -> bool:
    """Whether a table of weights has the layout of CrossEarth."""
    return any(name.startswith(REIN) for name in table)


def backbone_weights(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The DINOv2 of a checkpoint, by its own names.

    Raises:
        ModelError: If the file holds Rein and head only, as the authors' training saves them.
    """
    names = [name for name in table if name.startswith(BACKBONE) and not name.startswith(REIN)]
    if not names:
        raise ModelError(
            "The checkpoint holds Rein and the head, but not the DINOv2 under them.",
            hint="Take a file with full weights; Rein's tools/generate_full_weights.py puts them together.",
        )
    return {name.removeprefix(BACKBONE): table[name] for name in names}


def rein_weights(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rein's weights by the names of a toolbox of kind "rein" on all blocks.

    The learned scale of what is added becomes part of the projection that computes it: `s (W x + b) = (s W) x + s b`.

    Raises:
        ModelError: If something is missing or not known.
    """
    given = {name.removeprefix(REIN): value for name, value in table.items() if name.startswith(REIN)}
    given = {name: value for name, value in given.items() if not name.startswith(UNUSED)}
    try:
        scale = given.pop("scale", torch.tensor(1.0))
        first = "blocks.0.rein.shared"
        state = {
            f"{first}.token.weight": given.pop("mlp_token2feat.weight"),
            f"{first}.token.bias": given.pop("mlp_token2feat.bias"),
            f"{first}.delta.weight": scale * given.pop("mlp_delta_f.weight"),
            f"{first}.delta.bias": scale * given.pop("mlp_delta_f.bias"),
        }
        whole = given.pop("learnable_tokens", None)
        factors = [given.pop(f"learnable_tokens_{part}") for part in "ab"] if whole is None else [whole]
    except KeyError as error:
        raise ModelError(f"The checkpoint lacks {REIN}{error.args[0]}.", hint="Fetch it again.") from error
    if given:
        raise ModelError(
            f"The checkpoint holds {REIN}{next(iter(given))} and {len(given) - 1} more that are not known.",
            hint="Only the layout of CrossEarth's released weights is read.",
        )
    for number, factor in enumerate(factors):
        state |= {f"blocks.{layer}.rein.factors.{number}": value for layer, value in enumerate(factor)}
    return state


def left_out(table: Mapping[str, Any]) -> tuple[str, ...]:
    """What a checkpoint holds beside backbone and Rein, by the names of its parts, sorted."""
    unused = {REIN + part.rstrip(".") for part in UNUSED if any(name.startswith(REIN + part) for name in table)}
    others = {name.partition(".")[0] for name in table if not name.startswith(BACKBONE)}
    return tuple(sorted(unused | others))
