"""What `check` does: whether a model, a scene and this machine suit each other, on a few tiles, with numbers.

Each test gives a verdict and never raises for what it finds; what can't be opened at all raises as in `predict`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.errors import (
    BandWarning,
    CegateWarning,
    GeoreferenceWarning,
    GsdWarning,
    InputError,
    RasterError,
)
from cegate_geo.infer.gdal import gdal_settings
from cegate_geo.infer.job import PredictOptions
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.mosaic import open_scene
from cegate_geo.infer.parity import MAX_DIFFERENCE, Parity
from cegate_geo.infer.predictor import Predictor, file_sha256
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.reader import AnyScene, Strip
from cegate_geo.infer.sample_tiles import NeighbouringTiles
from cegate_geo.infer.seams import measure_seams
from cegate_geo.infer.settle import Run, session_options, settle
from cegate_geo.infer.tiles import TilePlan
from cegate_geo.infer.verdicts import CheckReport, State, Verdict
from cegate_geo.infer.written_part import write_and_read

SEAM_LIMIT = 0.02
"""Largest step that joining tiles may add to a probability: five grey levels of the uint8 that is written."""
HALF_LEVEL = 0.5 / 255
"""Differences below it can't be seen in what is written."""
SAMPLES, SAMPLE_SIDE = 12, 32
"""Squares of so many pixels, on a lattice of so many rows and columns, are read to find holes without a flag."""
HOLE_SHARE = 0.01
"""Of the samples: fewer plain ones may be a roof or a lake."""


def check_scene(path: str, *, model: Path, options: PredictOptions, monitor: Monitor | None = None) -> CheckReport:
    """Test a model on a part of a scene; see `cegate_geo.api.check`."""
    monitor = monitor or Monitor()
    with gdal_settings(path), _heard() as heard:
        predictor = load_predictor(model, session_options(options), stated=options.stated, tile_size=options.tile_size)
        try:
            scene = _open(path, predictor, options)
        except RasterError:
            raise
        except InputError as error:
            verdict = Verdict(name="bands", state="fail", message=error.message, hint=error.hint)
            return _report(path, predictor, (verdict,))
        with closing(scene):
            run, gsd = _settle(scene, predictor, options, heard)
            report = _run_tests(run, predictor, [_bands(scene, heard), gsd], monitor)
        return replace(report, verdicts=(*report.verdicts, *_said(heard)))


def _open(path: str, predictor: Predictor, options: PredictOptions) -> AnyScene:
    bands = options.bands or predictor.contract.scene_bands
    return open_scene(path, predictor.manifest, bands=bands, nodata=options.nodata)


def _run_tests(run: Run, predictor: Predictor, verdicts: list[Verdict], monitor: Monitor) -> CheckReport:
    """All that takes tiles."""
    sample = NeighbouringTiles.take(run)
    nodata = _nodata(run.scene)
    if sample is None:
        empty = Verdict(
            name="tiles",
            state="fail",
            message="None of the tiles that were looked at holds data.",
            hint="Check the scene's nodata value and mask, or check a part of it that holds data.",
        )
        return _report(run.scene.path, predictor, (*verdicts, nodata, empty))
    first = next(iter(sample.inputs.values()))
    reference = predictor.reference
    if predictor.manifest.output == "undecided":
        predictor = predictor.decided(first)
    predictor = monitor.wait(lambda: predictor.proven(first))
    oracle = replace(predictor, session=reference)
    verdicts.append(monitor.wait(lambda: _parity(predictor, oracle, first)))
    outputs = {}
    started = time.monotonic()
    for key, inputs in sample.inputs.items():
        monitor.check()
        outputs[key] = monitor.wait(lambda inputs=inputs: predictor.run(inputs))[0]  # type: ignore[misc]
    seconds = (time.monotonic() - started) / len(outputs)
    verdicts += monitor.wait(lambda: _determinism(predictor, sample, outputs))
    verdicts.append(_seams(run.plan, sample, outputs))
    verdicts.append(write_and_read(run, predictor, next(iter(outputs.values()))))
    report = _report(run.scene.path, predictor, (*verdicts, nodata))
    return replace(report, tile_shape=run.plan.tile_shape, seconds_per_tile=round(seconds, 4))


