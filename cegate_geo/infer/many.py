"""Several scenes by a model that is loaded once: an output each; one that fails does not lose the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cegate_geo.errors import EXIT_FAILED, CancelledError, CegateError, InputError
from cegate_geo.infer.ensemble import load_models
from cegate_geo.infer.job import PredictOptions, PredictResult
from cegate_geo.infer.pipeline import open_workers, predict_scene
from cegate_geo.infer.progress import Monitor, Progress
from cegate_geo.infer.settle import session_options

MASK_NAME = "mask.tif"


@dataclass(frozen=True, slots=True)
class SceneJob:
    """One of several scenes."""

    scene: str
    output: Path
    options: PredictOptions


@dataclass(frozen=True, slots=True)
class SceneFailure:
    """A scene that could not be predicted, and why."""

    scene: str
    error: CegateError


@dataclass(frozen=True, slots=True)
class ScenesResult:
    """What became of several scenes."""

    results: Sequence[PredictResult]
    failures: Sequence[SceneFailure]

    def raise_failures(self) -> None:
        """Raise one error that names all scenes that failed, if any did."""
        if not self.failures:
            return
        total = len(self.results) + len(self.failures)
        texts = "; ".join(f"{f.scene}: {f.error.message}" for f in self.failures)
        hints = dict.fromkeys(f.error.hint for f in self.failures if f.error.hint)
        error = CegateError(f"{len(self.failures)} of {total} scenes failed. {texts}", hint=" ".join(hints))
        codes = {(f.error.exit_code, f.error.code) for f in self.failures}
        error.exit_code, error.code = codes.pop() if len(codes) == 1 else (EXIT_FAILED, "failed")
        raise error


def scene_stem(scene: str) -> str:
    """A scene's name without folder, query and ending: of a path, a URL, a virtual name, or a subdataset."""
    name = scene.partition("?")[0].rstrip("/\\")
    name = PureWindowsPath(PurePosixPath(name).name).name.rpartition(":")[2] or name
    return PurePosixPath(name).stem


def scene_jobs(scenes: Sequence[str], folder: Path, options: PredictOptions) -> list[SceneJob]:
    """Each scene with its outputs: STEM_mask.tif in the folder, and beside it STEM_NAME for each NAME of the options.

    Raises:
        InputError: If two scenes would share outputs, or an output is named with a folder of its own.
    """
    if folder.suffix.lower() in (".tif", ".tiff") or folder.is_file():
        raise InputError(
            f"{len(scenes)} scenes can't go to one file, {folder}.", hint="Name a folder: each scene gets a mask there."
        )
    stems: dict[str, str] = {}
    for scene in scenes:
        stem = scene_stem(scene)
        if stem.lower() in stems:
            raise InputError(
                f"{stems[stem.lower()]} and {scene} would both become {stem}_{MASK_NAME}.",
                hint="Predict them into different folders.",
            )
        stems[stem.lower()] = scene
    given = {name: getattr(options, name) for name in ("vector", "confidence", "probabilities")}
    named = {name: path for name, path in given.items() if path is not None}
    for name, path in named.items():
        if path.name != str(path):
            raise InputError(
                f"--{name} {path} names one file for {len(scenes)} scenes.",
                hint=f"Give a name without folder, like {path.name}: it is put behind each scene's.",
            )
    return [
        SceneJob(
            scene,
            folder / f"{stem}_{MASK_NAME}",
            replace(options, **_behind(stem, folder, named)),
        )
        for scene in scenes
        for stem in (scene_stem(scene),)
    ]


def _behind(stem: str, folder: Path, named: dict[str, Path]) -> dict[str, Any]:
    """The same options with a scene's stem before each name."""
    return {name: folder / f"{stem}_{path.name}" for name, path in named.items()}


def predict_scenes(
    scenes: Sequence[str],
    folder: Path,
    *,
    models: Sequence[Path],
    options: PredictOptions,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    on_start: Callable[[SceneJob], None] = lambda _: None,
    on_result: Callable[[PredictResult], None] = lambda _: None,
    on_failure: Callable[[SceneFailure], None] = lambda _: None,
) -> ScenesResult:
    """Predict scenes one after the other; see `cegate_geo.api.predict_many`."""
    jobs = scene_jobs(scenes, folder, options)
    predictor = load_models(models, session_options(options), stated=options.stated, tile_size=options.tile_size)
    results: list[PredictResult] = []
    failures: list[SceneFailure] = []
    share = _Share(progress, len(jobs))
    with _made(folder), open_workers(options, None, Monitor(None, cancel)) as cluster:
        for number, job in enumerate(jobs):
            on_start(job)
            monitor = Monitor(share.of(number), cancel)
            try:
                monitor.check()
                result = predict_scene(
                    job.scene,
                    job.output,
                    models=models,
                    options=job.options,
                    monitor=monitor,
                    predictor=predictor,
                    cluster=cluster,
                )
            except CancelledError as error:
                if results:
                    kept = error.hint if "shards are kept" in error.hint else ""
                    error.hint = f"{len(results)} of {len(jobs)} scenes are complete. {kept}".strip()
                raise
            except CegateError as error:
                failures.append(SceneFailure(job.scene, error))
                on_failure(failures[-1])
            else:
                results.append(result)
                on_result(result)
    return ScenesResult(results, failures)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing; it goes again where nothing has come into it.

    Raises:
        InputError: If it can't be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {folder} can't be made: {error.strerror}.", hint="Make it first, or choose another."
        ) from error
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


class _Share:
    """Progress of one scene as a part of that of all."""

    def __init__(self, progress: Callable[[Progress], None] | None, count: int) -> None:
        self._progress, self._count, self._started = progress, count, time.monotonic()

    def of(self, number: int) -> Callable[[Progress], None] | None:
        """What takes the progress of the n-th scene."""
        progress = self._progress
        if progress is None:
            return None

        def report(part: Progress) -> None:
            fraction = (number + part.fraction) / self._count
            spent = time.monotonic() - self._started
            progress(replace(part, fraction=fraction, eta_s=spent * (1 - fraction) / fraction if fraction else None))

        return report
