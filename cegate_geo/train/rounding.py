"""Weights in 16 bits: rounded first, so that what is compared with the exported file is what the file holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from cegate_geo.errors import ModelError, ParityError
from cegate_geo.train.parity import Parity, Probabilities

ROUNDED: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""fp16 has 11 bits of precision and ends at 65,504; bf16 has 8 bits, and the range of single precision."""
MAX_ROUNDING = 1e-2
"""Largest share of pixels that may get another class by rounding the weights."""


@torch.no_grad()
def round_weights(segmenter: nn.Module, precision: str) -> None:
    """Round weight matrices and kernels to 16 bits, in place; biases, norms and scales stay.

    Args:
        segmenter: Any module, in float32.
        precision: One of `ROUNDED`.

    Raises:
        ModelError: If a weight does not fit.
    """
    for name, parameter in segmenter.named_parameters():
        if parameter.ndim >= 2:
            parameter.copy_(parameter.to(ROUNDED[precision]).float())
            if not bool(torch.isfinite(parameter).all()):
                raise ModelError(f"{name} holds values beyond {precision}.", hint="Export it with bf16 or fp32.")


def proved_rounding(expected: Probabilities, rounded: Probabilities, precision: str) -> Parity:
    """What rounding changed.

    Args:
        expected: Probabilities (N, K, S, S) before.
        rounded: After.
        precision: One of `ROUNDED`.

    Raises:
        ParityError: If too many pixels got another class.
    """
    parity = Parity.of(expected, rounded)
    if not parity.disagreement <= MAX_ROUNDING:
        others = "fp16 or fp32" if precision == "bf16" else "fp32"
        raise ParityError(
            f"Weights in {precision} change the class of {100 * parity.disagreement:.2f} % of the pixels.",
            hint=f"Nothing was written. Export it with precision {others}.",
        )
    return parity
