"""What a run wrote down, read back: settings, losses, validations, selections, result. Missing parts are empty."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cegate_geo.domain.confusion import Metrics
from cegate_geo.errors import InputError
from cegate_geo.peft import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """The record of a run, finished or not."""

    folder: Path
    config: Mapping[str, Any]
    """The resolved configuration."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Steps done → loss, finite."""
    rates: Mapping[int, float] = field(default_factory=dict)
    """Steps done → factor of the learning rates."""
    validations: Mapping[int, Metrics] = field(default_factory=dict)
    """Steps done → figures on held-out tiles."""
    selections: tuple[Selection, ...] = ()
    """Decisions of the gate, ordered by step."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What `result.json` holds; empty before the end."""
    unreadable: int = 0
    """Lines of the logs that could not be read: those that an interruption cut."""

    @property
    def metrics(self) -> Metrics | None:
        """Figures of the weights that were kept; of the last validation where the run is not finished."""
        if self.result.get("metrics") is not None:
            metrics: Metrics = self.result["metrics"]
            return metrics
        return self.validations[max(self.validations)] if self.validations else None


def read_run_log(folder: Path) -> RunLog:
    """Read a run's folder. Where a run was resumed, the later record of a step counts.

    Raises:
        InputError: If the folder holds no run.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} holds no run: {error}.", hint="Give the folder that adapt wrote.") from error
    losses: dict[int, float] = {}
    rates: dict[int, float] = {}
    validations: dict[int, Metrics] = {}
    selections: dict[int, Selection] = {}
    unreadable = 0
    for line in _lines(folder / "metrics.jsonl"):
        step = int(line["step"]) + 1 if "step" in line else 0
        if "validation" in line:
            validations[step] = line["validation"]
        elif math.isfinite(line.get("loss", math.nan)):
            losses[step] = float(line["loss"])
            rates |= {step: float(line["lr"])} if "lr" in line else {}
        else:
            unreadable += 1
    for line in _lines(folder / "gate.jsonl"):
        if "active" in line:
            selections[int(line["step"])] = Selection.from_json({"scores": {}, "raw": {}, **line})
        else:
            unreadable += 1
    return RunLog(
        folder=folder,
        config=config,
        losses=dict(sorted(losses.items())),
        rates=dict(sorted(rates.items())),
        validations=dict(sorted(validations.items())),
        selections=tuple(selections[step] for step in sorted(selections)),
        result=_result(folder / "result.json"),
        unreadable=unreadable,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines; an empty one for a line that was cut."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = {}
        yield value if isinstance(value, dict) else {}


def _result(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
