"""The events of `adapt` and `evaluate`, as the QGIS plugin reads them: in another process, its input open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cegate_geo.train.config_file import to_table

from .scenes import write_squares
from .test_adapt import config


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cegate_geo", *map(str, words), "--events", "jsonl"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def events(running: subprocess.Popen[str]) -> list[dict[str, object]]:
    assert running.stdout is not None
    return [json.loads(line) for line in running.stdout.read().splitlines()]


def write_config(folder: Path, **train: object) -> list[str]:
    """Options that say what `config` of test_adapt says."""
    table = to_table(config(folder, **train))
    lines = ["[classes]", *(f'{k} = "{v}"' for k, v in table["classes"].items())]
    for name in ("model", "train", "peft"):
        plain = {k: v for k, v in table[name].items() if v is not None and not isinstance(v, dict)}
        lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in plain.items())]
    source = table["source"][0]
    lines += ["[[source]]", *(f"{k} = {json.dumps(source[k])}" for k in ("images", "labels", "label_field"))]
    path = folder / "adapt.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(path), "-o", str(folder / "run"), "--device", "cpu"]


def test_adapt_tells_each_step_and_what_came_of_it(tmp_path: Path) -> None:
    with start("adapt", *write_config(tmp_path)) as running:
        said = events(running)
        assert running.wait() == 0, said
    assert (said[0]["event"], said[0]["command"]) == ("hello", "adapt")
    steps = [e for e in said if e["event"] == "progress"]
    assert [e["done"] for e in steps] == sorted({e["done"] for e in steps})  # type: ignore[type-var]
    assert (steps[-1]["done"], steps[-1]["total"], steps[-1]["fraction"]) == (12, 12, 1.0)
    assert steps[0]["miou"] is None
    assert all(isinstance(e["loss"], float) for e in steps)
    told = {e["miou"] for e in steps} - {None}
    assert len(told) == 2  # two validations, none lost between events that came too fast to be told
    result = said[-1]
    assert (result["event"], result["command"]) == ("result", "adapt")
    assert result["miou"] in told
    for key in ("model", "report", "run"):
        assert Path(str(result[key])).exists()


def test_the_line_cancel_saves_and_resume_goes_on(tmp_path: Path) -> None:
    words = write_config(tmp_path, steps=400, validate_every=200, save_every=200)
    with start("adapt", *words) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        while json.loads(running.stdout.readline())["event"] != "progress":
            pass
        running.stdin.write("cancel\n")
        running.stdin.flush()
        last = events(running)[-1]
        assert running.wait() == 130
    assert (last["event"], last["code"]) == ("error", "cancelled")
    assert "--resume" in str(last["hint"])
    with start("adapt", *words, "--resume") as running:
        assert running.stdout is not None
        while (first := json.loads(running.stdout.readline()))["event"] != "progress":
            pass
        running.kill()
    assert first["done"] > 1


@pytest.mark.parametrize("target", [(), ("--json", "figures.json")])
def test_evaluate_gives_its_figures_as_an_event(tmp_path: Path, target: tuple[str, ...]) -> None:
    _, labels = write_squares(tmp_path)
    mask = tmp_path / "squares_mask.tif"
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in target]
    make_mask(tmp_path / "squares.tif", mask)
    given = ["--labels", labels, "--label-field", "class", "--class", "other", "--class", "building"]
    with start("evaluate", mask, *given, *words) as running:
        hello, result = events(running)
        assert running.wait() == 0
    assert hello["command"] == result["command"] == "evaluate"
    assert 0 < float(str(result["miou"])) < 1
    if target:
        figures = json.loads(Path(words[1]).read_text(encoding="utf-8"))
        assert figures == {k: v for k, v in result.items() if k not in ("event", "command")}


def make_mask(raster: Path, mask: Path) -> None:
    import rasterio

    with rasterio.open(raster) as source:
        values = (source.read(1) > source.read(1).mean()).astype("uint8")
        profile = {"driver": "GTiff", "width": source.width, "height": source.height, "count": 1, "dtype": "uint8"}
        with rasterio.open(mask, "w", crs=source.crs, transform=source.transform, **profile) as target:
            target.write(values, 1)
