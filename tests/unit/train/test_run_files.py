"""Tensor files appear whole, with the rights of any other new file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cegate_geo.train.run_files import write_tensors


def test_tensors_that_share_memory_come_back(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors({"whole": whole, "turned": whole.T, "row": whole[1]}, tmp_path / "a.safetensors", metadata={"k": "v"})
    back = load_file(tmp_path / "a.safetensors")
    assert torch.equal(back["turned"], whole.T)
    assert torch.equal(back["row"], whole[1])
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}


@pytest.mark.skipif(os.name != "posix", reason="rights are a matter of POSIX")
def test_the_file_has_the_rights_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors({"a": torch.ones(1)}, path)
    with pytest.raises(TypeError):
        write_tensors({"a": torch.zeros(1)}, path, metadata={"k": 1})  # type: ignore[dict-item]
    assert torch.equal(load_file(path)["a"], torch.ones(1))
    assert list(tmp_path.iterdir()) == [path]
