"""Laws of resuming: on the data that a run began with, wherever they lie by now; on others only if that was said."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import geopandas
import pytest
import rasterio
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from shapely.affinity import translate

from cegate_geo.cli.adapt import command
from cegate_geo.errors import CancelledError, InputError
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.export import export_run
from cegate_geo.train.loop import adapt
from cegate_geo.train.run import load_run

from .scenes import write_squares
from .test_adapt import config


def settings(folder: Path) -> AdaptConfig:
    """With paths that hold wherever the folder lies, and what a run may learn from beside its sources."""
    write_squares(folder, seed=1, name="other")
    made = config(folder, style=0.5)
    source = dataclasses.replace(made.source[0], images="squares.tif", labels="squares.gpkg")
    held_out = dataclasses.replace(source, images="other.tif", labels="other.gpkg")
    look = dataclasses.replace(made.style[0], images="squares.tif")
    return dataclasses.replace(made, source=(source,), validation=(held_out,), style=(look,))


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdaptConfig:
    """A run in the folder where we are, stopped after seven steps."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = settings(Path())
    calls = iter([False] * 6 + [True])
    with pytest.raises(CancelledError, match="7 steps"):
        adapt(made, Path("run"), device="cpu", cancelled=lambda: next(calls))
    return made


def repaint(path: Path) -> None:
    with rasterio.open(path, "r+") as target:
        values = target.read()
        values[1, 17, 40] ^= 1
        target.write(values)


def redraw(path: Path) -> None:
    frame = geopandas.read_file(path)
    frame.loc[0, "geometry"] = translate(frame.geometry[0], xoff=1.0)
    frame.to_file(path)


def test_a_run_goes_on_to_the_bit_where_it_and_its_data_were_copied_to(
    stopped: AdaptConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)  # of another time, too
    adapt(stopped, Path("whole"), device="cpu")
    monkeypatch.chdir(tmp_path / "there")
    adapt(stopped, Path("run"), device="cpu", resume=True)
    whole, parts = (load_file(tmp_path / n / "adapter.safetensors") for n in ("here/whole", "there/run"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert "changes" not in load_run(Path("run")).facts


def test_a_run_with_absolute_paths_goes_on_where_it_was_moved_to_and_is_exported_there(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    calls = iter([False] * 6 + [True])
    with pytest.raises(CancelledError):
        adapt(config(tmp_path / "here"), tmp_path / "here" / "run", device="cpu", cancelled=lambda: next(calls))
    (tmp_path / "here").rename(tmp_path / "there")
    moved, run = config(tmp_path / "there"), tmp_path / "there" / "run"
    other = dataclasses.replace(moved, train=dataclasses.replace(moved.train, lr=1e-5))
    named = dataclasses.replace(moved.source[0], labels=str(tmp_path / "there" / "others.gpkg"))
    for wrong in (other, dataclasses.replace(moved, source=(named,))):
        with pytest.raises(InputError, match="no run of this configuration"):
            adapt(wrong, run, device="cpu", resume=True)
    adapt(moved, run, device="cpu", resume=True)
    assert str(tmp_path / "here") not in (run / "config.json").read_text(encoding="utf-8")
    report = export_run(run, run / "model.onnx", keep=0.99)  # reads held-out tiles
    assert report.curve


@pytest.mark.parametrize(
    ("change", "name", "told"),
    [
        (repaint, "squares.tif", "the pixels of squares.tif (training)"),
        (redraw, "squares.gpkg", "the labels of squares.tif (training)"),
        (repaint, "other.tif", "the pixels of other.tif (validation)"),
        (redraw, "other.gpkg", "the labels of other.tif (validation)"),
    ],
)
def test_a_run_is_not_resumed_on_other_data_unless_that_was_said(
    stopped: AdaptConfig, change: Callable[[Path], None], name: str, told: str
) -> None:
    change(Path(name))
    state = Path("run/state/state.json").read_bytes()
    with pytest.raises(InputError) as caught:
        adapt(stopped, Path("run"), device="cpu", resume=True)
    assert told in caught.value.message
    assert "--accept-changes" in caught.value.hint
    assert Path("run/state/state.json").read_bytes() == state
    adapt(stopped, Path("run"), device="cpu", resume="changed")
    (noted,) = json.loads(Path("run/state/state.json").read_text(encoding="utf-8"))["extra"]["changes"]
    assert noted["step"] == 7
    assert told in noted["changed"]
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    has_seen_it = result["best_step"] > 7  # the weights that were kept
    assert result["facts"].get("changes", []) == ([noted] if has_seen_it else [])
    adapt(stopped, Path("run"), device="cpu", resume=True)  # these are the data now


def test_looks_that_changed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path, seed=2, name="look")
    made = settings(Path())
    made = dataclasses.replace(made, style=(dataclasses.replace(made.style[0], images="look.tif"),))
    with pytest.raises(CancelledError):
        adapt(made, Path("run"), device="cpu", cancelled=lambda: True)
    write_squares(tmp_path, seed=3, name="look")
    with pytest.raises(InputError, match=r"stopped: the pixels of \[\[style\]\] \(looks\)\."):
        adapt(made, Path("run"), device="cpu", resume=True)


def test_frozen_weights_that_changed_are_told(tmp_path: Path) -> None:
    weights = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        weights[seed] = timm.create_model("test_vit2.r160_in1k", num_classes=0).state_dict()
    file = tmp_path / "base.safetensors"
    save_file(weights[0], file)
    made = config(tmp_path)
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, weights=str(file)))
    with pytest.raises(CancelledError):
        adapt(made, tmp_path / "run", device="cpu", cancelled=lambda: True)
    save_file(weights[1], file)
    with pytest.raises(InputError, match=r"the contents of base\.safetensors \(weights\)\."):
        adapt(made, tmp_path / "run", device="cpu", resume=True)
    save_file(weights[0], file)
    adapt(made, tmp_path / "run", device="cpu", resume=True)


def test_states_of_before_it_was_kept_are_resumed(stopped: AdaptConfig) -> None:
    state = Path("run/state/state.json")
    table = json.loads(state.read_text(encoding="utf-8"))
    del table["extra"]["seen"], table["extra"]["changes"]
    state.write_text(json.dumps(table), encoding="utf-8")
    repaint(Path("squares.tif"))
    adapt(stopped, Path("run"), device="cpu", resume=True)
    facts = json.loads(Path("run/result.json").read_text(encoding="utf-8"))["facts"]
    assert "changes" not in facts


def test_changes_are_accepted_of_a_run_that_is_resumed_only() -> None:
    result = CliRunner().invoke(command, ["c.toml", "-o", "run", "--accept-changes"], obj={})
    assert result.exit_code == 2
    assert "--accept-changes goes with --resume" in result.output
