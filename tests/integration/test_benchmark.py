"""`benchmark`: what it runs, what it does not run again, what it tells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError, ConfigError, InputError
from cegate_geo.train import benchmark
from cegate_geo.train.benchmark import RunRecord, run_suite
from cegate_geo.train.benchmark_page import overall_chart, to_page
from cegate_geo.train.benchmark_table import make_rows, to_json, to_markdown
from cegate_geo.train.config import AdaptConfig, SourceConfig
from cegate_geo.train.config_file import to_table
from cegate_geo.train.loop import AdaptResult
from cegate_geo.train.suite import RunKey, SettingConfig, Suite, SuiteConfig, read_suite, slug

from .scenes import write_squares

BASE = """
[classes]
0 = "other"
1 = "building"
[[source]]
images = "squares.tif"
labels = "squares.gpkg"
label_field = "class"
[model]
backbone = "test_vit2.r160_in1k"
weights = "random"
head = "linear"
tile_size = 64
[peft]
every = 2
samples = 2
spatial = { rank = 2 }
semantic = { dim = 2 }
frequency = { dim = 2 }
rein = { tokens = 3, rank = 2 }
vpt = { tokens = 3 }
[train]
steps = 2
batch_size = 2
crop = 64
lr = 1e-3
head_lr = 4e-3
validation = 0.2
precision = "fp32"
validate_every = 2
"""
SUITE = """
name = "toy"
config = "base.toml"
methods = ["gate", "frozen"]
reference = "gate"
seeds = [3, 4, 5]
lr = [1e-2, 1e-4]
[[setting]]
name = "town"
[[setting.test]]
name = "near"
images = "near.tif"
labels = "near.gpkg"
label_field = "class"
[[setting.test]]
name = "far"
images = "far.tif"
labels = "far.gpkg"
label_field = "class"
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")
    path = tmp_path / "suite.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


