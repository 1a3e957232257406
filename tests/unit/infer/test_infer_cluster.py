"""Where Dask workers are, how that is said, and what a worker answers before it computes."""

from __future__ import annotations

import copyreg
import logging
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio._err import CPLE_BaseError

from cegate_geo import __version__, errors
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError, InputError, ModelError, RasterError, RuntimeMissingError
from cegate_geo.infer import cluster as cluster_module
from cegate_geo.infer import task
from cegate_geo.infer.cluster import Place
from cegate_geo.infer.delegate import worker_job
from cegate_geo.infer.job import PredictOptions
from cegate_geo.infer.job_header import job_header
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.parts import Part
from cegate_geo.infer.pipeline import targets_of
from cegate_geo.infer.predictor import file_sha256
from cegate_geo.infer.providers import usable_cores
from cegate_geo.infer.reader import Scene
from cegate_geo.infer.settle import settle
from cegate_geo.infer.shard_store import ShardStore
from cegate_geo.infer.shift import Shift, name_of
from tests import toy_models as toys


@pytest.mark.parametrize(
    ("text", "workers", "place"),
    [
        ("local", None, (None, usable_cores())),
        ("local", 3, (None, 3)),
        ("local:4", None, (None, 4)),
        ("local:4", 4, (None, 4)),
        ("tcp://10.0.0.1:8786", None, ("tcp://10.0.0.1:8786", 1)),
        ("tls://head:8786", 5, ("tls://head:8786", 5)),
        ("head:8786", None, ("head:8786", 1)),
        ("/home/me/scheduler.json", 2, ("/home/me/scheduler.json", 2)),
    ],
)
def test_places(text: str, workers: int | None, place: tuple[str | None, int]) -> None:
    assert PredictOptions(dask=text, workers=workers).place == Place(scheduler=place[0], workers=place[1])


@pytest.mark.parametrize(
    "more",
    [
        {"dask": "local:0"},
        {"dask": "local:x"},
        {"dask": "local", "workers": 0},
        {"dask": "local:2", "workers": 3},
        {"dask": "tcp://head:8786", "workers": 0},
        {"dask": "head"},
        {"dask": ""},
        {"workers": 2},
        {"dask": "local", "shard": Part(1, 2)},
    ],
)
def test_what_is_no_place_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        PredictOptions(**more)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(RuntimeMissingError, match=r'pip install "cegate-geo\[distributed\]"') as told,
        cluster_module.open_cluster(Place(scheduler=None, workers=1)),
    ):
        pass
    assert told.value.exit_code == 3


def test_the_log_of_dask_is_not_ours() -> None:
    """Some of its loggers have a level of their own."""
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with cluster_module._silence():
            assert not logger.isEnabledFor(logging.ERROR)
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(before)


def test_dask_is_not_loaded_before_it_is_asked_for() -> None:
    code = "import sys, cegate_geo.api, cegate_geo.cli.predict; sys.exit(any('distributed' in m for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> task.Job:
    """A job whose scene, model and folder are where it says; calls think that they run in a worker."""
    view = SimpleNamespace(key="k", threads=1, is_wanted=lambda: True, say=lambda **_: None)
    monkeypatch.setattr(task, "this_worker", lambda: view)
    monkeypatch.setattr(task, "_loaded", {})
    toys.write_raster(tmp_path / "scene.tif", np.maximum(toys.noise((90, 80)), 1))
    toys.identity(tmp_path / "model.onnx")
    options, model = PredictOptions(threads=1), tmp_path / "model.onnx"
    predictor = load_predictor(model)
    (tmp_path / "mask.tif.job").mkdir()
    store = ShardStore(tmp_path / "mask.tif.job")
    scene = Scene(str(tmp_path / "scene.tif"), predictor.manifest, bands=predictor.contract.scene_bands)
    try:
        run = settle(scene, predictor, options)
        targets = targets_of(tmp_path / "mask.tif", options)
        store.begin(job_header(run, targets, model=model, sha256=file_sha256(model)))
        (store.path / "token").touch()
        return worker_job(run, store, models=[model], token="token")
    finally:
        store.close()
        scene.close()


def refusal(job: task.Job, version: str = __version__) -> CegateError | None:
    told = task.greet(version, job.packed())
    pickle.loads(pickle.dumps(told))
    error: CegateError | None = told["error"]
    return error