def _report(scene: str, predictor: Predictor, verdicts: tuple[Verdict, ...]) -> CheckReport:
    return CheckReport(
        scene=scene,
        model=str(predictor.path),
        model_sha256=file_sha256(predictor.path),
        provider=predictor.way.label,
        tile_shape=None,
        seconds_per_tile=None,
        verdicts=verdicts,
    )


@contextmanager
def _heard() -> Iterator[list[warnings.WarningMessage]]:
    """Our warnings, to make verdicts of them."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CegateWarning)
        yield heard


def _of(heard: list[warnings.WarningMessage], kind: type[CegateWarning]) -> list[str]:
    return [str(w.message) for w in heard if isinstance(w.message, kind)]


def _bands(scene: AnyScene, heard: list[warnings.WarningMessage]) -> Verdict:
    said = _of(heard, BandWarning)
    message = f"bands {', '.join(map(str, scene.bands))} of {scene.dtype}"
    if not said:
        return Verdict(name="bands", state="ok", message=f"{message}, as the model wants them")
    return Verdict(
        name="bands", state="warning", message=" ".join(said), hint="Say which bands to use: --bands 1,2,3 or names."
    )


def _settle(
    scene: AnyScene, predictor: Predictor, options: PredictOptions, heard: list[warnings.WarningMessage]
) -> tuple[Run, Verdict]:
    """The run, and whether the scene's GSD suits the model: a refusal is a finding, not the end."""
    try:
        run, refused = settle(scene, predictor, options), None
    except InputError as error:
        # What else is wrong with the options is raised once more.
        run, refused = settle(scene, predictor, replace(options, force=True)), error
    limits = predictor.manifest.gsd_range_m
    gsd = run.view.ground.size().gsd_m if run.view.ground else None
    limit = None if limits is None or gsd is None else limits[gsd > limits[0]]
    if refused is not None:
        return run, Verdict(
            name="gsd", state="fail", message=refused.message, hint=refused.hint, number=gsd, limit=limit
        )
    said = _of(heard, GsdWarning)
    if said:
        hint = "Use a model that was adapted at this GSD."
        return run, Verdict(name="gsd", state="warning", message=" ".join(said), number=gsd, limit=limit, hint=hint)
    message = "neither scene nor model say it" if gsd is None else f"{gsd:.3g} m per pixel, within the model's range"
    return run, Verdict(name="gsd", state="ok", message=message, number=gsd, limit=limit)


def _said(heard: list[warnings.WarningMessage]) -> list[Verdict]:
    """What else was warned of: a contract that was guessed, memory, providers, a missing CRS."""
    own = (BandWarning, GsdWarning, GeoreferenceWarning)
    return [
        Verdict(name=w.message.code, state="warning", message=str(w.message))
        for w in heard
        if isinstance(w.message, CegateWarning) and not isinstance(w.message, own)
    ]


def _parity(predictor: Predictor, oracle: Predictor, inputs: npt.NDArray[np.generic]) -> Verdict:
    """Against the CPU in float32."""
    if predictor.session is oracle.session:
        message = f"CPU float32 runs, the reference itself ({predictor.reason})"
        return Verdict(name="parity", state="ok", message=message, number=0.0, limit=MAX_DIFFERENCE)
    parity = Parity.between(predictor.run(inputs), oracle.run(inputs))
    return Verdict(
        name="parity",
        state="ok" if parity.is_good else "fail",
        message=f"{predictor.way.label}: {parity} from CPU float32",
        number=parity.max_difference,
        limit=MAX_DIFFERENCE,
        hint="" if parity.is_good else "Use --provider cpu, and report this with the versions of driver and runtime.",
    )


def _determinism(
    predictor: Predictor, sample: NeighbouringTiles, outputs: Mapping[tuple[int, int], npt.NDArray[np.float32]]
) -> list[Verdict]:
    """The same tile again, and once more beside another."""
    keys = list(sample.inputs)
    first, other = sample.inputs[keys[0]], sample.inputs[keys[-1]]
    expected = outputs[keys[0]]
    verdicts = [_same("determinism", predictor.run(first)[0], expected, "the same tile twice")]
    if predictor.batch == 1:
        message = "the model takes one tile at a time"
        return [*verdicts, Verdict(name="batch", state="skipped", message=message)]
    together = predictor.run(np.concatenate([other, first]))[1]
    return [*verdicts, _same("batch", together, expected, "a tile alone and in a batch")]


