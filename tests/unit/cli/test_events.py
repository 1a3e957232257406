"""Events of a training: few, and none that matters is lost."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

from cegate_geo.cli.events import EventStream, StepEvents


@dataclass
class At:
    step: int
    loss: float
    miou: float | None


def test_of_many_steps_some_are_told_and_each_validation_and_the_last() -> None:
    stream = io.StringIO()
    tell = StepEvents(EventStream(stream), 1000)
    for step in range(5, 1001):  # resumed at the fifth
        tell(At(step, 1 / step, None if step < 333 else 0.25))
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    steps = [event["done"] for event in told]
    assert steps == sorted(set(steps))
    assert {5, 333, 1000} <= set(steps)
    assert len(steps) < 100
    assert (told[0]["eta_s"], told[0]["miou"], told[-1]["miou"]) == (None, None, 0.25)
    assert (told[-1]["fraction"], told[-1]["eta_s"], told[-1]["total"]) == (1.0, 0.0, 1000)
