"""What each of two processes runs in `test_ranks.py`: torchrun --nproc-per-node 2 train_together.py JOB FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError
from cegate_geo.train import loop
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build, read_toml
from cegate_geo.train.ranks import Ranks, join_ranks
from cegate_geo.train.steps import take_step


def train(folder: Path, ranks: Ranks) -> None:
    """Whole, and in two parts, by each of the given settings."""
    for path in sorted(folder.glob("*.toml")):
        train_one(build(AdaptConfig, read_toml(path)), folder / path.stem, ranks)


def train_one(settings: AdaptConfig, run: Path, ranks: Ranks) -> None:
    """Whole, and in two parts."""
    loop.adapt(settings, run, ranks=ranks)
    calls = iter([False] * 6 + [ranks.index == 1])  # only one of them is told
    stopped = run.with_name(f"{run.name}-resumed")
    try:
        loop.adapt(settings, stopped, ranks=ranks, cancelled=lambda: next(calls))
    except CancelledError:
        loop.adapt(settings, stopped, ranks=ranks, resume=True)


def sums(folder: Path, ranks: Ranks) -> None:
    """The arithmetic, without a model."""
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 5, 2)]
    parameters[0].grad = torch.full((3,), 1.0 + ranks.index)
    parameters[2].grad = torch.full((2,), 10.0 * (1 + ranks.index))
    ranks.sum_gradients(parameters)
    statistic = torch.tensor([float(ranks.index)])
    ranks.average([statistic])
    found = {
        "gradients": [None if p.grad is None else p.grad.tolist() for p in parameters],
        "mean": statistic.tolist(),
        "any": [ranks.any(False), ranks.any(ranks.index == 1)],
        "parts": [list(ranks.part(n)) for n in (0, 1, 5)],
    }
    (folder / f"sums-{ranks.index}.txt").write_text(repr(found), encoding="utf-8")


def fail(folder: Path, how: str) -> int:
    """The command line, with an accident in the second process at its third step."""

    def accident(job: loop.Job, step: int, batch: loop.Batch) -> float:
        if step == 2 and job.ranks.index == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise loop.InputError("A raster is damaged.", hint="Mend it.")
        return take_step(job, step, batch)

    loop.take_step = accident
    return main(["adapt", str(folder / "settings.toml"), "-o", str(folder / "run"), "--device", "cpu"])


if __name__ == "__main__":
    job, place = sys.argv[1], Path(sys.argv[2])
    if job == "train":
        with join_ranks("cpu") as together:
            sums(place, together)
            train(place, together)
    else:
        sys.exit(fail(place, job))