def _same(name: str, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], what: str) -> Verdict:
    difference = float(np.abs(found - expected).max())
    state: State = "ok"
    message, hint = f"{what}: the same bits", ""
    if difference:
        message = f"{what}: probabilities differ by {difference:.2g}"
    if 0 < difference <= HALF_LEVEL and name == "determinism":
        state, hint = "warning", "Nobody sees it, but files of two runs may differ in single pixels."
    if difference > HALF_LEVEL:
        state, hint = "fail", "The model draws random numbers, or the runtime is broken: try --provider cpu."
    return Verdict(name=name, state=state, message=message, hint=hint, number=difference, limit=HALF_LEVEL)


def _seams(
    plan: TilePlan, sample: NeighbouringTiles, outputs: Mapping[tuple[int, int], npt.NDArray[np.float32]]
) -> Verdict:
    """What joining tiles adds to the steps between pixels."""
    if len(outputs) < 2:
        message = "one tile: no edges" if len(plan) == 1 else "no two neighbouring tiles hold data"
        return Verdict(name="seams", state="skipped", message=message)
    found = measure_seams(plan, outputs, frame=sample.strip.window, valid=sample.strip.valid)
    message = (
        f"joining {len(outputs)} tiles adds steps of {found.largest:.3g} at most; of the steps that the model makes "
        f"within tiles 99 % are below {found.usual:.2g}"
    )
    state: State = "ok" if found.largest <= SEAM_LIMIT else "warning" if found.largest <= found.usual else "fail"
    hint = "" if state == "ok" else "Use a larger --halo; with --stitch crop, use blend."
    return Verdict(name="seams", state=state, message=message, number=found.largest, limit=SEAM_LIMIT, hint=hint)


def _nodata(scene: AnyScene) -> Verdict:
    """How much of the scene is data, and whether plain black or white is taken for it, by samples."""
    valid, count = 0.0, 0
    plain: dict[float, int] = {}
    for window in _samples(scene.shape):
        strip = scene.read(window)
        count += 1
        valid += float(strip.valid.mean())
        value = _plain_value(strip, scene.tolerance)
        if value is not None:
            plain[value] = plain.get(value, 0) + 1
    share = valid / count
    message = f"{share:.1%} of the scene is data, by {count} samples; {scene.flag}"
    value = max(plain, key=lambda v: plain[v], default=None)
    if value is not None and plain[value] / count > HOLE_SHARE:
        return Verdict(
            name="nodata",
            state="warning",
            message=f"{message}; {plain[value] / count:.1%} of the samples are plain {value:g} and taken for data",
            number=plain[value] / count,
            limit=HOLE_SHARE,
            hint=f"If that is where imagery is missing, say so: --nodata {value:g}.",
        )
    return Verdict(name="nodata", state="ok", message=message, number=sum(plain.values()) / count, limit=HOLE_SHARE)


def _samples(shape: tuple[int, int]) -> Iterator[Window]:
    """Small windows on a lattice over the whole raster; the same one is never given twice."""
    spans = []
    for length in shape:
        side = min(SAMPLE_SIDE, length)
        starts = sorted({int(n) for n in np.linspace(0, length - side, SAMPLES)})
        spans.append([(start, side) for start in starts])
    for row, height in spans[0]:
        for col, width in spans[1]:
            yield Window(col_off=col, row_off=row, width=width, height=height)


def _plain_value(strip: Strip, tolerance: float) -> float | None:
    """The smallest or largest value of the scene's type, if the strip holds nothing else and all of it is data."""
    if not strip.valid.all():
        return None
    ends = (0.0,) if strip.values.dtype.kind == "f" else (0.0, float(np.iinfo(strip.values.dtype.name).max))
    for end in ends:
        if (np.abs(strip.values.astype(np.float64) - end) <= tolerance).all():
            return end
    return None
