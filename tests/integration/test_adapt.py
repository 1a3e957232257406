"""A toy ViT through the whole way: adapt, resume, export, predict, evaluate."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import torch
from safetensors.torch import load_file

from cegate_geo import api
from cegate_geo.errors import CancelledError, CegateError, InputError
from cegate_geo.train import loop
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.evaluate import evaluate_mask
from cegate_geo.train.export import export_run
from cegate_geo.train.loop import AdaptProgress, adapt
from cegate_geo.train.report import write_report
from cegate_geo.train.run import load_run

from .scenes import GSD_M, write_squares


def config(folder: Path, **train: object) -> AdaptConfig:
    raster, labels = folder / "squares.tif", folder / "squares.gpkg"
    if not raster.exists():
        write_squares(folder)
    settings = {
        "steps": 12, "batch_size": 2, "crop": 64, "lr": 2e-3, "validate_every": 6, "save_every": 6, "ema": 0.9,
        "precision": "fp32", "photometric": 0.3, "scale": [0.8, 1.25], "validation": 0.2,
    }  # fmt: skip
    table = {
        "classes": {"0": "other", "1": "building"},
        "source": [{"images": str(raster), "labels": str(labels), "label_field": "class"}],
        "model": {
            "backbone": "test_vit2.r160_in1k", "weights": "random", "head": "dpt", "head_dim": 16, "tile_size": 64,
        },
        "peft": {
            "every": 4, "samples": 3, "budget": 0.34,
            "spatial": {"rank": 4}, "semantic": {"dim": 4}, "frequency": {"dim": 4},
        },
        "train": {**settings, **train},
    }  # fmt: skip
    if "style" in train:
        table["style"] = [{"images": str(raster)}]
    return build(AdaptConfig, table)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run long enough to learn the squares."""
    folder = tmp_path_factory.mktemp("learned")
    adapt(config(folder, steps=90, validate_every=30, save_every=90, lr=5e-3), folder / "run", device="cpu")
    return folder


def test_the_gate_chooses_within_its_budget_and_only_chosen_modules_move(learned: Path) -> None:
    run = load_run(learned / "run")
    total = len(run.toolbox.keys)
    choices = lines(learned / "run" / "gate.jsonl")
    assert [c["step"] for c in choices] == list(range(0, 90, 4))
    assert all(len(c["active"]) == round(0.34 * total) for c in choices)  # type: ignore[arg-type]
    for selection in choices:
        for kind in ("spatial", "semantic", "frequency"):
            scores = selection["scores"]
            assert isinstance(scores, dict)
            assert sum(v for k, v in scores.items() if k.endswith(kind)) == pytest.approx(1)
    for key, module in run.toolbox.modules.items():
        moved = any(p.abs().sum() > 0 for n, p in module.named_parameters() if n.endswith("up.weight"))
        assert moved == (key in run.ever_active), key


def test_adapt_export_predict_evaluate_learns_the_squares(learned: Path, tmp_path: Path) -> None:
    model, mask = tmp_path / "model.onnx", tmp_path / "mask.tif"
    report = export_run(learned / "run", model)
    assert report.parity["disagreement"] <= 1e-3
    raster, labels = write_squares(tmp_path, side=200, seed=1, name="unseen")
    api.predict(raster, mask, model=model)
    with rasterio.open(raster) as source, rasterio.open(mask) as target:
        assert (source.crs, source.transform, source.shape) == (target.crs, target.transform, target.shape)
        assert set(np.unique(target.read(1))) <= {0, 1}
    metrics = evaluate_mask(mask, labels, label_field="class")
    assert metrics["miou"] is not None
    assert metrics["miou"] > 0.7


def test_the_exported_graph_holds_no_trace_of_a_pruned_module(learned: Path, tmp_path: Path) -> None:
    run = load_run(learned / "run")
    report = export_run(learned / "run", tmp_path / "model.onnx", keep="active")
    graph = onnx.load(tmp_path / "model.onnx")
    assert graph.opset_import[0].version == 17
    assert graph.ir_version == 8
    assert not {n.op_type for n in graph.graph.node} & {"DFT", "STFT"}
    frozen = sum(p.numel() for p in run.segmenter.backbone.parameters()) - run.toolbox.count_parameters()
    head = sum(p.numel() for p in run.segmenter.head.parameters())
    kept = [k for k in run.active if k.kind != "spatial"]  # merged ones cost nothing
    stored = sum(int(np.prod(t.dims)) for t in graph.graph.initializer)
    constants = 2 * report.modules_total * 64 + 64  # position grids and split matrices
    assert stored <= frozen + head + run.toolbox.count_parameters(kept) + constants


