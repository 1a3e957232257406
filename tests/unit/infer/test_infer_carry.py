"""What goes between a worker and a client that share no folder: in pieces, checked, and nothing of it stays."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cegate_geo import __version__
from cegate_geo.domain.windows import Window
from cegate_geo.errors import CegateError, InputError
from cegate_geo.infer import carry, task
from cegate_geo.infer.carry import Carrier, Desk, Parcel, area_parcel, model_parcel
from cegate_geo.infer.journal import Entry, read_journal
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.shard_store import ShardStore
from tests import toy_models as toys
from tests.unit.infer import test_infer_cluster

job = test_infer_cluster.job
PIECE = 500
WINDOW = Window(col_off=0, row_off=0, width=80, height=90)
EMPTY: dict[str, Any] = {"pixels": [], "areas": []}
CALL: Any = SimpleNamespace(key="k", worker="w")


class Link:
    """A worker in this process. What goes between it and the client is measured."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.key, self.threads = str(folder), "k", 1
        self.wanted = True
        self.sizes: list[int] = []
        self.said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def is_wanted(self) -> bool:
        return self.wanted

    def say(self, **values: Any) -> None:
        self.said.put(values)

    def ask(self, workers: list[str], function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        found = function(*arguments)
        self.sizes += [len(data) for data in (*arguments, found) if isinstance(data, bytes)]
        return dict.fromkeys(workers, found)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in Path(self.folder).rglob("*"))


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    made = Link(tmp_path / "worker")
    monkeypatch.setattr(task, "this_worker", lambda: made)
    monkeypatch.setattr(carry, "PIECE", PIECE)
    return made


@pytest.fixture
def blind(job: task.Job, tmp_path: Path) -> task.Job:
    """The job of a client whose folder, model and area are not where it says."""
    elsewhere = tmp_path / "elsewhere"
    aoi = f"{elsewhere / 'area.geojson'}|layername=area"
    return replace(
        job,
        folder=elsewhere / "mask.tif.job",
        models=(elsewhere / "model.onnx",),
        options=replace(job.options, aoi=aoi),
        header=job.header | {"key": job.header["key"] | {"area": None}},
        parcels=((elsewhere / "model.onnx",), (elsewhere / "area.geojson",)),
    )


def without_area(job: task.Job) -> task.Job:
    return replace(job, options=replace(job.options, aoi=None), parcels=job.parcels[:1])


def carrier(link: Any, store: ShardStore, parcels: tuple[Parcel, ...]) -> Carrier:
    return Carrier(link, store, parcels, Monitor())


def client(tmp_path: Path, link: Any) -> tuple[Carrier, ShardStore]:
    """Where the files are really."""
    store = ShardStore(tmp_path / "mask.tif.job")
    files = ((tmp_path / "model.onnx",), (tmp_path / "area.geojson",))
    return carrier(link, store, files), store


