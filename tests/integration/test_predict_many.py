"""Several scenes in one call: an output each, one load of the model, and no scene that takes others with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cegate_geo.api import Progress, predict, predict_many
from cegate_geo.cli.events import CancelWatch
from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError, CegateError, InputError
from cegate_geo.infer import many
from cegate_geo.infer.many import scene_stem
from tests import toy_models as toys


@pytest.fixture
def scenes(tmp_path: Path) -> list[Path]:
    return [toys.write_raster(tmp_path / f"{name}.tif", toys.noise((70, 90), seed=n)) for n, name in enumerate("abc")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toys.identity(tmp_path / "m.onnx")


def test_each_scene_gets_what_it_gets_alone(tmp_path: Path, scenes: list[Path], model: Path) -> None:
    loads: list[Any] = []
    real = many.load_models
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "load_models", lambda *a, **k: loads.append(a) or real(*a, **k))
        patch.setattr("cegate_geo.infer.pipeline.load_models", lambda *a, **k: pytest.fail("loaded again"))
        done = predict_many(scenes, tmp_path / "out", model=model, probabilities="p.tif", vector="houses.gpkg")
    assert len(loads) == 1
    assert [r.output.name for r in done.results] == ["a_mask.tif", "b_mask.tif", "c_mask.tif"]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"a_p.tif", "b_houses.gpkg", "c_mask.qml"} <= names
    assert len(names) == 15
    for scene in scenes:
        predict(scene, tmp_path / "alone.tif", model=model, overwrite=True)
        together = toys.read(tmp_path / "out" / f"{scene.stem}_mask.tif")
        np.testing.assert_array_equal(together, toys.read(tmp_path / "alone.tif"))


def test_a_failing_scene_does_not_lose_the_others(tmp_path: Path, scenes: list[Path], model: Path) -> None:
    scenes[1].write_bytes(b"no raster")
    done = predict_many(scenes, tmp_path / "out", model=model)
    assert [r.output.name for r in done.results] == ["a_mask.tif", "c_mask.tif"]
    assert [f.scene for f in done.failures] == [str(scenes[1])]
    with pytest.raises(CegateError, match=r"1 of 3 scenes failed.*b\.tif") as caught:
        done.raise_failures()
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out" / "b_mask.tif").exists()


def test_failures_of_different_kinds_are_plain_failures(scenes: list[Path]) -> None:
    kinds = [InputError("x"), CegateError("y")]
    result = many.ScenesResult([], [many.SceneFailure("s", error) for error in kinds])
    with pytest.raises(CegateError) as caught:
        result.raise_failures()
    assert caught.value.exit_code == 1
    many.ScenesResult([], []).raise_failures()


def test_names_that_would_meet_are_refused_before_any_work(tmp_path: Path, scenes: list[Path], model: Path) -> None:
    (tmp_path / "more").mkdir()
    twin = toys.write_raster(tmp_path / "more" / "A.tif", toys.noise((20, 20)))
    with pytest.raises(InputError, match="would both become"):
        predict_many([twin, *scenes], tmp_path / "out", model=model)
    with pytest.raises(InputError, match="one file"):
        predict_many(scenes, tmp_path / "mask.tif", model=model)
    with pytest.raises(InputError, match="without folder"):
        predict_many(scenes, tmp_path / "out", model=model, vector=tmp_path / "v.gpkg")
    with pytest.raises(InputError, match="can't be made"):
        predict_many(scenes, tmp_path / "no" / "out", model=model)
    assert not (tmp_path / "out").exists()


def test_cancelling_keeps_what_is_complete(tmp_path: Path, scenes: list[Path], model: Path) -> None:
    finished: list[Any] = []
    with pytest.raises(CancelledError) as told:
        predict_many(scenes, tmp_path / "out", model=model, on_result=finished.append, cancel=lambda: bool(finished))
    assert told.value.hint == "1 of 3 scenes are complete."
    assert {p.name for p in (tmp_path / "out").glob("*.tif")} == {"a_mask.tif"}
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_a_folder_into_which_nothing_came_is_not_left(tmp_path: Path, scenes: list[Path], model: Path) -> None:
    gone = [tmp_path / "x.tif", tmp_path / "y.tif"]
    assert len(predict_many(gone, tmp_path / "out", model=model).failures) == 2
    with pytest.raises(CancelledError, match="Nothing was written"):
        predict_many(scenes, tmp_path / "out", model=model, cancel=lambda: True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    predict_many(gone, tmp_path / "out", model=model)
    assert (tmp_path / "out").exists(), "it was there"


def test_progress_goes_once_from_nothing_to_all(tmp_path: Path, scenes: list[Path], model: Path) -> None:
    seen: list[Progress] = []
    predict_many(scenes, tmp_path / "out", model=model, progress=seen.append)
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert any(1 / 3 < f < 2 / 3 for f in fractions)


@pytest.mark.parametrize(
    ("scene", "stem"),
    [
        ("a/b.tif", "b"),
        ("https://host/x/b.tif?token=a/b", "b"),
        ("/vsis3/bucket/b.tif", "b"),
        ("s3://bucket/b.tif", "b"),
        ("C:\\data\\b.tif", "b"),
        ("GTIFF_DIR:2:a/b.tif", "b"),
    ],
)
def test_stems_of_all_kinds_of_names(scene: str, stem: str) -> None:
    assert scene_stem(scene) == stem


def test_the_command_tells_each_result(
    tmp_path: Path, scenes: list[Path], model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes[1].write_bytes(b"no raster")
    words = ["predict", *map(str, scenes), "-o", str(tmp_path / "out"), "-m", str(model), "--overwrite"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out.count("_mask.tif") == 2
    assert "1 of 3 scenes failed" in told.err.splitlines()[-1]
    monkeypatch.setattr(CancelWatch, "watch_input", lambda *_: None)  # pytest's stdin is at its end
    assert main([*words, "--events", "jsonl"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [e["event"] for e in events if e["event"] not in ("progress", "warning")]
    assert kinds == ["hello", "scene", "result", "scene", "failed", "scene", "result", "summary", "error"]
    summary = next(e for e in events if e["event"] == "summary")
    assert summary["failed"] == [str(scenes[1])]
    assert len(summary["done"]) == 2
