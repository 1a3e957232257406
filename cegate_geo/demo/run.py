"""The wiring point of the demo: make regions, adapt, predict, evaluate, write the page.

Everything that a user could do by hand is done with the public functions of `api` and `train`. Where the training
packages are not installed, the shipped model is used instead, and the page says how to get the rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cegate_geo import __version__
from cegate_geo.demo.page import render_page
from cegate_geo.demo.progress import Clock, Listener, Silence
from cegate_geo.demo.regions import REGION_A, REGION_B, Region, RegionFiles, RegionSpec, make_region, write_region
from cegate_geo.demo.story import Outcome, Story
from cegate_geo.errors import OutputExistsError

MARKER = "demo.json"
"""Says that a folder belongs to the demo; at the end it holds the figures."""
OWNED = ("adapt", "frozen", "region_a.tif", "region_a_labels.gpkg", "region_b.tif", "region_b_labels.gpkg",
         "model.onnx", "mask.tif", "mask.tif.aux.xml", "mask.qml", "polygons.gpkg", "index.html")  # fmt: skip
"""What the demo writes, and so may remove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What can be changed about the demo; the defaults take about two minutes on two cores."""

    labelled: RegionSpec = REGION_A
    unseen: RegionSpec = REGION_B
    seed: int = 7
    """Of the regions."""
    training_seed: int = 0
    """Of chips, held-out blocks, and the start of head and modules; with 7 adapting goes astray: see docs/LOG.md."""
    steps: int = 150
    batch_size: int = 6
    crop: int = 256
    """Side of the training chips, and of the exported model's input."""
    weights: str = ""
    """Of the backbone: a file, "random", or empty for the shipped base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo left."""

    folder: Path
    page: Path
    story: Story
    missing: str
    """Package for want of which nothing was trained; empty if something was."""


def run_demo(
    folder: Path,
    settings: DemoSettings | None = None,
    *,
    listener: Listener | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> DemoResult:
    """Run the demo into a folder; an earlier demo there is replaced.

    Args:
        folder: Made if missing.
        settings: None for the defaults.
        listener: Is told what happens.
        cancelled: Asked often; True stops.

    Returns:
        Where the page lies, and everything that it tells.

    Raises:
        OutputExistsError: If the folder holds something else than a demo.
        CancelledError: If `cancelled` said so.
        CegateError: If a step fails.
    """
    settings = settings or DemoSettings()
    _claim(folder)
    clock = Clock(listener or Silence(), cancelled)
    with clock.step("make regions", "Making two regions", 2):
        regions, files = _make_regions(folder, settings, clock)
    try:
        from cegate_geo.demo.training import adapt_and_predict

        story, missing = adapt_and_predict(folder, settings, regions, files, clock), ""
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "cegate_geo":
            raise
        from cegate_geo.demo.shipped import predict_shipped

        missing = error.name.partition(".")[0]
        story = predict_shipped(folder, regions[0], files[0], clock, missing=missing)
    page = folder / "index.html"
    part = page.with_name(page.name + ".part")
    part.write_text(render_page(story), encoding="utf-8")
    part.replace(page)
    _mark(folder, figures(story, missing=missing))
    return DemoResult(folder=folder, page=page, story=story, missing=missing)


def _make_regions(
    folder: Path, settings: DemoSettings, clock: Clock
) -> tuple[tuple[Region, Region], tuple[RegionFiles, RegionFiles]]:
    regions, files = [], []
    for n, spec in enumerate((settings.labelled, settings.unseen)):
        regions.append(make_region(spec, settings.seed))
        files.append(write_region(regions[-1], folder))
        clock.listener.advance(n + 1, "")
    return (regions[0], regions[1]), (files[0], files[1])


def _claim(folder: Path) -> None:
    """Make the folder, or empty it of an earlier demo."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise OutputExistsError(
            f"{folder} holds something that no demo wrote.", hint="Give an empty folder, or one of an earlier demo."
        )
    for name in OWNED:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    _mark(folder, {"complete": False, "version": __version__})


def _mark(folder: Path, table: dict[str, Any]) -> None:
    (folder / MARKER).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def figures(story: Story, *, missing: str) -> dict[str, Any]:
    """The figures as JSON values."""

    def outcome(value: Outcome | None) -> dict[str, Any] | None:
        if value is None:
            return None
        return {"train_seconds": value.train_seconds, "trained_parameters": value.trained_parameters,
                "metrics": value.metrics}  # fmt: skip

    return {
        "complete": True,
        "version": __version__,
        "missing": missing,
        "backbone": story.backbone,
        "steps": story.steps,
        "frozen": outcome(story.frozen),
        "adapted": outcome(story.adapted),
        "model_bytes": story.model_bytes,
        "parity": story.parity,
        "polygons": story.polygons,
        "seconds": dict(story.timings),
        "notes": list(story.notes),
    }
