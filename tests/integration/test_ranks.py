"""Laws of training in several processes: two of them train what one would, and end together."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cegate_geo.errors import ConfigError, InputError
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build, to_table
from cegate_geo.train.job import make_job
from cegate_geo.train.loop import adapt
from cegate_geo.train.ranks import Ranks, alone

from .test_adapt import config, lines

HAS_QUERIES = os.environ.get("CI") == "true" or all(find_spec(name) for name in ("transformers", "scipy"))
needs_queries = pytest.mark.skipif(not HAS_QUERIES, reason="the extra mask2former is not installed")
TOGETHER = Path(__file__).with_name("train_together.py")

QUERIES = {"head": "mask2former", "head_dim": 32, "mask2former": {"queries": 5, "pixel_layers": 1, "decoder_layers": 2}}


def launch(*words: str) -> list[str]:
    """Two processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]


def write_toml(path: Path, table: dict[str, Any]) -> None:
    """A configuration as TOML: JSON is TOML but for tables, which are flattened to dotted keys."""

    def flat(value: Any, name: str) -> list[str]:
        if isinstance(value, dict):
            return [line for key, inner in value.items() for line in flat(inner, f'{name}."{key}"'.lstrip("."))]
        if value is None or (isinstance(value, list) and value and isinstance(value[0], dict)):
            return []
        return [f"{name} = {json.dumps(value)}"]

    lists = {k: v for k, v in table.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    text = flat(table, "")
    for name, entries in lists.items():
        for entry in entries:
            text += [f"[[{name}]]", *flat(entry, "")]
    path.write_text("\n".join(text), encoding="utf-8")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, and of one, with the same settings."""
    folder = tmp_path_factory.mktemp("together")
    gate = to_table(config(folder, batch_size=4, accumulate=2, weight_decay=0.1))
    gate["model"] |= {"norm": "group"}  # batches have statistics of each process' own chips: figures would differ
    gate["peft"] |= {"patch_embed": True}
    norm = to_table(config(folder, batch_size=2, weight_decay=0.1))
    norm["peft"] |= {"method": "grad-norm", "samples": 1}  # less samples than processes
    norm["model"] |= {"head": "dpt-unet"}
    tables = {"gate": gate, "norm": norm}
    if HAS_QUERIES:
        tables["queries"] = to_table(config(folder, batch_size=2, weight_decay=0.1))
        tables["queries"]["model"] |= QUERIES
    for name, table in tables.items():
        write_toml(folder / f"{name}.toml", table)
    done = subprocess.run(
        launch(str(TOGETHER), "train", str(folder)), check=False, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    adapt(build(AdaptConfig, gate), folder / "alone", device="cpu")
    if HAS_QUERIES:
        adapt(build(AdaptConfig, tables["queries"]), folder / "queries-alone", device="cpu")
    return folder


def test_two_processes_train_what_one_does(together: Path) -> None:
    """With a batch in parts, weight decay and re-selection: figures differ by the rounding of sums alone."""
    one, two = (load_file(together / name / "adapter.safetensors") for name in ("alone", "gate"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=5e-4, rtol=2e-3)
    losses = [[e["loss"] for e in lines(together / n / "metrics.jsonl") if "loss" in e] for n in ("alone", "gate")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    first, second = (
        [e["validation"] for e in lines(together / n / "metrics.jsonl") if "validation" in e] for n in ("alone", "gate")
    )
    for a, b in zip(first, second, strict=True):
        assert sum(map(sum, a["confusion"])) == sum(map(sum, b["confusion"]))  # type: ignore[index]
        assert b["miou"] == pytest.approx(a["miou"], abs=0.01)  # type: ignore[index]


@needs_queries
def test_two_processes_draw_the_points_of_one_and_weigh_them_alike(together: Path) -> None:
    """Where a mask is about as likely as not, the rounding of sums decides what a query attends to: it grows."""
    losses = [
        [e["loss"] for e in lines(together / n / "metrics.jsonl") if "loss" in e] for n in ("queries-alone", "queries")
    ]
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_all_processes_score_their_samples_and_choose_the_same(together: Path) -> None:
    one, two = (lines(together / name / "gate.jsonl") for name in ("alone", "gate"))
    assert [c["active"] for c in one] == [c["active"] for c in two]
    for a, b in zip(one, two, strict=True):
        assert b["raw"] == pytest.approx(a["raw"], rel=2e-2)
    assert two[0]["raw"] == pytest.approx(one[0]["raw"], rel=1e-4)


@pytest.mark.parametrize("name", ["gate", "norm", pytest.param("queries", marks=needs_queries)])
def test_two_processes_resume_to_the_bit(together: Path, name: str) -> None:
    """Also a head with batch normalisation, whose statistics are averaged, and a process without samples to score."""
    whole, parts = (load_file(together / n / "adapter.safetensors") for n in (name, f"{name}-resumed"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    for log in ("gate.jsonl", "metrics.jsonl"):
        assert lines(together / name / log) == lines(together / f"{name}-resumed" / log)


def test_sums_means_and_parts_are_those_of_all_processes(together: Path) -> None:
    found = [ast.literal_eval((together / f"sums-{n}.txt").read_text(encoding="utf-8")) for n in (0, 1)]
    for one in found:
        assert one["gradients"] == [[3.0] * 3, None, [30.0] * 2]
        assert one["mean"] == [0.5]
        assert one["any"] == [False, True]
    for items, first, second in zip((0, 1, 5), found[0]["parts"], found[1]["parts"], strict=True):
        assert first + second == list(range(items))


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [("failed", 2, "A raster is damaged. Mend it."), ("killed", 1, "Another process of this training ended")],
)
def test_one_process_that_fails_ends_all_with_one_message(tmp_path: Path, how: str, code: int, says: str) -> None:
    write_toml(tmp_path / "settings.toml", to_table(config(tmp_path, steps=200)))
    done = subprocess.run(
        launch(str(TOGETHER), how, str(tmp_path)), check=False, capture_output=True, text=True, timeout=500
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("cegate-geo:")]
    assert len(told) == 1, done.stderr[-3000:]
    assert says in told[0]
    assert done.returncode != 0
    codes = [line.split()[2] for line in done.stderr.splitlines() if line.strip().startswith("exitcode")]
    assert set(codes) == ({str(code)} if how == "failed" else {str(code), "-9"})


def test_the_command_line_trains_exports_and_is_cancelled_in_two_processes(tmp_path: Path) -> None:
    write_toml(tmp_path / "settings.toml", to_table(config(tmp_path, steps=3, validate_every=3)))
    words = ["-m", "cegate_geo", "adapt", str(tmp_path / "settings.toml"), "--device", "cpu"]
    silent, speaking = os.pipe()  # the end of standard input would cancel
    done = subprocess.run(
        launch(*words, "--events", "jsonl", "-o", str(tmp_path / "run")),
        check=False, stdin=silent, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    os.close(silent)
    os.close(speaking)
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert (events.count("hello"), events.count("result"), events.count("error")) == (1, 1, 0)
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"model.onnx", "report.html", "result.json"}
    assert not list((tmp_path / "run").rglob("*.part"))
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["processes"] == 2

    long = [*words, "--set", "train.steps=100000", "--set", "train.save_every=100000", "-o", str(tmp_path / "long")]
    with subprocess.Popen(launch(*long), stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "long" / "gate.jsonl").exists():
            assert running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=120)
    told = [line for line in said.splitlines() if line.startswith("cegate-geo:")]
    assert len(told) == 1, said[-3000:]
    assert "Go on with --resume" in told[0]
    assert json.loads((tmp_path / "long" / "state" / "state.json").read_text(encoding="utf-8"))["step"] >= 1


def test_a_batch_that_can_not_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        make_job(config(tmp_path, batch_size=4), tmp_path, ranks=Ranks(count=3), provenance=None)


def test_one_process_needs_nobody() -> None:
    ranks = alone("cpu")
    value = torch.ones(3)
    assert ranks.total(value) is value
    assert ranks.any(True)
    assert not ranks.any(False)
    assert ranks.is_speaker()
    ranks.wait()
    ranks.require_same("anything", "a", b"b", value)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [0, 1, 4, 7, 16])
def test_parts_partition_a_list(count: int, items: int) -> None:
    parts = [Ranks(index=n, count=count).part(items) for n in range(count)]
    assert [n for part in parts for n in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(count=2, store=object())
    monkeypatch.setattr(Ranks, "total", lambda _, table: table + torch.tensor([[0.0] * 6, [1.0] * 6]))
    with pytest.raises(InputError, match=r"The processes \[1\] have other settings"):
        ranks.require_same("settings", "a")
