"""Laws of the training loop: parts of a batch, recomputed activations, stopping early, collapse."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cegate_geo.errors import CancelledError, CegateError, CollapseWarning, ConfigError, ParityError
from cegate_geo.peft import ModuleKey, prune
from cegate_geo.train import afford, loop, steps
from cegate_geo.train import job as job_module
from cegate_geo.train.chips import ChipSampler
from cegate_geo.train.config import TrainConfig
from cegate_geo.train.export import export_run
from cegate_geo.train.job import make_job
from cegate_geo.train.loop import adapt
from cegate_geo.train.ranks import alone
from cegate_geo.train.run import load_run

from .test_adapt import config, lines


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter.safetensors")


def test_a_batch_in_parts_is_the_same_step(tmp_path: Path) -> None:
    """Also where labelled pixels are spread unevenly over the parts; statistics of batches would be a part's own."""
    for parts in (1, 2, 4):
        settings = config(tmp_path, steps=3, batch_size=4, accumulate=parts, crop=96)
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, norm="group"))
        adapt(settings, tmp_path / str(parts), device="cpu")
    whole = weights(tmp_path / "1")
    losses = [[e["loss"] for e in lines(tmp_path / str(p) / "metrics.jsonl") if "loss" in e] for p in (1, 2, 4)]
    for n, parts in enumerate((2, 4), start=1):
        assert losses[n] == pytest.approx(losses[0], rel=1e-4)
        for name, value in weights(tmp_path / str(parts)).items():
            torch.testing.assert_close(value, whole[name], atol=2e-4, rtol=1e-3)


