"""Laws of training on unlabelled targets: a teacher's sure predictions are labels, and never validate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from cegate_geo.errors import CancelledError, ConfigError, InputError, LabelError
from cegate_geo.train import targets
from cegate_geo.train.config import AdaptConfig, SelfTrainingConfig, TargetConfig
from cegate_geo.train.export import export_run
from cegate_geo.train.job import make_job, read_areas
from cegate_geo.train.loop import adapt
from cegate_geo.train.ranks import alone
from cegate_geo.train.report import write_report
from cegate_geo.train.run import load_run
from tests import toy_models

from .scenes import GSD_M, write_squares
from .test_adapt import config


def settings(folder: Path, *, target: dict[str, Any] | None = None, **self_training: Any) -> AdaptConfig:
    """Squares with labels, others on the same ground without, and a teacher that calls bright pixels buildings."""
    teacher = folder / "teacher.onnx"
    if not teacher.exists():
        toy_models.brightness(teacher, gsd_m=GSD_M, gsd_range_m=(0.2, 1.0))
        for name, seed in (("near", 1), ("far", 2)):
            write_squares(folder, side=200, seed=seed, name=name)
    given = {"images": str(folder / "[nf]*ar.tif"), **(target or {})}
    rule = {"teacher": str(teacher), "threshold": 0.55, "thresholds": {"other": 0.7}, **self_training}
    return dataclasses.replace(
        config(folder, steps=3, validate_every=3, save_every=1),
        target=(TargetConfig(**given),),
        self_training=SelfTrainingConfig(**rule),
    )


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def test_a_run_learns_from_sure_predictions_and_tells_so(tmp_path: Path) -> None:
    adapt(settings(tmp_path, weight=0.25), tmp_path / "run", device="cpu")
    made = sorted(p.name for p in (tmp_path / "run" / "targets").iterdir())
    assert made == ["0-00000-far.tif", "0-00001-near.tif", "0.json"]  # nothing of the predictions is left
    counts = np.zeros(256, np.int64)
    for name, labels in (("far", made[0]), ("near", made[1])):
        found = read(tmp_path / "run" / "targets" / labels)[0]
        share = read(tmp_path / f"{name}.tif").mean(0) / 255
        expected = np.where(share >= 0.55, 1, np.where(share <= 0.3, 0, 255))
        assert (found == expected).mean() > 0.98  # confidence is stored in 256 levels
        counts += np.bincount(found.reshape(-1), minlength=256)
    told = load_run(tmp_path / "run").facts["self_training"]
    assert (told["teacher"], told["weight"], told["threshold"]) == ("teacher.onnx", 0.25, 0.55)
    assert [c["kept"] for c in told["targets"][0]["classes"]] == counts[:2].tolist()
    report = export_run(tmp_path / "run", tmp_path / "run" / "model.onnx")
    assert report.path.is_file()
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Self-training" in page
    assert f"{counts[1]:,}" in page


def test_targets_get_their_share_of_the_chips(tmp_path: Path) -> None:
    both = settings(tmp_path, weight=0.25)
    targets.label_targets(both, tmp_path / "run")
    job = make_job(both, tmp_path / "run", ranks=alone("cpu"), provenance=None)
    areas, shares = job.sampler._areas, job.sampler._shares
    from_targets = sum(s for a, s in zip(areas, shares, strict=True) if a.scene.name in ("near.tif", "far.tif"))
    assert from_targets == pytest.approx(0.25, abs=0.05)  # what is held out of either changes it a little


def test_nothing_of_a_target_validates_nor_lies_on_held_out_ground(tmp_path: Path) -> None:
    both = settings(tmp_path)
    targets.label_targets(both, tmp_path / "run")
    job = make_job(both, tmp_path / "run", ranks=alone("cpu"), provenance=None)
    _, _, held_out = read_areas(both)
    assert {a.scene.name for a in held_out} == {"squares.tif"}
    found = 0
    for area in job.sampler._areas:
        if area.scene.name == "squares.tif":
            continue
        for block in held_out:  # the same grid: the scenes lie on the same ground
            for window in block.allowed:
                inside = window.expanded(both.train.crop // 8).intersection(area.scene.grid.window)
                if inside is not None:
                    found += int((area.scene.labels(inside) != 255).sum())
                    assert (area.labels(inside) == 255).all()
    assert found > 0


def test_what_a_teacher_has_labelled_is_not_predicted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings(tmp_path)
    asked: list[str] = []
    predict = targets.predict

    def counting(image: Path, *given: Any, **options: Any) -> Any:
        if len(asked) == 1 and stop:
            raise CancelledError("Cancelled.")
        asked.append(image.name)
        return predict(image, *given, **options)

    monkeypatch.setattr(targets, "predict", counting)
    stop = True
    with pytest.raises(CancelledError, match="The same command goes on"):
        adapt(first, tmp_path / "run", device="cpu")
    stop = False
    adapt(first, tmp_path / "run", device="cpu", resume=True)
    assert asked == ["far.tif", "near.tif"]
    adapt(first, tmp_path / "run", device="cpu", resume=True)
    assert len(asked) == 2
    targets.label_targets(settings(tmp_path, threshold=0.6), tmp_path / "run")
    assert len(asked) == 4


def test_a_run_in_a_folder_is_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    toy_models.brightness(tmp_path / "first" / "model.onnx", gsd_m=GSD_M, gsd_range_m=(0.2, 1.0))
    told = targets.label_targets(settings(tmp_path, teacher=str(tmp_path / "first")), tmp_path / "run")
    assert told is not None
    assert told["targets"][0]["classes"][1]["kept"] > 0


def test_what_can_not_be_learned_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no self_training\.teacher"):
        settings(tmp_path, teacher="")
    with pytest.raises(InputError, match="There is no teacher"):
        targets.label_targets(settings(tmp_path, teacher=str(tmp_path)), tmp_path / "run")
    with pytest.raises(ConfigError, match="'house'"):
        targets.label_targets(settings(tmp_path, target={"remap": {"building": "house"}}), tmp_path / "run")
    with pytest.raises(LabelError, match="sure of nothing"):
        adapt(settings(tmp_path, threshold=0.99, thresholds={}), tmp_path / "unsure", device="cpu")


def test_a_class_of_the_teacher_gets_the_meaning_that_is_said(tmp_path: Path) -> None:
    both = settings(tmp_path, target={"remap": {"building": "ignore"}})
    targets.label_targets(both, tmp_path / "run")
    scenes = targets.open_targets(both, tmp_path / "run", read_areas(both)[0])
    assert all(s.class_counts[1] == 0 and s.class_counts[0] > 0 for s in scenes)
    assert json.loads((tmp_path / "run" / "targets" / "0.json").read_text(encoding="utf-8"))["classes"][1]["kept"] > 0