class Trainer:
    """Stands in for adapt, export and evaluate: figures follow from method, rate and seed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.resumed: list[str] = []
        self.broken: Callable[[AdaptConfig], Exception | None] = lambda config: None
        monkeypatch.setattr(benchmark, "adapt", self.adapt)
        monkeypatch.setattr(benchmark, "export_run", lambda run, path, **_: path.write_text(str(run), encoding="utf-8"))
        monkeypatch.setattr(benchmark, "evaluate_model", self.evaluate)
        self.evaluated: list[tuple[str, str]] = []

    @staticmethod
    def validation(config: AdaptConfig) -> float:
        best = {"gate": 1e-2, "frozen": 1e-4}.get(config.peft.method, 1e-2)
        return 0.5 + 0.1 * (config.train.lr == best) + config.train.seed / 1000

    def adapt(self, config: AdaptConfig, run: Path, *, resume: bool, **_: Any) -> AdaptResult:
        name = f"{config.peft.method} {config.train.lr:g} {config.train.seed}"
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(to_table(config)), encoding="utf-8")
        self.calls.append(name)
        self.resumed += [name] if resume else []
        error = self.broken(config)
        if error is not None:
            raise error
        metrics: Any = {"miou": self.validation(config)}
        count = {"gate": 2_000_000, "frozen": 30_000}.get(config.peft.method, 500_000)
        result = {"metrics": metrics, "active_parameters": count, "stored_parameters": 2 * count, "seconds": 9.0}
        (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return AdaptResult(folder=run, metrics=metrics, best_step=2, seconds=9.0)

    def evaluate(self, model: Path, images: str, labels: str, **_: Any) -> dict[str, float]:
        run = Path(model.read_text(encoding="utf-8"))
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        self.evaluated.append((run.parent.name + "/" + run.name, images))
        seed, is_gate = config["train"]["seed"], config["peft"]["method"] == "gate"
        best_here = config["train"]["lr"] == 1e-4  # the rate that the target would choose
        return {"miou": 0.4 + seed / 100 + (0.05 + seed / 1000) * is_gate + 0.01 * best_here + 0.1 * ("far" in images)}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return Trainer(monkeypatch)


def test_the_rate_is_chosen_on_source_validation_from_the_same_grid_for_each_method(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    records = run_suite(read_suite(suite_file), tmp_path / "table")
    expected = ["gate 0.0001 3", "gate 0.01 3", "gate 0.01 4", "gate 0.01 5"]
    expected += ["frozen 0.0001 3", "frozen 0.01 3", "frozen 0.0001 4", "frozen 0.0001 5"]
    assert trainer.calls == expected
    chosen = {(r.key.method, r.key.lr, r.key.seed) for r in records if r.is_chosen}
    assert chosen == {(m, lr, s) for m, lr in (("gate", 1e-2), ("frozen", 1e-4)) for s in (3, 4, 5)}
    assert len(trainer.evaluated) == 12  # what was not chosen never sees a test region
    assert all(bool(r.regions) == r.is_chosen for r in records)
    exported = [(tmp_path / "table" / r.key.folder / "model.onnx").is_file() for r in records]
    assert exported == [r.is_chosen for r in records]


def test_the_heads_rate_keeps_its_ratio(suite_file: Path) -> None:
    config = read_suite(suite_file).adapt_config(RunKey("town", "frozen", 1e-2, 4))
    assert (config.train.lr, config.train.head_lr, config.train.seed) == (1e-2, pytest.approx(4e-2), 4)
    assert config.peft.method == "frozen"


def test_what_is_complete_is_not_repeated_and_what_broke_off_is_resumed(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    trainer.broken = lambda config: (
        CancelledError("Cancelled.") if (config.peft.method, config.train.seed) == ("frozen", 4) else None
    )
    with pytest.raises(CancelledError):
        run_suite(read_suite(suite_file), tmp_path / "table")
    assert trainer.calls[-1] == "frozen 0.0001 4"
    trainer.broken, trainer.calls, before = lambda config: None, [], len(trainer.evaluated)
    records = run_suite(read_suite(suite_file), tmp_path / "table")
    assert trainer.calls == ["frozen 0.0001 4", "frozen 0.0001 5"]
    assert trainer.resumed == ["frozen 0.0001 4"]
    assert before == 6
    assert len(trainer.evaluated) == 12
    again = run_suite(read_suite(suite_file), tmp_path / "table")
    assert again == records
    assert len(trainer.calls) == 2


def test_settings_may_be_run_one_by_one_and_are_then_there_for_the_table_of_all(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    other = SUITE.partition("[[setting]]")[2].replace('"town"', '"village"')
    suite_file.write_text(f"{SUITE}[[setting]]{other}", encoding="utf-8")
    records = run_suite(read_suite(suite_file, settings=["village"]), tmp_path / "table")
    assert {r.key.setting for r in records} == {"village"}
    assert len(trainer.calls) == 8
    run_suite(read_suite(suite_file, settings=["town"]), tmp_path / "table")
    assert len(trainer.calls) == 16
    records = run_suite(read_suite(suite_file), tmp_path / "table")
    assert [r.key.setting for r in records] == ["town"] * 8 + ["village"] * 8
    assert len(trainer.calls) == 16


def test_a_dry_run_tells_what_is_there_and_runs_nothing(
    suite_file: Path, tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", str(suite_file), "-o", str(tmp_path / "table"), "--dry-run"]
    assert main(words) == 0
    assert not trainer.calls
    assert not (tmp_path / "table").exists()
    trainer.broken = lambda config: (
        CancelledError("Cancelled.") if (config.peft.method, config.train.seed) == ("gate", 5) else None
    )
    with pytest.raises(CancelledError):
        run_suite(read_suite(suite_file), tmp_path / "table")
    before = len(trainer.calls)
    records = run_suite(read_suite(suite_file), tmp_path / "table", is_dry=True)
    assert [str(r.key) for r in records] == [
        "town, gate, lr 0.0001, seed 3", "town, gate, lr 0.01, seed 3", "town, gate, lr 0.01, seed 4"
    ]  # fmt: skip
    assert not any(r.regions for r in records)  # not measured yet
    trainer.broken = lambda config: None
    complete = run_suite(read_suite(suite_file), tmp_path / "table")
    ran = len(trainer.calls)
    assert ran > before
    assert run_suite(read_suite(suite_file), tmp_path / "table", is_dry=True) == complete
    capsys.readouterr()
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == to_markdown(read_suite(suite_file).config, complete) + "\n"
    assert not shown.err
    assert len(trainer.calls) == ran
    assert not (tmp_path / "table" / "table.md").exists()


def test_the_overview_has_the_means_and_the_best_in_bold(suite_file: Path, tmp_path: Path, trainer: Trainer) -> None:
    suite = read_suite(suite_file)
    text = to_markdown(suite.config, run_suite(suite, tmp_path / "table"))
    overview = text.partition("## At a glance")[2].partition("##")[0].strip().splitlines()
    assert overview == [
        "| method | town: near | town: far | all regions |",
        "|---|---:|---:|---:|",
        "| gate | **49.4** | **59.4** | **54.4** |",
        "| frozen | 45.0 | 55.0 | 50.0 |",
    ]


def test_a_setting_that_the_suite_does_not_have_is_refused(
    suite_file: Path, tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", str(suite_file), "-o", str(tmp_path / "table"), "--setting", "city"]
    assert main(words) == 2
    assert "no setting ['city']" in capsys.readouterr().err
    assert not trainer.calls
    assert not (tmp_path / "table").exists()


def test_failures_are_listed_and_tried_again(suite_file: Path, tmp_path: Path, trainer: Trainer) -> None:
    suite = read_suite(suite_file)
    trainer.broken = lambda config: (
        RuntimeError("out of\nmemory") if (config.peft.method, config.train.seed) == ("gate", 4) else None
    )
    records = run_suite(suite, tmp_path / "table")
    (failed,) = [r for r in records if r.failure]
    assert failed.failure == "RuntimeError: out of memory"
    text = to_markdown(suite.config, records)
    assert "- town, gate, lr 0.01, seed 4: RuntimeError: out of memory" in text
    assert "2, 1 failed" in text
    table = to_json(suite.config, records)
    assert table["failures"] == [{"run": "town, gate, lr 0.01, seed 4", "failure": "RuntimeError: out of memory"}]
    assert table["rows"][0]["miou"]["count"] == 2
    assert run_suite(suite, tmp_path / "table", is_dry=True) == records
    assert "out of memory" in to_page(suite.config, records)
    trainer.broken = lambda config: None
    records = run_suite(suite, tmp_path / "table")
    assert not any(r.failure for r in records)
    assert trainer.calls[-1] == "gate 0.01 4"
    assert "No run failed." in to_markdown(suite.config, records)


def test_a_method_of_which_every_run_failed_stays_in_the_table(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    suite = read_suite(suite_file)
    trainer.broken = lambda config: InputError("No labels.") if config.peft.method == "frozen" else None
    records = run_suite(suite, tmp_path / "table")
    row = next(r for r in make_rows(suite.config, records) if r.method == "frozen")
    assert (row.spread, row.lr, row.failures) == (None, None, 2)
    assert "| frozen | - |" in to_markdown(suite.config, records)
    assert trainer.calls.count("frozen 0.01 4") == 0  # no rate could be chosen
    to_page(suite.config, records)


def test_rows_hold_means_deviations_and_paired_intervals(suite_file: Path, tmp_path: Path, trainer: Trainer) -> None:
    suite = read_suite(suite_file)
    rows = make_rows(suite.config, run_suite(suite, tmp_path / "table"))
    assert [(r.region, r.method) for r in rows] == [
        (region, method) for region in ("near", "far", "all regions") for method in ("gate", "frozen")
    ]
    gate, frozen = rows[0], rows[1]
    assert gate.difference is None
    assert gate.values == pytest.approx({3: 0.483, 4: 0.494, 5: 0.505})
    assert gate.spread is not None
    assert (gate.spread.mean, gate.spread.deviation) == (pytest.approx(0.494), pytest.approx(0.011))
    assert frozen.values == pytest.approx({3: 0.44, 4: 0.45, 5: 0.46})  # with 0.01 of its own rate
    assert frozen.difference is not None
    assert frozen.difference.mean == pytest.approx(-0.044)
    assert frozen.difference.high == pytest.approx(-0.044 + 4.303 * 0.001 / 3**0.5)
    overall = rows[4]
    assert overall.values == pytest.approx({seed: value + 0.05 for seed, value in gate.values.items()})


def test_what_the_target_would_choose_is_called_oracle_and_only_told_where_asked(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    plain = read_suite(suite_file)
    records = run_suite(plain, tmp_path / "table")
    assert "racle" not in to_markdown(plain.config, records)
    assert "racle" not in to_page(plain.config, records)
    assert {row["oracle"] for row in to_json(plain.config, records)["rows"]} == {None}
    asked = Suite(dataclasses.replace(plain.config, oracle=True), plain.base)
    records = run_suite(asked, tmp_path / "table")
    row = make_rows(asked.config, records)[0]
    assert row.oracle == pytest.approx(0.493)  # rate 1e-4 with seed 3, which validation did not choose
    assert row.values[3] == pytest.approx(0.483)
    text = to_markdown(asked.config, records)
    assert "an upper bound, not a result" in text
    assert "49.3" in text


def test_a_folder_of_another_suite_is_refused(suite_file: Path, tmp_path: Path, trainer: Trainer) -> None:
    run_suite(read_suite(suite_file), tmp_path / "table")
    changed = SUITE.replace('name = "town"', 'name = "town"\nset = { train = { steps = 7 } }')
    suite_file.write_text(changed, encoding="utf-8")
    with pytest.raises(InputError, match="another configuration"):
        run_suite(read_suite(suite_file), tmp_path / "table")


def test_a_changed_test_region_is_measured_anew_without_training(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    run_suite(read_suite(suite_file), tmp_path / "table")
    trainer.calls, trainer.evaluated = [], []
    suite_file.write_text(SUITE.replace('"far.tif"', '"farther.tif"'), encoding="utf-8")
    run_suite(read_suite(suite_file), tmp_path / "table")
    assert trainer.calls == []
    assert {images for _, images in trainer.evaluated} == {"farther.tif"}


def test_variants_and_settings_lay_their_tables_over_the_base(suite_file: Path) -> None:
    text = SUITE.replace('methods = ["gate", "frozen"]', 'methods = ["gate"]\nset = { train = { steps = 5 } }')
    text += """
        [[setting]]
        name = "city"
        set = { train = { crop = 96 } }
        [[setting.test]]
        name = "near"
        images = "x.tif"
        labels = "x.gpkg"
        [[variant]]
        name = "gate-50"
        set = { peft = { method = "gate", every = 50 } }
        """
    suite_file.write_text(text, encoding="utf-8")
    suite = read_suite(suite_file)
    assert suite.config.names == ("gate", "gate-50")
    config = suite.adapt_config(RunKey("city", "gate-50", 1e-4, 0))
    assert (config.peft.every, config.train.crop, config.train.steps, config.peft.samples) == (50, 96, 5, 2)
    assert suite.adapt_config(RunKey("town", "gate", 1e-4, 0)).train.crop == 64


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('methods = ["gate", "frozen"]', 'methods = ["gait"]', r"\['gait'\] are not known"),
        ('reference = "gate"', 'reference = "lora"', "'lora' is no method here"),
        ("seeds = [3, 4, 5]", "seeds = [3, 3]", "seeds are"),
        ("lr = [1e-2, 1e-4]", "lr = [0.0]", "no rates"),
        ('name = "far"', 'name = "near"', "test regions"),
        ('name = "town"', 'name = "town"\nset = { train = { stepps = 3 } }', "stepps"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused_before_anything_runs(
    suite_file: Path, old: str, new: str, words: str
) -> None:
    suite_file.write_text(SUITE.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_suite(suite_file)


def test_folders_are_named_after_what_runs() -> None:
    key = RunKey("Banepa → Kampala (15 cm)", "earth-adapter", 5e-5, 2)
    assert key.folder == Path("runs/banepa-kampala-15-cm/earth-adapter/lr-5e-05-seed-2")
    assert slug("...") == ""


def test_a_method_does_in_a_suite_what_it_does_in_adapt(suite_file: Path) -> None:
    """Without a budget the gate is the tool's default."""
    key = RunKey("town", "gate", 1e-2, 3)
    found = read_suite(suite_file).adapt_config(key).peft
    assert (found.share, found.trains_patch_embed) == (1, True)
    base = suite_file.with_name("base.toml")
    base.write_text(BASE.replace("[peft]", "[peft]\nbudget = 0.5"), encoding="utf-8")
    found = read_suite(suite_file).adapt_config(key).peft
    assert (found.share, found.trains_patch_embed) == (0.5, False)


