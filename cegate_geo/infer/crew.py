"""Who computes which shards, where workers do: each gets neighbours, the slow ones give some away, lost ones all.

A stack of shards is cut where the fewest tiles are computed twice: into as many parts as workers want one. Who is done
takes the lower half of what the slowest has not begun. So a scene costs few borders, and no worker waits long.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError, CegateWarning, ModelError
from cegate_geo.infer import task
from cegate_geo.infer.cluster import INSTALL, Call, Cluster
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.reader import is_plain_path
from cegate_geo.infer.settle import SHARD_ROWS, Run, stacks, union
from cegate_geo.infer.shard_store import ShardStore
from cegate_geo.infer.writer import BLOCK_SIZE

Stack = tuple[Window, ...]

LOOK_EVERY_S = 1.0
"""So often it is looked who is there, and who could give shards away."""
POLL_S = 0.05
DEATHS = 3
"""So many workers may be lost over one shard."""
PATIENCE_S = 600.0
"""So long no worker may be there."""
TELL_AFTER_S = 10.0
VISIBLE_S = 30.0
"""So long a file of another machine may take to be seen here."""
SHARDS_EACH = 8
"""Shards for each worker, where rows allow it: what can be given away, or is lost."""
GAIN = 0.8
"""Shards are only taken from a worker where that leaves at most so much of its time."""


def shard_rows(run: Run, workers: int) -> int:
    """Rows of a shard for so many workers, where nothing else says them."""
    strips = -(-run.region.width // run.shard_shape[1])
    rows = run.region.height * strips // (workers * SHARDS_EACH)
    return min(max(rows // BLOCK_SIZE, 1) * BLOCK_SIZE, run.shard_shape[0], SHARD_ROWS)


@dataclass(slots=True)
class _Hand:
    """A worker."""

    address: str
    call: Call | None = None
    """What it is at."""
    is_ready: bool = False
    """Whether it can do the job."""
    stack: Stack = ()
    """What it computes."""
    done: int = 0
    """Tiles of its stack, as it last said."""
    finished: int = 0
    """Shards of its stack, as it last said."""
    asked: float = 0.0
    """When shards were last taken from it."""

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self.call is None


@dataclass(slots=True)
class Work:
    """What is to be computed, and what was."""

    missing: list[Stack]
    done: int = 0
    """Tiles of calls that ended, skipped ones included."""
    skipped: int = 0
    deaths: Counter[Window] = field(default_factory=Counter)
    """Workers that were lost, by the shard that they were at."""


class Crew:
    """Lets workers compute the missing shards of a run.

    Args:
        cluster: The workers.
        run: The run; its shards are cut as in the store.
        job: The same for the workers.
        store: The folder that all of them see.
        take: Takes each finished shard, once.
        monitor: Told of progress, asked whether to go on.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: Run,
        job: task.Job,
        store: ShardStore,
        *,
        take: Callable[[Entry], None],
        monitor: Monitor,
    ) -> None:
        self._cluster, self._run, self._store, self._take, self._monitor = cluster, run, store, take, monitor
        self._packed = job.packed()
        self._hands: dict[str, _Hand] = {}
        self._refused: dict[str, CegateError] = {}
        self._known: set[Window] = set()
        """Shards that are finished."""
        self._untaken: deque[Entry] = deque()
        """Those of them that are still to be taken."""
        self._work = Work([])
        self._has_begun = False
        self._lost_greeting = 0
        self._looked, self._seen, self._has_told = 0.0, time.monotonic(), False
        self._sizes: dict[tuple[Window, Window], int] = {}

    def compute(self, missing: Sequence[Stack]) -> tuple[int, int]:
        """Compute shards. Gives the number of tiles, ones that calls share counted for each, and of those skipped.

        Raises:
            CegateError: If a worker says so, a shard has cost too many workers, or too few are there.
        """
        self._work = work = Work(list(missing))
        self._monitor.start(sum(map(self._tiles, missing)))
        try:
            while work.missing or self._untaken or any(hand.stack for hand in self._hands.values()):
                self._look()
                self._hear()
                if self._has_begun or self._may_begin():
                    self._hand_out()
                self._report()
                if self._untaken:
                    self._take(self._untaken.popleft())
                else:
                    time.sleep(POLL_S)
        except BaseException:
            self._cluster.cancel([hand.call for hand in self._hands.values() if hand.call is not None])
            raise
        self._cluster.ask([*self._hands], task.dismiss, self._packed)
        return work.done, work.skipped

    # Who is there

    def _look(self) -> None:
        """See who has come and who is gone, now and then."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        # A scheduler that is gone may be missed for half a minute; nobody who cancels has to wait for that.
        self._looked, there = now, self._monitor.wait(self._cluster.workers)
        for address in [address for address in self._hands if address not in there]:
            self._lose(self._hands.pop(address))
        self._refused = {address: why for address, why in self._refused.items() if address in there}
        self._greet([address for address in there if address not in self._hands and address not in self._refused])
        self._require_enough(now)

    def _require_enough(self, now: float) -> None:
        count, needed = len(self._hands), 1 if self._has_begun else self._cluster.wanted
        name, spent = self._cluster.name, now - self._seen
        if count >= needed:
            self._seen, self._has_told = now, False
        elif self._refused and all(hand.is_ready for hand in self._hands.values()):
            first = next(iter(self._refused.values()))
            raise type(first)(
                f"{count or 'None'} of {count + len(self._refused)} Dask workers can be used, {needed} must. "
                f"{first.message}",
                hint=first.hint,
            )
        elif spent > PATIENCE_S:
            raise CegateError(
                f"The Dask scheduler {name} has {count} workers since {PATIENCE_S:.0f} s, {needed} must be there.",
                hint="Start workers, or ask for fewer by --workers.",
            )
        elif spent > TELL_AFTER_S and not self._has_told:
            self._has_told = True
            _warn(f"The Dask scheduler {name} has {count} of {needed} workers; waiting for the others.")

    def _may_begin(self) -> bool:
        """Whether all who are there have answered, and enough of them can be used."""
        hands = self._hands.values()
        self._has_begun = len(hands) >= self._cluster.wanted and all(hand.is_ready for hand in hands)
        return self._has_begun

    def _greet(self, addresses: Sequence[str]) -> None:
        if not addresses:
            return
        for address, version in self._cluster.versions(addresses).items():
            if version == __version__:
                call = self._cluster.call(address, task.greet, __version__, self._packed)
                self._hands[address] = _Hand(address, call)
            elif isinstance(version, str):
                self._refuse(address, ModelError(
                    f"It has cegate-geo {version}, the client {__version__}.",
                    hint="Install the same version everywhere.",
                ))  # fmt: skip
            elif isinstance(version, ImportError):
                self._refuse(address, ModelError(
                    f"It can't import cegate-geo ({version}).", hint=f"In the workers' environment: {INSTALL}."
                ))  # fmt: skip
            # Else it is gone, or going.

    def _refuse(self, address: str, why: CegateError, *, host: str = "") -> None:
        self._hands.pop(address, None)
        self._refused[address] = why
        where = f"{address} on {host}" if host else address
        _warn(f"The Dask worker {where} is not used. {why}")

    # What they do

    def _hear(self) -> None:
        """Take what calls gave."""
        for hand in list(self._hands.values()):
            call = hand.call
            if call is None:
                continue
            state = call.state
            for message in self._cluster.news(call):
                hand.done, hand.finished = int(message["done"]), int(message["finished"])
                self._know(map(Entry.from_json, json.loads(message["entries"])))
            if state == "pending":
                continue
            hand.call = None
            if state == "lost":
                self._monitor.wait(self._cluster.workers)  # else it is the scheduler that was lost
                self._lose(self._hands.pop(hand.address), call)
                continue
            if state == "failed":
                error = call.error()
                raise CegateError(
                    f"The Dask worker {hand.address} failed: {type(error).__name__}: {error}.",
                    hint="Look into its log.",
                ) from error
            result = self._cluster.result(call)
            self._cluster.forget(call)
            if result is None:
                self._lose(self._hands.pop(hand.address))
            elif hand.is_ready:
                self._take_results(hand, result)
            elif result["error"] is not None:
                self._refuse(hand.address, result["error"], host=result["host"])
            else:
                hand.is_ready = True

    def _take_results(self, hand: _Hand, result: Mapping[str, Any]) -> None:
        stack, hand.stack = hand.stack, ()
        self._work.done += result["done"]
        self._work.skipped += result["skipped"]
        self._know(map(Entry.from_json, result["entries"]))
        error: CegateError | None = result["error"]
        if error is not None:
            error.message = f"{error.message.rstrip('.')} (Dask worker {hand.address})."
            raise error
        self._back(stack)

    def _know(self, entries: Iterable[Entry]) -> None:
        """Some shards are finished."""
        for entry in entries:
            if entry.window not in self._known:
                self._known.add(entry.window)
                self._untaken.append(entry)

    def _back(self, stack: Stack) -> None:
        """Put what is not finished of a stack back to what is missing."""
        self._work.missing += stacks(tuple(window for window in stack if window not in self._known))

    def _lose(self, hand: _Hand, call: Call | None = None) -> None:
        """A worker is gone: what it had finished counts, the rest is for others."""
        call = call or hand.call
        if call is not None:
            self._cluster.cancel([call])
            self._cluster.forget(call)
        if not hand.stack:
            self._lost_greeting += not hand.is_ready
            if self._lost_greeting >= DEATHS:
                raise CegateError(
                    f"{DEATHS} Dask workers were lost while they loaded the model.",
                    hint="Look into their logs; if memory ran out, give them more.",
                )
            return
        self._store.read()
        self._know(self._store.finished(hand.stack, check=self._monitor.check))
        left = tuple(window for window in hand.stack if window not in self._known)
        self._work.done += self._tiles(hand.stack) - self._tiles(left)
        self._back(hand.stack)
        if not left:
            return
        w, name = left[0], self._store.file(left[0]).name
        self._work.deaths[w] += 1
        if self._work.deaths[w] >= DEATHS:
            raise CegateError(
                f"{DEATHS} Dask workers were lost while they computed shard {name} (rows {w.row_off} to {w.row_end}, "
                f"columns {w.col_off} to {w.col_end}).",
                hint="Look into their logs; if memory ran out, give them more, or lower --max-memory.",
            )
        _warn(f"The Dask worker {hand.address} was lost; others compute shard {name} and what it left.")

    def _hand_out(self) -> None:
        """Give each idle worker shards."""
        idle = [hand for hand in self._hands.values() if hand.is_idle]
        for number, hand in enumerate(idle):
            stack = self._next(len(idle) - number) or self._from_others()
            if not stack:
                return
            shards = [(w.col_off, w.row_off, w.width, w.height) for w in stack]
            hand.stack, hand.done, hand.finished = stack, 0, 0
            hand.call = self._cluster.call(hand.address, task.compute, __version__, self._packed, shards)

    def _next(self, takers: int) -> Stack:
        """What one of so many workers is to take of what is missing."""
        missing = self._work.missing
        if not missing:
            return ()
        largest = max(missing, key=self._tiles)
        missing.remove(largest)
        total = self._tiles(largest) + sum(map(self._tiles, missing))
        parts = min(round(self._tiles(largest) * takers / total), len(largest))
        if parts > 1:
            cut = self._cut(largest, 1 / parts)
            missing.append(largest[cut:])
            largest = largest[:cut]
        return largest

    def _cut(self, stack: Stack, share: float) -> int:
        """Number of shards of the upper part, that about so large a share of the work falls to it."""

        def longest(number: int) -> float:
            return max(self._tiles(stack[:number]) / share, self._tiles(stack[number:]) / (1 - share))

        return min(range(1, len(stack)), key=longest)

    def _from_others(self) -> Stack:
        """The lower half of what the slowest worker has not begun."""
        now, busy = time.monotonic(), []
        for hand in self._hands.values():
            if hand.stack and hand.call is not None and now - hand.asked > LOOK_EVERY_S:
                busy.append((self._tiles(hand.stack[hand.finished :]), hand))
        if not busy:
            return ()
        left, hand = max(busy, key=lambda entry: entry[0])
        rest = hand.stack[hand.finished :]
        if len(rest) < 3 or hand.call is None:
            return ()
        cut = self._cut(rest, 0.5)
        if max(self._tiles(rest[:cut]), self._tiles(rest[cut:])) > GAIN * left:
            return ()
        hand.asked = now
        asked = self._cluster.ask([hand.address], task.shorten, hand.call.key, hand.finished + cut)
        kept = asked.get(hand.address)
        if kept is None or kept >= len(hand.stack):
            return ()
        given, hand.stack = hand.stack[kept:], hand.stack[:kept]
        return given

    def _tiles(self, stack: Stack) -> int:
        if not stack:
            return 0
        ends = stack[0], stack[-1]
        if ends not in self._sizes:
            self._sizes[ends] = self._run.tiles_of(self._run.view.shard(union(stack)))
        return self._sizes[ends]

    def _report(self) -> None:
        work, total, done = self._work, sum(map(self._tiles, self._work.missing)), 0
        for hand in self._hands.values():
            if hand.stack and hand.call is not None:
                tiles = self._tiles(hand.stack)
                total += tiles
                done += min(hand.done, tiles)
        self._monitor.at(work.done + done, work.done + total)


def cut_for(run: Run, workers: int) -> Run:
    """The run with its shards cut for so many workers."""
    return replace(run, shard_shape=(shard_rows(run, workers), run.shard_shape[1]))


def worker_job(run: Run, store: ShardStore, *, model: Path, token: str) -> task.Job:
    """A run as workers have to know it, with names that they can find from where they are."""
    options, scene = run.options, run.scene.path
    area = options.aoi
    if area is not None and is_plain_path(area.partition("|")[0]):
        area = str(Path(area).absolute())
    return task.Job(
        scene=str(Path(scene).absolute()) if is_plain_path(scene) else scene,
        model=model.absolute(),
        folder=store.path.absolute(),
        token=token,
        options=replace(options, aoi=area, dask=None, workers=None),
        header={**store.begun, "shard_shape": list(run.shard_shape)},
        shard_shape=run.shard_shape,
    )


def require_whole(store: ShardStore, entry: Entry, monitor: Monitor) -> None:
    """Refuse a shard that is not here as its worker wrote it; a network's file system may take a while.

    Raises:
        CegateError: If it is not.
    """
    path, until = store.file(entry.window), time.monotonic() + VISIBLE_S
    while not entry.seal.fits(path):
        monitor.check()
        if time.monotonic() > until:
            raise CegateError(
                f"{path} is not here as a Dask worker has written it.",
                hint="The folder must be on a file system that all workers and this machine share.",
            )
        time.sleep(POLL_S)


def _warn(text: str) -> None:
    warnings.warn(text, CegateWarning, stacklevel=3)
