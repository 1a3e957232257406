"""Law 6 with Dask workers that see nothing of the client's but the scene: the model is sent, shards are fetched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cegate_geo.api import predict
from cegate_geo.errors import CancelledError, CegateWarning
from cegate_geo.infer import carry
from cegate_geo.infer.carry import Carrier
from cegate_geo.infer.cluster import Cluster, Place, open_cluster
from tests import toy_models as toys
from tests.integration.test_predict_dask import count_loads, slow_down
from tests.integration.test_predict_shards import digests, events_of, listing, places, shards_in, sums

HERE = Path("/proc/self/cwd")
"""The folder that a process works in: under this name workers see another one than the client."""
if os.environ.get("CI") != "true":
    pytest.importorskip("distributed", reason='pip install "cegate-geo[distributed]"')
pytestmark = pytest.mark.skipif(not HERE.exists(), reason="a path that each process sees differently is Linux'")

SHAPE = (3072, 320)
"""Six shards of 512 rows."""
PIECE = 200_000


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A scene that all see, and where the client's files are."""
    folder = tmp_path_factory.mktemp("carry")
    scene = np.kron(toys.noise((SHAPE[0] // 32, SHAPE[1] // 32)), np.ones((1, 32, 32), np.uint8)) // 2 + 1
    scene[:, 300:700, 100:300] = scene[:, 1150:1480] = 0
    toys.write_raster(folder / "scene.tif", scene, nodata=0, tiled=True)
    toys.convolutions(folder / "conv.onnx", layers=3, size=128)
    (left, top), (right, bottom) = (toys.UTM["transform"] @ corner for corner in ((5, 5), (SHAPE[1], SHAPE[0] - 9)))
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    (folder / "area.geojson").write_text(
        '{"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": "EPSG:32645"}}, "features": '
        f'[{{"type": "Feature", "properties": {{}}, "geometry": {{"type": "Polygon", "coordinates": [{ring}]}}}}]}}'
    )
    return {"scene": folder / "scene.tif", "model": folder / "conv.onnx", "aoi": folder / "area.geojson"}


@pytest.fixture(scope="module")
def one_run(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this process gives."""
    folder = tmp_path_factory.mktemp("one")
    result = predict(**given, **places(folder))
    return digests(folder) | sums(result)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers work. It holds a folder of the name of the client's job, of somebody else."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mask.tif.job").mkdir()
    (folder / "mask.tif.job" / "journal.jsonl").write_text("not yours\n")
    return folder


@pytest.fixture(scope="module")
def cluster(elsewhere: Path) -> Iterator[Cluster]:
    """Two workers that all tests share."""
    with open_cluster(Place(scheduler=None, workers=2)) as opened:
        until = time.monotonic() + 120
        while len(opened.workers()) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield opened


@pytest.fixture
def client(
    given: dict[str, Any], cluster: Cluster, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the client is told: all but the scene by names that mean something else to workers."""
    cluster.ask([*cluster.workers()], slow_down)
    cluster.ask([*cluster.workers()], os.chdir, str(elsewhere))
    for name in ("model", "aoi"):
        (tmp_path / given[name].name).symlink_to(given[name])
    monkeypatch.chdir(tmp_path)
    mine = {name: HERE / given[name].name for name in ("model", "aoi")}
    return {"scene": given["scene"], **mine, **places(HERE), "dask": cluster.address, "workers": 2}


OUTPUTS = ["area.geojson", "c.tif", "conv.onnx", "mask.qml", "mask.tif", "mask.tif.aux.xml", "p.tif", "v.fgb"]
CARRIED = r"does not see /proc/self/cwd/mask\.tif\.job: its shards come over the network"


def folders(dask_worker: Any = None) -> list[str]:
    """Run in a worker: what lies in its own folder."""
    return [str(path) for path in Path(dask_worker.local_directory).rglob("*")]


def wait_until_nothing_is_left(cluster: Cluster) -> None:
    until = time.monotonic() + 60
    while any(cluster.ask([*cluster.workers()], folders).values()):
        assert time.monotonic() < until, cluster.ask([*cluster.workers()], folders)
        time.sleep(0.1)


def test_workers_that_see_the_scene_only_give_the_bytes_of_one_run(
    client: dict[str, Any],
    one_run: dict[str, Any],
    tmp_path: Path,
    elsewhere: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    ask = Cluster.ask

    def measured(self: Cluster, workers: Any, function: Any, *arguments: Any) -> dict[str, Any]:
        found = ask(self, workers, function, *arguments)
        sizes.extend(len(data) for data in (*arguments, *found.values()) if isinstance(data, bytes))
        return found

    monkeypatch.setattr(Cluster, "ask", measured)
    monkeypatch.setattr(carry, "PIECE", PIECE)
    before = cluster.ask([*cluster.workers()], count_loads)
    with pytest.warns(CegateWarning, match=CARRIED) as told:
        result = predict(**client)
    assert len(told) == 1
    assert digests(tmp_path) | sums(result) == one_run
    assert listing(tmp_path) == OUTPUTS
    after = cluster.ask([*cluster.workers()], count_loads)
    assert {after[worker] - before[worker] for worker in after} == {1}
    assert max(sizes) == PIECE
    assert len(sizes) > 20
    assert not any(cluster.ask([*cluster.workers()], folders).values())
    assert [path.name for path in elsewhere.rglob("*")] == ["mask.tif.job", "journal.jsonl"]


def test_cancelling_keeps_what_was_fetched_and_leaves_nothing_with_workers(
    client: dict[str, Any], given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, cluster: Cluster
) -> None:
    folder = tmp_path / "mask.tif.job"
    with pytest.warns(CegateWarning, match=CARRIED), pytest.raises(CancelledError) as told:
        predict(**client, cancel=lambda: len(shards_in(folder)) >= 2)
    assert "of 6 shards are kept in mask.tif.job" in told.value.hint
    wait_until_nothing_is_left(cluster)
    assert not list(folder.glob("*.part"))
    kept = len(shards_in(folder))
    assert 2 <= kept < 6
    result = predict(**given, **places(tmp_path))
    assert result.resumed_shards == kept
    assert digests(tmp_path) | sums(result) == one_run


def test_a_killed_client_leaves_nothing_with_workers_and_is_gone_on_from(
    client: dict[str, Any], given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, cluster: Cluster
) -> None:
    options = [f"--{name}={value}" for name, value in client.items() if name != "scene"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cegate_geo.cli.main", "predict", str(client["scene"]), *options, "--events=jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    for event in events_of(process):
        assert event["event"] in ("hello", "progress", "warning"), event
        if shards_in(tmp_path / "mask.tif.job"):
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_until_nothing_is_left(cluster)
    kept = len(shards_in(tmp_path / "mask.tif.job"))
    assert kept >= 1
    result = predict(**given, **places(tmp_path))
    assert result.resumed_shards == kept
    assert digests(tmp_path) | sums(result) == one_run


def test_what_was_not_fetched_from_a_killed_worker_is_computed_by_others(
    client: dict[str, Any],
    one_run: dict[str, Any],
    tmp_path: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The last one here: it may take a while until the workers are two again.
    pids, fetch, lost = cluster.ask([*cluster.workers()], os.getpid), Carrier.fetch, []

    def kill_first(self: Carrier, call: Any, entry: Any) -> bool:
        if not lost:
            lost.extend(path for path in cluster.ask([call.worker], folders)[call.worker] if path.endswith(".shard"))
            os.kill(pids[call.worker], signal.SIGKILL)
        return fetch(self, call, entry)

    monkeypatch.setattr(Carrier, "fetch", kill_first)
    with pytest.warns(CegateWarning) as told:
        result = predict(**client)
    assert any("was lost; others compute shard r" in str(warning.message) for warning in told)
    assert lost, "it had a shard that was finished"
    assert digests(tmp_path) | sums(result) == one_run
    assert not any(Path(path).exists() for path in lost), "its nanny clears away"