def test_all_rates_that_are_stated_follow_the_grid(suite_file: Path) -> None:
    base = suite_file.with_name("base.toml")
    base.write_text(BASE.replace("head_lr = 4e-3", "head_lr = 4e-3\nbackbone_lr = 2e-4"), encoding="utf-8")
    suite = read_suite(suite_file)
    rates = [suite.adapt_config(RunKey("town", "full", lr, 3)).train for lr in (1e-3, 1e-2)]
    assert rates[1].backbone_lr == pytest.approx(10 * (rates[0].backbone_lr or 0))
    assert (rates[0].backbone_lr or 0) / (rates[0].head_lr or 1) == pytest.approx(0.05)


def test_the_table_says_which_method_is_the_default_of_the_tool() -> None:
    setting = SettingConfig(name="town", test=(SourceConfig(name="near", images="", labels=""),))
    told = {m: to_markdown(SuiteConfig(config="", methods=m, setting=(setting,)), []) for m in (("gate",), ("all",))}
    assert ["what `adapt` does by default" in text for text in told.values()] == [True, False]


def test_the_plot_shows_every_method_at_its_parameters() -> None:
    region = SourceConfig(name="near", images="", labels="")
    setting = SettingConfig(name="town", test=(region,))
    config = SuiteConfig(config="", methods=("gate", "full"), seeds=(0,), setting=(setting,))
    records = [
        RunRecord(
            key=RunKey("town", m, 1e-3, 0),
            validation=0.5,
            regions={"near": v},
            active_parameters=n,
            stored_parameters=n,
        )
        for m, v, n in (("gate", 0.6, 10_000), ("full", 0.5, 1_000_000))
    ]
    text = to_page(config, records)
    svg = ET.fromstring(text[text.rindex("<svg") : text.rindex("</svg>") + 6])
    (x1, y1), (x2, y2) = ((float(c.get("cx", 0)), float(c.get("cy", 0))) for c in svg.iter("circle"))
    assert x1 == 52  # 10 k: the left end
    assert x2 == 560 - 14  # 1 M: the right end
    assert y1 < y2
    assert {t.text for t in svg.iter("title")} >= {"gate: 60.0 ± 0.0", "full: 50.0 ± 0.0"}


