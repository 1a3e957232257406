"""Laws of the report: one page that needs nothing but itself, from whatever a run has left so far."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cegate_geo import html
from cegate_geo.domain.confusion import ConfusionMatrix, Metrics
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import InputError
from cegate_geo.peft import ModuleKey, Selection
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build, to_table
from cegate_geo.train.gate_charts import gate_map, score_map, spans
from cegate_geo.train.report import write_report
from cegate_geo.train.run_log import read_run_log

VOID = {"meta", "img", "br", "hr", "link", "input"}
NAMES = ["other", '<b>roof & "wall"</b>', "water"]
LAYERS, STEPS, EVERY = 4, 120, 20


class Page(HTMLParser):
    """What a page holds; complains about tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def config(**peft: object) -> AdaptConfig:
    table = {
        "name": "roofs <of> town",
        "classes": {str(n): name for n, name in enumerate(NAMES)},
        "source": [{"images": "a/*.tif", "labels": "roofs & walls.gpkg"}],
        "model": {"backbone": "vit_tiny_patch16_224", "weights": "random", "tile_size": 32},
        "peft": {"every": EVERY, **peft},
        "train": {"steps": STEPS},
    }
    return build(AdaptConfig, table)


def metrics(hits: int) -> Metrics:
    matrix = ConfusionMatrix(Legend.from_names(NAMES))
    truth = np.arange(600).reshape(20, 30) % 2  # water never occurs
    prediction = np.where(np.arange(600).reshape(20, 30) < hits, truth, 1 - truth)
    matrix.update(truth, prediction)
    return matrix.metrics()


def selections() -> list[Selection]:
    rng = np.random.default_rng(0)
    keys = [ModuleKey(layer, kind) for layer in range(LAYERS) for kind in ("spatial", "semantic", "frequency")]
    made = []
    for step in range(0, STEPS, EVERY):
        scores = dict(zip(keys, rng.random(len(keys)).tolist(), strict=True))
        active = tuple(sorted(sorted(keys, key=lambda k: -scores[k])[:3]))
        made.append(Selection(step=step, active=active, scores=scores, raw_scores=scores))
    return made


def write_lines(path: Path, lines: list[object]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def minimal(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_table(config())), encoding="utf-8")
    return folder


def full(folder: Path) -> Path:
    minimal(folder)
    log: list[object] = []
    for step in range(STEPS):
        log.append({"step": step, "loss": 1 / (1 + step), "lr": 1.0, "seconds": 0.1})
        if (step + 1) % 40 == 0:
            log.append({"step": step, "validation": metrics(300 + 2 * step)})
    write_lines(folder / "metrics.jsonl", log)
    write_lines(folder / "gate.jsonl", [s.to_json() for s in selections()])
    result = {
        "metrics": metrics(570), "best_step": 80, "seconds": 42.0, "modules_total": 12,
        "modules_kept": ["blocks.0.spatial"],
        "trained_parameters": 1_234_567, "backbone_parameters": 5_500_000, "device": "cpu", "precision": "bf16",
        "facts": {"gsd_m": 0.13, "note": "</pre><script>"},
        "spent_seconds": {"waiting": 2.1, "scoring": 4.2},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "pictures").mkdir()
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:64], pixels[:, 64:] = (10, 20, 30), (40, 50, 60), (70, 80, 90)
    Image.fromarray(pixels).save(folder / "pictures" / "tile-00.png")
    (folder / "model.onnx").write_bytes(b"0" * 2_500_000)
    return folder


