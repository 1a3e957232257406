"""Every shard is computed and taken once, by whatever workers come, stay, dawdle, refuse or die."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CancelledError, CegateError, CegateWarning, InputError, ModelError
from cegate_geo.infer import crew as crew_module
from cegate_geo.infer import task
from cegate_geo.infer.cluster import Cluster
from cegate_geo.infer.crew import DEATHS, Crew
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor, Progress
from cegate_geo.infer.settle import stacks
from cegate_geo.infer.shard_file import Seal
from cegate_geo.infer.shares import Shares, cut_for

ROWS = 512


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "POLL_S", 0)
    monkeypatch.setattr(crew_module, "LOOK_EVERY_S", 0)


def strip(count: int, col: int = 0) -> tuple[Window, ...]:
    return tuple(Window(col_off=col, row_off=n * ROWS, width=100, height=ROWS) for n in range(count))


def entry(window: Window) -> Entry:
    return Entry(window=window, seal=Seal(size=0, crc32=0), tally={"pixels": [], "areas": []})


class Run:
    """As much of a run as a crew looks at. A border between calls costs a tile."""

    view = SimpleNamespace(shard=lambda window: window)

    @staticmethod
    def tiles_of(window: Window) -> int:
        return window.height // ROWS + 1


class Store:
    """What journals say."""

    def __init__(self) -> None:
        self.journal: list[Window] = []

    path = Path("mask.tif.job")

    def read(self) -> None: ...

    def finished(self, windows: Any, *, check: Any) -> list[Entry]:
        return [entry(window) for window in windows if window in self.journal]

    def file(self, window: Window) -> Path:
        return Path(f"r{window.row_off}c{window.col_off}.shard")


@dataclass
class FakeCall:
    key: str
    worker: str
    state: str = "pending"
    stack: list[Window] = field(default_factory=list)
    finished: int = 0
    told: int = 0
    unfetched: list[Window] = field(default_factory=list)
    result: Any = None
    is_greeting: bool = False
    carries: bool = False

    def error(self) -> BaseException:
        return ModuleNotFoundError("No module named 'onnxruntime'")


class FakeCluster:
    """Workers that compute `speed` shards whenever somebody looks who is there."""

    name = address = "tcp://fake:1"

    def __init__(self, store: Store, speeds: Mapping[str, int], wanted: int = 1) -> None:
        self.store, self.wanted = store, wanted
        self.speeds = dict(speeds)
        self.calls: list[FakeCall] = []
        self.told_version: dict[str, str | Exception] = {}
        self.refusals: dict[str, CegateError] = {}
        self.deadly: set[Window] = set()
        self.silent: set[str] = set()
        self.blind: set[str] = set()
        """They see no folder: their shards are there once they are fetched."""
        self.on_fetch: Callable[[FakeCall], bool] = lambda _: True
        self.unheard: set[Window] = set()
        """Shards of which the client does not hear that the worker has heard that they were fetched."""
        self.sent: list[tuple[str, str]] = []
        self.on_look: Callable[[int], None] = lambda _: None
        self.looks = 0
        self.cancelled: list[str] = []
        self.dismissed: list[str] = []

    def workers(self) -> dict[str, int]:
        self.looks += 1
        self.on_look(self.looks)
        for call in self.calls:
            if call.state == "pending" and call.worker in self.speeds:
                self._go_on(call)
        return dict.fromkeys(self.speeds, 1)

    def _go_on(self, call: FakeCall) -> None:
        if call.is_greeting:
            error = self.refusals.get(call.worker)
            call.state, call.result = "done", {"host": "h", "carries": call.worker in self.blind, "error": error}
            return
        for _ in range(self.speeds[call.worker]):
            if call.finished == len(call.stack):
                break
            if call.stack[call.finished] in self.deadly:
                self.die(call.worker)
                return
            (call.unfetched if call.worker in self.blind else self.store.journal).append(call.stack[call.finished])
            call.finished += 1
        if call.finished == len(call.stack) and not call.unfetched:
            lines = [entry(window).to_json() for window in call.stack]
            done = len(call.stack) + 1
            call.state, call.result = "done", {"entries": lines, "done": done, "skipped": 1, "error": None}

    def fetch(self, call: FakeCall, found: Entry) -> bool:
        if not self.on_fetch(call) or call.worker not in self.speeds:
            return False
        call.unfetched.remove(found.window)
        self.store.journal.append(found.window)
        return found.window not in self.unheard

    def send(self, call: FakeCall, lacks: str) -> None:
        self.sent.append((call.worker, lacks))

    def die(self, worker: str) -> None:
        """The worker goes; another one comes in its place, as a nanny sees to."""
        speed = self.speeds.pop(worker)
        self.speeds[worker + "'"] = speed

    def versions(self, workers: Any) -> dict[str, Any]:
        return {worker: self.told_version.get(worker, __version__) for worker in workers}

    def call(self, worker: str, function: Any, *arguments: Any) -> FakeCall:
        assert worker in self.speeds
        assert not any(c.state == "pending" and c.worker == worker for c in self.calls), "one call at a time"
        stack = [] if function is task.greet else [
            Window(col_off=col, row_off=row, width=width, height=height) for col, row, width, height in arguments[2]
        ]  # fmt: skip
        is_greeting = function is task.greet
        carries = not is_greeting and bool(arguments[3])
        call = FakeCall(str(len(self.calls)), worker, stack=stack, is_greeting=is_greeting, carries=carries)
        self.calls.append(call)
        return self.calls[-1]

    def result(self, call: FakeCall) -> Any:
        return call.result

    def news(self, call: FakeCall) -> list[dict[str, Any]]:
        if call.is_greeting:
            return [{"lacks": "[0]"}] if call.worker in self.blind else []
        if call.worker in self.silent:
            return []
        told, call.told = call.told, call.finished
        lines = json.dumps([entry(window).to_json() for window in call.stack[told : call.finished]])
        return [{"done": call.finished, "finished": call.finished, "entries": lines}] if call.finished > told else []

    def ask(self, workers: Any, function: Any, *arguments: Any) -> dict[str, Any]:
        if function is task.dismiss:
            self.dismissed += workers
            return {}
        key, keep = arguments
        call = next(call for call in self.calls if call.key == key)
        call.stack = call.stack[: max(keep, min(call.finished + 1, len(call.stack)))]
        return dict.fromkeys(workers, len(call.stack))

    def cancel(self, calls: Any) -> None:
        self.cancelled += [call.key for call in calls]

    def forget(self, call: FakeCall) -> None: ...


def crew_of(cluster: FakeCluster, taken: list[Window], monitor: Monitor | None = None) -> Crew:
    parts: tuple[Any, ...] = (cluster, Run(), SimpleNamespace(packed=lambda: b""), cluster.store, cluster)
    return Crew(*parts, take=lambda found: taken.append(found.window), monitor=monitor or Monitor())


def compute(cluster: FakeCluster, missing: list[tuple[Window, ...]], monitor: Monitor | None = None) -> list[Window]:
    taken: list[Window] = []
    crew_of(cluster, taken, monitor).compute(missing)
    assert sorted(taken, key=str) == sorted((w for stack in missing for w in stack), key=str), "each shard, once"
    return taken


def handed(cluster: FakeCluster) -> list[FakeCall]:
    return [call for call in cluster.calls if not call.is_greeting]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("strips", [[1], [20], [5, 5, 5], [1, 13]])
def test_every_shard_is_taken_once(workers: int, strips: list[int]) -> None:
    missing = [strip(count, col=100 * n) for n, count in enumerate(strips)]
    cluster = FakeCluster(Store(), {f"w{n}": 1 + n % 3 for n in range(workers)})
    compute(cluster, missing)
    assert set(cluster.dismissed) == set(cluster.speeds), "all let go of the model"
    assert cluster.cancelled == []


def test_equal_workers_get_equal_neighbours() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)
    compute(cluster, [strip(20)])
    assert [len(call.stack) for call in handed(cluster)] == [10, 10], "one border"


def test_progress_ends_with_all_tiles_and_counts_finished_work() -> None:
    seen: list[Progress] = []
    cluster = FakeCluster(Store(), {"a": 1, "b": 2})
    compute(cluster, [strip(12)], Monitor(seen.append))
    assert seen[0].done == 0
    assert all(0 <= at.done <= at.total for at in seen)
    assert len({at.done for at in seen}) > 4
    assert seen[-1].done == seen[-1].total >= 13


def test_who_is_done_takes_the_lower_half_of_the_slowest() -> None:
    cluster = FakeCluster(Store(), {"quick": 8, "slow": 1}, wanted=2)
    compute(cluster, [strip(32)])
    slow = sum(len(call.stack) for call in handed(cluster) if call.worker == "slow")
    assert slow < 10, "of 16 that it was given"
    assert len(handed(cluster)) < 12, "without cutting the scene to pieces"


def test_who_comes_later_is_greeted_and_gets_its_share() -> None:
    cluster = FakeCluster(Store(), {"a": 1})

    def come(looks: int) -> None:
        if looks == 4:
            cluster.speeds["b"] = 1

    cluster.on_look = come
    compute(cluster, [strip(40)])
    mine = [call for call in cluster.calls if call.worker == "b"]
    assert mine[0].is_greeting
    assert sum(len(call.stack) for call in mine) > 10


def test_what_a_lost_worker_had_finished_counts_and_the_rest_is_for_others() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)

    def end(looks: int) -> None:
        if looks == 5:
            del cluster.speeds["b"]

    cluster.on_look = end
    cluster.silent = {"b"}  # what it had no time to tell stands in its journal
    with pytest.warns(CegateWarning, match=r"worker b was lost; others compute shard r\d+c0\.shard"):
        compute(cluster, [strip(12)])
    assert len(cluster.store.journal) == 12, "none was computed twice"


def test_who_does_not_see_the_folder_is_sent_what_it_lacks_and_its_shards_are_fetched() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 2, "c": 1}, wanted=3)
    cluster.blind = {"a", "b"}
    with pytest.warns(CegateWarning, match=r"The Dask worker a on h does not see .*its shards come over") as told:
        compute(cluster, [strip(30)])
    assert len(told) == 1, "once"
    assert sorted(set(cluster.sent)) == [("a", "[0]"), ("b", "[0]")]
    assert {call.worker for call in handed(cluster)} == {"a", "b", "c"}
    assert len(cluster.store.journal) == 30, "none was computed twice"
    assert all(call.carries == (call.worker in cluster.blind) for call in handed(cluster))


def test_what_was_not_fetched_from_a_lost_worker_is_computed_by_others() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)
    cluster.blind = {"a", "b"}
    fetched: list[str] = []

    def one_comes(call: FakeCall) -> bool:
        fetched.append(call.worker)
        return call.worker == "a" or fetched.count("b") == 1

    def end(looks: int) -> None:
        if looks == 6:
            del cluster.speeds["b"]

    cluster.on_fetch, cluster.on_look = one_comes, end
    with pytest.warns(CegateWarning) as told:
        compute(cluster, [strip(12)])
    assert "worker b was lost; others compute shard" in str(told[-1].message)
    lost = next(call for call in handed(cluster) if call.worker == "b")
    assert lost.unfetched, "it had finished more than was fetched"
    assert len(cluster.store.journal) == 12


def test_who_can_t_be_reached_is_asked_again_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "LOOK_EVERY_S", 0.01)
    cluster = FakeCluster(Store(), {"a": 1, "b": 3}, wanted=2)
    cluster.blind = {"a", "b"}
    tried: list[str] = []

    def once_a_has_been_heard(call: FakeCall) -> bool:
        tried.append(call.worker)
        assert tried.count("b") < 200, "nobody else is asked"
        return call.worker == "a" or tried.count("a") > 2

    cluster.on_fetch = once_a_has_been_heard
    with pytest.warns(CegateWarning, match="does not see"):
        compute(cluster, [strip(12)])
    assert len(cluster.store.journal) == 12
    assert tried.index("b") < tried.index("a"), "it had the most"


def test_what_was_fetched_without_an_answer_is_not_computed_again() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)
    cluster.blind = {"a", "b"}
    cluster.unheard = {strip(12)[5], strip(12)[11]}  # the last of each
    with pytest.warns(CegateWarning, match="does not see"):
        compute(cluster, [strip(12)])
    assert sorted(cluster.store.journal, key=str) == sorted(strip(12), key=str)


def test_what_was_not_fetched_from_a_worker_that_ends_by_itself_is_computed_by_others() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)
    cluster.blind = {"a", "b"}
    cluster.on_fetch = lambda call: call.worker == "a"

    def retire(looks: int) -> None:
        if looks == 6:
            call = next(call for call in handed(cluster) if call.worker == "b")
            lines = [entry(window).to_json() for window in call.unfetched]
            assert lines
            call.state = "done"
            call.result = {"entries": lines, "done": 99, "skipped": 0, "error": CancelledError("Cancelled.")}
        if looks == 7:
            del cluster.speeds["b"]

    cluster.on_look = retire
    with pytest.warns(CegateWarning) as told:
        compute(cluster, [strip(12)])
    assert "worker b was lost" in str(told[-1].message)
    assert len(cluster.store.journal) == 12


def test_a_shard_that_ends_its_workers_fails_by_name() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)
    cluster.deadly = {strip(12)[3]}
    taken: list[Window] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CegateWarning)
        with pytest.raises(CegateError, match=rf"{DEATHS} Dask workers were lost.* r1536c0\.shard \(rows 1536 to 2048"):
            crew_of(cluster, taken).compute([strip(12)])
    assert strip(3)[2] in taken, "what came before it is kept"


def test_workers_that_die_of_the_model_end_the_run() -> None:
    cluster = FakeCluster(Store(), {"a": 1})
    cluster.on_look = lambda _: [cluster.die(name) for name in list(cluster.speeds)] and None
    with pytest.raises(CegateError, match=f"{DEATHS} Dask workers were lost while they loaded the model"):
        crew_of(cluster, []).compute([strip(4)])


def test_other_versions_and_other_models_get_nothing() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "old": 1, "bare": 1, "other": 1})
    cluster.told_version = {"old": "0.0.1", "bare": ModuleNotFoundError("No module named 'cegate_geo'")}
    cluster.refusals = {"other": ModelError("It would compute something else: model was 1, is 2.")}
    with pytest.warns(CegateWarning) as told:
        compute(cluster, [strip(9)])
    texts = sorted(str(warning.message) for warning in told)
    assert [text.split(" is not used. ")[0] for text in texts] == [
        f"The Dask worker {name}" for name in ("bare", "old", "other on h")
    ]
    assert f"It has cegate-geo 0.0.1, the client {__version__}" in texts[1]
    assert "model was 1, is 2" in texts[2]
    assert {call.worker for call in handed(cluster)} == {"a"}
    assert {call.worker for call in cluster.calls} == {"a", "other"}, "another version is sent nothing of ours"


@pytest.mark.parametrize("wanted", [1, 2])
def test_too_few_workers_that_fit_are_an_error_before_the_first_shard(wanted: int) -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=wanted)
    cluster.refusals = {"a": InputError("It can't see /data/scene.tif.", hint="Mount it.")}
    if wanted == 1:
        cluster.refusals["b"] = cluster.refusals["a"]
    expected = r"None of 2 .* 1 must" if wanted == 1 else r"1 of 2 .* 2 must"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CegateWarning)
        with pytest.raises(InputError, match=rf"{expected}\. It can't see /data/scene\.tif\. Mount it\."):
            crew_of(cluster, []).compute([strip(4)])
    assert handed(cluster) == []


def test_no_worker_is_told_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "TELL_AFTER_S", 0)
    monkeypatch.setattr(crew_module, "PATIENCE_S", 0.02)
    with (
        pytest.warns(CegateWarning, match="has 0 of 1 workers; waiting"),
        pytest.raises(CegateError, match="has 0 workers since"),
    ):
        crew_of(FakeCluster(Store(), {}), []).compute([strip(4)])


def test_cancelling_takes_the_calls_back() -> None:
    cluster = FakeCluster(Store(), {"a": 1, "b": 1})
    monitor = Monitor(None, lambda: cluster.looks > 4)
    with pytest.raises(CancelledError):
        crew_of(cluster, [], monitor).compute([strip(30)])
    running = [call.key for call in cluster.calls if call.state == "pending"]
    assert len(running) == 2
    assert cluster.cancelled == running


def test_an_error_of_a_worker_is_raised_with_its_name() -> None:
    cluster = FakeCluster(Store(), {"a": 1})
    taken: list[Window] = []

    def fail(call: FakeCall) -> Any:
        if call.is_greeting:
            return call.result
        return {**call.result, "error": ModelError("The model gave NaN.", hint="Look at it."), "entries": []}

    cluster.result = fail  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"The model gave NaN \(Dask worker a\)\. Look at it\."):
        crew_of(cluster, taken).compute([strip(2)])


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_worker_that_can_t_take_our_function_says_so(is_ready: bool) -> None:
    cluster = FakeCluster(Store(), {"a": 1})
    cluster.on_look = lambda _: [
        setattr(call, "state", "failed") for call in cluster.calls if call.is_greeting != is_ready
    ] and None  # fmt: skip
    said = "The Dask worker a failed" if is_ready else "None of 1 Dask workers can be used, 1 must. It failed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CegateWarning)
        with pytest.raises(CegateError, match=rf"{said}: ModuleNotFoundError: No module named 'onnxruntime'"):
            crew_of(cluster, []).compute([strip(2)])


def test_a_worker_that_ends_by_itself_does_not_cancel_the_run() -> None:
    """Its time is up, say: it gives back what it has not finished."""
    cluster = FakeCluster(Store(), {"a": 1, "b": 1}, wanted=2)

    def retire(looks: int) -> None:
        if looks == 6:
            call = next(call for call in handed(cluster) if call.worker == "b")
            lines = [entry(window).to_json() for window in call.stack[: call.finished]]
            call.state = "done"
            call.result = {"entries": lines, "done": 99, "skipped": 0, "error": CancelledError("Cancelled.")}
        if looks == 7:
            del cluster.speeds["b"]

    cluster.on_look = retire
    with pytest.warns(CegateWarning, match="worker b was lost"):
        compute(cluster, [strip(12)])
    assert len(cluster.store.journal) == 12


def test_a_scheduler_that_goes_when_all_is_done_is_not_missed() -> None:
    cluster = FakeCluster(Store(), {"a": 1})

    def gone(*_: Any) -> dict[str, Any]:
        raise CegateError("The Dask scheduler does not answer any more.")

    cluster.ask = gone  # type: ignore[method-assign]
    compute(cluster, [strip(2)])
    assert len(cluster.store.journal) == 2


def test_the_fake_has_what_a_cluster_has() -> None:
    ours = {name for name in vars(Cluster) if not name.startswith("_")}
    assert ours <= set(dir(FakeCluster))


@dataclass(frozen=True)
class Cut:
    """As much of a run as is cut."""

    region: Window
    shard_shape: tuple[int, int]


@pytest.mark.parametrize(
    ("height", "width", "workers", "rows"),
    [
        (40_000, 1000, 2, 1024),
        (10_000, 1000, 2, 512),
        (300, 90, 4, 512),
        (900_000, 1000, 1, 4096),
        (8192, 4000, 2, 1024),
    ],
)
def test_shards_are_as_low_as_workers_need(height: int, width: int, workers: int, rows: int) -> None:
    run: Any = Cut(Window(col_off=0, row_off=0, width=width, height=height), (4096, 1024))
    assert cut_for(run, workers).shard_shape == (rows, 1024)


def test_a_border_comes_where_the_fewest_tiles_are_computed_twice() -> None:
    class Ramps(Run):
        """Tile rows of 700 rows: some borders are dearer."""

        @staticmethod
        def tiles_of(window: Window) -> int:
            return -(-window.row_end // 700) - window.row_off // 700

    run: Any = Ramps()
    for count, workers in itertools.product(range(4, 11), range(2, 5)):
        stack, shares = strip(count), Shares(run, [strip(count)])
        taken = [shares.take(workers - n) for n in range(workers)]
        assert sum(taken, ()) == stack
        ways = itertools.combinations(range(1, count), workers - 1)
        best = min(max(shares.tiles_of(stack[a:b]) for a, b in itertools.pairwise([0, *cuts, count])) for cuts in ways)
        assert max(map(shares.tiles_of, taken)) == best


def test_little_is_not_taken_away() -> None:
    """Two shards are left to their worker, and what a border would eat up."""
    shares = Shares(Run(), [])  # type: ignore[arg-type]
    assert [shares.halved(strip(count)) for count in (1, 2, 3, 8)] == [1, 2, 2, 4]

    class Dear(Run):
        """A border costs twenty tiles."""

        @staticmethod
        def tiles_of(window: Window) -> int:
            return window.height // ROWS + 20

    shares = Shares(Dear(), [])  # type: ignore[arg-type]
    assert [shares.halved(strip(count)) for count in (8, 40)] == [8, 20]


def test_stacks_of_a_torn_rest_stay_apart() -> None:
    """What is left of a stack may have a hole."""
    cluster = FakeCluster(Store(), {"a": 1, "b": 1})
    whole = strip(9)
    compute(cluster, stacks(whole[:2] + whole[5:]))
    assert len(cluster.store.journal) == 6