def test_differences_are_drawn_to_scale_with_their_intervals(
    suite_file: Path, tmp_path: Path, trainer: Trainer
) -> None:
    suite = read_suite(suite_file)
    records = run_suite(suite, tmp_path / "table")
    frozen = make_rows(suite.config, records)[-1]
    assert (frozen.region, frozen.method) == ("all regions", "frozen")
    difference = frozen.difference
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    svg = ET.fromstring(overall_chart(suite.config, records))
    name = "{http://www.w3.org/2000/svg}"
    texts = [t.text for t in svg.iter(f"{name}text")]
    assert {"gate", "frozen", "0", "54.4 ± 1.1", "50.0 ± 1.0"} <= set(texts)
    reference, other = (float(c.get("cx", 0)) for c in svg.iter(f"{name}circle"))
    ticks = {t.text: float(t.get("x", 0)) for t in svg.iter(f"{name}text") if t.get("text-anchor") == "middle"}
    pixels_per_point = (ticks["0"] - ticks["-5"]) / 5
    assert reference == pytest.approx(ticks["0"], abs=0.1)
    assert other == pytest.approx(reference + 100 * difference.mean * pixels_per_point, abs=0.1)
    (line,) = [p.get("d", "") for p in svg.iter(f"{name}path") if "H" in p.get("d", "")]
    low, high = (float(x) for x in (line[1:].split()[0], line.partition("H")[2]))
    assert (high - low) / pixels_per_point == pytest.approx(100 * (difference.high - difference.low), abs=0.1)


