"""What it costs that Dask carries shards from a worker without a shared folder: seconds, processor's time, memory.

    python benchmarks/carry.py --size 100 --repeats 3

One local worker, random bytes (which nothing compresses), loopback. The client's process holds the scheduler, too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
import zlib
from pathlib import Path

import psutil

from cegate_geo.domain.windows import Window
from cegate_geo.infer.carry import Carrier, Desk
from cegate_geo.infer.cluster import Call, Cluster, Place, open_cluster, this_worker
from cegate_geo.infer.journal import Entry
from cegate_geo.infer.progress import Monitor
from cegate_geo.infer.shard_file import Seal
from cegate_geo.infer.shard_store import ShardStore

MB = 10**6


def offer(shards: int, size: int) -> None:
    """Run in the worker: keep shards of `size` bytes until they are fetched."""
    view = this_worker()
    with Desk(view) as desk:
        for number in range(shards):
            window, crc32 = Window(col_off=0, row_off=number, width=1, height=1), 0
            with desk.file(window).open("wb") as file:
                for _ in range(size // MB):
                    data = os.urandom(MB)
                    crc32 = zlib.crc32(data, crc32)
                    file.write(data)
            seal = Seal(size=size, crc32=crc32)
            entry = Entry(window=window, seal=seal, tally={"pixels": [], "areas": []})
            desk.offer(entry)
            view.say(entry=json.dumps(entry.to_json()))
        desk.wait_until_fetched()


class Peak:
    """The most memory that processes hold meanwhile, and the processor's time that they take, each by itself."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes, self._end = processes, threading.Event()
        self._before = [process.memory_info().rss for process in processes]
        self._most = list(self._before)
        self._started = [sum(process.cpu_times()[:2]) for process in processes]
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        now = [sum(process.cpu_times()[:2]) for process in self._processes]
        self.seconds = [after - before for before, after in zip(self._started, now, strict=True)]
        self.grown_mb = [(most - before) / MB for before, most in zip(self._before, self._most, strict=True)]

    def _look(self) -> None:
        while not self._end.wait(0.02):
            held = [process.memory_info().rss for process in self._processes]
            self._most = list(map(max, self._most, held))


def offered(cluster: Cluster, call: Call, shards: int) -> list[Entry]:
    """What the worker keeps, once it is complete."""
    found: list[Entry] = []
    while len(found) < shards:
        time.sleep(0.1)
        found += [Entry.from_json(json.loads(message["entry"])) for message in cluster.news(call)]
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100, help="of a shard, in MB")
    parser.add_argument("--repeats", type=int, default=3, help="shards")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_cluster(Place(scheduler=None, workers=1)) as cluster:
        while not cluster.workers():
            time.sleep(0.1)
        (worker,) = cluster.workers()
        processes = [psutil.Process(), psutil.Process(cluster.ask([worker], os.getpid)[worker])]
        store = ShardStore(Path(folder))
        store.begin({"key": {}})
        carrier = Carrier(cluster, store, (), Monitor())
        call = cluster.call(worker, offer, given.repeats, given.size * MB)
        for entry in offered(cluster, call, given.repeats):
            started = time.monotonic()
            with Peak(processes) as peak:
                fetched = carrier.fetch(call, entry)
            spent = time.monotonic() - started
            store.file(entry.window).unlink()
            print(f"{given.size} MB{'' if fetched else ' NOT'} carried in {spent:.2f} s")
            for who, seconds, grown in zip(
                ("client and scheduler", "worker"), peak.seconds, peak.grown_mb, strict=True
            ):
                print(f"  {who}: {seconds:.2f} s of the processor, {grown:+.0f} MB")
        store.close()


if __name__ == "__main__":
    main()
