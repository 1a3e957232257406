"""All or nothing: failed, cancelled and killed runs leave nothing that could be taken for a result."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from onnx import helper

from cegate_geo.api import Progress, predict
from cegate_geo.errors import CancelledError, CegateError, InputError, OutputExistsError
from cegate_geo.infer import finish, writer
from cegate_geo.infer.predictor import Predictor
from tests import toy_models as toys

OUTPUTS = {"vector": "v.gpkg", "confidence": "c.tif", "probabilities": "p.tif"}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """A scene of some hundred tiles, a model, and all outputs in a folder of their own."""
    out = tmp_path / "out"
    out.mkdir()
    return {
        "scene": toys.write_raster(
            tmp_path / "scene.tif", np.kron(toys.noise((60, 80)), np.ones((1, 16, 16), np.uint8))
        ),
        "model": toys.brightness(tmp_path / "m.onnx"),
        "output": out / "mask.tif",
        **{name: out / file for name, file in OUTPUTS.items()},
    }


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def command_line(job: dict[str, Any], *more: str) -> list[str]:
    options = [f"--{name}={job[name]}" for name in OUTPUTS]
    words = ["predict", str(job["scene"]), f"--output={job['output']}", f"--model={job['model']}", *options, *more]
    return [sys.executable, "-m", "cegate_geo.cli.main", *words]


def test_all_outputs_appear_together(job: dict[str, Any]) -> None:
    predict(**job)
    assert listing(job["output"].parent) == ["c.tif", "mask.qml", "mask.tif", "mask.tif.aux.xml", "p.tif", "v.gpkg"]


@pytest.mark.parametrize("when", [0.0, 0.3, 0.95])
def test_a_cancelled_run_leaves_nothing(job: dict[str, Any], when: float) -> None:
    seen: list[float] = []

    def progress(at: Progress) -> None:
        seen.append(at.fraction)

    with pytest.raises(CancelledError):
        predict(**job, progress=progress, cancel=lambda: bool(seen) and seen[-1] >= when)
    assert listing(job["output"].parent) == []
    assert seen[-1] < 1


def test_a_run_cancelled_while_it_finishes_leaves_nothing(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released, ended = threading.Event(), threading.Event(), threading.Event()

    def slow_cog(*_: object) -> None:
        begun.set()
        released.wait()
        ended.set()

    monkeypatch.setattr(finish, "make_cog", slow_cog)
    try:
        with pytest.raises(CancelledError):
            predict(**job, cancel=begun.is_set)
        assert not ended.is_set(), "it waited for what can't be interrupted"
    finally:
        released.set()
    assert listing(job["output"].parent) == []


def test_a_run_cancelled_while_the_model_computes_leaves_at_once(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []

    def slow(*_: object) -> None:
        begun.append(time.monotonic())
        time.sleep(20)

    monkeypatch.setattr(Predictor, "run", slow)
    with pytest.raises(CancelledError):
        predict(**job, cancel=lambda: bool(begun))
    assert time.monotonic() - begun[0] < 10, "it waited for what can't be interrupted"
    assert listing(job["output"].parent) == []


def test_an_interrupt_does_not_wait_for_a_slow_model(job: dict[str, Any]) -> None:
    """One call of this model takes minutes: a chain of large products."""
    make = helper.make_node
    weights = {"side": np.array([4096, 4096]), "nought": np.array(0, np.float32)}
    nodes = [
        make("ConstantOfShape", ["side"], ["ones"]),
        make("ReduceMean", ["x"], ["mean"], keepdims=0),
        make("Add", ["ones", "mean"], ["m0"]),
        *[make("MatMul", [f"m{n}", "ones"], [f"m{n + 1}"]) for n in range(200)],
        make("ReduceMean", ["m200"], ["end"], keepdims=0),
        make("Mul", ["end", "nought"], ["nothing"]),
        make("Add", ["x", "nothing"], ["y"]),
    ]
    toys.save(job["model"], toys.manifest(3), nodes, weights, classes=3, sides=(64, 64))
    process = subprocess.Popen(
        command_line(job, "--events=jsonl", "--threads=1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    events = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [e["event"] for e in events] == ["hello", "progress"]
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    rest = process.stdout.read().splitlines()
    assert process.wait(60) == 130
    assert time.monotonic() - started < 10, "it waited for what can't be interrupted"
    assert [json.loads(line)["code"] for line in rest] == ["cancelled"], "not one tile was done"
    assert listing(job["output"].parent) == []
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("stage", ["write", "cog", "read", "commit"])
def test_a_failed_run_leaves_nothing(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    calls: list[int] = []

    def fail(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) > (0 if stage in ("cog", "commit") else 3):
            raise OSError("No space left on device")

    if stage == "write":
        monkeypatch.setattr(writer.RasterWriter, "write", fail)
    elif stage == "cog":
        monkeypatch.setattr(writer.rasterio.shutil, "copy", fail)
    elif stage == "commit":
        monkeypatch.setattr("cegate_geo.infer.atomic.sync", fail)
    else:
        from cegate_geo.infer.strip_reader import StripReader

        monkeypatch.setattr(StripReader, "read", fail)
        calls.extend([1, 1, 1])
    with pytest.raises((CegateError, OSError), match="No space left"):
        predict(**job)
    assert listing(job["output"].parent) == []


def test_an_existing_output_is_kept_unless_overwriting_is_asked_for(job: dict[str, Any]) -> None:
    side_files = [job["output"].with_name(name) for name in ("mask.qml", "mask.tif.aux.xml")]
    for path in (job["output"], *(job[name] for name in OUTPUTS), *side_files):
        path.write_bytes(b"precious")
        with pytest.raises(OutputExistsError):
            predict(**job)
        assert path.read_bytes() == b"precious"
        path.unlink()
    job["output"].write_bytes(b"precious")
    stale = job["output"].with_name("mask.tif.ovr")
    stale.write_bytes(b"overviews of another mask")
    with pytest.raises(CancelledError):
        predict(**job, overwrite=True, cancel=lambda: True)
    assert job["output"].read_bytes() == b"precious"
    predict(**job, overwrite=True)
    with rasterio.open(job["output"]) as mask:
        assert mask.shape == (960, 1280)
    assert not stale.exists()


def test_links_that_lead_nowhere_are_refused_before_any_work(job: dict[str, Any]) -> None:
    circle = job["scene"].with_name("circle.tif")
    circle.symlink_to(circle)
    with pytest.raises(InputError, match="lead in a circle"):
        predict(**job | {"scene": circle})
    job["output"].symlink_to("nowhere.tif")
    with pytest.raises(OutputExistsError, match="exists already"):
        predict(**job, progress=lambda at: pytest.fail(f"it worked: {at}"))
    assert listing(job["output"].parent) == ["mask.tif"]


@pytest.mark.parametrize(("name", "said"), [("x" * 300 + ".tif", "too long"), ("new\nline.tif", "line break")])
def test_names_that_no_output_can_have_are_refused(job: dict[str, Any], name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        predict(**job | {"output": job["output"].with_name(name)})
    assert listing(job["output"].parent) == []


def test_killed_while_it_runs_it_leaves_nothing_under_the_outputs_names(job: dict[str, Any]) -> None:
    killed = 0
    for pause in (0.0, 0.3, 1.0):
        process = subprocess.Popen(
            command_line(job, "--events=jsonl", "--overwrite"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("done", 0) > 0:
                break
        time.sleep(pause)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL and not killed:
            names = listing(job["output"].parent)
            assert names
            assert all(name.startswith(".") and name.endswith(".part") for name in names)
            killed += 1
    assert killed
    predict(**job, overwrite=True)  # a later run may have come to its end
    assert [name for name in listing(job["output"].parent) if name.endswith(".part")] == [], "remains are cleared away"


@pytest.mark.parametrize("how", ["line", "end of input", "interrupt", "terminate", "broken pipe"])
def test_every_way_to_cancel_ends_it_soon_with_code_130(job: dict[str, Any], how: str) -> None:
    process = subprocess.Popen(
        command_line(job, "--events=jsonl"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    events = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [e["event"] for e in events] == ["hello", "progress"]
    if how == "line":
        process.stdin.write(b"cancel\n")
        process.stdin.flush()
    elif how == "end of input":
        process.stdin.close()
    elif how == "broken pipe":
        process.stdout.close()
    else:
        process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGTERM)
    rest = b"" if how == "broken pipe" else process.stdout.read()
    assert process.wait(60) == 130
    assert process.stderr is not None
    message = process.stderr.read().decode()
    assert "Traceback" not in message
    assert listing(job["output"].parent) == []
    if rest:
        last = json.loads(rest.splitlines()[-1])
        assert (last["event"], last["code"]) == ("error", "cancelled")
    for stream in (process.stdin, process.stdout, process.stderr):
        if not stream.closed:
            stream.close()


def test_without_events_an_ended_input_does_not_matter(job: dict[str, Any]) -> None:
    result = subprocess.run(command_line(job), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(str(job["output"]))
    assert result.stderr == ""
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command_line(job, "--overwrite")]
    assert subprocess.run(closed, capture_output=True, check=False).returncode == 0


def test_events_tell_the_whole_story(job: dict[str, Any]) -> None:
    process = subprocess.Popen(
        command_line(job, "--events", "jsonl", "--bands", "1,2,3"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    events = [json.loads(line) for line in process.stdout]
    assert process.wait() == 0
    process.communicate()
    assert events[0].items() >= {"event": "hello", "protocol": 1, "command": "predict"}.items()
    assert events[0]["version"]
    progress = [e for e in events if e["event"] == "progress"]
    assert [e["fraction"] for e in progress] == sorted(e["fraction"] for e in progress)
    assert progress[0].items() >= {"fraction": 0.0, "done": 0, "eta_s": None}.items()
    assert progress[-1].items() >= {"fraction": 1.0, "done": progress[-1]["total"]}.items()
    result = events[-1]
    assert result["event"] == "result"
    assert result["output"] == str(job["output"])
    assert result["vector"] == str(job["vector"])
    assert result["grid"].items() >= {"crs": "EPSG:32645", "width": 1280, "height": 960}.items()
    assert result["provider"] == "cpu"
    assert [c["name"] for c in result["classes"]] == ["other", "building"]
    assert sum(c["pixels"] for c in result["classes"]) == 960 * 1280
    assert sum(c["area_m2"] for c in result["classes"]) == pytest.approx(960 * 1280 * 0.13**2, rel=2e-3)
    assert result.keys() >= {"tiles", "skipped_tiles", "seconds", "confidence"}


def test_an_error_is_an_event_and_one_line(job: dict[str, Any]) -> None:
    for more, code, name in (
        (["--bands=1,2,9"], 2, "input"),
        (["--model=nothing"], 3, "model"),
        (["--no-such-option"], 2, "usage"),
        (["--nodata=white"], 2, "usage"),
    ):
        result = subprocess.run(
            [*command_line(job, "--events=jsonl"), *more],
            stdin=subprocess.PIPE,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code
        last = json.loads(result.stdout.splitlines()[-1])
        assert last["event"] == "error"
        assert last["code"] == name
        assert last["message"]
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stderr.startswith("cegate-geo: ")


def test_verbose_adds_the_traceback(job: dict[str, Any]) -> None:
    for words in (["-v", *command_line(job)[3:]], [*command_line(job)[3:], "--verbose"]):
        command = [*command_line(job)[:3], *words, "--bands=1"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("cegate-geo: --bands names 1 bands")
    assert listing(job["output"].parent) == []


def test_an_output_that_appears_while_it_runs_is_kept(job: dict[str, Any]) -> None:
    def progress(at: Progress) -> None:
        if at.fraction < 1:
            job["output"].write_text("precious")

    with pytest.raises(OutputExistsError, match="appeared"):
        predict(**job, progress=progress)
    assert listing(job["output"].parent) == ["mask.tif"]
    assert job["output"].read_text() == "precious"


def test_the_sources_of_a_mosaic_are_inputs(job: dict[str, Any], tmp_path: Path) -> None:
    part, mosaic = tmp_path / "part.tif", tmp_path / "mosaic.vrt"
    shutil.copy(job["scene"], part)
    with rasterio.open(part) as dataset:
        rasterio.shutil.copy(dataset, mosaic, driver="VRT")
    before = part.read_bytes()
    with pytest.raises(InputError, match=r"part\.tif is an input and an output"):
        predict(mosaic, part, model=job["model"], overwrite=True)
    assert part.read_bytes() == before


@pytest.mark.parametrize(("option", "name"), [("confidence", "c.png"), ("probabilities", "p.gpkg")])
def test_rasters_are_named_as_what_they_are(job: dict[str, Any], option: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} does not end in \.tif"):
        predict(**job | {option: job["output"].parent / name})
    assert listing(job["output"].parent) == []


def test_names_that_are_no_text_are_refused(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no text"):
        predict(**job | {"output": tmp_path / "m\udcffask.tif"})


def test_cancelling_is_heard_while_the_provider_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes minutes where a provider compiles the model first."""
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)))
    model, trying, end = toys.identity(tmp_path / "m.onnx"), threading.Event(), threading.Event()

    def proven(self: Predictor, inputs: Any) -> Predictor:
        trying.set()
        end.wait(20)
        return self

    monkeypatch.setattr(Predictor, "is_proven", False)
    monkeypatch.setattr(Predictor, "proven", proven)
    began = time.monotonic()
    try:
        with pytest.raises(CancelledError):
            predict(path, tmp_path / "mask.tif", model=model, cancel=trying.is_set)
        assert time.monotonic() - began < 10
    finally:
        end.set()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "scene.tif"]
