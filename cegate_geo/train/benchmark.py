"""`cegate-geo benchmark`: run a suite, choose learning rates on source validation, measure the test regions.

Runs are plain folders of `adapt`. One that is complete holds `done.json` and is not repeated; one that was broken off
is resumed; one that fails is noted in `failure.json`, told in the table, and tried again the next time.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cegate_geo.api import PredictKeywords
from cegate_geo.errors import CancelledError, CegateError, InputError
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.config_file import to_table
from cegate_geo.train.evaluate import evaluate_model
from cegate_geo.train.export import export_run
from cegate_geo.train.loop import CONFIG, AdaptProgress, adapt
from cegate_geo.train.run_files import MODEL, make_run_folder, write_text
from cegate_geo.train.suite import RunKey, Suite

DONE, FAILURE, REGIONS = "done.json", "failure.json", "regions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What one run came to."""

    key: RunKey
    validation: float | None = None
    """Mean IoU on source validation of the weights that were kept; None where it failed."""
    regions: dict[str, float] = field(default_factory=dict)
    """Test region → mean IoU; empty for runs that were only there to choose a learning rate."""
    active_parameters: int = 0
    """Parameters that are trained at a time: active modules, head, and the backbone of "full"."""
    stored_parameters: int = 0
    """Parameters that the run leaves changed: modules that were ever active, head, backbone of "full"."""
    seconds: float = 0.0
    failure: str = ""
    """Why it gave nothing; empty where it did."""
    is_chosen: bool = True
    """False for a rate that source validation did not choose."""


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    device: str = "auto",
    is_dry: bool = False,
    told: Callable[[str], None] | None = None,
    progress: Callable[[AdaptProgress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[RunRecord]:
    """Run what is missing of a suite.

    Args:
        suite: What to run.
        folder: Folder of the table; runs go to `runs/` in it.
        device: torch device, or "auto".
        is_dry: Whether to run nothing and tell what is there: methods of which every rate was tried, with the seeds and
            regions that are complete.
        told: Called with one line for each run that ends.
        progress: See `adapt`.
        cancelled: See `adapt`.

    Returns:
        All runs, also failed ones and those of rates that were not chosen.

    Raises:
        InputError: If the folder holds runs of another suite.
        CancelledError: When cancelled; what was done stays, and the next call goes on.
    """
    if not is_dry:
        make_run_folder(folder)
    runner = _Runner(suite, folder, device, is_dry, told, progress, cancelled)
    return [r for s in suite.config.setting for m in suite.config.names for r in runner.method(s.name, m)]


@dataclass(slots=True)
class _Runner:
    suite: Suite
    folder: Path
    device: str
    is_dry: bool
    told: Callable[[str], None] | None
    progress: Callable[[AdaptProgress], None] | None
    cancelled: Callable[[], bool] | None

    def method(self, setting: str, method: str) -> list[RunRecord]:
        """All runs of one method in one setting: the rates with the first seed, then the best rate with the others."""
        first, *others = self.suite.config.seeds
        keys = [RunKey(setting, method, lr, first) for lr in self.suite.rates(setting, method)]
        tried = [record for key in keys if (record := self.train(key)) is not None]
        if len(tried) < len(keys):
            return []
        best = choose(tried)
        records = [dataclasses.replace(r, is_chosen=r is best) for r in tried]
        if best is not None:
            rest = [self.train(RunKey(setting, method, best.key.lr, seed)) for seed in others]
            records += [record for record in rest if record is not None]
        wanted = self.suite.config.oracle
        return [self.measure(r) if not r.failure and (wanted or r.is_chosen) else r for r in records]

    def train(self, key: RunKey) -> RunRecord | None:
        """One run of adapt, as far as it is not there already; None where it is not and nothing is to be run."""
        run = self.folder / key.folder
        config = self.suite.adapt_config(key)
        if (run / CONFIG).is_file() and json.loads((run / CONFIG).read_text(encoding="utf-8")) != to_table(config):
            raise InputError(
                f"{run} holds a run of another configuration.", hint="Use another folder, or remove the run."
            )
        if not (run / DONE).is_file():
            if self.is_dry:
                return self._failed_before(key)
            try:
                result = adapt(
                    config,
                    run,
                    resume=(run / CONFIG).is_file(),
                    device=self.device,
                    progress=self.progress,
                    cancelled=self.cancelled,
                )
            except CancelledError:
                raise
            except (CegateError, RuntimeError, OSError) as error:
                return self._failed(key, error)
            if result.metrics is None:
                raise InputError(
                    f"{key} has no held-out part of its source.", hint="Set train.validation, or give [[validation]]."
                )
            write_text(run / DONE, json.dumps({"validation": result.metrics["miou"]}))
            (run / FAILURE).unlink(missing_ok=True)
        record = self._read(key)
        if not self.is_dry:
            self._tell(f"{key}: validation {record.validation:.3f}")
        return record

    def measure(self, record: RunRecord) -> RunRecord:
        """The run with its figures on the test regions; those that are there are not made again."""
        run = self.folder / record.key.folder
        path = run / REGIONS
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for region in self.suite.setting(record.key.setting).test:
            asked = to_table(region)
            if found.get(region.name, {}).get("region") != asked:
                if self.is_dry:
                    found.pop(region.name, None)
                    continue
                if self.cancelled is not None and self.cancelled():
                    raise CancelledError("Cancelled between two regions.", hint="Run it again to go on.")
                try:
                    metrics = _evaluate(_exported(run), region)
                except (CegateError, RuntimeError, OSError) as error:
                    return self._failed(record.key, error, of=record)
                found[region.name] = {"region": asked, "metrics": metrics}
                write_text(path, json.dumps(found, indent=2))
                self._tell(f"{record.key}: {region.name} {metrics['miou']:.3f}")
        names = [t.name for t in self.suite.setting(record.key.setting).test]
        regions = {name: found[name]["metrics"]["miou"] for name in names if name in found}
        return dataclasses.replace(record, regions=regions)

    def _tell(self, text: str) -> None:
        if self.told is not None:
            self.told(text)

    def _read(self, key: RunKey) -> RunRecord:
        result = json.loads((self.folder / key.folder / "result.json").read_text(encoding="utf-8"))
        return RunRecord(
            key=key,
            validation=result["metrics"]["miou"] or 0.0,
            active_parameters=result["active_parameters"],
            stored_parameters=result["stored_parameters"],
            seconds=result["seconds"],
        )

    def _failed_before(self, key: RunKey) -> RunRecord | None:
        """A run that failed the last time it was tried; None where it did not."""
        path = self.folder / key.folder / FAILURE
        if not path.is_file():
            return None
        return RunRecord(key=key, failure=json.loads(path.read_text(encoding="utf-8"))["failure"])

    def _failed(self, key: RunKey, error: Exception, *, of: RunRecord | None = None) -> RunRecord:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        make_run_folder(self.folder / key.folder)
        write_text(self.folder / key.folder / FAILURE, json.dumps({"failure": text}))
        self._tell(f"{key}: failed: {text}")
        return dataclasses.replace(of or RunRecord(key=key), failure=text)


def choose(tried: list[RunRecord]) -> RunRecord | None:
    """The run with the best mean IoU on source validation, the lower rate where two are equal; None if all failed."""
    able = [r for r in tried if not r.failure and r.validation is not None]
    return min(able, key=lambda r: (-(r.validation or 0.0), r.key.lr), default=None)


def _exported(run: Path) -> Path:
    """The run's model; made where it is first asked for, as most rates that are tried are never measured."""
    model = run / MODEL
    if not model.is_file():
        export_run(run, model, keep=None)  # methods are compared as they were trained
    return model


def _evaluate(model: Path, region: SourceConfig) -> Any:
    predicting: PredictKeywords = {"bands": region.bands, "nodata": region.nodata}
    return evaluate_model(
        model,
        region.images,
        region.labels,
        predicting=predicting,
        label_field=region.label_field,
        label_class=region.label_class,
        background=region.background,
        remap=dict(region.remap),
        aoi=region.aoi,
        rows=region.rows,
        cols=region.cols,
    )
