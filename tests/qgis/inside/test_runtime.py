"""The real loop around QProcess against an engine that behaves badly."""

# ruff: noqa: N802, the names are QGIS'

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cegate_geo_qgis.engine import EngineCommand, clean_environment, find_engine
from cegate_geo_qgis.outcome import EngineCancelledError, EngineError
from cegate_geo_qgis.runtime import Patience, run_engine

WORDS = ["predict", "no-scene.tif", "--events", "jsonl"]


class Recorder:
    """Feedback that remembers, and cancels once progress is seen."""

    def __init__(self, *, cancel_at: float = 1000.0) -> None:
        self.percents, self.infos, self.warnings, self.debug, self.cancel_at = [], [], [], [], cancel_at

    def isCanceled(self):
        return bool(self.percents) and self.percents[-1] >= self.cancel_at

    def setProgress(self, progress):
        self.percents.append(progress)

    def pushInfo(self, info):
        self.infos.append(info)

    def setProgressText(self, text):
        self.infos.append(text)

    def pushWarning(self, warning):
        self.warnings.append(warning)

    def pushDebugInfo(self, info):
        self.debug.append(info)


def run(feedback=None, **patience):
    command = find_engine(setting="", environ=os.environ, managed=Path("/nowhere"))
    return run_engine(
        command, WORDS, clean_environment(os.environ), feedback or Recorder(), patience=Patience(**patience)
    )


def test_a_good_run_gives_its_result_and_says_what_it_warned_of(fake_engine):
    feedback = Recorder()
    result = run(feedback)
    classes = [(c.id, c.name, c.color) for c in result.classes]
    assert classes == [(0, "other", (228, 228, 222)), (1, "building", (214, 69, 65))]
    assert (result.tiles, result.skipped_tiles, result.provider) == (4, 1, "cpu")
    assert feedback.warnings == ["The scene has no CRS."]
    assert feedback.infos[0] == "CEGate-Geo engine 9.8.7"


def test_progress_never_falls_and_ends_at_hundred(fake_engine):
    feedback = Recorder()
    fake_engine.mode("steady")
    run(feedback)
    assert feedback.percents == sorted(feedback.percents)
    assert feedback.percents[-1] == 100.0
    assert len(set(feedback.percents)) > 10


def test_progress_moves_while_the_engine_is_silent(fake_engine):
    """qgis_process looks for Ctrl+C where progress changes."""
    feedback = Recorder()
    fake_engine.mode("slow")
    run(feedback, poll_s=0.05)
    silent = [p for p in feedback.percents if p < 1]
    assert len(silent) > 5
    assert len(set(silent)) == len(silent)


def test_a_crash_is_told_with_the_last_words(fake_engine):
    fake_engine.mode("crash")
    with pytest.raises(EngineError, match=r"crashed(.|\n)*about to crash"):
        run()


def test_cancelling_says_so_to_the_engine_and_lets_it_clean_up(fake_engine):
    fake_engine.mode("long")
    with pytest.raises(EngineCancelledError):
        run(Recorder(cancel_at=2.0), cancel_s=60.0)  # never terminated: it has to leave by itself
    assert {"stdin": "cancel\n"} in fake_engine.log
    assert not fake_engine.is_alive()


def test_a_deaf_engine_is_killed(fake_engine):
    fake_engine.mode("deaf")
    with pytest.raises(EngineCancelledError):
        run(Recorder(cancel_at=25.0))
    assert not fake_engine.is_alive()


def test_all_steps_of_cancelling_fit_into_half_a_second():
    patience = Patience()
    for grace in (patience.cancel_s, patience.saving_s):
        assert grace + patience.terminate_s + 3 * patience.poll_s < 0.5


def test_garbage_on_stdout_is_logged_and_does_no_harm(fake_engine):
    fake_engine.mode("garbage")
    feedback = Recorder()
    assert run(feedback).tiles == 4
    assert len(feedback.debug) == 5
    assert feedback.debug[0] == "engine: Loading model ..."


def test_five_megabytes_of_stderr_do_not_block(fake_engine):
    fake_engine.mode("noisy")
    assert run().tiles == 4


def test_of_much_stderr_the_end_is_shown(fake_engine):
    fake_engine.mode("noisy", FAKE_ENGINE_THEN="fail")
    with pytest.raises(EngineError, match="the last words") as caught:
        run()
    assert len(str(caught.value)) < 3000


def test_a_slow_start_is_waited_for(fake_engine):
    fake_engine.mode("slow")
    assert run().tiles == 4


def test_a_result_without_hello_does_not_count(fake_engine):
    fake_engine.mode("mute")
    with pytest.raises(EngineError, match="never said hello"):
        run()


def test_what_is_silent_for_ever_is_given_up():
    command = EngineCommand("/usr/bin/sleep", ("60",), "the test")
    with pytest.raises(EngineError, match="not said hello within 1 s"):
        run_engine(command, [], dict(os.environ), Recorder(), patience=Patience(hello_s=0.5))


def test_another_protocol_is_refused_with_what_to_install_and_the_engine_is_ended(fake_engine):
    fake_engine.mode("protocol")
    with pytest.raises(EngineError, match=r"speaks protocol 2, this plugin protocol 1. Update the plugin"):
        run()
    assert not fake_engine.is_alive()


def test_the_engines_own_words_and_hint_are_the_error(fake_engine):
    fake_engine.mode("error")
    with pytest.raises(EngineError) as caught:
        run()
    assert str(caught.value) == "The model has 4 bands, the scene 3. Choose with --bands."


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("traceback", "exit code 1.*(.|\n)*cannot open shared object file"),
        ("empty", "without a result"),
        ("outside", "cancelled from outside"),
    ],
)
def test_other_ends_are_told_apart(fake_engine, mode, words):
    fake_engine.mode(mode)
    with pytest.raises(EngineError, match=words):
        run()


def test_a_program_that_can_not_be_started_is_named(tmp_path):
    broken = tmp_path / "cegate-geo"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(EngineError, match=r"cegate-geo', named by the test, can't be started"):
        run_engine(EngineCommand(str(broken), (), "the test"), [], {}, Recorder())


def test_the_engine_gets_a_clean_environment(fake_engine, monkeypatch):
    for name in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "PYTHONHOME", "LD_PRELOAD"):
        monkeypatch.setenv(name, "/wrong" if name != "LD_PRELOAD" else "")
    monkeypatch.setenv("PYTHONPATH", "/wrong")
    run()
    got = fake_engine.log[0]["environ"]
    assert not {"PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "PYTHONHOME", "PYTHONPATH", "LD_PRELOAD"} & set(got)
    assert got["PYTHONUTF8"] == got["PYTHONNOUSERSITE"] == "1"
    assert got["PATH"] == os.environ["PATH"]
    assert sys.executable not in fake_engine.argv
