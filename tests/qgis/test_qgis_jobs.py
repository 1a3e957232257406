"""What the algorithms ask of the engine, and how they tell what it says: without QGIS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
from cegate_geo_qgis import ask as ask_module
from cegate_geo_qgis.adapt_job import (
    AREA,
    CONFIG,
    HEADS,
    LABELS,
    AdaptJob,
    LabelClass,
    can_resume,
    holds_run,
    make_legend,
)
from cegate_geo_qgis.ask import ask_engine
from cegate_geo_qgis.check_report import check_verdicts, forecast_line, verdict_lines
from cegate_geo_qgis.engine import EngineCommand
from cegate_geo_qgis.figures import check_figures, figure_lines, figures_html
from cegate_geo_qgis.model_card import card_html, card_lines, metres, read_card, verdicts
from cegate_geo_qgis.outcome import EngineCancelledError, EngineError
from fake_engine import CARD, FIGURES

from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build

FAKE = Path(__file__).with_name("fake_engine.py")


def legend(*values: str, background: str = "", names=None, colors=None):
    return [(c.id, c.name) for c in make_legend(values, background=background, names=names or {}, colors=colors or {})]


def test_words_are_numbered_in_alphabetical_order_after_the_background():
    assert legend("tree", "Road", "house") == [(0, "house"), (1, "Road"), (2, "tree")]
    assert legend("tree", background="other") == [(0, "other"), (1, "tree")]
    assert legend("tree", "other", background="other") == [(0, "other"), (1, "tree")]
    assert legend("tree", "road", background=" Ignore ") == [(0, "road"), (1, "tree")]


def test_whole_numbers_stay_ids():
    assert legend("7", "2") == [(2, "2"), (7, "7")]
    assert legend("1", background="other") == [(0, "other"), (1, "1")]
    assert legend("0", "1", background="other") == [(0, "0"), (1, "1"), (2, "other")]
    assert legend("0", "1", background="0") == [(0, "0"), (1, "1")]


def test_the_layer_names_classes_and_gives_their_order_and_colours():
    names = {"w": "water", "a": "acre"}
    assert legend("a", "w", "x", names=names) == [(0, "water"), (1, "acre"), (2, "x")]
    assert legend("1", "2", names={"1": "house", "2": "road"}, background="house") == [(1, "house"), (2, "road")]
    made = make_legend(("1", "2"), background="", names={}, colors={"1": "#ff0000"})
    assert [c.color for c in made] == ["#ff0000", ""]


@pytest.mark.parametrize(
    ("values", "names", "words"),
    [
        ((), {}, "hold no class"),
        (("house",), {}, "only the class 'house'"),
        (("1", "255"), {}, "255 is too large"),
        (("1", "2"), {"1": "a", "2": "a"}, "'a' stands for several values"),
    ],
)
def test_what_can_be_no_legend_is_refused(values, names, words):
    with pytest.raises(EngineError, match=words):
        make_legend(values, background="", names=names, colors={})


def job(tmp_path: Path, **more: object) -> AdaptJob:
    classes = (LabelClass(0, 'other "é"', ""), LabelClass(3, "house", "#d64541"))
    return AdaptJob(run=tmp_path / "a [run]", images=("/x/a[1].tif", "/y/é b.tif"), legend=classes, **more)


def test_the_engine_reads_the_configuration_as_it_was_meant(tmp_path):
    given = job(
        tmp_path, background='other "é"', has_area=True, targets=("/z/t*.tif",), bands=(3, 2, 1), nodata=(255.0, 0.0),
        name="Häuser", head="linear", tile_size=256, budget=0.5, steps=40, batch_size=2, lr=1e-5, validation=0.2,
        seed=7,
    )  # fmt: skip
    config = build(AdaptConfig, tomllib.loads(given.config()))
    assert config.name == "Häuser"
    assert [(c.id, c.name) for c in config.legend.classes] == [(0, 'other "é"'), (3, "house")]
    assert config.legend.classes[1].color == (0xD6, 0x45, 0x41)
    assert [s.images for s in config.source] == ["/x/a[[]1].tif", "/y/é b.tif"]
    for source in config.source:
        assert (source.labels, source.aoi) == (str(given.run / LABELS), str(given.run / AREA))
        assert (source.label_field, source.background) == ("class", 'other "é"')
        assert (source.bands, source.nodata) == ((3, 2, 1), (255.0, 0.0))
    assert [(s.images, s.bands) for s in config.style] == [("/z/t[*].tif", (3, 2, 1))]
    model = config.model
    assert (model.backbone, model.weights, model.head) == ("vit_tiny_patch16_224", "shipped", "linear")
    assert (model.tile_size, config.train.crop, config.peft.budget) == (256, 256, 0.5)
    train = config.train
    assert (train.steps, train.batch_size, train.lr, train.head_lr) == (40, 2, 1e-5, 2e-3)
    assert (train.validation, train.seed, train.validate_every) == (0.2, 7, 10)


def test_bands_go_to_the_engine_by_number_and_name(tmp_path):
    config = build(AdaptConfig, tomllib.loads(job(tmp_path, bands=("B4", "B3", "B2", 8)).config()))
    assert [source.bands for source in config.source] == [("B4", "B3", "B2", 8)] * 2


def test_heads_are_the_engines_own():
    from cegate_geo.train.heads import HEADS as ENGINES

    assert sorted(HEADS) == sorted(ENGINES)
    assert HEADS[:3] == ("dpt-detail", "dpt", "linear")  # saved models hold names; the order is that of the list


def test_another_base_gets_the_rates_of_foundation_models(tmp_path):
    given = job(tmp_path, backbone="vit_small_patch14_dinov2.lvd142m", weights="/w.safetensors", nodata=(float("nan"),))
    config = build(AdaptConfig, tomllib.loads(given.config()))
    assert (config.model.backbone, config.model.weights) == ("vit_small_patch14_dinov2.lvd142m", "/w.safetensors")
    assert (config.train.lr, config.train.head_lr) == (5e-5, None)
    assert config.train.crop == config.model.tile_size == 384
    assert config.source[0].background == "ignore"
    assert config.source[0].nodata[0] != config.source[0].nodata[0]


def test_the_small_base_learns_with_the_settings_of_the_command_line(tmp_path):
    from cegate_geo.cli.adapt import _table

    short = dict.fromkeys(("images", "labels", "label_field", "bands", "classes"), "") | {"images": "a", "labels": "b"}
    line, ours = build(AdaptConfig, _table(short)), build(AdaptConfig, tomllib.loads(job(tmp_path).config()))
    assert (ours.train.crop, ours.train.steps, ours.train.lr, ours.train.head_lr, ours.train.ema) == (
        line.train.crop, line.train.steps, line.train.lr, line.train.head_lr, line.train.ema
    )  # fmt: skip
    assert (ours.model, ours.peft.share) == (line.model, line.peft.share)


def test_the_command_line_of_adapting(tmp_path):
    run = tmp_path / "a [run]"
    words = ["adapt", str(run / CONFIG), f"--output={run}"]
    assert job(tmp_path).arguments() == words
    assert job(tmp_path, device="cpu", resume=True).arguments() == [*words, "--device=cpu", "--resume"]
    assert not holds_run(run)
    run.mkdir()
    (run / "config.json").touch()
    assert holds_run(run)
    assert not can_resume(run)
    (run / CONFIG).touch()
    assert can_resume(run)


def ask(monkeypatch, mode: str, **more: object):
    monkeypatch.setenv("FAKE_ENGINE_MODE", mode)
    import os

    command = EngineCommand(sys.executable, (str(FAKE),), "the test")
    return ask_engine(command, ["info", "x", "--json"], dict(os.environ), **more)


def test_the_engine_is_asked_for_one_object(monkeypatch):
    assert ask(monkeypatch, "ok") == CARD


def test_what_goes_wrong_with_asking_is_told(monkeypatch):
    with pytest.raises(EngineError, match=r"^No model of this name\. Check the path\.$"):
        ask(monkeypatch, "error")
    with pytest.raises(EngineError, match="gave no answer"):
        ask(monkeypatch, "garbage")
    with pytest.raises(EngineError, match="not answered within"):
        ask(monkeypatch, "never", timeout_s=0.5)
    with pytest.raises(EngineError, match="can't be started"):
        ask_engine(EngineCommand("/no/such/program", (), "the test"), [], {})


def test_asking_is_cancelled_at_once(monkeypatch):
    begun = time.monotonic()
    with pytest.raises(EngineCancelledError):
        ask(monkeypatch, "never", is_cancelled=lambda: time.monotonic() - begun > 0.3)
    assert time.monotonic() - begun < 10


def test_what_is_asked_ends_when_qgis_is_killed(tmp_path):
    """Its standard input stays open as long as QGIS lives: the engine watches it."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from cegate_geo_qgis.ask import ask_engine\n"
        "from cegate_geo_qgis.engine import EngineCommand, clean_environment\n"
        "engine = EngineCommand(sys.executable, ('-m', 'cegate_geo'), 'the test')\n"
        "ask_engine(engine, ['check', sys.argv[2], '--json'], clean_environment(os.environ))"
    )
    scene = tmp_path / "scene.tif"
    os.mkfifo(scene)  # opening it takes for ever
    words = [sys.executable, "-c", code, str(Path(ask_module.__file__).parents[1]), str(scene)]
    with subprocess.Popen(words) as qgis:
        (engine,) = wait_for(lambda: psutil.Process(qgis.pid).children())
        assert engine.is_running()
        qgis.kill()
    wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def wait_for(find, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.02)
    return found


