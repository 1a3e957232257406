"""Threads, models, files: the smaller parts."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from cegate_geo.api import describe_model, predict
from cegate_geo.domain.windows import Window
from cegate_geo.errors import (
    CegateError,
    CegateWarning,
    ContractWarning,
    InputError,
    ModelError,
    OutputExistsError,
    RuntimeMissingError,
)
from cegate_geo.infer import models, predictor
from cegate_geo.infer.atomic import SUFFIX, JobFolder, job_folder
from cegate_geo.infer.budget import Budget, shard_width
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.onnx_header import read_header
from cegate_geo.infer.streams import Prefetch, Worker
from tests import toy_models as toys


def threads() -> set[str]:
    """Of readers and workers; those of monitors go with them, whenever that is."""
    return {t.name for t in threading.enumerate() if t.name.startswith("cegate") and t.name != "cegate-call"}


def test_prefetch_keeps_order_and_runs_no_further_ahead_than_it_may() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for n in range(20):
            made.append(n)
            yield n

    with Prefetch(source(), depth=2) as items:
        for n, item in enumerate(items):
            time.sleep(0.005)
            assert item == n
            assert len(made) <= n + 5
    assert threads() == set()


def test_prefetch_hands_errors_over_and_stops_when_left() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"), Prefetch(broken(), depth=1) as items:
        list(items)

    def endless() -> Iterator[int]:
        while True:
            yield 1

    with Prefetch(endless(), depth=1) as items:
        next(iter(items))
    assert threads() == set()


def test_a_worker_does_all_in_order_and_hands_errors_over() -> None:
    done: list[int] = []
    with Worker(done.append, depth=2, name="test") as worker:
        for n in range(50):
            worker.put(n)
    assert done == list(range(50))

    def fail(_: int) -> None:
        raise InputError("full")

    with pytest.raises(InputError, match="full"), Worker(fail, depth=1, name="test") as broken:  # noqa: PT012
        for n in range(50):
            broken.put(n)
    with pytest.raises(InputError, match="full"), Worker(fail, depth=1, name="test") as broken:
        broken.put(1)
    with pytest.raises(KeyError), Worker(lambda _: time.sleep(0.01), depth=3, name="test") as left:  # noqa: PT012
        left.put(1)
        raise KeyError
    assert threads() == set()


def test_a_missing_runtime_is_named_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError) as caught:
        load_predictor(toys.identity(tmp_path / "m.onnx"))
    assert "pip install" in caught.value.hint


def test_graph_and_manifest_must_agree(tmp_path: Path) -> None:
    node = toys.helper.make_node("Identity", ["x"], ["y"])
    wrong = [
        (toys.manifest(2), {"classes": 3}),
        (toys.manifest(3, bands=("red", "green")), {"classes": 3}),
        (toys.manifest(3), {"classes": 3, "input_type": toys.TensorProto.DOUBLE}),
    ]
    for contract, shape in wrong:
        with pytest.raises(ModelError):
            load_predictor(toys.save(tmp_path / "m.onnx", contract, [node], {}, sides=(64, 64), **shape))


def test_the_header_is_what_onnx_reads(tmp_path: Path) -> None:
    """Oracle: the onnx package."""
    path = toys.convolutions(tmp_path / "m.onnx", layers=4)
    model, header = onnx.load(path), read_header(path)
    assert header.ir_version == model.ir_version == 8
    assert header.opset == next(o.version for o in model.opset_import if not o.domain) == 17
    for junk in (b"\xff" * 40, b"\x0f\x01", path.read_bytes()[:1]):
        (tmp_path / "junk.onnx").write_bytes(junk)
        with pytest.raises(ModelError):
            read_header(tmp_path / "junk.onnx")


def test_a_model_tells_its_contract(tmp_path: Path) -> None:
    info = describe_model(toys.identity(tmp_path / "m.onnx"))
    assert info.manifest == toys.manifest(3)
    assert info.inputs == (("x", "tensor(float)", ("n", 3, 64, 64)),)
    assert info.outputs == (("y", "tensor(float)", ("n", 3, 64, 64)),)
    assert (info.opset, info.ir_version) == (17, 8)


def test_the_shipped_model_is_the_default_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, shipped = tmp_path / "site" / "cegate_geo", tmp_path / "site" / "cegate_geo" / "_models"
    shipped.mkdir(parents=True)
    monkeypatch.setattr(models, "PACKAGE", package)
    with pytest.raises(ModelError, match="No model is shipped"):
        models.default_model_path()
    toys.brightness(shipped / "roofs.onnx")
    assert models.default_model_path() == models.resolve_model("roofs") == shipped / "roofs.onnx"
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((40, 40)))
    with pytest.warns(ContractWarning, match="roofs"):
        assert predict(scene, tmp_path / "mask.tif").model == str(shipped / "roofs.onnx")
    toys.brightness(shipped / "other.onnx")
    with pytest.raises(ModelError, match="2 models"):
        models.default_model_path()
    with pytest.raises(ModelError, match="roofs"):
        models.resolve_model("rooves")


def test_job_folders_are_hidden_removed_and_swept(tmp_path: Path) -> None:
    output = tmp_path / "mask [1].tif"
    with pytest.raises(KeyError), job_folder(output) as job:  # noqa: PT012
        assert job.path.name.startswith(".")
        assert job.path.name.endswith(SUFFIX)
        job.file("x").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with job_folder(output) as job:
        mine = job.path
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}", "-999999999"))
    alive = mine.with_name(mine.name.replace(f"-{os.getpid()}", f"-{os.getppid()}"))
    other = tmp_path / f".other.tif.host-999999999{SUFFIX}"
    for folder in (dead, alive, other):
        folder.mkdir()
    with job_folder(output):
        pass
    assert not dead.exists(), "what a killed run left is swept away"
    assert alive.exists(), "a running one is left alone"
    assert other.exists()


def results(job: JobFolder, folder: Path, *names: str) -> None:
    for name in names:
        job.file(name).write_text("new")
        job.publish(job.file(name), folder / name)


def listing(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    said = pytest.raises(OutputExistsError, match=r"b\.tif has appeared")
    with said, job_folder(tmp_path / "a.tif") as job:
        results(job, tmp_path, "a.tif", "b.tif")
        (tmp_path / "b.tif").write_text("precious")
        job.commit()
    assert listing(tmp_path) == {"b.tif": "precious"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_failing_commit_gives_back_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    before = {"a.tif": "old", "c.tif.ovr": "old"} if overwrite else {}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CegateError), job_folder(tmp_path / "a.tif", overwrite=overwrite) as job:  # noqa: PT012
        results(job, tmp_path, "a.tif", "b.tif", "c.tif")
        job.remove(tmp_path / "c.tif.ovr")
        (tmp_path / "c.tif").mkdir()
        (tmp_path / "c.tif" / "something").touch()
        job.commit()
    assert listing(tmp_path) == before


def test_overwriting_leaves_the_new_files_alone(tmp_path: Path) -> None:
    for name in ("a.tif", "a.tif.ovr"):
        (tmp_path / name).write_text("old")
    with job_folder(tmp_path / "a.tif", overwrite=True) as job:
        results(job, tmp_path, "a.tif", "b.tif")
        job.remove(tmp_path / "a.tif.ovr")
        job.commit()
    assert listing(tmp_path) == {"a.tif": "new", "b.tif": "new"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_file_systems_without_hard_links_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    if overwrite:
        (tmp_path / "a.tif").write_text("old")
    with job_folder(tmp_path / "a.tif", overwrite=overwrite) as job:
        results(job, tmp_path, "a.tif")
        job.commit()
    assert listing(tmp_path) == {"a.tif": "new"}
    with pytest.raises(OutputExistsError), job_folder(tmp_path / "a.tif") as job:  # noqa: PT012
        results(job, tmp_path, "a.tif")
        job.commit()


def test_results_cross_file_systems(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    there = memory / tmp_path_factory.mktemp("other").name
    there.mkdir()
    try:
        with job_folder(tmp_path / "a.tif") as job:
            results(job, tmp_path, "a.tif")
            results(job, there, "b.tif")
            job.commit()
        assert (listing(tmp_path), listing(there)) == ({"a.tif": "new"}, {"b.tif": "new"})
    finally:
        shutil.rmtree(there)


def test_what_does_not_fit_is_said() -> None:
    budget = Budget(fixed=200 * 2**20, per_column=100_000)
    assert shard_width(budget, 300, least=512) == 1048
    with pytest.raises(InputError, match=r"--max-memory 230M does not suffice: .* about 249 MB") as told:
        shard_width(budget, 230, least=512)
    assert "--max-memory 281M" in told.value.hint
    assert shard_width(budget, 249, least=512) == 513
    with pytest.warns(CegateWarning, match="about 978 MB, more than the usual 512 MB"):
        assert shard_width(Budget(fixed=2**20, per_column=2_000_000), None, least=512) == 512
    with pytest.raises(InputError, match="about 600 MB"):
        shard_width(Budget(fixed=0, per_column=1, finish=600 * 2**20), 512, least=512)


def test_softmax_is_stable() -> None:
    scores = np.array([[1000.0, -1000.0, 0.0]], np.float32).reshape(1, 3, 1, 1)
    assert predictor.softmax(scores).ravel().tolist() == [1, 0, 0]


def test_nothing_gathers_while_a_scene_is_empty(tmp_path: Path) -> None:
    """Each tile row is handed on: memory stays bounded, and somebody looks whether to go on."""
    from cegate_geo.infer.feed import Feed, InputForm
    from cegate_geo.infer.reader import Scene
    from cegate_geo.infer.resample import Resampling
    from cegate_geo.infer.tiles import TilePlan
    from cegate_geo.infer.view import View

    values = np.zeros((3, 600, 60), np.uint8)
    scene = Scene(str(toys.write_raster(tmp_path / "scene.tif", values, nodata=0)), toys.manifest())
    plain = View(scene=scene, georeference=scene.georeference)
    for view in (plain, replace(plain, resampling=Resampling.between((600, 60), (900, 90)), restores=True)):
        plan = TilePlan.of_shape(view.tile_grid, tile_shape=(64, 64), halo=8)
        shard = view.shard(Window.of_shape(view.output_grid))
        batches = list(Feed(view, plan, shard, form=InputForm(batch_size=4, dtype=np.dtype("float32"), divisor=255.0)))
        assert len(batches) >= len(plan.rows)
        assert all(not batch.steps and not batch.tiles for batch in batches)
        assert sum(batch.skipped for batch in batches) == len(plan)
    scene.close()
