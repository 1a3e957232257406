"""Targets of a run: unlabelled rasters, labelled by a teacher before training begins.

What lies in `targets/` of a run:
    0-00003-scene.tif     labels of the fourth raster of the first [[target]]
    0.json                what they were made from, and what was kept: a target with the same is not predicted again
    *.mask.tif, *.confidence.tif    predictions, until the labels of all rasters of their target are made
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from cegate_geo.api import describe_model, predict
from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.errors import CancelledError, ConfigError, InputError, LabelError
from cegate_geo.infer.georeference import quiet_about_georeference
from cegate_geo.train.byte_rasters import expand
from cegate_geo.train.config import AdaptConfig, SourceConfig, TargetConfig
from cegate_geo.train.labels import IGNORE
from cegate_geo.train.run_files import MODEL, make_run_folder, write_text
from cegate_geo.train.scenes import LabelledScene, open_scenes
from cegate_geo.train.self_labels import KeepRule, Prediction, write_self_labels
from cegate_geo.train.settle_input import read_as

FOLDER = "targets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The model whose predictions are labels."""

    path: Path
    legend: Legend
    sha256: str

    @classmethod
    def find(cls, given: str) -> Teacher:
        """An ONNX file, or the one in the folder of a run.

        Raises:
            InputError: If there is none.
            ModelError: If it can't be used.
        """
        path = Path(given)
        if path.is_dir():
            path = path / MODEL
        if not path.is_file():
            raise InputError(
                f"There is no teacher {path}.", hint="Name an ONNX file, or a run that was exported to model.onnx."
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(path=path, legend=describe_model(path).manifest.legend, sha256=digest)


def label_targets(
    config: AdaptConfig, folder: Path, *, cancel: Callable[[], bool] | None = None
) -> dict[str, Any] | None:
    """Predict the targets of a configuration with its teacher, and keep what it is sure of, in `folder/targets`.

    A target that lies there already, made from the same, is left as it is; a large raster goes on where it was left.

    Args:
        config: With [[target]] and [self_training].
        folder: Folder of the run.
        cancel: Asked several times a second.

    Returns:
        What the run's facts say of it; None without targets.

    Raises:
        InputError: If rasters or the teacher can't be used.
        ConfigError: If a class of the teacher has no meaning here.
        CancelledError: If `cancel` said so.
    """
    if not config.target:
        return None
    settings = config.self_training
    teacher = Teacher.find(settings.teacher)
    rule = KeepRule(threshold=settings.threshold, thresholds=settings.thresholds, share=settings.share)
    for target in config.target:
        _meanings(target, teacher.legend, config.legend)
    place = folder / FOLDER
    make_run_folder(place)
    told = []
    for n, target in enumerate(read_as(config, t) for t in config.target):
        kept = _label_target(n, target, teacher, rule, place, cancel)
        told.append({"name": target.name or Path(target.images).name, "classes": kept})
    return {
        "teacher": Path(settings.teacher).name,
        "teacher_sha256": teacher.sha256,
        "weight": settings.weight,
        **asdict(rule),
        "targets": told,
    }


def open_targets(config: AdaptConfig, folder: Path, sources: Sequence[LabelledScene]) -> list[LabelledScene]:
    """The rasters that `label_targets` labelled, weighted against the scenes of the sources.

    Raises:
        LabelError: If the teacher was sure of nothing.
    """
    if not config.target:
        return []
    teacher = Teacher.find(config.self_training.teacher)
    total = sum(s.weight for s in sources) * config.self_training.weight / (1 - config.self_training.weight)
    found: list[LabelledScene] = []
    for n, target in enumerate(read_as(config, t) for t in config.target):
        scenes = []
        for image, labels in zip(expand(target.images), _label_files(n, target, folder / FOLDER), strict=True):
            source = SourceConfig(
                images=glob.escape(str(image)),
                labels=glob.escape(str(labels)),
                remap=_meanings(target, teacher.legend, config.legend),
                bands=target.bands,
                scale=target.scale,
                nodata=target.nodata,
            )
            if _is_labelled(labels):
                scenes += open_scenes(source, config.legend)
        pixels = np.array([s.class_counts.sum() for s in scenes], float)
        if not pixels.sum():
            raise LabelError(
                f"The teacher is sure of nothing in {target.images!r}.", hint="Lower self_training.threshold."
            )
        share = total * target.weight / sum(t.weight for t in config.target)
        for scene, count in zip(scenes, pixels, strict=True):
            scene.weight = float(share * count / pixels.sum())
        found += scenes
    return found


def _meanings(target: TargetConfig, theirs: Legend, ours: Legend) -> dict[str, str]:
    """Id of the teacher's class → our class name, as `remap` of a source takes it."""
    unknown = set(target.remap) - set(theirs.names)
    names = {c.name: target.remap.get(c.name, c.name) for c in theirs}
    lost = sorted(name for name in names.values() if name not in (*ours.names, IGNORE))
    if lost or unknown:
        raise ConfigError(
            f"The teacher's classes {', '.join(theirs.names)} don't fit {', '.join(ours.names)}: "
            f"{', '.join(map(repr, [*lost, *sorted(unknown)]))}.",
            hint='Say in the [[target]] what each means, as in remap = { house = "building", car = "ignore" }.',
        )
    return {str(c.id): names[c.name] for c in theirs}


def _label_files(n: int, target: TargetConfig, place: Path) -> list[Path]:
    return [place / f"{n}-{k:05d}-{image.stem}.tif" for k, image in enumerate(expand(target.images))]


def _label_target(
    n: int,
    target: TargetConfig,
    teacher: Teacher,
    rule: KeepRule,
    place: Path,
    cancel: Callable[[], bool] | None,
) -> list[dict[str, Any]]:
    record, images = place / f"{n}.json", expand(target.images)
    files = _label_files(n, target, place)
    made_from = {
        "teacher": teacher.sha256,
        "rule": asdict(rule),
        "bands": list(target.bands),
        "nodata": list(target.nodata),
        "files": [_state(path) for path in (*images, *map(Path, filter(None, (target.aoi, target.leave_out))))],
    }
    old = _read(record) if _read(record).get("made_from") == made_from else {}
    if "classes" in old and all(path.is_file() for path in files):
        return list(old["classes"])
    predictions, done = [], int(old.get("predicted", 0))
    for k, (image, labels) in enumerate(zip(images, files, strict=True)):
        mask, confidence = labels.with_suffix(".mask.tif"), labels.with_suffix(".confidence.tif")
        predictions.append(Prediction(mask=mask, confidence=confidence, labels=labels))
        if k < done and mask.is_file() and confidence.is_file():
            continue
        try:
            predict(
                image,
                mask,
                model=teacher.path,
                confidence=confidence,
                aoi=target.aoi or None,
                bands=[str(b) for b in target.bands],
                nodata=target.nodata,
                overwrite=True,
                cancel=cancel,
            )
        except CancelledError as error:
            raise CancelledError(
                f"Cancelled while the teacher predicted {image}.", hint="The same command goes on from there."
            ) from error
        write_text(record, json.dumps({"made_from": made_from, "predicted": k + 1}))
    leave_out = Path(target.leave_out) if target.leave_out else None
    kept = [asdict(c) for c in write_self_labels(predictions, rule, leave_out=leave_out, overwrite=True)]
    write_text(record, json.dumps({"made_from": made_from, "classes": kept}, indent=2))
    for prediction in predictions:
        for path in (prediction.mask, prediction.confidence):
            for left in path.parent.glob(glob.escape(path.name) + "*"):
                left.unlink()
            path.with_suffix(".qml").unlink(missing_ok=True)
    return kept


def _state(path: Path) -> list[Any]:
    """What tells that a file has changed."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.", hint="Check the path.") from error
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def _read(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_labelled(labels: Path) -> bool:
    """Whether anything is labelled at all."""
    with quiet_about_georeference(), rasterio.open(labels) as dataset:
        return any((dataset.read(1, window=window) != IGNORE_INDEX).any() for _, window in dataset.block_windows(1))
