"""A program that started this one and is gone leaves nothing behind: no process, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cegate_geo.cli.starter import VARIABLE, Starter, is_watched

BEGIN = """
import sys, time
from pathlib import Path
output = Path(sys.argv.pop(1))
from cegate_geo.__main__ import main
"""
NEVER_LOADED = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cegate_geo.cli.main":
            print("loading", flush=True)
            time.sleep(100)
sys.meta_path.insert(0, Finder())
"""
NEVER_DONE = """
from cegate_geo.cli import {command} as module
from cegate_geo.infer.atomic import job_folder
def work(*given, **more):
    with job_folder(output) as job:
        job.file("half").write_text("half a mask")
        print("working", flush=True)
        time.sleep(100)
module.command.callback = work
"""
SAVES = """
import click
from cegate_geo.cli import predict as module
from cegate_geo.cli.events import watch_cancel
def work(*given, **more):
    with watch_cancel(click.get_current_context().obj["events"]) as cancel:
        print("working", flush=True)
        while not cancel():
            time.sleep(0.01)
        time.sleep(2.5)
        output.write_text("saved")
module.command.callback = work
"""
NAMES = """
import threading
from cegate_geo.cli.starter import give_up
from cegate_geo.infer import atomic
slow = atomic.sync
def sync(path):
    print("naming", flush=True)
    time.sleep(0.2)
    slow(path)
atomic.sync = sync
def work():
    with atomic.job_folder(output) as job:
        for name in ("a", "b", "c"):
            job.file(name).write_text(name)
            job.publish(job.file(name), output.with_name(name))
        job.commit()
    time.sleep(100)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
give_up()
"""
END = "raise SystemExit(main())\n"


def start(code: str, folder: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code + END, str(folder / "mask.tif"), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **more},
    )  # fmt: skip


def said(running: subprocess.Popen[str]) -> str:
    """The next line."""
    assert running.stdout is not None
    return running.stdout.readline().strip()


PREDICT = ("predict", "scene.tif", "-o", "mask.tif", "--events", "jsonl")


def test_the_end_of_the_starter_ends_what_is_still_loading(tmp_path: Path) -> None:
    with start(NEVER_LOADED, tmp_path, *PREDICT) as running:
        assert said(running) == "loading"
        running.communicate(timeout=60)
        assert running.returncode == 130


@pytest.mark.parametrize(
    ("command", "words", "more"), [("predict", PREDICT, {}), ("check", ("check", "scene.tif"), {VARIABLE: "1"})]
)
def test_what_does_not_end_is_given_up_and_leaves_nothing(
    tmp_path: Path, command: str, words: tuple[str, ...], more: dict[str, str]
) -> None:
    with start(NEVER_DONE.format(command=command), tmp_path, *words, **more) as running:
        assert said(running) == "working"
        assert len(list(tmp_path.iterdir())) == 1
        running.communicate(timeout=60)
        assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_who_says_cancel_waits_for_what_is_saved(tmp_path: Path) -> None:
    with start(SAVES, tmp_path, *PREDICT) as running:
        assert said(running) == "working"
        running.communicate("cancel\n", timeout=60)
        assert running.returncode == 0
    assert (tmp_path / "mask.tif").read_text() == "saved"


def test_results_get_all_of_their_names_or_none(tmp_path: Path) -> None:
    with start(NAMES, tmp_path) as running:
        running.communicate(timeout=60)
        assert running.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_standard_input_means_something_only_where_it_was_said() -> None:
    assert is_watched(["predict", "--events=jsonl"], {})
    assert is_watched(["check"], {VARIABLE: "1"})
    assert not is_watched(["check"], {})
    assert not is_watched(["adapt", "--events", "jsonl"], {"RANK": "1"})


def test_a_wish_reaches_those_that_ask_for_it_later_and_not_those_that_went() -> None:
    heard: list[str] = []
    has_come = threading.Event()
    reading, writing = os.pipe()
    starter = Starter()

    def early() -> None:
        heard.append("early")
        has_come.set()

    def gone() -> None:
        heard.append("gone")

    starter.tell(early)
    starter.tell(gone)
    starter.forget(gone)
    starter.listen(reading, give_up=lambda: heard.append("given up"))
    os.write(writing, b"can")
    os.write(writing, b"cel\n")
    os.close(writing)
    assert has_come.wait(60)
    starter.tell(lambda: heard.append("late"))
    assert heard == ["early", "late"]
    os.close(reading)