def serve(link: Link, carrier: Carrier, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a call, and do as a client what it says meanwhile; gives its result."""
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            try:
                message = link.said.get(timeout=0.05)
            except queue.Empty:
                continue
            if "lacks" in message:
                carrier.send(CALL, message["lacks"])
            for line in json.loads(message.get("entries", "[]")):
                assert carrier.fetch(CALL, Entry.from_json(line))
    finally:
        link.wanted = False
        thread.join(timeout=30)
    assert not thread.is_alive()
    return results[0]


def compute(job: task.Job, *, carries: bool = True) -> dict[str, Any]:
    return task.compute(__version__, job.packed(), [(0, 0, 80, 90)], carries)


def test_a_shard_comes_as_it_was_computed_in_pieces_and_nothing_stays(
    job: task.Job, blind: task.Job, link: Link, tmp_path: Path
) -> None:
    seen = compute(job, carries=False)
    expected = (job.folder / "r0c0.shard").read_bytes()
    (job.folder / "r0c0.shard").unlink()
    task._loaded.clear()
    hands, store = client(tmp_path, link)
    store.begin(job.header)
    told = serve(link, hands, lambda: compute(without_area(blind)))
    store.close()
    assert told["error"] is None
    assert told["entries"] == seen["entries"]
    assert (job.folder / "r0c0.shard").read_bytes() == expected
    assert [entry.to_json() for entry in read_journal(job.folder / "journal.jsonl").entries] == seen["entries"]  # type: ignore[union-attr]
    assert not list(job.folder.glob("*.part"))
    assert max(link.sizes) == PIECE
    model = tmp_path / "model.onnx"
    assert sum(link.sizes) == len(expected) + model.stat().st_size, "once"
    assert link.files == []
    assert not blind.folder.exists()


def test_a_folder_of_the_same_name_is_not_the_client_s(blind: task.Job, link: Link, tmp_path: Path) -> None:
    blind.folder.mkdir(parents=True)
    (blind.folder / "journal.jsonl").write_text("mine\n")
    hands, store = client(tmp_path, link)
    store.begin(blind.header)
    assert serve(link, hands, lambda: task.greet(__version__, without_area(blind).packed()))["carries"]
    link.wanted = True
    assert serve(link, hands, lambda: compute(without_area(blind)))["error"] is None
    store.close()
    assert [path.name for path in blind.folder.iterdir()] == ["journal.jsonl"]
    assert (blind.folder / "journal.jsonl").read_text() == "mine\n"


def test_the_model_is_sent_once_and_the_area_each_time(
    blind: task.Job, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas: list[str | None] = []

    def settled(scene: Any, predictor: Any, options: Any) -> Any:
        areas.append(options.aoi)
        assert options.aoi is not None
        assert Path(options.aoi.partition("|")[0]).read_text() == "polygons"
        return settle(scene, predictor, replace(options, aoi=None))

    settle = task.settle
    monkeypatch.setattr(task, "settle", settled)
    (tmp_path / "area.geojson").write_text("polygons")
    hands, store = client(tmp_path, link)
    for number in range(2):
        link.wanted, link.sizes = True, []
        told = serve(link, hands, lambda: task.greet(__version__, blind.packed()))
        assert told["error"] is None
        assert told["carries"]
        model = 0 if number else (tmp_path / "model.onnx").stat().st_size
        assert sum(link.sizes) == len("polygons") + model
    assert all(str(aoi).endswith("/1/area.geojson|layername=area") for aoi in areas)
    assert all(str(aoi).startswith(link.folder) for aoi in areas)
    assert link.files == []
    store.close()


def test_a_model_that_changes_on_its_way_is_not_used(blind: task.Job, link: Link, tmp_path: Path) -> None:
    hands, _ = client(tmp_path, link)
    (name, size, _), *_ = hands._announced(0)
    hands._known[0] = [(name, size, "0" * 64)]
    told = serve(link, hands, lambda: task.greet(__version__, without_area(blind).packed()))
    assert "model.onnx did not arrive as it was sent" in told["error"].message
    assert link.files == []


def test_a_full_disk_is_the_worker_s_not_the_output_s(
    blind: task.Job, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cegate_geo.infer.shard_file._write_all", full)
    hands, _ = client(tmp_path, link)
    error = serve(link, hands, lambda: compute(without_area(blind)))["error"]
    assert error.message.startswith(f"{link.folder}: r0c0.shard can't be written: [Errno 28] No space left")
    assert "--local-directory" in error.hint
    assert link.files == []


def test_what_the_worker_can_t_store_is_said_with_its_place(
    blind: task.Job, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Desk, "put", full)
    hands, _ = client(tmp_path, link)
    told = serve(link, hands, lambda: task.greet(__version__, without_area(blind).packed()))
    assert link.folder in told["error"].message
    assert "No space left" in told["error"].message
    assert "--local-directory" in told["error"].hint
    assert link.files == []


@pytest.mark.parametrize("harm", ["changed", "shortened", "gone"])
def test_a_shard_that_is_damaged_on_its_way_is_none(blind: task.Job, link: Link, tmp_path: Path, harm: str) -> None:
    blind = without_area(blind)
    hands, store = client(tmp_path, link)
    store.begin(blind.header)
    fetch = hands.fetch

    def harmed(call: Any, entry: Entry) -> bool:
        (path,) = Path(link.folder).rglob("*.shard")
        data = path.read_bytes()
        path.write_bytes(data[:-1] if harm == "shortened" else bytes([data[0] ^ 1]) + data[1:])
        if harm == "gone":
            path.unlink()
            assert not fetch(call, entry)
            return True
        return fetch(call, entry)

    hands.fetch = harmed  # type: ignore[method-assign]
    if harm == "gone":
        told = serve(link, hands, lambda: compute(blind))
        assert "No such file" in told["error"].message, "the call ends, and says it"
    else:
        with pytest.raises(CegateError, match=r"r0c0\.shard did not arrive as it was computed"):
            serve(link, hands, lambda: compute(blind))
    store.close()
    assert sorted(path.name for path in store.path.iterdir()) == ["token"]
    assert link.files == []


@pytest.mark.parametrize("waits_for", ["the model", "its shards to be fetched"])
def test_a_call_that_nobody_waits_for_ends_and_its_folder_goes(
    blind: task.Job, link: Link, tmp_path: Path, waits_for: str
) -> None:
    """It was cancelled, its client died, or its worker is about to end."""
    hands, store = client(tmp_path, link)
    results: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: results.append(compute(without_area(blind))), daemon=True)
    thread.start()
    message = link.said.get(timeout=30)
    if waits_for != "the model":
        hands.send(CALL, message["lacks"])
        while link.said.get(timeout=30).get("entries") == "[]":
            pass
    assert link.files, "it has something to lose"
    link.wanted = False
    thread.join(timeout=30)
    assert results[0]["error"].code == "cancelled"
    assert link.files == []
    assert carry._desks == {}
    assert not hands.fetch(CALL, Entry.from_json({"shard": [0, 0, 80, 90], "size": 1, "crc32": 0, "tally": EMPTY}))
    hands.send(CALL, "[0]")
    assert sorted(path.name for path in store.path.iterdir()) == ["token"]


def test_a_shard_that_came_is_not_fetched_again_where_the_worker_did_not_hear_of_it(
    job: task.Job, link: Link, tmp_path: Path
) -> None:
    hands, store = client(tmp_path, link)
    store.begin(job.header)
    entry = Entry.from_json({"shard": [0, 0, 80, 90], "size": 0, "crc32": 0, "tally": EMPTY})
    assert not hands.fetch(CALL, entry), "there is nobody to hear it"
    with Desk(link) as desk:  # type: ignore[arg-type]
        desk.offer(entry)
        assert hands.fetch(CALL, entry)
        desk.wait_until_fetched()
    store.close()
    assert len(read_journal(store.path / "journal.jsonl").entries) == 1  # type: ignore[union-attr]


def test_what_holds_no_data_is_not_carried_and_stays_a_hole(link: Link, job: task.Job, tmp_path: Path) -> None:
    data = bytes(PIECE) + np.arange(PIECE, dtype=np.uint8).tobytes() + bytes(2 * PIECE)
    hands, store = client(tmp_path, link)
    store.begin(job.header)
    with Desk(link) as desk:  # type: ignore[arg-type]
        entry = Entry.from_json({"shard": [0, 0, 80, 90], "size": len(data), "crc32": zlib.crc32(data), "tally": EMPTY})
        desk.file(WINDOW).write_bytes(data)
        desk.offer(entry)
        assert hands.fetch(CALL, entry)
        assert carry.at_desk("k", "piece", "r0c0.shard", 0, 1) is None, "it is not there any more"
        desk.wait_until_fetched()
    store.close()
    assert store.file(WINDOW).read_bytes() == data
    assert link.sizes == [0, PIECE, 0, 0]


def test_a_file_that_can_t_be_sent_has_to_be_seen(blind: task.Job, link: Link) -> None:
    for number in (0, 1):
        kept = (blind.parcels[number],)
        error = task.greet(__version__, replace(blind, parcels=kept).packed())["error"]
        assert isinstance(error, InputError)
        assert f"can't see {blind.parcels[1 - number][0]}" in error.message


def test_a_model_goes_with_its_weights_and_what_describes_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    model = toys.identity(tmp_path / "a" / "m.onnx")
    assert model_parcel(model) == (model,)
    side = [model.with_name(name) for name in ("m.onnx.data", "m.onnx.json")]
    for path in side:
        path.write_text("{}")
    assert model_parcel(model) == (model, *side)
    description = tmp_path / "a" / "m.emd"
    description.write_text(json.dumps({"Framework": "ONNX", "ModelFile": "m.onnx"}))
    assert model_parcel(description) == (description, model, *side)
    description.write_text(json.dumps({"Framework": "ONNX", "ModelFile": "../b/m.onnx"}))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert model_parcel(description) is None, "it would not lie where the description says"
    assert model_parcel(tmp_path / "none.emd") is None


def test_an_area_goes_with_its_side_files_unless_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.shp", "a.shx", "a.dbf", "a.txt", "a.geojson"):
        (tmp_path / name).write_bytes(b"12345")
    assert area_parcel(tmp_path / "a.geojson") == (tmp_path / "a.geojson",)
    assert area_parcel(tmp_path / "a.shp") == tuple(tmp_path / name for name in ("a.shp", "a.shx", "a.dbf"))
    assert area_parcel(tmp_path) is None
    assert area_parcel(tmp_path / "none.gpkg") is None
    monkeypatch.setattr(carry, "AREA_BYTES", 9)
    assert area_parcel(tmp_path / "a.geojson") is not None
    assert area_parcel(tmp_path / "a.shp") is None
