"""Files of a run, and what is made of it: all or nothing, with the rights that other new files have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from cegate_geo.errors import InputError

MODEL = "model.onnx"
"""The model of a run, in its folder; its report tells of this export of it, and of no other."""


def make_run_folder(folder: Path) -> None:
    """Make the folder of a run, if it is missing.

    Raises:
        InputError: If it can't be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} can't be made: {error.strerror}.", hint="Choose another.") from error


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8; an old one stays until the new one is complete."""
    with _replaced(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; an old one stays until the new one is complete."""
    with _replaced(path) as part:
        part.write_bytes(content)


def write_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, from any device, as safetensors; an old file stays until the new one is complete."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # shared memory is refused
    with _replaced(path) as part:
        part.touch()
        rights = part.stat().st_mode  # safetensors makes files for the owner alone
        save_file(plain, part, metadata={"format": "pt", **(metadata or {})})
        part.chmod(rights)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A name to write under; what is there when the block ends gets the name `path`, on the disk before it does."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
