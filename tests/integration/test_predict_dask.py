"""Law 6 with Dask workers: the bytes of one run, whoever computes, is lost, cancelled or killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rasterio
import rasterio.windows
from affine import Affine

from cegate_geo.api import Progress, predict, predict_many
from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError, CegateWarning, InputError, ModelError, RasterError
from cegate_geo.infer.cluster import Cluster, Place, open_cluster
from tests import toy_models as toys
from tests.integration.test_predict_shards import command, digests, events_of, listing, places, shards_in, sums

if os.environ.get("CI") != "true":
    pytest.importorskip("distributed", reason='pip install "cegate-geo[distributed]"')

SHAPE = (4096, 320)
"""Eight shards of 512 rows."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A scene with holes in it, and a model that sees more than a pixel."""
    folder = tmp_path_factory.mktemp("dask")
    scene = np.kron(toys.noise((SHAPE[0] // 32, SHAPE[1] // 32)), np.ones((1, 32, 32), np.uint8)) // 2 + 1
    scene += toys.noise(SHAPE, seed=1) // 16
    scene[:, 300:700, 100:300] = scene[:, 1150:1480] = 0
    toys.write_raster(folder / "scene.tif", scene, nodata=0, tiled=True)
    return {"scene": folder / "scene.tif", "model": toys.convolutions(folder / "conv.onnx", layers=3, size=128)}


@pytest.fixture(scope="module")
def one_run(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this process gives."""
    folder = tmp_path_factory.mktemp("one")
    result = predict(**given, **places(folder))
    return digests(folder) | sums(result)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers that all tests share. Each computes slowly enough to be met in the middle of it."""
    with open_cluster(Place(scheduler=None, workers=2)) as opened:
        yield opened


@pytest.fixture
def dask(cluster: Cluster) -> str:
    """Their scheduler's address, once both workers are there."""
    until = time.monotonic() + 60
    while len(cluster.workers()) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    cluster.ask([*cluster.workers()], slow_down)
    return cluster.address


def slow_down() -> None:
    """Run in a worker: its model takes 20 ms longer for each tile, and it tells of each."""
    from cegate_geo.infer import shift
    from cegate_geo.infer.predictor import Predictor

    shift.SAY_EVERY_S = 0.0  # half a second is half of what a quick machine takes for all
    run = Predictor.run
    if run.__module__ != __name__:

        def slow(self: Predictor, inputs: Any) -> Any:
            time.sleep(0.02)
            return run(self, inputs)

        slow.__module__ = __name__
        Predictor.run = slow  # type: ignore[method-assign]


def pretend(name: str, value: str) -> None:
    """Run in a worker: it is of another version, or has another model under the same name."""
    import cegate_geo
    from cegate_geo.infer import task

    if name == "version":
        cegate_geo.__version__ = value
    else:
        task._loaded.clear()
        task.models_sha256 = lambda _: value


def count_loads() -> int:
    """Run in a worker: counts from now on how often a model is loaded; gives the number so far."""
    from cegate_geo.infer import task

    load = task.load_models
    if not hasattr(task, "loads"):
        task.loads = 0  # type: ignore[attr-defined]

        def counted(*arguments: Any, **more: Any) -> Any:
            task.loads += 1  # type: ignore[attr-defined]
            return load(*arguments, **more)

        task.load_models = counted
    return int(task.loads)  # type: ignore[attr-defined]


def once(happens: Callable[[], bool], act: Callable[[], None]) -> Callable[[Progress], None]:
    """Progress that acts once, as soon as something happens."""
    waiting = [act]

    def look(_: Progress) -> None:
        if waiting and happens():
            waiting.pop()()

    return look


def test_two_workers_give_the_bytes_of_one_run_and_load_the_model_once(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, cluster: Cluster, dask: str
) -> None:
    seen: list[Progress] = []
    before = cluster.ask([*cluster.workers()], count_loads)
    result = predict(**given, **places(tmp_path), dask=dask, workers=2, progress=seen.append)
    assert digests(tmp_path) | sums(result) == one_run
    assert "mask.tif.job" not in listing(tmp_path)
    after = cluster.ask([*cluster.workers()], count_loads)
    assert {after[worker] - before[worker] for worker in after} == {1}
    inner = [at.done for at in seen if 0 < at.done < at.total]
    assert len(set(inner)) > 3, "it goes on while calls are at work"
    assert seen[-1].fraction == 1
    again = tmp_path / "again"
    again.mkdir()
    predict(**given, output=again / "mask.tif", dask=dask, resume=False)
    assert (again / "mask.tif").read_bytes() == (tmp_path / "mask.tif").read_bytes()
    assert "mask.tif.job" not in listing(again)


def test_workers_compute_a_mosaic(given: dict[str, Any], tmp_path: Path, dask: str) -> None:
    with rasterio.open(given["scene"]) as whole:
        for name, first, rows in (("north", 0, 2000), ("south", 2000, SHAPE[0] - 2000)):
            window = rasterio.windows.Window(0, first, SHAPE[1], rows)
            profile = {"crs": whole.crs, "transform": whole.transform @ Affine.translation(0, first), "nodata": 0}
            toys.write_raster(tmp_path / f"{name}.tif", whole.read(window=window), **profile)
    parts = [tmp_path / "north.tif", tmp_path / "south.tif"]
    for output, options in (("here.tif", {}), ("there.tif", {"dask": dask})):
        predict(parts, tmp_path / output, model=given["model"], **options)
    assert (tmp_path / "here.tif").read_bytes() == (tmp_path / "there.tif").read_bytes()
    (tmp_path / "south.tif").rename(tmp_path / "gone.tif")
    with pytest.raises(InputError, match=r"south\.tif"):
        predict(parts, tmp_path / "none.tif", model=given["model"], dask=dask)


def test_cancelling_keeps_what_is_finished_and_stops_the_workers(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, cluster: Cluster, dask: str
) -> None:
    folder, moment = tmp_path / "mask.tif.job", [0.0]

    def cancel() -> bool:
        if not moment[0] and len(shards_in(folder)) >= 2:
            moment[0] = time.monotonic()
        return bool(moment[0])

    with pytest.raises(CancelledError) as told:
        predict(**given, **places(tmp_path), dask=dask, workers=2, cancel=cancel)
    assert "of 8 shards are kept in mask.tif.job" in told.value.hint
    assert listing(tmp_path) == ["mask.tif.job"]
    until = time.monotonic() + 30
    while any(cluster.ask([*cluster.workers()], shifts).values()):
        assert time.monotonic() < until, "workers are still at it"
        time.sleep(0.05)
    assert not list(folder.glob("*.part")), "nothing half-written, no token"
    kept = len(shards_in(folder))
    assert 2 <= kept < 8
    result = predict(**given, **places(tmp_path))
    assert result.resumed_shards == kept
    assert digests(tmp_path) | sums(result) == one_run


def shifts() -> int:
    """Run in a worker: calls at work."""
    from cegate_geo.infer import task

    return len(task._shifts)


def test_without_resume_nothing_is_kept(given: dict[str, Any], tmp_path: Path, dask: str) -> None:
    folder = tmp_path / "mask.tif.job"
    with pytest.raises(CancelledError):
        predict(**given, **places(tmp_path), dask=dask, resume=False, cancel=lambda: bool(shards_in(folder)))
    assert listing(tmp_path) == []


def test_a_killed_client_leaves_no_process_and_is_gone_on_from(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "mask.tif.job"
    process = subprocess.Popen(
        [*command(given, tmp_path, "--events=jsonl", "--dask=local", "--workers=2")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    workers: list[psutil.Process] = []
    for event in events_of(process):
        assert event["event"] in ("hello", "progress"), event
        if not workers and event["event"] == "progress":
            workers = psutil.Process(process.pid).children(recursive=True)
        if len(shards_in(folder)) >= 1:
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    kept = len(shards_in(folder))
    assert kept >= 1
    result = predict(**given, **places(tmp_path))
    assert result.resumed_shards == kept
    assert digests(tmp_path) | sums(result) == one_run
    assert listing(tmp_path) == ["c.tif", "mask.qml", "mask.tif", "mask.tif.aux.xml", "p.tif", "v.fgb"]


def test_an_interrupt_at_the_terminal_is_one_line_and_leaves_nothing_running(
    given: dict[str, Any], tmp_path: Path
) -> None:
    """It goes to the workers, too: the whole group of processes gets it."""
    scratch, folder = tmp_path / "scratch", tmp_path / "out"
    for made in (scratch, folder):
        made.mkdir()
    process = subprocess.Popen(
        [*command(given, folder, "--dask=local:2"), "--halo=30", "--tta=d4"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not shards_in(folder / "mask.tif.job"):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert [name[:12] for name in listing(scratch) if "dask" in name] == ["cegate-dask-"]
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert len(said.splitlines()) == 1, said
    assert "shards are kept in mask.tif.job" in said
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    assert listing(folder) == ["mask.tif.job"]
    assert [name for name in listing(scratch) if "dask" in name] == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("version", "0.0.1", "None of 2 Dask workers can be used, 1 must. It has cegate-geo 0.0.1, the client"),
        ("model", "f" * 64, "It would compute something else: model was [0-9a-f.]+, is f+[.]"),
    ],
)
def test_workers_that_are_not_like_the_client_are_refused_before_the_first_shard(
    given: dict[str, Any], tmp_path: Path, cluster: Cluster, dask: str, name: str, value: str, said: str
) -> None:
    import cegate_geo
    from cegate_geo.infer.predictor import file_sha256

    workers = [*cluster.workers()]
    cluster.ask(workers, pretend, name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CegateWarning)
            with pytest.raises(ModelError, match=said):
                predict(**given, **places(tmp_path), dask=dask)
    finally:
        truth = cegate_geo.__version__ if name == "version" else file_sha256(given["model"])
        cluster.ask(workers, pretend, name, truth)
    assert listing(tmp_path) == []


def test_what_a_worker_can_t_read_is_said_as_ever(given: dict[str, Any], tmp_path: Path, dask: str) -> None:
    broken = tmp_path / "broken.tif"
    toys.write_raster(broken, np.maximum(toys.noise((2048, 320)), 1), nodata=0, tiled=True, compress="deflate")
    os.truncate(broken, broken.stat().st_size * 3 // 4)
    with pytest.raises(RasterError, match=r"broken\.tif can't be read.*\(Dask worker tcp://127") as told:
        predict(broken, tmp_path / "mask.tif", model=given["model"], dask=dask, shard_rows=512)
    assert "gdalinfo" in told.value.hint
    assert set(listing(tmp_path)) <= {"broken.tif", "mask.tif.job"}


def test_several_scenes_share_the_workers(given: dict[str, Any], tmp_path: Path, dask: str) -> None:
    scenes = []
    for name in ("a", "b"):
        scenes.append(tmp_path / f"{name}.tif")
        toys.write_raster(scenes[-1], np.maximum(toys.noise((600, 150), seed=len(scenes)), 1), nodata=0)
    predict_many(scenes, tmp_path / "one", model=given["model"]).raise_failures()
    predict_many(scenes, tmp_path / "dask", model=given["model"], dask=dask, shard_rows=512).raise_failures()
    assert listing(tmp_path / "one") == listing(tmp_path / "dask")
    for name in ("a_mask.tif", "b_mask.tif"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "dask" / name).read_bytes()


def test_no_scheduler_is_one_line(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cegate_geo.infer.cluster.CONNECT_S", 0.5)
    words = ["predict", str(given["scene"]), f"--model={given['model']}", f"--output={tmp_path / 'mask.tif'}"]
    assert main([*words, "--dask=tcp://127.0.0.1:1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    assert "No Dask scheduler answers at tcp://127.0.0.1:1" in said[0]
    assert listing(tmp_path) == []
    with pytest.raises(InputError, match=r"no file .*none\.json of a Dask scheduler"):
        predict(**given, output=tmp_path / "mask.tif", dask=str(tmp_path / "none.json"))


def test_what_a_killed_worker_was_at_is_computed_by_others(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, cluster: Cluster, dask: str
) -> None:
    # The last one here: it may take a while until the workers are two again.
    pids = cluster.ask([*cluster.workers()], os.getpid)
    victim = next(iter(pids.values()))
    killed = once(lambda: len(shards_in(tmp_path / "mask.tif.job")) >= 2, lambda: os.kill(victim, signal.SIGKILL))
    with pytest.warns(CegateWarning, match=f"Dask worker {next(iter(pids))} was lost; others compute shard r"):
        result = predict(**given, **places(tmp_path), dask=dask, workers=2, progress=killed)
    assert digests(tmp_path) | sums(result) == one_run
    assert result.resumed_shards == 0
