"""Laws of saved states: going on is the same as never having stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cegate_geo.errors import InputError
from cegate_geo.train.state import load_state, save_state


class Job:
    """A small training with dropout, batch statistics, AdamW and a numpy generator."""

    def __init__(self, seed: int, width: int = 8) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 2))
        self.scale = nn.Linear(1, 1, bias=False)
        groups = [
            {"params": list(self.net.parameters()), "lr": 1e-2, "base_lr": 1e-2},
            {"params": list(self.scale.parameters()), "lr": 1e-3, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        self.rng = np.random.default_rng(seed)
        self.modules = {"net": self.net, "scale": self.scale}

    def step(self) -> float:
        x = torch.from_numpy(self.rng.normal(size=(16, 4)).astype(np.float32))
        loss = (self.net(x) * self.scale.weight - x[:, :2]).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.rng.random() < 0.5:
            for p in self.net[3].parameters():
                p.grad = None  # as the gate leaves inactive modules
        self.optimizer.step()
        return float(loss.detach())

    def save(self, folder: Path, step: int) -> None:
        extra = {"best": 0.5, "metrics": None, "names": ["a"]}
        save_state(folder, step=step, modules=self.modules, optimizer=self.optimizer, rng=self.rng, extra=extra)

    def load(self, folder: Path) -> tuple[int, dict[str, object]]:
        return load_state(folder, modules=self.modules, optimizer=self.optimizer, rng=self.rng)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path, done: int) -> None:
    job = Job(0)
    for _ in range(done):
        job.step()
    job.save(tmp_path, done)
    expected = [job.step() for _ in range(6)]
    other = Job(1)
    other.step()
    assert other.load(tmp_path) == (done, {"best": 0.5, "metrics": None, "names": ["a"]})
    assert [other.step() for _ in range(6)] == expected
    for a, b in zip(job.net.state_dict().values(), other.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert other.optimizer.param_groups[0]["base_lr"] == 1e-2
    assert list(other.optimizer.param_groups[0]["betas"]) == [0.9, 0.95]


def test_a_generator_is_optional(tmp_path: Path) -> None:
    job = Job(0)
    save_state(tmp_path, step=2, modules=job.modules, optimizer=job.optimizer)
    assert load_state(tmp_path, modules=job.modules, optimizer=job.optimizer) == (2, {})


def test_parameters_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    net = nn.Linear(3, 3)
    tied = nn.Sequential(net, net)
    optimizer = torch.optim.AdamW(net.parameters())
    save_state(tmp_path, step=1, modules={"net": tied}, optimizer=optimizer)
    weight = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.zero_()
    load_state(tmp_path, modules={"net": tied}, optimizer=optimizer)
    assert torch.equal(net.weight, weight)


def test_the_old_state_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(0)
    job.save(tmp_path, 1)
    expected = {k: v.clone() for k, v in job.net.state_dict().items()}
    job.step()

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    for target in ("cegate_geo.train.run_files.save_file", "pathlib.Path.write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            with pytest.raises(OSError, match="No space"):
                job.save(tmp_path, 2)
        other = Job(1)
        assert other.load(tmp_path)[0] == 1
        assert all(torch.equal(v, expected[k]) for k, v in other.net.state_dict().items())
    job.save(tmp_path, 2)
    assert Job(1).load(tmp_path)[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "step-00000002.safetensors"]


def test_no_state_a_damaged_one_or_that_of_another_model_is_refused(tmp_path: Path) -> None:
    job = Job(0)
    with pytest.raises(InputError, match=r"no state.*--resume"):
        job.load(tmp_path / "nowhere")
    job.step()
    job.save(tmp_path, 3)
    with pytest.raises(InputError, match="size mismatch"):
        Job(0, width=9).load(tmp_path)
    data = (tmp_path / "step-00000003.safetensors").read_bytes()
    for broken in (data[: len(data) // 2], b"", b"junk" * 200):
        (tmp_path / "step-00000003.safetensors").write_bytes(broken)
        with pytest.raises(InputError, match="no state"):
            Job(0).load(tmp_path)
    (tmp_path / "step-00000003.safetensors").write_bytes(data)
    table = json.loads((tmp_path / "state.json").read_text())
    for text in ("{", "[]", json.dumps({**table, "tensors": "gone.safetensors"}), json.dumps({"step": 3})):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(InputError, match="no state"):
            Job(0).load(tmp_path)