def test_parts_weigh_by_their_labelled_pixels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    labels[0] = 255
    labels[1, :7] = 255
    whole = steps.segmentation_loss(logits, labels)
    count = int((labels != 255).sum())
    parts = [steps.segmentation_loss(logits[n : n + 1], labels[n : n + 1], pixels=count) for n in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    assert float(parts[0]) == 0


def test_losses_of_chips_are_those_of_batches_of_one() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    labels[0] = 255
    labels[1, :7] = 255
    found = steps.segmentation_losses(logits, labels)
    torch.testing.assert_close(
        found, torch.stack([steps.segmentation_loss(logits[n : n + 1], labels[n : n + 1]) for n in range(4)])
    )
    assert float(found[0]) == 0


def test_the_gate_scores_as_many_chips_at_a_time_as_a_pass_of_a_step_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the scores do not depend on how many these are."""
    raw, seen = [], []
    for name, changes in {"whole": {}, "parts": {"accumulate": 2}, "low": {"checkpointing": True}}.items():
        settings = config(tmp_path, batch_size=2, **changes)  # type: ignore[arg-type]
        job = make_job(settings, tmp_path / name, ranks=alone("cpu"), provenance=None)
        sizes: list[int] = []
        branches = job.run.segmenter.branches
        monkeypatch.setattr(job.run.segmenter, "branches", lambda x, b=branches, s=sizes: (s.append(len(x)), b(x))[1])
        raw.append(steps.choose_modules(job, 0)["raw"])
        seen.append(sizes)
    assert seen == [[2, 1], [1, 1, 1], [1, 1, 1]]  # 3 samples
    assert raw[1] == pytest.approx(raw[0], rel=1e-4)
    assert raw[2] == pytest.approx(raw[0], rel=1e-4)


def test_recomputed_activations_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"plain": 0, "recomputed": 0}
    for name in calls:
        settings = config(tmp_path, steps=4, checkpointing=name == "recomputed")

        def counting(*given: object, name: str = name, **options: object) -> object:
            job = make_job(*given, **options)  # type: ignore[arg-type]

            def count(module: nn.Module, inputs: object, output: object) -> None:
                calls[name] += module.training

            job.run.segmenter.backbone.blocks[-1].mlp.register_forward_hook(count)
            return job

        monkeypatch.setattr(loop, "make_job", counting)
        adapt(settings, tmp_path / name, device="cpu")
    plain, recomputed = weights(tmp_path / "plain"), weights(tmp_path / "recomputed")
    assert all(torch.equal(plain[k], recomputed[k]) for k in plain)
    assert calls == {"plain": 4, "recomputed": 8}


def test_several_readers_cut_chips_at_a_time_and_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of steps and those of the gate: a chip that waits for another one to be cut would wait for ever."""
    settings = config(tmp_path, steps=5)
    settings = dataclasses.replace(settings, peft=dataclasses.replace(settings.peft, samples=4))
    adapt(settings, tmp_path / "one", device="cpu")
    two, cut = threading.Barrier(2, timeout=20), ChipSampler.sample
    monkeypatch.setattr(job_module, "count_readers", lambda _: 4)
    monkeypatch.setattr(ChipSampler, "sample", lambda self, rng: (two.wait(), cut(self, rng))[1])
    adapt(settings, tmp_path / "several", device="cpu")
    expected = weights(tmp_path / "one")
    assert all(torch.equal(expected[k], v) for k, v in weights(tmp_path / "several").items())
    for log in ("gate.jsonl", "metrics.jsonl"):
        assert lines(tmp_path / "several" / log) == lines(tmp_path / "one" / log)


@pytest.mark.parametrize(
    ("device", "processors", "neighbours", "readers"),
    [("cpu", 64, 1, 1), ("cuda:1", 64, 1, 8), ("cuda", 4, 1, 4), ("cuda", 4, 2, 2), ("cuda", 4, 8, 1)],
)
def test_a_gpu_gets_the_readers_that_its_process_has_processors_for(
    monkeypatch: pytest.MonkeyPatch, device: str, processors: int, neighbours: int, readers: int
) -> None:
    monkeypatch.setattr(job_module.os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(neighbours))
    assert job_module.count_readers(device) == readers


def test_training_stops_when_validation_has_not_become_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path, steps=40, validate_every=2, save_every=40, patience=3, lr=1e-12, ema=0.0)
    adapt(settings, tmp_path / "run", device="cpu")
    entries = lines(tmp_path / "run" / "metrics.jsonl")
    assert [e["step"] for e in entries if "validation" in e] == [1, 3, 5, 7]
    assert max(e["step"] for e in entries) == 7  # type: ignore[type-var]
    assert json.loads((tmp_path / "run" / "state" / "state.json").read_text(encoding="utf-8"))["step"] == 8
    before = weights(tmp_path / "run")
    monkeypatch.setattr(loop, "take_step", lambda *_: pytest.fail("a run that stopped early trains no more"))
    adapt(settings, tmp_path / "run", device="cpu", resume=True)
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        ("gate", set()),
        ("rein", {f"blocks.{n}.rein.factors.{part}" for n in range(8) for part in (0, 1)}),
        ("vpt", {f"blocks.{n}.prompt.tokens" for n in range(8)}),
        ("full", {"pos_embed", "reg_token"}),
    ],
)
def test_weight_decay_leaves_vectors_tokens_and_positions_alone(tmp_path: Path, method: str, tokens: set[str]) -> None:
    settings = config(tmp_path, weight_decay=0.1)
    settings = dataclasses.replace(settings, peft=dataclasses.replace(settings.peft, method=method))
    job = make_job(settings, tmp_path / "run", ranks=alone("cpu"), provenance=None)
    groups = {id(p): group["weight_decay"] for group in job.optimizer.param_groups for p in group["params"]}
    run = job.run
    assert groups.keys() == {id(p) for p in run.trained_parameters()}
    named = [*run.toolbox.named_parameters(), *run.segmenter.head.named_parameters()]
    named += run.segmenter.backbone.named_parameters() if method == "full" else []
    assert {name for name, p in named if p.ndim > 1 and not groups[id(p)]} == tokens
    assert {groups[id(p)] for _, p in named if p.ndim < 2} == {0.0}
    assert {groups[id(p)] for _, p in named} == {0.0, 0.1}