def test_a_card_says_what_the_manifest_says_and_escapes_it():
    card = read_card(CARD)
    page, lines = card_html(card), "\n".join(card_lines(card))
    assert "roofs &lt;1&gt;" in page
    assert "roofs <1>" not in page
    assert "background-color:#d64541" in page
    for text in ("0.5 m", "CC0", "Somebody", "1,234", "0.750"):
        assert text in page
        assert text in lines
    assert "0 other, 1 building" in lines


def test_a_card_of_another_tool_says_where_its_parts_were_found():
    told = {**CARD, "contract": {"classes": "Deepness keys", "tile": "graph"}}
    assert "From classes: Deepness keys" in "\n".join(card_lines(read_card(told)))
    assert "From" not in "\n".join(card_lines(read_card(CARD)))


@pytest.mark.parametrize("told", [{}, {"manifest": {}}, {"manifest": {**CARD["manifest"], "legend": [3]}}, {"run": 1}])
def test_what_is_no_model_has_no_card(told):
    with pytest.raises(EngineError, match="describes no model"):
        read_card(told)


def levels(**scene: object) -> list[str]:
    return [v.level for v in verdicts(read_card(CARD), **{"gsd_m": 0.5, "band_count": 3, **scene})]


def test_a_scene_is_judged_by_pixel_size_bands_and_type():
    assert levels() == ["good", "good"]
    assert levels(gsd_m=0.7005) == ["good", "good"]  # the engine's own tolerance
    assert levels(gsd_m=0.3) == levels(gsd_m=2.0) == levels(gsd_m=None) == ["note", "good"]
    assert levels(gsd_m=0.01) == levels(gsd_m=10) == ["bad", "good"]
    assert levels(band_count=1) == ["good", "bad"]
    assert levels(band_count=4) == ["good", "note"]
    assert levels(dtypes=["Byte", "Byte", "Byte"]) == ["good", "good"]
    assert levels(dtypes=["UInt16"] * 3) == ["good", "good", "bad"]
    for dtype, fits, other in (
        ("uint16", "UInt16", "Byte"),
        ("int16", "Int16", "UInt16"),
        ("float32", "Float64", "Byte"),
    ):
        deep = read_card({**CARD, "manifest": {**CARD["manifest"], "dtype": dtype}})
        found = {k: verdicts(deep, gsd_m=0.5, band_count=3, dtypes=[k] * 3)[2:] for k in (fits, other)}
        assert ([v.level for v in found[fits]], [v.level for v in found[other]]) == ([], ["bad"])
    assert [metres(v) for v in (0.132, 0.5, 10.0)] == ["13.2 cm", "0.5 m", "10 m"]


