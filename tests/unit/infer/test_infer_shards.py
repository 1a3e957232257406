"""Parts, tallies, shard files, locks, and what tells scenes apart."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.infer.georeference import Georeference
from cegate_geo.infer.gsd import GroundMeasure
from cegate_geo.infer.job_key import scene_identity
from cegate_geo.infer.lock import hold
from cegate_geo.infer.parts import Part
from cegate_geo.infer.reader import Scene
from cegate_geo.infer.settle import raster_kinds, stacks
from cegate_geo.infer.shard_file import ShardWriter, read_shard
from cegate_geo.infer.tally import Tally
from cegate_geo.infer.tiles import shard_windows
from tests import toy_models as toys

LEGEND = Legend.from_names(toys.NAMES[:3])
WHOLE = Window.of_shape((700, 300))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60))
def test_parts_partition_the_shards(count: int, shards: int) -> None:
    windows = tuple(Window(col_off=n, row_off=0, width=1, height=1) for n in range(shards))
    parts = [Part(number, count).of(windows) for number in range(1, count + 1)]
    assert tuple(window for part in parts for window in part) == windows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_only_neighbours_are_computed_in_one_go() -> None:
    windows = shard_windows((40, 20), largest=(10, 10), align=10)
    assert [len(stack) for stack in stacks(tuple(windows))] == [4, 4]
    assert [len(stack) for stack in stacks(tuple(w for w in windows if w.row_off != 10))] == [1, 2, 1, 2]


@pytest.fixture(scope="module")
def ground() -> GroundMeasure:
    """Pixels in degrees, far north: no two rows of the same area."""
    transform = Affine(0.0001, 0, 10, 0, -0.0001, 70)
    return GroundMeasure(Georeference(crs=CRS.from_epsg(4326), transform=transform, shape=WHOLE.shape))


@settings(deadline=None, max_examples=15)
@given(st.integers(20, 400), st.integers(20, 300), st.integers(0, 5))
def test_tallies_of_shards_in_any_order_add_up_to_that_of_the_whole_to_the_bit(
    ground: GroundMeasure, rows: int, cols: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    channels, wanted = random.integers(0, 3, WHOLE.shape, np.uint8), random.random(WHOLE.shape) < 0.9
    whole, joined = Tally(LEGEND, ground), Tally(LEGEND, ground)
    whole.add(WHOLE, channels, wanted)
    windows = shard_windows(WHOLE.shape, largest=(rows, cols), align=1)
    random.shuffle(windows)  # type: ignore[arg-type]
    for window in windows[:200]:
        part, where = Tally(LEGEND, ground), window.slices(WHOLE)
        part.add(window, channels[where], wanted[where])
        joined.include_json(json.loads(json.dumps(part.to_json())))
    for window in windows[200:]:
        where = window.slices(WHOLE)
        joined.add(window, channels[where], wanted[where])
    assert joined.shares() == whole.shares()
    assert joined.to_json() == whole.to_json()


def test_areas_are_those_of_the_pixels(ground: GroundMeasure) -> None:
    channels = np.zeros(WHOLE.shape, np.uint8)
    tally = Tally(LEGEND, ground)
    tally.add(WHOLE, channels, np.ones(WHOLE.shape, bool))
    exact = math.fsum(float(areas.sum()) * part.width for part, areas in ground.row_areas(WHOLE))
    assert tally.shares()[0].area_m2 == pytest.approx(exact, rel=1e-10)


def test_an_area_that_is_not_known_stays_unknown(ground: GroundMeasure, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: GroundMeasure, window: Window) -> object:
        yield window, np.where(np.arange(window.height) == 3, np.nan, 1.0)

    monkeypatch.setattr(GroundMeasure, "row_areas", lost)
    window = Window.of_shape((5, 4))
    channels = np.repeat(np.array([0, 0, 0, 1, 2], np.uint8), 4).reshape(5, 4)
    part, joined = Tally(LEGEND, ground), Tally(LEGEND, ground)
    part.add(window, channels, np.ones(window.shape, bool))
    joined.include_json(part.to_json())
    areas = [share.area_m2 for share in joined.shares()]
    assert areas[0] == pytest.approx(12)
    assert math.isnan(areas[1] or 0)
    assert areas[2] == pytest.approx(4)


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_shard_file_gives_back_what_was_written_and_nodata_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    large = data.draw(st.booleans())
    legend = Legend.from_names({1000: "a", 1001: "b"}) if large else LEGEND
    kinds = raster_kinds(legend, ["classes", "confidence", "probabilities"])
    window = Window(col_off=7, row_off=5, width=data.draw(st.integers(1, 1100)), height=data.draw(st.integers(1, 600)))
    path, random = tmp_path_factory.mktemp("shard") / "r5c7.shard", np.random.default_rng(1)
    writer = ShardWriter(path, window, kinds)
    expected = {
        name: np.full((kind.count, *window.shape), kind.nodata or 0, kind.dtype) for name, kind in kinds.items()
    }
    start = data.draw(st.integers(0, window.height - 1))
    stop = data.draw(st.integers(start, window.height))
    for row in range(start, stop, 97):
        height = min(97, stop - row)
        part = Window(col_off=7, row_off=5 + row, width=window.width, height=height)
        layers = {
            name: random.integers(0, 250, (kind.count, *part.shape)).astype(kind.dtype) for name, kind in kinds.items()
        }
        writer.write(part, layers)
        for name, values in layers.items():
            expected[name][:, row : row + height] = values
    assert not path.exists()
    seal = writer.seal()
    assert [p.name for p in path.parent.iterdir()] == (["r5c7.shard"] if start < stop else [])
    assert seal.fits(path)
    if not seal.size:
        return
    for name, values in expected.items():
        made = np.full_like(values, 77)
        for part, layers in read_shard(path, window, kinds, pixels=data.draw(st.integers(1, 10**7))):
            rows, cols = part.slices(window)
            made[:, rows, cols] = layers[name]
        np.testing.assert_array_equal(made, values)


def test_a_lock_holds_between_processes_and_ends_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cegate_geo.infer.lock import hold\n"
        "with hold(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    for shared in (False, True):
        with hold(path, shared=shared) as mine:
            assert not mine
    process.kill()
    process.communicate()
    with hold(path, shared=True) as first, hold(path, shared=True) as second, hold(path) as third:
        assert (first, second, third) == (True, True, False)


def test_a_scene_is_known_by_its_files_wherever_they_lie(tmp_path: Path) -> None:
    def identity(path: Path | str) -> str:
        scene = Scene(str(path), toys.manifest())
        try:
            return scene_identity(scene)
        finally:
            scene.close()

    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((200, 90)))
    first = identity(path)
    (tmp_path / "scene.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert identity(path) == first, "a GIS that looks at it changes nothing"
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy2(path, other)
    assert identity(other / path.name) == first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert identity(path) != first
    memory = f"/vsigzip/{tmp_path}/scene.tif.gz"
    import gzip

    (tmp_path / "scene.tif.gz").write_bytes(gzip.compress(path.read_bytes()))
    before = identity(memory)
    toys.write_raster(path, toys.noise((200, 90), seed=1))
    (tmp_path / "scene.tif.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert identity(memory) != before, "what is no plain file is known by its pixels"


def test_parts_are_read_as_people_write_them() -> None:
    assert Part.parse(" 2/4 ") == Part(2, 4)
    assert str(Part(2, 4)) == "2/4"
    for wrong in ("0/4", "5/4", "x", "2", "1/0", "٢/٤x"):
        with pytest.raises(InputError):
            Part.parse(wrong)
