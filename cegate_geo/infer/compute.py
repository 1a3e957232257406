"""Computes shards: reader, session, stitch and writer at the same time, in four threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.windows import Window
from cegate_geo.infer import budget
from cegate_geo.infer.assemble import Assembler, Band, Canvas, Counter, OtherGrid, SameGrid
from cegate_geo.infer.ensemble import AnyPredictor
from cegate_geo.infer.feed import Batch, Feed
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.settle import Run, union
from cegate_geo.infer.shard_file import ShardWriter
from cegate_geo.infer.streams import Prefetch, Worker
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.view import Shard


def compute_stack(
    run: Run, stack: Sequence[Window], counter: Counter, monitor: Monitor, *, write: Callable[[Band], None]
) -> int:
    """Predict shards that follow one below the other, in one go. Gives the number of skipped tiles.

    Args:
        run: The run.
        stack: The shards, on the outputs' grid.
        counter: Counts what comes out.
        monitor: Told of progress, asked whether to go on.
        write: Takes the bands, as wide as the shards, from the top down; called from another thread.
    """
    skipped, shard = 0, run.view.shard(union(tuple(stack)))
    feed = Feed(run.view, run.plan, shard, form=run.form)
    with (
        Worker(write, depth=budget.BANDS_WAITING, name="write") as writer,
        Worker(_assembler(run, shard, counter, emit=writer.put), depth=budget.QUEUE_DEPTH, name="stitch") as stitcher,
        Prefetch(feed, depth=budget.QUEUE_DEPTH) as batches,
    ):
        for batch in batches:
            monitor.check()
            # One call may take many seconds; nobody who cancels has to wait for it.
            probabilities = monitor.wait(partial(_probabilities, run.predictor, batch))
            stitcher.put((batch, probabilities))
            skipped += batch.skipped
            monitor.advance(run=batch.tiles, skipped=batch.skipped)
    return skipped


def _assembler(run: Run, shard: Shard, counter: Counter, *, emit: Callable[[Band], None]) -> Assembler:
    """What makes bands of the outputs from batches."""
    canvas = Canvas(
        run.predictor.manifest.legend,
        rule=run.predictor.rule,
        tally=counter,
        emit=emit,
        with_confidence="confidence" in run.kinds,
        with_probabilities="probabilities" in run.kinds,
    )
    back = run.view.back
    rows = SameGrid(canvas) if back is None else OtherGrid(shard, back=back, canvas=canvas)
    return Assembler(run.plan, shard.region, classes=canvas.classes, rows=rows)


def _probabilities(predictor: AnyPredictor, batch: Batch) -> npt.NDArray[np.float32]:
    if not batch.tiles:
        return np.empty((0, len(predictor.manifest.legend), 0, 0), np.float32)
    return predictor.run(batch.inputs)[: batch.tiles]


class Shelf(Protocol):
    """Where finished shards go."""

    def file(self, window: Window) -> Path:
        """Where a shard lies."""

    def add(self, entry: Entry) -> None:
        """Say that a shard is finished."""


class ShardSink:
    """Puts the bands of shards that follow one below the other into their files, and enters each in the journal.

    Args:
        stack: The shards, from the top down.
        run: The run.
        store: Where they go.
        total: Takes what was counted, once it is in the journal.
    """

    def __init__(self, stack: Sequence[Window], run: Run, store: Shelf, total: Tally) -> None:
        self._store, self._total, self._kinds = store, total, run.kinds
        legend, ground = run.predictor.manifest.legend, run.view.ground
        self._tallies = {window: Tally(legend, ground) for window in stack}
        self._writers = {window: ShardWriter(store.file(window), window, run.kinds) for window in stack}
        """Of the shards that are not finished."""

    def add(self, window: Window, channels: npt.NDArray[np.unsignedinteger], wanted: npt.NDArray[np.bool_]) -> None:
        """Count a band, shard by shard."""
        for shard, tally in self._tallies.items():
            part = window.intersection(shard)
            if part is not None:
                where = part.slices(window)
                tally.add(part, channels[where], wanted[where])

    def write(self, band: Band) -> None:
        """Take a band."""
        self._seal_above(band.window.row_off)
        for shard, writer in self._writers.items():
            part = band.window.intersection(shard)
            if part is not None:
                rows, cols = part.slices(band.window)
                writer.write(part, {name: getattr(band, name)[..., rows, cols] for name in self._kinds})
        self._seal_above(band.window.row_end)

    def finish(self) -> None:
        """Say that no band will follow."""
        for shard in list(self._writers):
            self._seal(shard)

    def close(self) -> None:
        """Forget what is not finished."""
        for writer in self._writers.values():
            writer.drop()

    def _seal_above(self, row: int) -> None:
        for shard in list(self._writers):
            if shard.row_end <= row:
                self._seal(shard)

    def _seal(self, shard: Window) -> None:
        tally = self._tallies[shard]
        entry = Entry(window=shard, seal=self._writers[shard].seal(), tally=tally.to_json())
        self._store.add(entry)
        del self._writers[shard]
        self._total.include(tally)
