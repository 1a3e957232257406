"""Law 6: one run, many shards, parts merged in any order, and runs that were killed and resumed give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely

from cegate_geo.api import Progress, merge, predict
from cegate_geo.cli.main import main
from cegate_geo.errors import CancelledError, CegateWarning, InputError, OutputExistsError
from cegate_geo.infer import budget
from cegate_geo.infer.lock import hold
from cegate_geo.infer.predictor import Predictor
from tests import toy_models as toys

FILES = {"output": "mask.tif", "confidence": "c.tif", "probabilities": "p.tif", "vector": "v.fgb"}
SHAPE = (2048, 640)
"""Four shards of 512 rows."""
ROWS = {"shard_rows": 512}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A scene with holes in it, and a model that sees more than a pixel."""
    folder = tmp_path_factory.mktemp("shards")
    scene = np.kron(toys.noise((SHAPE[0] // 32, SHAPE[1] // 32)), np.ones((1, 32, 32), np.uint8)) // 2 + 1
    scene += toys.noise(SHAPE, seed=1) // 16
    scene[:, 300:700, 100:400] = scene[:, 1150:1480] = 0
    toys.write_raster(folder / "scene.tif", scene, nodata=0, tiled=True)
    return {"scene": folder / "scene.tif", "model": toys.convolutions(folder / "conv.onnx", layers=3, size=128)}


@pytest.fixture(scope="module")
def one_run(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run of one shard gives: the sha256 of each output, the polygons, and the sums."""
    folder = tmp_path_factory.mktemp("one")
    result = predict(**given, **places(folder), shard_rows=4096)
    return digests(folder) | sums(result)


def places(folder: Path) -> dict[str, Path]:
    return {option: folder / name for option, name in FILES.items()}


def digests(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("mask.tif", "c.tif", "p.tif", "mask.tif.aux.xml", "mask.qml")
    }
    meta, _, wkb, columns = pyogrio.raw.read(folder / "v.fgb")
    rows = sorted(zip(map(shapely.to_wkt, shapely.from_wkb(wkb)), *(c.tolist() for c in columns), strict=True))
    return found | {"polygons": (meta["crs"], rows)}


def sums(result: Any) -> dict[str, Any]:
    return {"classes": list(result.classes), "nodata": result.nodata_pixels, "polygon count": result.polygons}


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def shards_in(folder: Path) -> list[list[int]]:
    """The shards that journals say are finished."""
    lines = [line for path in folder.glob("journal*.jsonl") for line in path.read_bytes().split(b"\n")[1:-1]]
    return [json.loads(line)["shard"] for line in lines]


def command(given: dict[str, Any], folder: Path, *more: str) -> list[str]:
    options = [f"--{name}={path}" for name, path in places(folder).items()]
    words = ["predict", str(given["scene"]), f"--model={given['model']}", "--shard-rows=512", *options, *more]
    return [sys.executable, "-m", "cegate_geo.cli.main", *words]


def events_of(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


@pytest.mark.parametrize("width", [512, 5000])
def test_many_shards_give_the_bytes_of_one(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(budget, "MAX_WIDTH", width)
    result = predict(**given, **places(tmp_path), **ROWS)
    assert digests(tmp_path) | sums(result) == one_run
    assert listing(tmp_path) == sorted([*FILES.values(), "mask.qml", "mask.tif.aux.xml"]), "nothing else is left"


def test_parts_in_any_order_merged_give_the_bytes_of_one(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path
) -> None:
    for name in ((3, 3), "1/3"):
        result = predict(**given, **places(tmp_path), **ROWS, shard=name)
        assert listing(tmp_path) == ["mask.tif.job"]
        assert result.output == tmp_path / "mask.tif.job"
    with pytest.raises(InputError, match=r"1 of 4 shards are missing.*r512c0\.shard.*--shard 2/3,"):
        merge(tmp_path / "mask.tif.job")
    part = predict(**given, **places(tmp_path), **ROWS, shard="2/3")
    assert len(shards_in(tmp_path / "mask.tif.job")) == 4
    result = merge(tmp_path / "mask.tif.job")
    assert digests(tmp_path) | sums(result) == one_run
    assert (result.provider, result.provider_reason) == (part.provider, part.provider_reason)
    assert part.provider_reason
    assert "mask.tif.job" not in listing(tmp_path)


def test_parts_at_the_same_time_and_another_one_killed(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path
) -> None:
    def start(part: str) -> subprocess.Popen[str]:
        words = command(given, tmp_path, "--events=jsonl", f"--shard={part}")
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first, second = start("1/2"), start("2/2")
    for event in events_of(second):
        if event["event"] == "progress" and event["done"] > 0:
            second.kill()
            break
    second.communicate()
    *_, last = events_of(first)
    assert last["event"] == "result"
    assert last["shard"] == "1/2"
    first.communicate()
    assert first.returncode == 0
    again = start("2/2")
    *_, last = events_of(again)
    again.communicate()
    assert last["shard"] == "2/2"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = [*command(given, tmp_path)[:3], "merge", str(tmp_path / "mask.tif.job"), "--events=jsonl"]
    words += [f"--{name}={path}" for name, path in places(elsewhere).items()]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    events = [*events_of(process)]
    process.communicate()
    assert (events[0]["event"], events[0]["command"], events[-1]["event"]) == ("hello", "merge", "result")
    assert digests(elsewhere) == {name: one_run[name] for name in digests(elsewhere)}
    assert listing(tmp_path) == ["elsewhere"]


TELLING = """
import json, sys
from cegate_geo.api import predict
predict(**json.loads(sys.argv[1]), progress=lambda at: print(at.fraction, flush=True))
"""


KILLED_RUNS = int(os.environ.get("CEGATE_KILLED_RUNS", "3"))
"""Runs that are killed three times each; CONTRIBUTING tells of it."""


@pytest.mark.parametrize("seed", range(KILLED_RUNS))
def test_killed_at_random_moments_and_resumed_it_gives_the_bytes_of_one(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    folder, moments = tmp_path / "mask.tif.job", random.Random(seed)
    asked = json.dumps({name: str(path) for name, path in (given | places(tmp_path)).items()} | ROWS)
    kept = 0
    for moment in (moments.uniform(0.1, 0.5), moments.uniform(0.5, 0.95), 0.9499):  # the last one while it finishes
        process = subprocess.Popen([sys.executable, "-c", TELLING, asked], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if float(line) >= moment:
                break
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert all(name.startswith(".") or name == folder.name for name in listing(tmp_path)), "no output's name"
        found = shards_in(folder)
        assert len(found) == len({tuple(shard) for shard in found}) >= kept, "no shard was computed twice"
        kept = len(found)
    assert kept >= 3
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.shard")}
    seen: dict[str, int] = {}

    def watch(_: Progress) -> None:
        seen.update({p.name: p.stat().st_mtime_ns for p in folder.glob("*.shard")})

    result = predict(**given, **places(tmp_path), **ROWS, progress=watch)
    assert result.resumed_shards == kept
    assert {name: seen[name] for name in times} == times, "finished shards are not written again"
    assert digests(tmp_path) | sums(result) == one_run
    assert listing(tmp_path) == sorted([*FILES.values(), "mask.qml", "mask.tif.aux.xml"])


def cancelled(given: dict[str, Any], folder: Path, *, fraction: float = 0.6, **more: Any) -> CancelledError:
    """Cancel a run when it is so far."""
    seen = [0.0]
    with pytest.raises(CancelledError) as told:
        predict(
            **given,
            **places(folder),
            **ROWS,
            **more,
            progress=lambda at: seen.append(at.fraction),
            cancel=lambda: seen[-1] >= fraction,
        )
    return told.value


def test_a_cancelled_run_keeps_its_finished_shards_and_says_so(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path
) -> None:
    error = cancelled(given, tmp_path)
    kept = len(shards_in(tmp_path / "mask.tif.job"))
    assert 1 <= kept <= 3
    assert f"{kept} of 4 shards are kept in mask.tif.job" in error.hint
    assert listing(tmp_path) == ["mask.tif.job"]
    assert not list((tmp_path / "mask.tif.job").glob("*.part")), "nothing half-written"
    assert predict(**given, **places(tmp_path), **ROWS).resumed_shards == kept
    assert digests(tmp_path) == {name: one_run[name] for name in digests(tmp_path)}


def test_a_run_cancelled_before_its_first_shard_is_finished_leaves_nothing(
    given: dict[str, Any], tmp_path: Path
) -> None:
    assert cancelled(given, tmp_path, fraction=0.01).hint == "Nothing was written."
    assert listing(tmp_path) == []


def test_without_resume_nothing_is_kept_and_nothing_taken(given: dict[str, Any], tmp_path: Path) -> None:
    cancelled(given, tmp_path)
    assert listing(tmp_path) == ["mask.tif.job"]
    assert cancelled(given, tmp_path, resume=False).hint == "Nothing was written."
    assert listing(tmp_path) == []
    cancelled(given, tmp_path)
    assert predict(**given, **places(tmp_path), **ROWS, resume=False).resumed_shards == 0
    assert "mask.tif.job" not in listing(tmp_path)


def test_a_run_with_wrong_input_leaves_nothing(given: dict[str, Any], tmp_path: Path) -> None:
    for wrong in ({"bands": [1, 2, 9]}, {"aoi": tmp_path / "none.gpkg"}, {"halo": 64}, {"nodata": [300]}):
        for more in ({}, {"shard": "1/2"}):
            with pytest.raises(InputError):
                predict(**given, **places(tmp_path), **ROWS, **wrong, **more)
    assert listing(tmp_path) == []


@pytest.fixture
def begun(given: dict[str, Any], tmp_path: Path) -> Path:
    """The job folder of a run that was cancelled."""
    cancelled(given, tmp_path)
    return tmp_path / "mask.tif.job"


def test_shards_of_another_job_are_refused_by_name(given: dict[str, Any], begun: Path, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    other = toys.convolutions(tmp_path / "other.onnx", layers=3, size=128, seed=1)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"halo": 9}, r"halo was 8, is 9\."),
        ({"stitch": "crop"}, r"stitch was blend, is crop\."),
        ({"model": other}, "model was [0-9a-f]{20}"),
        ({"bands": [3, 2, 1]}, r"bands was \[1, 2, 3\], is \[3, 2, 1\]\."),
        ({"nodata": [0]}, "nodata was"),
        ({"batch_size": 2}, r"batch was 1, is 2\."),
        ({"probabilities": None}, "layers was"),
    ]
    for change, said in changes:
        with pytest.raises(InputError, match=f"shards of another job: {said}") as told:
            predict(**{**given, **places(tmp_path), **ROWS, **change})
        assert "--no-resume" in told.value.hint
    with given["scene"].open("rb+"):
        times = given["scene"].stat()
        os.utime(given["scene"], ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    try:
        with pytest.raises(InputError, match=r"scene was scene\.tif"):
            predict(**given, **places(tmp_path), **ROWS)
    finally:
        os.utime(given["scene"], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before


def test_what_changes_no_byte_may_change(given: dict[str, Any], one_run: dict[str, Any], begun: Path) -> None:
    result = predict(**given, **places(begun.parent), shard_rows=1024, threads=1, max_memory_mb=4096)
    assert result.resumed_shards > 0
    assert digests(begun.parent) == {name: one_run[name] for name in digests(begun.parent)}


def test_finished_shards_that_take_more_memory_than_is_given_are_refused(
    given: dict[str, Any], begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "estimate", lambda *_, **__: budget.Budget(fixed=0, per_column=2**20))
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    with pytest.raises(InputError, match="640 px wide, which takes about 640 MB: --max-memory 600M") as told:
        predict(**given, **places(begun.parent), max_memory_mb=600)
    assert "--max-memory 640M" in told.value.hint
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before
    assert predict(**given, **places(begun.parent), max_memory_mb=640).resumed_shards > 0


@pytest.mark.parametrize("harm", ["torn line", "torn header", "cut shard", "flipped bit", "no shard", "foreign line"])
def test_what_is_damaged_is_computed_again(
    given: dict[str, Any], one_run: dict[str, Any], begun: Path, harm: str
) -> None:
    kept, journal = len(shards_in(begun)), begun / "journal.jsonl"
    shard = begun / "r0c0.shard"
    if harm == "torn line":
        journal.write_bytes(journal.read_bytes()[:-7])
    elif harm == "torn header":
        journal.write_bytes(journal.read_bytes()[:100])
    elif harm == "foreign line":
        journal.write_bytes(journal.read_bytes() + b'{"shard": [0, 0]}\n[1, 2]\n\xff\xfe\n')
    elif harm == "cut shard":
        os.truncate(shard, shard.stat().st_size - 1)
    elif harm == "flipped bit":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    left = {"torn header": 0, "foreign line": kept}.get(harm, kept - 1)
    if left and harm != "foreign line":
        with pytest.raises(InputError, match=f"{4 - left} of 4 shards are missing"):
            merge(begun)
    result = predict(**given, **places(begun.parent), **ROWS)
    assert result.resumed_shards == left
    assert digests(begun.parent) | sums(result) == one_run


def test_a_journal_goes_on_after_a_torn_line(given: dict[str, Any], begun: Path) -> None:
    journal = begun / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    left = len(shards_in(begun))
    cancelled(given, begun.parent, fraction=0.94)
    lines = [line for line in journal.read_bytes().split(b"\n")[1:-1] if line.endswith(b"}}")]
    assert len(lines) > left, "what follows the torn line counts"
    assert predict(**given, **places(begun.parent), **ROWS).resumed_shards == len(lines)


def test_while_a_run_is_at_work_another_one_is_refused(given: dict[str, Any], begun: Path) -> None:
    with hold(begun / "lock") as mine:
        assert mine
        for more in ({}, {"shard": "1/2"}, {"resume": False}):
            with pytest.raises(InputError, match="another run"):
                predict(**given, **places(begun.parent), **ROWS, **more)
        with pytest.raises(InputError, match="another run"):
            merge(begun)
    with hold(begun / "lock", shared=True), hold(begun / ".journal-1-of-2.jsonl.lock"):
        with pytest.raises(InputError, match="for part 1/2, is at work"):
            predict(**given, **places(begun.parent), **ROWS, shard="1/2")
        predict(**given, **places(begun.parent), **ROWS, shard="2/2")
        with pytest.raises(InputError, match="another run"):
            merge(begun)
    predict(**given, **places(begun.parent), **ROWS)


@pytest.mark.parametrize("part", ["0/4", "5/4", "x", "1/0", "1", "-1/2", "1/2/3", ""])
def test_parts_that_are_none_are_refused(given: dict[str, Any], tmp_path: Path, part: str) -> None:
    with pytest.raises(InputError, match="part"):
        predict(**given, **places(tmp_path), shard=part)
    done = subprocess.run(command(given, tmp_path, f"--shard={part}"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert listing(tmp_path) == []


def test_parts_go_without_no_resume(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resume=False does without"):
        predict(**given, **places(tmp_path), shard="1/2", resume=False)


def test_more_parts_than_shards_make_lower_shards(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path
) -> None:
    """A default shard is as high as the scene; three parts share it all the same, and a seventh has nothing to do."""
    result = [predict(**given, **places(tmp_path), shard=(n, 7)) for n in range(1, 8)]
    assert sum(r.tiles > 0 for r in result) == 4
    assert digests_of_merge(tmp_path) == {name: one_run[name] for name in digests(tmp_path)}


def digests_of_merge(folder: Path) -> dict[str, Any]:
    merge(folder / "mask.tif.job")
    return digests(folder)


def test_merge_asks_for_what_was_computed(given: dict[str, Any], tmp_path: Path) -> None:
    predict(**given, output=tmp_path / "mask.tif", shard="1/1", **ROWS)
    job = tmp_path / "mask.tif.job"
    before = {p.name: p.read_bytes() for p in job.iterdir()}
    for option in ("vector", "confidence", "probabilities"):
        with pytest.raises(InputError, match="which the parts were not asked for"):
            merge(job, **{option: tmp_path / FILES[option]})
    with pytest.raises(InputError, match=r"does not end in \.tif"):
        merge(job, tmp_path / "mask.png")
    with pytest.raises(InputError, match="no job folder"):
        merge(tmp_path)
    (tmp_path / "mask.tif").write_text("precious")
    with pytest.raises(OutputExistsError):
        merge(job)
    assert {p.name: p.read_bytes() for p in job.iterdir()} == before
    merge(job, overwrite=True)
    assert listing(tmp_path) == ["mask.qml", "mask.tif", "mask.tif.aux.xml"]


def test_merge_does_not_choose_between_parts_that_were_told_different_things_of_polygons(
    given: dict[str, Any], tmp_path: Path
) -> None:
    told = {"vector": tmp_path / "v.fgb", "output": tmp_path / "mask.tif", **ROWS}
    predict(**given, **told, shard="1/2", min_area_m2=3.0)
    predict(**given, **told, shard="2/2", vector_classes=["other"])
    job = tmp_path / "mask.tif.job"
    before = {p.name: p.read_bytes() for p in job.iterdir()}
    said = r"--min-area is 3 in journal-1-of-2\.jsonl, 0 in journal-2-of-2\.jsonl"
    with pytest.raises(InputError, match=said):
        merge(job)
    with pytest.raises(InputError, match=r"--vector-classes is all in .*, other in journal-2-of-2\.jsonl"):
        merge(job, min_area_m2=3.0)
    assert {p.name: p.read_bytes() for p in job.iterdir()} == before
    merge(job, min_area_m2=3.0, vector_classes=["other"])
    assert {name for name in listing(tmp_path) if name.startswith("v")} == {"v.fgb"}


def test_merge_tells_how_far_it_is(given: dict[str, Any], tmp_path: Path) -> None:
    for part in ("1/2", "2/2"):
        predict(**given, **places(tmp_path), **ROWS, shard=part)
    seen: list[Progress] = []
    merge(tmp_path / "mask.tif.job", progress=seen.append)
    fractions = [at.fraction for at in seen]
    assert fractions == sorted(fractions)
    assert [at.done for at in seen][:5] == [0, 1, 2, 3, 4], "shard by shard"
    assert len({f for f in fractions if 0.3 < f < 1}) >= 3, "polygons and each raster are told, too"
    assert (fractions[0], fractions[-1]) == (0, 1)


@pytest.mark.parametrize("by", [merge, None])
def test_a_finished_job_leaves_what_others_put_into_its_folder(
    given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path, by: Any
) -> None:
    """Logs of a batch system, say, or the output itself."""
    job = tmp_path / "mask.tif.job"
    predict(**given, **places(tmp_path), **ROWS, shard="1/1")
    (job / "part-1.log").write_text("precious")
    if by is None:
        predict(**given, **places(tmp_path), **ROWS)
        assert listing(job) == ["part-1.log"]
    else:
        merge(job, job / "mask.tif")
        assert listing(job) == ["mask.qml", "mask.tif", "mask.tif.aux.xml", "part-1.log"]
    mask = tmp_path / "mask.tif" if by is None else job / "mask.tif"
    assert hashlib.sha256(mask.read_bytes()).hexdigest() == one_run["mask.tif"]


def test_journals_say_how_shards_are_really_cut(given: dict[str, Any], one_run: dict[str, Any], tmp_path: Path) -> None:
    """Who comes later cuts as those before, whatever the command says; the merge may read any journal first."""
    for part, rows in (("2/2", 512), ("1/2", 1024)):
        predict(**given, **places(tmp_path), shard_rows=rows, shard=part)
    assert digests_of_merge(tmp_path) == {name: one_run[name] for name in digests(tmp_path)}


def test_a_part_cancelled_before_its_first_shard_is_finished_leaves_nothing(
    given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CancelledError, match="Nothing was written"):
        predict(**given, **places(tmp_path), **ROWS, shard="1/2", cancel=lambda: True)
    assert listing(tmp_path) == []
    predict(**given, **places(tmp_path), **ROWS, shard="2/2")
    before = {p.name: p.read_bytes() for p in (tmp_path / "mask.tif.job").glob("[jr]*")}
    with pytest.raises(CancelledError):
        predict(**given, **places(tmp_path), **ROWS, shard="1/2", cancel=lambda: True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "mask.tif.job").glob("[jr]*")} == before


def test_merge_refuses_what_predict_refuses(given: dict[str, Any], tmp_path: Path) -> None:
    predict(**given, **places(tmp_path), shard="1/1", **ROWS)
    job = tmp_path / "mask.tif.job"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"vector": tmp_path / "v.shp"}, "no known vector format"),
        ({"min_area_m2": -3}, "min_area_m2=-3 is negative"),
        ({"simplify_m": float("nan")}, "simplify_m=nan is"),
        ({"vector_classes": ["nosuch"]}, "no class 'nosuch'"),
    ]
    for options, said in refused:
        with pytest.raises(InputError, match=said):
            merge(job, **options)
        assert listing(tmp_path) == ["mask.tif.job"]


def test_merge_tells_no_provider_without_a_reason(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(**given, output=tmp_path / "mask.tif", shard="1/1", **ROWS)
    assert main(["merge", str(tmp_path / "mask.tif.job")]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith(":")]


def test_a_folder_with_other_files_is_not_cleared_away(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mask.tif.job").mkdir()
    (tmp_path / "mask.tif.job" / "thesis.doc").write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.doc, which is no part of a job"):
        predict(**given, **places(tmp_path), **ROWS, resume=False)
    assert (tmp_path / "mask.tif.job" / "thesis.doc").read_text() == "precious"


def test_merge_does_not_overwrite_an_asset_of_its_item(tmp_path: Path) -> None:
    names = ("red", "green", "blue")
    for name in names:
        toys.write_raster(tmp_path / f"{name}.tif", toys.noise((70, 90), channels=1), photometric=None)
    assets = {name: {"href": f"{name}.tif", "eo:bands": [{"common_name": name}]} for name in names}
    item = tmp_path / "item.json"
    item.write_text(
        json.dumps({"type": "Feature", "stac_version": "1.0.0", "id": "x", "properties": {}, "assets": assets})
    )
    predict(item, tmp_path / "mask.tif", model=toys.identity(tmp_path / "m.onnx"), shard="1/1")
    before = (tmp_path / "red.tif").read_bytes()
    with pytest.raises(InputError, match=r"red\.tif is an input and an output"):
        merge(tmp_path / "mask.tif.job", tmp_path / "red.tif", overwrite=True)
    assert (tmp_path / "red.tif").read_bytes() == before


@pytest.mark.parametrize("gsd", ["source", "model"])
@pytest.mark.parametrize("gsd_m", [0.06, 0.4])
def test_shards_of_a_resampled_scene_agree(tmp_path: Path, gsd_m: float, gsd: str) -> None:
    from affine import Affine

    scene = np.maximum(toys.noise((1300, 200) if gsd_m < 0.1 else (1200, 90), seed=5), 1)
    scene[:, 500:640, 30:80] = 0
    where = {"crs": "EPSG:32645", "transform": Affine(gsd_m, 0, 300_000, 0, -gsd_m, 3_000_000)}
    toys.write_raster(tmp_path / "scene.tif", scene, nodata=0, **where)
    model, found = toys.convolutions(tmp_path / "conv.onnx", layers=3, size=128), []
    for name, more in (("one", {}), ("many", ROWS), ("parts", ROWS)):
        folder = tmp_path / name
        folder.mkdir()
        options: dict[str, Any] = {**places(folder), **more, "gsd": gsd, "resample": "always"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CegateWarning)
            if name == "parts":
                for part in ("2/2", "1/2"):
                    predict(tmp_path / "scene.tif", model=model, shard=part, **options)
                result = merge(folder / "mask.tif.job")
            else:
                result = predict(tmp_path / "scene.tif", model=model, **options)
        found.append(digests(folder) | sums(result))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_call_of_a_session_has_the_same_shape(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    shapes, run = set(), Predictor.run

    def spy(self: Predictor, inputs: Any) -> Any:
        shapes.add(inputs.shape)
        assert np.isfinite(inputs).all()
        return run(self, inputs)

    monkeypatch.setattr(Predictor, "run", spy)
    result = predict(**given, **places(tmp_path), **ROWS, batch_size=batch_size)
    assert batch_size == 1 or (result.tiles - result.skipped_tiles) % batch_size, "the last batch is not full"
    assert shapes == {(batch_size, 3, 128, 128)}