def test_figures_are_told_with_a_dash_for_what_is_not_there():
    check_figures(FIGURES)
    assert figure_lines(FIGURES)[2].startswith("  1 a <b>: IoU -, F1 -")
    page = figures_html(FIGURES, title="A & B", subtitle="x")
    assert "a &lt;b&gt;" in page
    assert "A &amp; B" in page
    assert page.count("75.0 %") == 6  # accuracy, three figures, two cells of the confusion
    with pytest.raises(EngineError, match="lack 'miou'"):
        check_figures({"per_class": [], "confusion": []})


def test_a_report_without_verdicts_is_refused_and_an_unknown_state_does_no_harm():
    with pytest.raises(EngineError, match="lacks 'verdicts'"):
        check_verdicts({"ok": True, "scene": "s", "model": "m", "provider": "cpu"})
    strange = {"name": "x", "state": "of a later version", "message": "y"}
    assert verdict_lines({"verdicts": [strange]}) == ["not tested: x: y"]
    assert forecast_line(None) == ""
    assert "an unknown time" in forecast_line({"tiles": 1, "seconds": None})


def test_an_exit_code_is_accepted_with_an_answer_only(monkeypatch):
    assert ask(monkeypatch, "ok", accepted=(0, 1)) == CARD
    monkeypatch.setenv("FAKE_ENGINE_MODE", "unfit")
    import os

    command = EngineCommand(sys.executable, (str(FAKE),), "the test")
    words = ["check", "s.tif", "--json"]
    assert ask_engine(command, words, dict(os.environ), accepted=(0, 1))["ok"] is False
    with pytest.raises(EngineError, match="exit code 1"):
        ask_engine(command, words, dict(os.environ))
    monkeypatch.setenv("FAKE_ENGINE_MODE", "traceback")
    with pytest.raises(EngineError, match=r"libsomething\.so"):
        ask_engine(command, words, dict(os.environ), accepted=(0, 1))
