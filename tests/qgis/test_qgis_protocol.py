"""The plugin's reading of the engine's lines, without QGIS."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from cegate_geo_qgis.outcome import Ending, EngineCancelledError, EngineError, check_hello, conclude, tail
from cegate_geo_qgis.protocol import (
    MAX_LINE,
    ClassArea,
    Conversation,
    Done,
    Failure,
    Hello,
    NotAnEventError,
    Notice,
    Progress,
    Result,
    parse_line,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSES = [
    {"id": 0, "name": "autre é", "color": "#e4e4de", "pixels": 3, "area_m2": 0.75},
    {"id": 7, "name": "building", "color": [214, 69, 65], "pixels": 1, "area_m2": None},
    {"id": 8, "name": "plain"},
]
SAID = [
    {"event": "hello", "protocol": 1, "version": "0.1.0", "command": "predict"},
    {"event": "progress", "fraction": 0.5, "done": 1, "total": 2, "eta_s": None},
    {"event": "warning", "code": "gsd", "message": "The scene has no CRS."},
    {
        "event": "result", "output": "/tmp/é.tif", "grid": {}, "tiles": 2, "skipped_tiles": 1, "seconds": 1.5,
        "provider": "cpu", "classes": CLASSES,
    },
]  # fmt: skip
MEANT = [
    Hello(1, "0.1.0", "predict"),
    Progress(0.5, 1, 2, None),
    Notice("gsd", "The scene has no CRS."),
    Result(
        output="/tmp/é.tif",
        classes=(
            ClassArea(0, "autre é", (228, 228, 222), 3, 0.75),
            ClassArea(7, "building", (214, 69, 65), 1, None),
            ClassArea(8, "plain", None, 0, None),
        ),
        tiles=2,
        skipped_tiles=1,
        seconds=1.5,
        provider="cpu",
    ),
]
STREAM = b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\r\n" for item in SAID)
DONE = Ending(exit_code=0, crashed=False, cancelled=False, stderr="")


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts):
    said, events = Conversation(), []
    marks = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(marks):
        events += said.feed(STREAM[begin:end])
    assert events + said.end() == MEANT
    assert said.strays == []


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(junk):
    said = Conversation()
    events = said.feed(b"\n" + junk.replace(b"event", b"") + b"\n") + said.feed(STREAM) + said.end()
    assert events == MEANT


@pytest.mark.parametrize(
    "line",
    [
        b"Loading ...", b"[1]", b"3", b"null", b"{}", b'{"event": "progress"}', b'{"event": "hello", "protocol": "x"}',
        b'{"event": "progress", "fraction": "half", "done": 1, "total": 2}', b'{"event": "result", "output": "x"}',
        b'{"event": "result", "output": "x", "classes": [1]}', b"\xff\xfe", b"[" * 100_000,
        b'{"event": "progress", "fraction": 0.5, "done": Infinity, "total": 2}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_a_stray(line):
    with pytest.raises(NotAnEventError):
        parse_line(line)
    said = Conversation()
    assert said.feed(line + b"\n") == []
    assert len(said.strays) == 1


def test_unknown_kinds_are_skipped_for_later_engines():
    assert parse_line(b'{"event": "news"}') is None


def test_other_commands_tell_what_came_of_them():
    line = b'{"event": "result", "command": "evaluate", "miou": 0.5}'
    assert parse_line(line) == Done("evaluate", {"miou": 0.5})
    said = conversation(SAID[0], json.loads(line))
    assert conclude(said, DONE) == Done("evaluate", {"miou": 0.5})


def test_steps_of_training_carry_loss_and_validation():
    line = b'{"event": "progress", "fraction": 0.5, "done": 5, "total": 10, "eta_s": 2, "loss": 0.25, "miou": null}'
    assert parse_line(line) == Progress(0.5, 5, 10, 2.0, 0.25, None)


def test_an_engine_that_can_only_predict_is_told_how_to_learn():
    hint = 'Install it: pip install "cegate-geo[train]".'
    said = conversation(SAID[0], {"event": "error", "code": "runtime-missing", "message": "No torch.", "hint": hint})
    with pytest.raises(EngineError, match=r"^No torch. .*Set up the engine.* with the variant 'train'"):
        conclude(said, Ending(3, False, False, ""))


def test_a_fraction_stays_between_0_and_1():
    for fraction, meant in ((-1, 0.0), (7, 1.0)):
        event = parse_line(json.dumps({"event": "progress", "fraction": fraction, "done": 0, "total": 0}).encode())
        assert isinstance(event, Progress)
        assert event.fraction == meant


def test_a_line_without_end_does_not_fill_the_memory():
    said = Conversation()
    for _ in range(3 * MAX_LINE // 100_000):
        said.feed(b"x" * 100_000)
    assert len(said._rest) <= MAX_LINE + 100_000
    assert said.feed(b"\n" + STREAM) == MEANT


def test_the_last_line_counts_without_its_end():
    said = Conversation()
    assert said.feed(b'{"event": "error", "code": "x", "message": "m", "hint": null}') == []
    assert said.end() == [Failure("x", "m", "")]


def conversation(*items: dict[str, object]) -> Conversation:
    said = Conversation()
    said.feed(b"".join(json.dumps(item).encode() + b"\n" for item in items))
    return said


def test_a_result_with_exit_code_0_is_the_only_success():
    assert conclude(conversation(*SAID), DONE) == MEANT[-1]
    for ending in (Ending(1, False, False, ""), Ending(0, True, False, "")):
        with pytest.raises(EngineError):
            conclude(conversation(*SAID), ending)
    with pytest.raises(EngineError, match="never said hello"):
        conclude(conversation(*SAID[1:]), DONE)
    with pytest.raises(EngineError, match="without a result"):
        conclude(conversation(*SAID[:-1]), DONE)


def test_cancelled_is_cancelled_whatever_the_engine_left():
    for ending in (Ending(130, False, True, "x"), Ending(9, True, True, ""), Ending(0, False, True, "")):
        with pytest.raises(EngineCancelledError):
            conclude(conversation(SAID[0], {"event": "error", "code": "cancelled", "message": "m"}), ending)


def test_a_run_that_was_done_before_cancelling_reached_it_is_done():
    assert conclude(conversation(*SAID), Ending(0, False, True, "")) == MEANT[-1]


def test_the_engines_words_come_before_its_stderr():
    said = conversation(SAID[0], {"event": "error", "code": "model", "message": "No bands.", "hint": "Give --bands."})
    with pytest.raises(EngineError, match=r"^No bands\. Give --bands\.$"):
        conclude(said, Ending(3, False, False, "noise"))


def test_without_words_the_end_of_stderr_is_told():
    stderr = "\n".join(f"line {n}\n" for n in range(100))
    with pytest.raises(EngineError) as caught:
        conclude(conversation(SAID[0]), Ending(2, False, False, stderr))
    assert "exit code 2" in str(caught.value)
    assert str(caught.value).endswith("line 98\nline 99")
    assert "line 80" not in str(caught.value)
    assert tail("") == ""


@pytest.mark.parametrize(("protocol", "mend"), [(0, "pip install --upgrade"), (2, "Update the plugin")])
def test_another_protocol_says_what_to_update(protocol, mend):
    check_hello(Hello(1, "0.1.0", "predict"))
    with pytest.raises(EngineError, match=mend):
        check_hello(Hello(protocol, "9.9", "predict"))