def test_a_worker_that_sees_all_is_ready_and_keeps_the_model(job: task.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(job) is None
    monkeypatch.setattr(task, "load_models", lambda *_: pytest.fail("loaded twice"))
    assert refusal(job) is None
    task.dismiss(job.packed())
    assert task._loaded == {}


def test_a_worker_says_what_it_can_t_see(job: task.Job, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    job = replace(job, parcels=())
    for name, change in {
        "scene.tif": {"scene": str(elsewhere / "scene.tif")},
        "model.onnx": {"models": (elsewhere / "model.onnx",)},
        "area.gpkg": {"options": replace(job.options, aoi=f"{elsewhere / 'area.gpkg'}|layer")},
    }.items():
        error = refusal(replace(job, **change))
        assert isinstance(error, InputError)
        assert f"can't see {elsewhere / name}" in error.message
        assert "under the same path" in error.hint
    assert not task.greet(__version__, job.packed())["carries"]
    (job.folder / job.token).unlink()
    assert task.greet(__version__, job.packed())["carries"], "a folder of the same name is not enough"


def test_a_worker_that_would_compute_something_else_says_what(
    job: task.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = refusal(job, version="0.0.1")
    assert isinstance(other, ModelError)
    assert f"It has cegate-geo {__version__}, the client 0.0.1" in other.message
    toys.convolutions(tmp_path / "model.onnx")
    error = refusal(job)
    assert isinstance(error, ModelError)
    assert "something else: model was" in error.message
    toys.identity(tmp_path / "model.onnx")
    assert refusal(job) is None
    os.utime(tmp_path / "scene.tif", ns=(1, 1))
    error = refusal(job)
    assert error is not None
    assert "scene was scene.tif" in error.message


def test_a_call_gives_what_it_finished_and_why_it_stopped(job: task.Job) -> None:
    given = task.compute(__version__, job.packed(), [(0, 0, 80, 90)])
    assert [line["shard"] for line in given["entries"]] == [[0, 0, 80, 90]]
    assert given["error"] is None
    assert given["done"] > 0
    mine = name_of(os.getpid())
    assert mine != name_of(os.getpid() + 1), "a fork is another process"
    assert sorted(path.name for path in job.folder.iterdir()) == [f"journal-{mine}.jsonl", "r0c0.shard", "token"]
    (job.folder / job.token).unlink()
    given = task.compute(__version__, job.packed(), [(0, 0, 80, 90)])
    assert isinstance(given["error"], InputError)
    assert given["entries"] == []


def test_nothing_is_written_once_the_client_uses_the_folder_for_something_else(
    job: task.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    require = task._require_sight

    def then_it_goes(seen: task.Job) -> None:
        require(seen)
        (seen.folder / seen.token).unlink()

    monkeypatch.setattr(task, "_require_sight", then_it_goes)
    before = sorted(path.name for path in job.folder.iterdir())
    given = task.compute(__version__, job.packed(), [(0, 0, 80, 90)])
    assert given["error"].code == "cancelled"
    assert sorted([*(path.name for path in job.folder.iterdir()), "token"]) == before


def test_a_call_that_nobody_waits_for_stops(job: task.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    view = SimpleNamespace(key="k", threads=1, is_wanted=lambda: False, say=lambda **_: None)
    monkeypatch.setattr(task, "this_worker", lambda: view)
    given = task.compute(__version__, job.packed(), [(0, 0, 80, 90)])
    assert given["error"].code == "cancelled"
    assert not list(job.folder.glob("*.shard*"))


def test_shards_may_be_taken_from_a_call_that_has_not_begun_them() -> None:
    stack = tuple(Window(col_off=0, row_off=n, width=1, height=1) for n in range(6))
    shift = Shift(stack)
    assert (shift.shorten(4), shift.shorten(5)) == (4, 4), "none comes back"
    assert shift.shorten(0) == 1, "what it is at is left to it"
    assert not shift.is_enough
    shift.add(SimpleNamespace())  # type: ignore[arg-type]
    assert shift.is_enough
    whole = Shift(stack[:1])
    whole.add(SimpleNamespace())  # type: ignore[arg-type]
    assert not whole.is_enough, "who has all that it was given comes to its own end"
    assert whole.shorten(0) == 1
    assert task.shorten("unknown", 1) is None


ALL_ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, CegateError)]


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_errors_come_through_from_another_process(kind: type[CegateError]) -> None:
    error = kind("What, 3.", hint="How.")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert (found.message, found.hint, str(found), found.exit_code) == ("What, 3.", "How.", str(error), error.exit_code)


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_errors_come_through_where_dask_was_imported_after_us(kind: type[CegateError]) -> None:
    """Dask then pickles the errors that are there by a function of tblib, which can't make those that are OSErrors."""
    support = pytest.importorskip("tblib.pickling_support", reason="comes with dask.distributed")
    before = copyreg.dispatch_table.get(kind)
    copyreg.pickle(kind, support.pickle_exception)
    try:
        found = pickle.loads(pickle.dumps(kind("What, 3.", hint="How.")))
    finally:
        copyreg.dispatch_table.pop(kind)
        if before is not None:
            copyreg.dispatch_table[kind] = before
    assert type(found) is kind
    assert (found.message, found.hint) == ("What, 3.", "How.")


def test_errors_of_gdal_and_others_come_through(tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\0broken")
    with pytest.raises(rasterio.RasterioIOError) as opened:
        rasterio.open(tmp_path / "broken.tif")

    class UnpicklableError(Exception):
        def __init__(self) -> None:
            super().__init__("a lock inside")
            self.lock = lambda: None

    cases: list[Exception] = [
        opened.value, CPLE_BaseError(1, 2, "of GDAL"), UnpicklableError(), MemoryError(), ZeroDivisionError("by 0")
    ]  # fmt: skip
    for error in cases:
        found = pickle.loads(pickle.dumps(task._as_ours(error)))
        assert type(error).__name__ in found.message
        assert found.hint
    ours = RasterError("x.tif can't be read.")
    with pytest.raises(RasterError) as told:
        raise ours from UnpicklableError()
    assert task._as_ours(told.value) is ours
    assert pickle.loads(pickle.dumps(ours)).message == ours.message
    assert (ours.__cause__, ours.__context__, ours.__traceback__) == (None, None, None), "Dask would send them, too"
    assert "UnpicklableError" in ours.__notes__[0], "-v tells it all the same"
