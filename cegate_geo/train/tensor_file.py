"""Tensors on disk, as safetensors: all or nothing, with the rights that other new files have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, from any device, as `path`; an old file stays until the new one is complete."""
    part = path.with_name(path.name + ".part")
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # shared memory is refused
    try:
        part.touch()
        rights = part.stat().st_mode  # safetensors makes files for the owner alone
        save_file(plain, part, metadata={"format": "pt", **(metadata or {})})
        part.chmod(rights)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