@pytest.mark.parametrize("make", [minimal, full])
def test_the_page_is_well_formed_and_needs_nothing_but_itself(tmp_path: Path, make: object) -> None:
    assert callable(make)
    path = write_report(make(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "xlink:href", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, value)
    assert not re.search(r"url\(|@import|https?://", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(drawing)
    assert "nan" not in text.lower().split()
    assert not list(path.parent.glob("*.part"))


def test_what_the_user_wrote_is_text_not_markup(tmp_path: Path) -> None:
    page = Page(write_report(full(tmp_path / "run")).read_text(encoding="utf-8"))
    assert "roofs <of> town" in page.text
    assert NAMES[1] in page.text
    assert "</pre><script>" in page.text


def test_the_page_tells_what_the_run_recorded(tmp_path: Path) -> None:
    folder = full(tmp_path / "run")
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    final = metrics(570)
    assert final["miou"] is not None
    assert final["accuracy"] is not None
    told = (
        f"{100 * final['miou']:.1f}",
        f"{100 * final['accuracy']:.1f}",
        "weights of step 80",
        "of 12 modules",
        "2.50 MB",
    )
    for part in (*told, "1.23 M", "vit_tiny_patch16_224", "bf16", "42 s", "a/*.tif"):
        assert part in page.text, part
    row = final["confusion"][0]
    assert f"{row[1]:,} pixels" in page.text  # a cell of the confusion matrix
    dots = [attributes for tag, attributes in page.tags if tag == "circle"]
    assert len(dots) == 3  # three validations


def test_the_page_tells_how_the_gate_chose(tmp_path: Path) -> None:
    otherwise = {"start": 20, "until": 0.5, "normalise": "size", "memory": 0.9, "quota": "type"}
    folder = full(tmp_path / "run")
    plain = Page(write_report(folder).read_text(encoding="utf-8")).text
    (folder / "config.json").write_text(json.dumps(to_table(config(**otherwise))), encoding="utf-8")
    told = Page(write_report(folder).read_text(encoding="utf-8")).text
    parts = (
        "In the first 20 steps none was trained",
        "After 50% of the steps the last choice stayed.",
        "Each type had the same number of places.",
        "Colour: Fisher score per parameter, mean of all selections, each with 0.9 of the one before it.",
    )
    for part in parts:
        assert part in told, part
        assert part not in plain, part
    assert "Colour: share of the Fisher score of its type, mean of all selections. Number" in plain


def test_the_page_says_that_nothing_was_left_to_choose(tmp_path: Path) -> None:
    folder, keys = full(tmp_path / "run"), tuple(sorted(selections()[0].scores))
    write_lines(folder / "gate.jsonl", [Selection(step=0, active=keys, scores={}, raw_scores={}).to_json()])
    for trains in (True, False):
        (folder / "config.json").write_text(json.dumps(to_table(config(patch_embed=trains))), encoding="utf-8")
        text = Page(write_report(folder).read_text(encoding="utf-8")).text
        assert "All modules were trained: the budget left nothing to choose." in text
        assert ("patch embedding was trained, too" in text) == trains
    (folder / "config.json").write_text(json.dumps(to_table(config(budget=0.99))), encoding="utf-8")
    assert "Once 12 of 12 modules were chosen" in Page(write_report(folder).read_text(encoding="utf-8")).text


def test_shares_of_the_time_and_what_pruning_and_export_brought_are_told(tmp_path: Path) -> None:
    folder = full(tmp_path / "run")
    exported = {
        "bytes": 9_870_000, "precision": "fp16", "parameters": 4_321_000,
        "modules_kept": ["a", "b"], "modules_total": 12,
        "seconds_per_tile": {"trained": 0.25, "eager": 0.2, "onnx": 0.125},
        "curve": [
            {"kept": ["a", "b"], "parameters": 70_000, "bytes": 280_000, "seconds": 0.2, "miou": 0.815},
            {"kept": ["a"], "parameters": 30_123, "bytes": 120_492, "seconds": 0.16, "miou": 0.81},
        ],
    }  # fmt: skip
    text = Page(write_report(folder, exported).read_text(encoding="utf-8")).text
    told = ("waiting for chips 2.1 s, 5.0 %", "chips included 4.2 s, 10.0 %", "9.87 MB, weights in fp16")
    for part in (
        *told,
        "4,321,000 parameters",
        "2 of 12 modules kept",
        "as trained, in torch 250 ms",
        "onnxruntime 125 ms",
        "2 81.5 70,000 200 ms 1 81.0 30,123 160 ms",
    ):
        assert part in text, part
    assert "As it was exported" not in Page(write_report(folder).read_text(encoding="utf-8")).text


def test_what_eight_bits_cost_is_told(tmp_path: Path) -> None:
    exported = {
        "bytes": 1_000_000, "precision": "int8", "parameters": 1_000_000, "modules_kept": [], "modules_total": 12,
        "seconds_per_tile": {}, "miou": {"fp32": 0.815, "int8": 0.8126},
    }  # fmt: skip
    text = Page(write_report(full(tmp_path / "run"), exported).read_text(encoding="utf-8")).text
    assert "mean IoU on held-out tiles, fp32 81.5 % mean IoU on held-out tiles, int8 81.3 %" in text


def test_a_collapse_is_told_on_top(tmp_path: Path) -> None:
    folder = full(tmp_path / "run")
    assert "one class on all" not in Page(write_report(folder).read_text(encoding="utf-8")).text
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").write_text(json.dumps({**result, "collapsed": [40, 80]}), encoding="utf-8")
    assert "After 40, 80 steps the model said one class" in Page(write_report(folder).read_text(encoding="utf-8")).text


def test_every_setting_is_on_the_page(tmp_path: Path) -> None:
    """Of each table, and of each entry of each list of tables."""
    folder = minimal(tmp_path / "run")
    table = to_table(config())
    lists = [name for name, value in table.items() if isinstance(value, list)]
    assert set(lists) == {"source", "validation", "target", "style"}
    for name in lists:
        labels = {"labels": f"{name}.gpkg"} if name in ("source", "validation") else {}
        table[name] = [{"images": f"{name}.tif", "weight": 0.123, **labels}]
    table["self_training"] = {"teacher": "teacher.onnx"}
    whole = to_table(build(AdaptConfig, table))
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    for section, value in whole.items():
        for given in value if isinstance(value, list) else [value]:
            for name, setting in given.items() if isinstance(given, dict) else [(section, given)]:
                if setting not in ("", None, [], {}) and not isinstance(setting, dict | list):
                    shown = json.dumps(setting) if isinstance(setting, bool) else str(setting)
                    assert f"{name} {shown}" in text, (section, name)


def test_pictures_are_cut_into_imagery_truth_prediction(tmp_path: Path) -> None:
    page = Page(write_report(full(tmp_path / "run")).read_text(encoding="utf-8"))
    images = [a for tag, a in page.tags if tag == "img"]
    colors = []
    for attributes in images:
        data = (attributes["src"] or "").removeprefix("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            assert picture.size == (32, 32)
            colors.append(picture.getpixel((31, 0)))
    assert colors == [(10, 20, 30), (40, 50, 60), (70, 80, 90)]
    assert [a["alt"] for a in images] == [f"tile-00: {what}" for what in ("imagery", "truth", "prediction")]


@pytest.mark.parametrize("missing", ["metrics.jsonl", "gate.jsonl", "result.json", "pictures", "model.onnx"])
def test_each_part_may_be_missing(tmp_path: Path, missing: str) -> None:
    folder = full(tmp_path / "run")
    (folder / missing).rename(tmp_path / "elsewhere")
    whole, less = write_report(full(tmp_path / "whole")), write_report(folder)
    Page(less.read_text(encoding="utf-8"))
    assert less.stat().st_size < whole.stat().st_size


def test_a_run_that_was_cut_off_counts_its_last_record_of_a_step(tmp_path: Path) -> None:
    folder = minimal(tmp_path / "run")
    lines = [
        {"step": 0, "loss": 5.0, "lr": 0.1},
        {"step": 1, "loss": 4.0, "lr": 0.1},
        {"step": 1, "loss": 3.0, "lr": 0.2},
    ]
    write_lines(folder / "metrics.jsonl", [*lines])
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    log = read_run_log(folder)
    assert log.losses == {1: 5.0, 2: 3.0}
    assert log.rates == {1: 0.1, 2: 0.2}
    assert log.unreadable == 1
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "Not finished: 2 of 120 steps" in text
    assert "1 lines of the logs could not be read" in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_spans_cover_the_steps_in_which_a_module_was_trained() -> None:
    chosen = selections()
    for layer in range(LAYERS):
        for kind in ("spatial", "semantic", "frequency"):
            key = ModuleKey(layer, kind)
            steps = {step for start, stop in spans(chosen, key, STEPS) for step in range(start, stop)}
            expected = {step for s in chosen if key in s.active for step in range(s.step, s.step + EVERY)}
            assert steps == expected
    one = [Selection(step=0, active=(ModuleKey(0, "spatial"),)), Selection(step=5, active=(ModuleKey(0, "spatial"),))]
    assert spans(one, ModuleKey(0, "spatial"), 9) == [(0, 9)]


def test_the_gate_map_draws_each_span_to_scale() -> None:
    drawing = ET.fromstring(gate_map(selections(), STEPS))
    said = [t.text or "" for t in drawing.iter("title")]
    expected = {
        f"{key}: steps {start} to {stop}"
        for key in {k for s in selections() for k in s.active}
        for start, stop in spans(selections(), key, STEPS)
    }
    assert set(said) == expected
    widths = [float(r.attrib["width"]) for r in drawing.iter("rect") if list(r)]
    steps = [int(t.split()[-1]) - int(t.split()[-3]) for t in said]
    assert np.allclose(np.array(widths) / np.array(steps), widths[0] / steps[0], rtol=0.01)


def test_the_score_map_shows_means_and_counts() -> None:
    chosen = selections()
    drawing = ET.fromstring(score_map(chosen))
    said = {t.text for t in drawing.iter("title")}
    key = ModuleKey(1, "semantic")
    mean = sum(s.scores[key] for s in chosen) / len(chosen)
    count = sum(key in s.active for s in chosen)
    assert f"{key}: mean score {mean:.3g}, chosen {count} of {len(chosen)} times" in said
    assert len(said) == 3 * LAYERS
    frames = [r for r in drawing.iter("rect") if r.attrib["stroke"] == html.INK]
    assert len(frames) == len(chosen[-1].active)
    assert score_map([Selection(step=0, active=(key,))]) == ""
