"""The frequency split of a token grid as two small matrix products, without any Fourier transform in the graph.

A square low-pass mask of half-side c around the centre of the shifted spectrum (Earth-Adapter, arXiv 2504.06220) is
separable: with P_n = F^-1 diag(m_n) F for the n x n Fourier matrix F and the 0/1 mask m_n of one axis,
`low = Re(P_H X P_W^T) = Re(P_H) X Re(P_W)^T - Im(P_H) X Im(P_W)^T` and `high = X - low`. The mask keeps the frequencies
-c to c - 1, which is not symmetric, so that P is complex and the second term is needed.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def half_side(shape: tuple[int, int], cutoff: float) -> int:
    """Half the side of the square low-pass mask, in frequencies: 4 for a 32 x 32 grid and a cutoff of 0.3.

    Args:
        shape: (height, width) of the token grid.
        cutoff: Share of the shorter side that counts as low, 0 < cutoff <= 1.

    Returns:
        c; 0 where nothing is low.
    """
    return int(min(shape) * cutoff // 2)


@lru_cache(maxsize=256)
def low_pass_matrices(size: int, half: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Real and imaginary part of the projection of one axis on the frequencies -half to half - 1.

    Args:
        size: Length of the axis in tokens, odd or even.
        half: Half the side of the mask, 0 to size // 2.

    Returns:
        Two (size, size) arrays, float32, computed in float64.
    """
    frequencies = np.arange(-half, half)
    offsets = np.arange(size)[:, None] - np.arange(size)[None, :]
    projection = np.exp(2j * np.pi * frequencies[:, None, None] * offsets / size).sum(axis=0) / size
    return projection.real.astype(np.float32), projection.imag.astype(np.float32)


def split_frequencies(tokens: Tensor, shape: tuple[int, int], cutoff: float) -> tuple[Tensor, Tensor]:
    """Split patch tokens into a low and a high part that sum to the input.

    Computed in float32 whatever the input and any surrounding autocast: bfloat16 loses the high part.

    Args:
        tokens: (B, h * w, d) patch tokens, row by row, without prefix tokens.
        shape: (h, w) of the token grid.
        cutoff: Share of the shorter side that counts as low, 0 < cutoff <= 1.

    Returns:
        low and high, each (B, h * w, d) in the dtype of `tokens`.
    """
    B, N, d = tokens.shape
    h, w = shape
    half = half_side(shape, cutoff)
    with torch.autocast(device_type=tokens.device.type, enabled=False):
        grid = tokens.float().reshape(B, h, w, d)
        matrices = [low_pass_matrices(size, half) for size in shape]
        real, imag = ([torch.tensor(axis[part], device=tokens.device) for axis in matrices] for part in (0, 1))
        low = (_mix(grid, *real) - _mix(grid, *imag)).reshape(B, N, d)
        high = grid.reshape(B, N, d) - low
        return low.to(tokens.dtype), high.to(tokens.dtype)


def _mix(grid: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Multiply a (B, h, w, d) grid by (h, h) `rows` along the height and by (w, w) `cols` along the width."""
    B, h, w, d = grid.shape
    mixed = (rows @ grid.reshape(B, h, w * d)).reshape(B, h, w, d)
    return cols @ mixed
