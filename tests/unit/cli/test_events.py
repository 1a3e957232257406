"""Events of a training: few, and none that matters is lost."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import pytest

from cegate_geo.cli.events import EventStream, StepEvents, step_bar


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


@pytest.mark.parametrize(("total", "first", "told"), [(1000, 1, 10), (25, 1, 10), (3, 1, 3), (1000, 450, 6)])
def test_a_log_tells_each_tenth_of_the_steps(
    total: int, first: int, told: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with step_bar(total) as show:
        for step in range(first, total + 1):
            show(step, f"loss={1 / step:.3f}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == told
    assert lines[-1] == f"step {total} of {total}: loss={1 / total:.3f}"