def test_one_method_alone_is_compared_with_nothing(suite_file: Path, tmp_path: Path, trainer: Trainer) -> None:
    suite_file.write_text(SUITE.replace('["gate", "frozen"]', '["gate"]'), encoding="utf-8")
    suite = read_suite(suite_file)
    assert overall_chart(suite.config, run_suite(suite, tmp_path / "table")) == ""


def test_the_command_runs_a_suite_goes_on_and_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real runs: two methods, one seed, one rate; then a region that can't be read."""
    write_squares(tmp_path)
    write_squares(tmp_path, side=128, seed=1, name="near")
    (tmp_path / "base.toml").write_text(BASE, encoding="utf-8")
    text = SUITE.replace('["gate", "frozen"]', '["vpt", "rein"]').replace('reference = "gate"', "")
    text = text.replace("[3, 4, 5]", "[0]").replace("[1e-2, 1e-4]", "[]").partition('[[setting.test]]\nname = "far"')[0]
    (tmp_path / "suite.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["benchmark", "suite.toml", "-o", "table"]
    assert main(words) == 0
    table = json.loads(Path("table/table.json").read_text(encoding="utf-8"))
    assert [r["method"] for r in table["rows"]] == ["vpt", "rein"]
    assert all(0 < r["miou"]["mean"] < 1 and r["lr"] == 1e-3 for r in table["rows"])
    stamp = next(Path("table").rglob("vpt/*/adapter.safetensors")).stat().st_mtime_ns
    assert "| vpt | 0.001 |" in capsys.readouterr().out
    assert "<svg" in Path("table/table.html").read_text(encoding="utf-8")
    assert ET.parse("table/table.svg").getroot().get("aria-label") == "Difference to vpt, town: near"
    Path("suite.toml").write_text(text.replace('"near.gpkg"', '"gone.gpkg"'), encoding="utf-8")
    assert main(words) == 1
    assert next(Path("table").rglob("vpt/*/adapter.safetensors")).stat().st_mtime_ns == stamp
    assert "gone.gpkg" in Path("table/table.md").read_text(encoding="utf-8")
