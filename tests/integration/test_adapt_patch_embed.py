"""A patch embedding that is trained beside the modules, through the whole way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from cegate_geo.errors import CancelledError, ModelError
from cegate_geo.train.config import AdaptConfig, PeftConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.export import export_run
from cegate_geo.train.job import Job, make_job
from cegate_geo.train.loop import adapt
from cegate_geo.train.ranks import alone
from cegate_geo.train.run import load_run

from .scenes import write_squares
from .test_adapt_bands import config as of_bands
from .test_adapt_bands import write_backbone, write_bands

PROJECTION = {"patch_embed.proj.weight", "patch_embed.proj.bias"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("base") / "backbone.safetensors")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_squares(tmp_path_factory.mktemp("squares"))


def table(squares: tuple[Path, Path], weights: Path, *, peft: dict[str, Any], **train: Any) -> AdaptConfig:
    return build(AdaptConfig, of_bands(*squares, weights, peft=peft, train={"photometric": 0.0, **train}))


@pytest.mark.parametrize("method", ["gate", "frozen"])
def test_the_patch_embedding_moves_alone_of_the_backbone_and_is_kept_resumed_and_exported(
    tmp_path: Path, squares: tuple[Path, Path], weights: Path, method: str
) -> None:
    settings = table(squares, weights, peft={"method": method, "patch_embed": True}, save_every=3)
    adapt(settings, tmp_path / "whole", device="cpu")
    calls = iter([False] * 4 + [True])
    with pytest.raises(CancelledError):
        adapt(settings, tmp_path / "run", device="cpu", cancelled=lambda: next(calls))
    adapt(settings, tmp_path / "run", device="cpu", resume=True)
    state, whole = (load_file(tmp_path / name / "adapter.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(state[name], whole[name]) for name in whole)

    run, base = load_run(tmp_path / "run"), load_file(weights)
    found = run.segmenter.backbone.state_dict()
    assert {name for name in base if not torch.equal(found[name], base[name])} == PROJECTION
    assert {name for name in state if name.startswith("backbone")} == {f"backbone.{name}" for name in PROJECTION}

    export_run(tmp_path / "run", tmp_path / "model.onnx")  # refuses what does not compute the same
    kernels = [numpy_helper.to_array(i) for i in onnx.load(tmp_path / "model.onnx").graph.initializer]
    at_start, trained = (w["patch_embed.proj.weight"].numpy() for w in (base, found))
    assert not any(np.array_equal(kernel, at_start) for kernel in kernels)
    assert any(np.array_equal(kernel, trained) for kernel in kernels)

    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    always = sum(base[name].numel() for name in PROJECTION)
    always += sum(p.numel() for p in run.segmenter.head.parameters())
    assert result["trained_parameters"] == always + run.toolbox.count_parameters()
    assert result["stored_parameters"] == always + run.toolbox.count_parameters(run.ever_active)


@pytest.mark.parametrize(
    ("peft", "trains"),
    [
        ({}, True),
        ({"budget": 1.0}, True),
        ({"budget": 0.25}, False),
        ({"budget": 0.25, "patch_embed": True}, True),
        ({"patch_embed": False}, False),
        ({"method": "all"}, False),
        ({"method": "lora", "patch_embed": True}, True),
        ({"method": "full"}, True),
        ({"method": "full", "patch_embed": False}, True),
    ],
)
def test_the_patch_embedding_is_trained_where_the_gate_leaves_nothing_out(peft: dict[str, Any], trains: bool) -> None:
    assert PeftConfig(**peft).trains_patch_embed == trains


def rates(job: Job) -> dict[int, tuple[float, float]]:
    """Rate and decay of each parameter, by its identity."""
    groups = job.optimizer.param_groups
    found = {id(p): (g["base_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(job.run.trained_parameters())
    return found


@pytest.mark.parametrize(
    ("method", "stated", "expected"),
    [("gate", None, 1e-4), ("gate", 3e-3, 3e-3), ("full", None, 1e-3), ("full", 3e-4, 3e-4)],
)
def test_rates_of_modules_head_and_backbone_are_their_own(
    tmp_path: Path, squares: tuple[Path, Path], weights: Path, method: str, stated: float | None, expected: float
) -> None:
    given = {} if stated is None else {"backbone_lr": stated}
    settings = table(
        squares, weights, peft={"method": method, "patch_embed": True}, lr=1e-3, head_lr=2e-3, weight_decay=0.1, **given
    )
    job = make_job(settings, tmp_path / "run", ranks=alone("cpu"), provenance=None)
    found, run = rates(job), job.run
    assert {found[id(p)][0] for p in run.toolbox.parameters()} == ({1e-3} if method == "gate" else set())
    assert {found[id(p)][0] for p in run.segmenter.head.parameters()} == {2e-3}
    assert [found[id(p)][0] for p in run.unfrozen().values()] == pytest.approx([expected] * len(run.unfrozen()))
    assert {name: found[id(run.unfrozen()[name])][1] for name in PROJECTION} == {
        "patch_embed.proj.weight": 0.1,
        "patch_embed.proj.bias": 0.0,
    }


def test_known_bands_move_at_the_backbones_rate_and_new_ones_at_that_of_modules(tmp_path: Path, weights: Path) -> None:
    raster, labels = write_bands(tmp_path, "uint16")
    given = of_bands(raster, labels, weights, peft={"patch_embed": True}, train={"backbone_lr": 1e-4})
    given["input"] = {"bands": ["B4", "B3", "B2", "B8"], "rgb": ["B4", "B3", "B2"]}
    job = make_job(build(AdaptConfig, given), tmp_path / "run", ranks=alone("cpu"), provenance=None)
    found = rates(job)
    assert {name: found[id(p)][0] for name, p in job.run.unfrozen().items()} == {
        "patch_embed.proj.known": 1e-4,
        "patch_embed.proj.bias": 1e-4,
        "patch_embed.proj.new": 5e-3,
    }


def test_a_band_that_nothing_is_known_of_is_trained_once(tmp_path: Path, weights: Path) -> None:
    """Known bands have no weights then."""
    raster, labels = write_bands(tmp_path, "float32", bands=1)
    given = of_bands(raster, labels, weights, source={"bands": ["VV"]}, peft={"patch_embed": True}, train={"steps": 2})
    adapt(build(AdaptConfig, given), tmp_path / "run", device="cpu")
    run = load_run(tmp_path / "run")
    assert run.unfrozen().keys() == {"patch_embed.proj.new", "patch_embed.proj.bias"}
    bias = load_file(weights)["patch_embed.proj.bias"]
    assert not torch.equal(run.unfrozen()["patch_embed.proj.bias"], bias)


def test_weights_of_other_parts_are_refused(tmp_path: Path, squares: tuple[Path, Path], weights: Path) -> None:
    settings = table(squares, weights, peft={"patch_embed": True}, steps=1, validate_every=1)
    adapt(settings, tmp_path / "run", device="cpu")
    changed = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    changed["peft"]["patch_embed"] = False
    (tmp_path / "run" / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ModelError, match="does not fit"):
        load_run(tmp_path / "run")