@pytest.mark.parametrize("train", [{}, {"style": 0.5, "style_method": "both"}], ids=["plain", "styles"])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path: Path, train: dict[str, object]) -> None:
    settings = config(tmp_path, **train)
    adapt(settings, tmp_path / "whole", device="cpu")
    calls = iter([False] * 6 + [True])
    with pytest.raises(CancelledError, match="7 steps"):
        adapt(settings, tmp_path / "parts", device="cpu", cancelled=lambda: next(calls))
    adapt(settings, tmp_path / "parts", device="cpu", resume=True)
    whole, parts = (load_file(tmp_path / n / "adapter.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert lines(tmp_path / "whole" / "gate.jsonl") == lines(tmp_path / "parts" / "gate.jsonl")


def test_a_run_that_never_began_can_be_begun(tmp_path: Path) -> None:
    good = config(tmp_path, steps=1)
    source = dataclasses.replace(good.source[0], labels=str(tmp_path / "nowhere.gpkg"))
    with pytest.raises(CegateError):
        adapt(dataclasses.replace(good, source=(source,)), tmp_path / "run", device="cpu")
    adapt(good, tmp_path / "run", device="cpu")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be made"):
        adapt(good, tmp_path / "file", device="cpu")


def test_a_run_that_was_killed_before_it_was_saved_resumes_from_its_start(tmp_path: Path) -> None:
    settings = config(tmp_path)

    def die(at: AdaptProgress) -> None:
        if at.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(settings, tmp_path / "killed", device="cpu", progress=die)
    (tmp_path / "killed" / "state").mkdir()  # killed within its first save
    adapt(settings, tmp_path / "killed", device="cpu", resume=True)
    adapt(settings, tmp_path / "whole", device="cpu")
    whole, killed = (load_file(tmp_path / n / "adapter.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    assert [e["step"] for e in lines(tmp_path / "killed" / "gate.jsonl")] == [0, 4, 8]


def test_what_a_saved_state_stands_on_is_in_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed right after it was saved goes on from there, and has no other record of what was before."""
    seen: dict[int, list[list[object]]] = {}

    def spy(folder: Path, *, step: int, **state: object) -> None:
        logs = (lines(folder.parent / name) for name in ("metrics.jsonl", "gate.jsonl"))
        seen[step] = [[entry["step"] for entry in log if "active" in entry or "loss" in entry] for log in logs]

    monkeypatch.setattr(loop, "save_state", spy)
    adapt(config(tmp_path, validate_every=12), tmp_path / "run", device="cpu")
    assert seen == {6: [list(range(6)), [0, 4]], 12: [list(range(12)), [0, 4, 8]]}


def test_a_signal_saves_the_state_and_ends_with_130(tmp_path: Path) -> None:
    raster, labels = write_squares(tmp_path)
    table = f"""
        [classes]
        0 = "other"
        1 = "building"
        [[source]]
        images = "{raster}"
        labels = "{labels}"
        label_field = "class"
        [model]
        backbone = "test_vit2.r160_in1k"
        weights = "random"
        head = "linear"
        tile_size = 64
        [train]
        steps = 100000
        batch_size = 1
        crop = 64
        save_every = 100000
        """
    (tmp_path / "c.toml").write_text(table, encoding="utf-8")
    run = tmp_path / "run"
    words = [sys.executable, "-m", "cegate_geo", "adapt", str(tmp_path / "c.toml"), "-o", str(run)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as running:
        while not (run / "gate.jsonl").exists():
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Go on with --resume" in said
    assert json.loads((run / "state" / "state.json").read_text(encoding="utf-8"))["step"] >= 1


def test_looks_of_other_places_change_what_is_learned(tmp_path: Path) -> None:
    for name, train in (("plain", {}), ("styled", {"style": 1.0}), ("unused", {"style": 0.0})):
        adapt(config(tmp_path, steps=2, **train), tmp_path / name, device="cpu")
    plain, styled, unused = (load_file(tmp_path / n / "adapter.safetensors") for n in ("plain", "styled", "unused"))
    assert any(not torch.equal(plain[k], styled[k]) for k in plain)
    assert all(torch.equal(plain[k], unused[k]) for k in plain)
    assert load_run(tmp_path / "styled").facts["styles"] == ["squares.tif"]


def test_a_run_is_not_overwritten_by_another(tmp_path: Path) -> None:
    adapt(config(tmp_path, steps=1), tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="holds a run already"):
        adapt(config(tmp_path, steps=2), tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="no run of this configuration"):
        adapt(config(tmp_path, steps=2), tmp_path / "run", device="cpu", resume=True)


@pytest.mark.parametrize("method", ["frozen", "full", "lora", "all", "random"])
def test_every_method_runs_the_whole_way(tmp_path: Path, method: str) -> None:
    settings = config(tmp_path, steps=2)
    table = {**json.loads(json.dumps(_table(settings)))}
    table["peft"]["method"] = method
    adapt(build(AdaptConfig, table), tmp_path / "run", device="cpu")
    report = export_run(tmp_path / "run", tmp_path / "run" / "model.onnx")
    assert report.parity["disagreement"] <= 1e-3
    assert "<html" in write_report(tmp_path / "run").read_text(encoding="utf-8")


def test_the_manifest_tells_the_ground_size_that_was_trained(learned: Path, tmp_path: Path) -> None:
    export_run(learned / "run", tmp_path / "model.onnx")
    manifest = api.describe_model(tmp_path / "model.onnx").manifest
    assert manifest.gsd_m == pytest.approx(GSD_M, rel=0.002)  # UTM's scale factor
    assert manifest.gsd_range_m == pytest.approx((GSD_M * 0.8, GSD_M * 1.25), rel=0.01)
    assert manifest.legend.names == ("other", "building")


def _table(settings: AdaptConfig) -> object:
    from cegate_geo.train.config_file import to_table

    return to_table(settings)
