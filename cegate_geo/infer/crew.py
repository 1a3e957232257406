"""Who computes which shards, where Dask workers do: each gets neighbours, slow ones give some away, lost ones all.

Missing shards are cut into as many parts as workers want one (`shares`). Who is done takes the lower half of what the
slowest has not begun. So a scene costs few borders, and no worker waits long.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CancelledError, CegateError, CegateWarning, ModelError
from cegate_geo.infer import task
from cegate_geo.infer.carry import Carrier
from cegate_geo.infer.cluster import INSTALL, Call, Cluster
from cegate_geo.infer.hand import Hand
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.settle import Run
from cegate_geo.infer.shard_store import ShardStore
from cegate_geo.infer.shares import Shares, Stack

LOOK_EVERY_S = 1.0
"""So often it is looked who is there, and who could give shards away."""
POLL_S = 0.05
DEATHS = 3
"""So many workers may be lost over one shard."""
PATIENCE_S = 600.0
"""So long no worker may be there."""
TELL_AFTER_S = 10.0


class Crew:
    """Lets workers compute the missing shards of a run.

    Args:
        cluster: The workers.
        run: The run; its shards are cut as in the store.
        job: The same for the workers.
        store: The folder that shards come to; workers that see it put them there.
        carrier: Fetches them from those that do not.
        take: Takes each finished shard, once.
        monitor: Told of progress, asked whether to go on.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: Run,
        job: task.Job,
        store: ShardStore,
        carrier: Carrier,
        *,
        take: Callable[[Entry], None],
        monitor: Monitor,
    ) -> None:
        self._cluster, self._run, self._store, self._take, self._monitor = cluster, run, store, take, monitor
        self._carrier, self._has_told_of_carrying = carrier, False
        self._packed = job.packed()
        self._hands: dict[str, Hand] = {}
        self._refused: dict[str, CegateError] = {}
        self._known: set[Window] = set()
        """Shards that are finished."""
        self._untaken: deque[Entry] = deque()
        """Those of them that are still to be taken."""
        self._shares = Shares(run, [])
        self._done, self._skipped = 0, 0
        """Tiles of calls that ended; all, and those skipped."""
        self._deaths: Counter[Window] = Counter()
        """Workers that were lost, by the shard that they were at."""
        self._lost_greeting = 0
        self._has_begun = False
        self._looked, self._seen, self._has_told = 0.0, time.monotonic(), False

    def compute(self, missing: Sequence[Stack]) -> tuple[int, int]:
        """Compute shards. Gives the number of tiles, ones that calls share counted for each, and of those skipped.

        Raises:
            CegateError: If a worker says so, a shard has cost too many workers, or too few are there.
        """
        self._shares = Shares(self._run, missing)
        self._monitor.start(self._shares.tiles)
        try:
            while self._shares or self._untaken or any(hand.stack for hand in self._hands.values()):
                self._look()
                self._hear()
                if self._has_begun or self._may_begin():
                    self._hand_out()
                self._report()
                if self._fetch():
                    continue
                if self._untaken:
                    self._take(self._untaken.popleft())
                else:
                    time.sleep(POLL_S)
        except BaseException:
            self._cluster.cancel([hand.call for hand in self._hands.values() if hand.call is not None])
            raise
        with suppress(CegateError):  # all is computed, whatever becomes of them
            self._cluster.ask([*self._hands], task.dismiss, self._packed)
        return self._done, self._skipped

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
                self._hands[address] = Hand(address, call)
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
                self._hear_of(hand, call, message)
            if state == "pending":
                continue
            hand.call = None
            if state == "lost":
                self._monitor.wait(self._cluster.workers)  # else it is the scheduler that was lost
                self._lose(self._hands.pop(hand.address), call)
                continue
            if state == "failed":
                self._fail(hand, call.error())
                continue
            result = self._cluster.result(call)
            self._cluster.forget(call)
            if result is None:
                self._lose(self._hands.pop(hand.address))
            elif hand.is_ready:
                self._take_results(hand, result)
            elif result["error"] is not None:
                self._refuse(hand.address, result["error"], host=result["host"])
            else:
                hand.is_ready, hand.carries = True, result["carries"]
                self._tell_of_carrying(hand, host=result["host"])

    def _hear_of(self, hand: Hand, call: Call, message: Mapping[str, Any]) -> None:
        """A call has said something: what it lacks, or how far it is."""
        if "lacks" in message:
            self._carrier.send(call, message["lacks"])
            return
        hand.done, hand.finished = int(message["done"]), int(message["finished"])
        entries = map(Entry.from_json, json.loads(message["entries"]))
        if hand.carries:
            hand.offered += entries
        else:
            self._know(entries)

    def _tell_of_carrying(self, hand: Hand, *, host: str) -> None:
        if hand.carries and not self._has_told_of_carrying:
            self._has_told_of_carrying = True
            _warn(
                f"The Dask worker {hand.address} on {host} does not see {self._store.path}: its shards come over the "
                "network. The same holds for all others that don't."
            )

    def _fetch(self) -> bool:
        """Fetch one shard from the worker that waits for it with the most; says whether one came."""
        now = time.monotonic()
        waiting = [hand for hand in self._hands.values() if hand.offered and now >= hand.fetch_after]
        hand = max(waiting, key=lambda hand: len(hand.offered), default=None)
        if hand is None or hand.call is None:
            return False
        if not self._carrier.fetch(hand.call, hand.offered[0]):
            hand.fetch_after = time.monotonic() + LOOK_EVERY_S  # it may be gone; that is seen elsewhere
            return False
        self._know([hand.offered.popleft()])
        return True

    def _fail(self, hand: Hand, error: BaseException | None) -> None:
        """A worker could not even run our function."""
        why = CegateError(f"It failed: {type(error).__name__}: {error}.", hint="Look into its log.")
        if hand.is_ready:
            why.message = f"The Dask worker {hand.address} failed: {type(error).__name__}: {error}."
            raise why from error
        self._refuse(hand.address, why)

    def _take_results(self, hand: Hand, result: Mapping[str, Any]) -> None:
        error: CegateError | None = result["error"]
        hand.offered.clear()
        if not hand.carries or error is None:  # it waits until all are fetched, as long as it can
            self._know(map(Entry.from_json, result["entries"]))
        if isinstance(error, CancelledError):  # not by us: the worker is about to end
            self._lose(self._hands.pop(hand.address))
            return
        stack, hand.stack = hand.stack, ()
        self._done += result["done"]
        self._skipped += result["skipped"]
        if error is not None:
            error.message = f"{error.message.rstrip('.')} (Dask worker {hand.address})."
            raise error
        self._shares.put_back(self._left(stack))

    def _know(self, entries: Iterable[Entry]) -> None:
        """Some shards are finished."""
        for entry in entries:
            if entry.window not in self._known:
                self._known.add(entry.window)
                self._untaken.append(entry)

    def _left(self, stack: Stack) -> Stack:
        """What is not finished of a stack."""
        return tuple(window for window in stack if window not in self._known)

    def _lose(self, hand: Hand, call: Call | None = None) -> None:
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
        left = self._left(hand.stack)
        self._done += self._shares.tiles_of(hand.stack) - self._shares.tiles_of(left)
        self._shares.put_back(left)
        if not left:
            return
        w, name = left[0], self._store.file(left[0]).name
        self._deaths[w] += 1
        if self._deaths[w] >= DEATHS:
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
            stack = self._shares.take(len(idle) - number) or self._from_others()
            if not stack:
                return
            shards = [(w.col_off, w.row_off, w.width, w.height) for w in stack]
            hand.stack, hand.done, hand.finished = stack, 0, 0
            hand.call = self._cluster.call(hand.address, task.compute, __version__, self._packed, shards, hand.carries)

    def _from_others(self) -> Stack:
        """The lower half of what the slowest worker has not begun."""
        now = time.monotonic()
        busy = [hand for hand in self._hands.values() if hand.stack and now - hand.asked > LOOK_EVERY_S]
        if not busy:
            return ()
        hand = max(busy, key=lambda hand: self._shares.tiles_of(hand.stack[hand.finished :]))
        kept = hand.finished + self._shares.halved(hand.stack[hand.finished :])
        if kept == len(hand.stack) or hand.call is None:
            return ()
        hand.asked = now
        asked = self._cluster.ask([hand.address], task.shorten, hand.call.key, kept)
        kept = asked.get(hand.address) or len(hand.stack)
        given, hand.stack = hand.stack[kept:], hand.stack[:kept]
        return given

    def _report(self) -> None:
        total, done = self._done + self._shares.tiles, self._done
        for hand in self._hands.values():
            tiles = self._shares.tiles_of(hand.stack)
            total += tiles
            done += min(hand.done, tiles)
        self._monitor.at(done, total)


def _warn(text: str) -> None:
    warnings.warn(text, CegateWarning, stacklevel=3)
