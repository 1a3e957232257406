"""State of a training run on disk: tensors as safetensors, everything else as JSON. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cegate_geo.errors import InputError
from cegate_geo.train.run_files import write_tensors, write_text


class Stateful(Protocol):
    """Anything with tensors to save."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors by name."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Take back what `state_dict` gave."""


def save_state(
    folder: Path,
    *,
    step: int,
    modules: Mapping[str, Stateful],
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write what a run needs to go on after `step` steps; the old state stays until the new one is complete."""
    tensors = {f"module.{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
    optimizer_state = optimizer.state_dict()
    for index, entries in optimizer_state["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in entries.items()}
    tensors["torch_rng"] = torch.get_rng_state()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{step:08d}.safetensors"
    write_tensors(tensors, folder / name)
    table = {
        "step": step,
        "tensors": name,
        "groups": optimizer_state["param_groups"],
        "rng": rng.bit_generator.state if rng is not None else None,
        "extra": dict(extra or {}),
    }
    write_text(folder / "state.json", json.dumps(table))
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(
    folder: Path,
    *,
    modules: Mapping[str, Stateful],
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator | None = None,
) -> tuple[int, dict[str, Any]]:
    """Bring modules, optimiser and generators back to where `save_state` left them.

    Returns:
        Steps done, and the `extra` table.

    Raises:
        InputError: If the folder holds no state, or one of another model.
    """
    try:
        table = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / table["tensors"])
        for name, module in modules.items():
            prefix = f"module.{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, entry = key.split(".", 2)
                state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": table["groups"]})
    except (OSError, SafetensorError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} holds no state that can be resumed: {error}.", hint="Start without --resume, in a new folder."
        ) from error
    torch.set_rng_state(tensors["torch_rng"])
    if rng is not None:
        rng.bit_generator.state = table["rng"]
    return int(table["step"]), table["extra"]