def test_the_rate_rises_then_falls_by_the_published_power() -> None:
    settings = TrainConfig(steps=110, warmup=10 / 110)
    rates = [steps.learning_rate(step, settings) for step in range(110)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[10:] == pytest.approx([(1 - n / 100) ** 0.9 for n in range(100)])


def test_a_step_is_adamws_with_the_rate_of_the_step_and_a_clipped_gradient(tmp_path: Path) -> None:
    """Against torch's own optimiser, fed with the gradient of the loss, cut to the length of 1."""
    settings = config(tmp_path, weight_decay=0.1, lr=1e-3, head_lr=4e-3, ema=0.5)
    settings = dataclasses.replace(settings, peft=dataclasses.replace(settings.peft, method="all", budget=1.0))
    job = make_job(settings, tmp_path / "run", ranks=alone("cpu"), provenance=None)
    parameters = job.run.trained_parameters()
    with torch.no_grad():
        for parameter in job.run.segmenter.head.parameters():
            parameter *= 3  # so that the gradient is longer than 1
    images, labels = steps.read_batch(job, 7)
    twins = [p.detach().clone().requires_grad_() for p in parameters]
    job.run.segmenter.train()
    loss = steps.segmentation_loss(job.run.segmenter(images), labels)
    gradients = torch.autograd.grad(loss, parameters)
    length = float(torch.stack([g.norm() for g in gradients]).norm())
    assert length > 1
    head = {id(p) for p in job.run.segmenter.head.parameters()}
    groups = [
        {
            "params": [twin],
            "lr": (4e-3 if id(own) in head else 1e-3) * steps.learning_rate(7, settings.train),
            "weight_decay": 0.1 if own.ndim > 1 else 0.0,
        }
        for own, twin in zip(parameters, twins, strict=True)
    ]
    for twin, gradient in zip(twins, gradients, strict=True):
        twin.grad = gradient / length
    torch.optim.AdamW(groups, betas=(0.9, 0.999)).step()
    averages = [t.clone() for t in job.ema.shadow]
    steps.take_step(job, 7, (images, labels))
    for own, twin in zip(parameters, twins, strict=True):
        torch.testing.assert_close(own, twin, rtol=1e-4, atol=2e-6)
    decay = min(0.5, (1 + 7) / (10 + 7))
    for average, old, tensor in zip(job.ema.shadow, averages, job.ema.tensors, strict=True):
        torch.testing.assert_close(average, decay * old + (1 - decay) * tensor)


def test_in_bf16_a_run_chooses_trains_and_resumes_to_the_bit(tmp_path: Path) -> None:
    """Weights, averages and scores stay in float32; what is not chosen stays where it was, weight decay or not."""
    settings = config(tmp_path, precision="bf16", accumulate=2, weight_decay=0.1, steps=8)
    adapt(settings, tmp_path / "whole", device="cpu")
    adapt(config(tmp_path, accumulate=2, weight_decay=0.1, steps=8), tmp_path / "single", device="cpu")
    calls = iter([False] * 5 + [True])
    with pytest.raises(CancelledError, match="6 steps"):
        adapt(settings, tmp_path / "parts", device="cpu", cancelled=lambda: next(calls))
    adapt(settings, tmp_path / "parts", device="cpu", resume=True)
    whole, parts, single = (weights(tmp_path / name) for name in ("whole", "parts", "single"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert {v.dtype for v in whole.values()} <= {torch.float32, torch.int64}
    assert any(not torch.equal(whole[k], single[k]) for k in whole)
    losses = [[e["loss"] for e in lines(tmp_path / n / "metrics.jsonl") if "loss" in e] for n in ("whole", "single")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    kept = set(json.loads((tmp_path / "whole" / "result.json").read_text(encoding="utf-8"))["modules_kept"])
    ups = {k: v for k, v in whole.items() if k.startswith("module.") and k.endswith("up.weight")}
    ups = {k: v for k, v in ups.items() if ".low." not in k}  # a grid of 4 x 4 tokens has no low frequencies
    assert {k for k, v in ups.items() if not v.any()} == {
        k for k in ups if not any(k.startswith(f"module.{name}.") for name in kept)
    }


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_run_resumed_between_two_selections_goes_on_to_the_bit(tmp_path: Path, stop: int) -> None:
    """With all that a step and a choice may carry: averages, parts, recomputed activations, patience, a memory."""
    settings = config(
        tmp_path, accumulate=2, checkpointing=True, patience=2, validate_every=3, save_every=12, weight_decay=0.1
    )
    peft = dataclasses.replace(settings.peft, start=3, every=4, until=0.9, memory=0.8, normalise="size", quota="type")
    settings = dataclasses.replace(settings, peft=peft)
    adapt(settings, tmp_path / "whole", device="cpu")
    calls = iter([False] * (stop - 1) + [True])
    with pytest.raises(CancelledError, match=f"{stop} steps"):
        adapt(settings, tmp_path / "parts", device="cpu", cancelled=lambda: next(calls))
    adapt(settings, tmp_path / "parts", device="cpu", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    for name in ("gate.jsonl", "metrics.jsonl"):
        assert lines(tmp_path / "whole" / name) == lines(tmp_path / "parts" / name)
    assert [choice["step"] for choice in lines(tmp_path / "whole" / "gate.jsonl")] == [3, 7]  # 11 is in the last tenth


def test_a_model_that_says_one_class_everywhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "COLLAPSE_AFTER", 0)
    monkeypatch.setattr(steps, "segmentation_loss", _always_the_first_class)
    with pytest.warns(CollapseWarning, match="one class everywhere"):
        adapt(config(tmp_path, steps=6, validate_every=6, lr=5e-2, ema=0.0), tmp_path / "run", device="cpu")
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["collapsed"] == [6]


def _always_the_first_class(logits: torch.Tensor, labels: torch.Tensor, *, pixels: int | None = None) -> torch.Tensor:
    return logits[:, 1:].mean() - logits[:, :1].mean()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_ends_the_run_before_it_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = 0

    def broken(logits: torch.Tensor, labels: torch.Tensor, *, pixels: int | None = None) -> torch.Tensor:
        nonlocal calls
        calls += pixels is not None
        loss = logits.square().mean()
        if calls <= 2:
            return loss
        corner = logits[0, 0, 0, 0]
        return loss * float("nan") if where == "loss" else loss + 0 * (corner - corner.detach()).sqrt()

    monkeypatch.setattr(steps, "segmentation_loss", broken)
    settings = config(tmp_path, steps=6, validate_every=2, save_every=2)
    with pytest.raises(CegateError, match=f"The {where} is nan at step 2"):
        adapt(settings, tmp_path / "run", device="cpu")
    assert all(bool(v.isfinite().all()) for v in weights(tmp_path / "run").values())


@pytest.mark.parametrize("wrong", [{"accumulate": 3}, {"accumulate": 0}, {"patience": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="accumulate divides batch_size"):
        TrainConfig(batch_size=4, **wrong)  # type: ignore[arg-type]


def test_parameters_are_counted_as_they_are_trained_and_kept(tmp_path: Path) -> None:
    adapt(config(tmp_path, steps=9), tmp_path / "run", device="cpu")
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    run = loop.make_job(config(tmp_path, steps=9), tmp_path / "run", ranks=alone("cpu"), provenance=None).run
    head = sum(p.numel() for p in run.segmenter.head.parameters())
    sizes = {str(k): run.toolbox.count_parameters([k]) for k in run.toolbox.keys}
    choices = [sum(sizes[k] for k in c["active"]) for c in lines(tmp_path / "run" / "gate.jsonl")]  # type: ignore[attr-defined]
    assert result["active_parameters"] == head + max(choices)
    assert result["stored_parameters"] == head + sum(sizes[k] for k in result["modules_kept"])
    assert result["active_parameters"] <= result["trained_parameters"] == head + sum(sizes.values())


def test_an_export_may_lose_so_much_mean_iou_and_tells_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, steps=30, validate_every=30, lr=5e-3)
    adapt(settings, tmp_path / "run", device="cpu")
    whole = export_run(tmp_path / "run", tmp_path / "whole.onnx", keep="all")
    small = export_run(tmp_path / "run", tmp_path / "small.onnx", keep=0.99)
    assert whole.curve == ()
    assert all(name.endswith("spatial") for name in small.modules_kept)
    assert small.parameters < whole.parameters
    first, *_, last = small.curve
    run = load_run(tmp_path / "run")
    assert first.miou == pytest.approx(run.facts["validation"]["miou"], abs=2e-3)
    assert set(first.kept) == {str(k) for k in run.ever_active if k.kind != "spatial"}
    assert last.kept == ()
    assert whole.parameters - small.parameters > 0.9 * first.parameters  # equal biases are stored once

    prune(run.toolbox, [ModuleKey.parse(name) for name in first.kept])
    cost = afford.costs(run.segmenter.eval(), run.toolbox, run.config.model.tile_size)
    monkeypatch.setattr(afford, "AFFORDED", sum(cost.values()) / 2)
    monkeypatch.setattr(afford, "ALLOWED", 0.99)
    cheap = export_run(tmp_path / "run", tmp_path / "cheap.onnx")
    everything, best = cheap.curve
    assert everything.kept == first.kept
    assert everything.miou == pytest.approx(first.miou)
    assert [name for name in cheap.modules_kept if not name.endswith("spatial")] == list(best.kept)
    assert 0 < sum(cost[ModuleKey.parse(name)] for name in best.kept) <= afford.AFFORDED
    assert small.parameters < cheap.parameters < whole.parameters


def test_a_run_is_exported_in_8_bits_calibrated_on_its_source(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=30, validate_every=30, lr=5e-3)
    adapt(settings, tmp_path / "run", device="cpu")
    single = export_run(tmp_path / "run", tmp_path / "single.onnx")
    try:
        report = export_run(tmp_path / "run", tmp_path / "int8.onnx", precision="int8")
    except ParityError as error:
        assert "held-out tiles falls from" in str(error)  # noqa: PT017 - the gate may say no, and then leaves nothing
        assert not (tmp_path / "int8.onnx").exists()
        return
    assert report.bytes < single.bytes
    assert report.miou["fp32"] - report.miou["int8"] <= 0.01


def test_a_training_step_goes_back_to_the_shallowest_active_module_and_no_further(tmp_path: Path) -> None:
    job = make_job(config(tmp_path, steps=4), tmp_path / "run", ranks=alone("cpu"), provenance=None)
    blocks = list(job.run.segmenter.backbone.blocks)  # type: ignore[arg-type]
    reached: list[int] = []

    def watch(layer: int) -> None:
        def on_forward(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda _: reached.append(layer))

        blocks[layer].register_forward_hook(on_forward)

    for layer in range(len(blocks)):
        watch(layer)
    deep = len(blocks) - 2
    job.gate.load_state_dict({**job.gate.state_dict(), "active": [f"blocks.{deep}.semantic"]})
    steps.take_step(job, 0, steps.read_batch(job, 0))
    assert sorted(reached) == [deep, deep + 1]
    reached.clear()
    steps.choose_modules(job, 0)  # scoring needs the whole depth
    assert min(reached) == 0
    reached.clear()
    steps.take_step(job, 1, steps.read_batch(job, 1))
    assert min(reached) == min(key.layer for key in job.gate.active)
