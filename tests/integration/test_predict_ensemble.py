"""Several models in one pass: what they say together is a mean by hand, and law 6 holds as for one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from onnx import helper

from cegate_geo.api import merge, plan, predict, predict_many
from cegate_geo.cli.events import CancelWatch
from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError, InputError, ModelError
from cegate_geo.infer.predictor import file_sha256
from cegate_geo.infer.reader import Scene
from tests import toy_models as toys
from tests.integration.test_predict_shards import digests, listing, places, shards_in, sums

SHAPE = (2048, 320)
"""Four shards of 512 rows."""
ROWS = {"shard_rows": 512}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A scene with holes in it, and three models that see more than a pixel and disagree."""
    folder = tmp_path_factory.mktemp("ensemble")
    scene = np.kron(toys.noise((SHAPE[0] // 32, SHAPE[1] // 32)), np.ones((1, 32, 32), np.uint8)) // 2 + 1
    scene[:, 300:700, 100:300] = scene[:, 1150:1480] = 0
    toys.write_raster(folder / "scene.tif", scene, nodata=0, tiled=True)
    models = [toys.convolutions(folder / f"{seed}.onnx", layers=3, size=128, seed=seed) for seed in range(3)]
    return {"scene": folder / "scene.tif", "model": models}


@pytest.fixture(scope="module")
def one_run(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    result = predict(**given, **places(folder))
    return digests(folder) | sums(result)


def reversed_bands(path: Path, **more: Any) -> Path:
    """Three classes: the bands from the last to the first."""
    node = helper.make_node("Gather", ["x", "order"], ["y"], axis=1)
    weights = {"order": np.array([2, 1, 0])}
    return toys.save(path, toys.manifest(3, **more), [node], weights, classes=3, sides=(64, 64))


def test_the_class_of_the_mean_may_be_what_no_model_says(tmp_path: Path) -> None:
    """By hand: (200, 150, 60) and, reversed, (60, 150, 200) have the mean (130, 150, 130) of 255."""
    values = np.empty((3, 100, 150), np.uint8)
    values[:] = np.array([200, 150, 60], np.uint8)[:, None, None]
    scene = toys.write_raster(tmp_path / "scene.tif", values)
    models = [toys.identity(tmp_path / "a.onnx"), reversed_bands(tmp_path / "b.onnx")]
    for model, said in zip(models, (0, 2), strict=True):
        predict(scene, tmp_path / "alone.tif", model=model, overwrite=True)
        assert np.unique(toys.read(tmp_path / "alone.tif")).tolist() == [said]
    layers = {"probabilities": tmp_path / "p.tif", "confidence": tmp_path / "c.tif"}
    result = predict(scene, tmp_path / "mask.tif", model=models, **layers)
    assert np.unique(toys.read(tmp_path / "mask.tif")).tolist() == [1]
    assert [np.unique(band).tolist() for band in toys.read(tmp_path / "p.tif")] == [[130], [150], [130]]
    assert np.unique(toys.read(tmp_path / "c.tif")).tolist() == [150]
    assert [c.pixels for c in result.classes] == [0, 15_000, 0]


def test_each_model_s_softmax_comes_before_the_mean(tmp_path: Path) -> None:
    """One gives logits, the other probabilities of the same bands, over many blended tiles."""
    values = toys.noise((150, 170), seed=4)
    scene = toys.write_raster(tmp_path / "scene.tif", values)
    logits = toys.identity(tmp_path / "logits.onnx", output="logits")
    plain = reversed_bands(tmp_path / "plain.onnx")
    predict(scene, tmp_path / "mask.tif", model=[logits, plain], probabilities=tmp_path / "p.tif")
    unit = values.astype(np.float64) / 255
    power = np.exp(unit)
    mean = (power / power.sum(axis=0) + unit[::-1]) / 2
    np.testing.assert_allclose(toys.read(tmp_path / "p.tif"), mean * 255, atol=0.51)
    assert (toys.read(tmp_path / "mask.tif")[0] == mean.argmax(axis=0)).mean() > 0.999


def test_the_scene_is_read_once(given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[Any] = []
    read = Scene.read
    monkeypatch.setattr(Scene, "read", lambda self, window: windows.append(window) or read(self, window))
    predict(given["scene"], tmp_path / "one.tif", model=given["model"][0])
    of_one = windows.copy()
    windows.clear()
    predict(given["scene"], tmp_path / "three.tif", model=given["model"])
    assert windows == of_one
    assert len(windows) > 1


def test_the_order_of_models_changes_no_byte(given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path) -> None:
    for n, models in enumerate(itertools.permutations(given["model"])):
        if n in (1, 4):
            (tmp_path / str(n)).mkdir()
            result = predict(given["scene"], model=models, **places(tmp_path / str(n)))
            assert digests(tmp_path / str(n)) | sums(result) == one_run


def test_parts_merged_give_the_bytes_of_one_run(given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path) -> None:
    for name in ("2/2", "1/2"):
        part = predict(**given, **places(tmp_path), **ROWS, shard=name)
    result = merge(tmp_path / "mask.tif.job")
    assert digests(tmp_path) | sums(result) == one_run
    assert (result.model, result.model_sha256) == (part.model, part.model_sha256)


def test_a_run_that_was_stopped_goes_on_with_the_same_models_only(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "mask.tif.job"
    with pytest.raises(CancelledError):
        predict(**given, **places(tmp_path), **ROWS, cancel=lambda: bool(shards_in(folder)))
    kept = len(shards_in(folder))
    assert 0 < kept < 4
    said = "[.]{3} [+] ".join(sorted(file_sha256(path)[:12] for path in given["model"]))
    for fewer in (given["model"][:2], given["model"][0]):
        with pytest.raises(InputError, match=rf"another job: model was {said}[.]{{3}}, is"):
            predict(given["scene"], model=fewer, **places(tmp_path), **ROWS)
        with pytest.raises(InputError, match="another job"):
            plan(given["scene"], model=fewer, **places(tmp_path), **ROWS)
    again = given | {"model": given["model"][::-1]}
    result = predict(**again, **places(tmp_path), **ROWS)
    assert result.resumed_shards == kept
    assert digests(tmp_path) | sums(result) == one_run


def test_dask_workers_give_the_bytes_of_one_run(given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason='pip install "cegate-geo[distributed]"')
    result = predict(**given, **places(tmp_path), **ROWS, dask="local:1")
    assert digests(tmp_path) | sums(result) == one_run
    assert "mask.tif.job" not in listing(tmp_path)


def test_outputs_and_results_say_which_models(given: dict[str, Any], tmp_path: Path) -> None:
    result = predict(**given, output=tmp_path / "mask.tif")
    expected = sorted((file_sha256(path), str(path)) for path in given["model"])
    assert result.model_sha256.split(" + ") == [digest for digest, _ in expected]
    assert result.model.split(" + ") == [path for _, path in expected]
    with rasterio.open(tmp_path / "mask.tif") as mask:
        tags = mask.tags()
    assert tags["CEGATE_MODEL_SHA256"] == result.model_sha256
    assert tags["CEGATE_MODEL"] == "toy + toy + toy"
    assert json.loads(tags["CEGATE_PARAMETERS"])["mean_of"] == ["toy", "toy", "toy"]
    alone = predict(given["scene"], tmp_path / "alone.tif", model=given["model"][:1])
    with rasterio.open(tmp_path / "alone.tif") as mask:
        assert "mean_of" not in json.loads(mask.tags()["CEGATE_PARAMETERS"])
    assert (alone.model, alone.model_sha256) == (str(given["model"][0]), file_sha256(given["model"][0]))


def test_a_plan_takes_the_memory_and_time_of_all(given: dict[str, Any], tmp_path: Path) -> None:
    one = plan(given["scene"], tmp_path / "mask.tif", model=given["model"][0], max_memory_mb=2048)
    three = plan(given["scene"], tmp_path / "mask.tif", model=given["model"], max_memory_mb=2048)
    assert three.memory_mb >= one.memory_mb + 40, "two more sessions of 24 MB each at least"
    assert three.model.count(" + ") == 2
    assert listing(tmp_path) == []
    with pytest.raises(InputError, match="does not suffice"):
        predict(**given, output=tmp_path / "mask.tif", max_memory_mb=one.memory_mb)


def test_models_that_differ_leave_nothing_behind(tmp_path: Path) -> None:
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)))
    models = [toys.identity(tmp_path / "a.onnx"), toys.brightness(tmp_path / "b.onnx")]
    before = listing(tmp_path)
    for call in (predict, plan):
        with pytest.raises(ModelError, match=r"a\.onnx.*b\.onnx|b\.onnx.*a\.onnx"):
            call(scene, tmp_path / "mask.tif", model=models)
    with pytest.raises(InputError, match="list of models is empty"):
        predict(scene, tmp_path / "mask.tif", model=[])
    assert listing(tmp_path) == before


def test_several_scenes_are_run_through_the_same_models(tmp_path: Path) -> None:
    scenes = [toys.write_raster(tmp_path / f"{n}.tif", toys.noise((70, 90), seed=n)) for n in (1, 2)]
    models = [toys.identity(tmp_path / "a.onnx"), reversed_bands(tmp_path / "b.onnx")]
    predict_many(scenes, tmp_path / "out", model=models)
    for scene in scenes:
        predict(scene, tmp_path / "alone.tif", model=models, overwrite=True)
        together = tmp_path / "out" / f"{scene.stem}_mask.tif"
        np.testing.assert_array_equal(toys.read(together), toys.read(tmp_path / "alone.tif"))


def test_the_command_takes_model_several_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CancelWatch, "watch_input", lambda *_: None)  # pytest's stdin is at its end
    values = np.empty((3, 70, 90), np.uint8)
    values[:] = np.array([200, 150, 60], np.uint8)[:, None, None]
    scene = toys.write_raster(tmp_path / "scene.tif", values)
    models = [toys.identity(tmp_path / "a.onnx"), reversed_bands(tmp_path / "b.onnx")]
    words = ["predict", str(scene), "-o", str(tmp_path / "mask.tif"), *(f"--model={path}" for path in models)]
    assert main([*words, "--events=jsonl"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["model"].count(" + ") == 1
    assert np.unique(toys.read(tmp_path / "mask.tif")).tolist() == [1]
    other = toys.identity(tmp_path / "c.onnx", bands=("nir", "red", "green"))
    assert main([*words, "--overwrite", f"--model={other}"]) == 3
    assert "nir, red, green" in capsys.readouterr().err
