"""The command line: what it loads, how it says what is wrong."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio

from cegate_geo import __version__
from cegate_geo.cli import main as module
from cegate_geo.cli.events import wants_events
from cegate_geo.cli.main import COMMANDS, main
from cegate_geo.domain.legend import Legend
from tests import toy_models as toys

HEAVY = {"torch", "timm", "onnx", "geopandas", "pandas"}


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after some code."""
    script = (
        f"import sys\n{code}\nprint(' '.join(sorted({{m.partition('.')[0] for m in sys.modules}})), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


def test_importing_the_package_costs_nothing() -> None:
    loaded = loaded_after("import cegate_geo")
    assert loaded & (HEAVY | {"numpy", "rasterio", "click", "onnxruntime", "tqdm"}) == set()


def test_the_package_has_what_its_api_has_once_it_is_asked_for() -> None:
    import cegate_geo
    from cegate_geo import api

    functions = {name for name in cegate_geo.__all__ if name != "__version__"}
    assert functions == {name for name in api.__all__ if inspect.isfunction(getattr(api, name))} - {
        "default_model_path"
    }
    assert all(getattr(cegate_geo, name) is getattr(api, name) for name in functions)
    assert functions <= set(dir(cegate_geo))
    with pytest.raises(AttributeError, match="'cegate_geo' has no attribute 'predicts'"):
        cegate_geo.predicts  # noqa: B018 - it is asked for


def test_help_loads_no_framework() -> None:
    code = "from cegate_geo.cli.main import main; assert main(['--help']) == 0; assert main(['predict', '--help']) == 0"
    assert loaded_after(code) & (HEAVY | {"rasterio", "onnxruntime"}) == set()


def test_predict_never_loads_torch(tmp_path: Path) -> None:
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)))
    words = ["predict", str(scene), "-o", str(tmp_path / "mask.tif"), "-m", str(toys.brightness(tmp_path / "m.onnx"))]
    words += ["--confidence", str(tmp_path / "c.tif")]
    loaded = loaded_after(f"from cegate_geo.cli.main import main; assert main({words!r}) == 0")
    assert {"onnxruntime", "rasterio"} <= loaded
    assert loaded & HEAVY == set()
    assert (tmp_path / "mask.tif").exists()


def test_predict_with_polygons_never_loads_torch(tmp_path: Path) -> None:
    """pyogrio itself looks for geopandas where that is installed; torch stays out all the same."""
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)))
    words = ["predict", str(scene), "-o", str(tmp_path / "mask.tif"), "-m", str(toys.brightness(tmp_path / "m.onnx"))]
    words += ["--vector", str(tmp_path / "v.gpkg")]
    loaded = loaded_after(f"from cegate_geo.cli.main import main; assert main({words!r}) == 0")
    assert loaded & {"torch", "timm", "onnx"} == set()


def test_labels_of_a_prediction_are_made_without_torch(tmp_path: Path) -> None:
    """geopandas is what pyogrio looks for by itself."""
    scene, mask, sure = (str(tmp_path / f"{name}.tif") for name in ("scene", "mask", "sure"))
    toys.write_raster(Path(scene), toys.noise((70, 90)))
    predict = ["predict", scene, "-o", mask, "--confidence", sure, "-m", str(toys.brightness(tmp_path / "m.onnx"))]
    words = ["self-label", mask, sure, "-o", str(tmp_path / "labels.tif"), "--share", "0.5"]
    code = f"from cegate_geo.cli.main import main; assert main({predict!r}) == 0; assert main({words!r}) == 0"
    assert loaded_after(code) & {"torch", "timm", "onnx"} == set()
    assert (tmp_path / "labels.tif").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: cegate-geo {name}")
    assert "--verbose" in text


def test_version_and_unknown_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out
    for words in (["prdict"], ["predict"], ["predict", "a.tif"], ["predict", "a.tif", "-o", "b.tif", "--gpu"]):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1
        assert "--help" in captured.err


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name="torch")

    monkeypatch.setattr(module.importlib, "import_module", missing)
    assert main(["adapt", "--help"]) == 3
    assert 'pip install "cegate-geo[train]"' in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module.cli, "main", lambda **_: 1 / 0)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert "ZeroDivisionError" in captured.err
    assert "report it" in captured.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["predict", "--events", "jsonl"], True),
        (["predict", "--events=jsonl", "x"], True),
        (["predict", "--events"], False),
        (["predict", "jsonl"], False),
        ([], False),
    ],
)
def test_events_are_recognised_before_parsing(words: list[str], wanted: bool) -> None:
    assert wants_events(words) == wanted


@pytest.mark.parametrize(
    ("text", "megabytes"), [("512M", 512), ("2G", 2048), ("1.5gb", 1536), ("300", 300), ("300 MB", 300)]
)
def test_memory_sizes_are_understood(text: str, megabytes: int) -> None:
    from cegate_geo.cli.predict import MemorySize

    assert MemorySize().convert(text, None, None) == megabytes


def test_a_mask_is_summed_up_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)))
    words = ["predict", str(scene), "-o", str(tmp_path / "mask.tif"), "-m", str(toys.brightness(tmp_path / "m.onnx"))]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith(f"{tmp_path / 'mask.tif'}  (4 tiles")
    assert "building" in captured.out
    assert "m²" in captured.out
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_warnings_are_one_line_each_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90), channels=4), photometric="MINISBLACK")
    words = ["predict", str(scene), "-o", str(tmp_path / "mask.tif"), "-m", str(toys.brightness(tmp_path / "m.onnx"))]
    assert main(words) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cegate-geo: warning: The scene does not name its bands")


def test_info_of_a_model_has_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toys.identity(tmp_path / "m.onnx", parameters=7, modules_kept=("blocks.0.attn.qkv",), modules_total=4)
    assert main(["info", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    promised = ("manifest", "parameters", "modules_kept", "modules_total", "opset", "ir_version", "inputs", "outputs")
    assert set(promised) <= set(facts)
    assert facts["manifest"]["legend"][1]["name"] == "building"
    assert (facts["parameters"], facts["modules_kept"], facts["modules_total"]) == (7, ["blocks.0.attn.qkv"], 4)
    assert main(["info", str(model)]) == 0
    assert "building" in capsys.readouterr().out


def test_info_of_a_raster_agrees_with_rasterio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((70, 90)), nodata=9, compress="JPEG")
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with rasterio.open(path) as dataset:
        assert (facts["width"], facts["height"]) == (dataset.width, dataset.height)
        assert facts["bounds"] == pytest.approx(list(dataset.bounds))
        assert facts["crs"] == "EPSG:32645"
        assert [b["name"] for b in facts["bands"]] == ["red", "green", "blue"]
        assert facts["bands"][0]["nodata"] == 9
        assert facts["compression"] == "jpeg"
    assert facts["ground"]["gsd_m"] == pytest.approx(0.13, rel=1e-3)


def test_info_of_a_name_that_is_no_text_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", f"{tmp_path}/bad\udcff.tif"]) == 2
    assert "is no text" in capsys.readouterr().err


def test_info_takes_gdals_own_names_for_rasters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "GTIFF_DIR:1:nowhere"]) == 2
    assert "can't be read" in capsys.readouterr().err


@pytest.mark.parametrize("nodata", ["nan", "inf", "-inf"])
def test_info_of_a_raster_is_json_whatever_its_nodata_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nodata: str
) -> None:
    path = toys.write_raster(tmp_path / "scene.tif", toys.noise((7, 9)).astype("float32"), nodata=float(nodata))
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [band["nodata"] for band in facts["bands"]] == [nodata] * 3


def test_info_of_a_run_reads_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"train": {"steps": 5}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 5, "miou": 0.5}\n')
    assert main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["train"]["steps"] == 5
    assert facts["metrics"] == {"records": 2, "last": {"step": 5, "miou": 0.5}}
    (tmp_path / "config.json").write_text("{")
    assert main(["info", str(tmp_path)]) == 2
    assert main(["info", str(tmp_path / "nothing.tif")]) == 2


def test_the_doctor_finds_a_working_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    names = {f["name"] for f in report["findings"]}
    assert {"python", "rasterio", "GDAL", "onnxruntime", "providers", "PROJ (rasterio)", "PROJ (pyproj)"} <= names
    assert "distributed" in names


def test_the_doctor_names_what_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cegate_geo.cli import checkup

    both = {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}
    monkeypatch.setattr(checkup, "_version", lambda package: both.get(package, ""))
    monkeypatch.setattr(checkup, "_machine", lambda: 1 / 0)
    assert main(["doctor"]) == 3
    text = capsys.readouterr().out
    assert "overwrite each other" in text
    assert "pip uninstall" in text


def test_the_doctor_calls_a_damaged_model_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cegate_geo.infer import models

    pointer = tmp_path / "model.onnx"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setattr(models, "default_model_path", lambda: pointer)
    assert main(["doctor", "--json"]) == 3
    found = {f["name"]: f["state"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["shipped model"] == "broken"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_reach_any_pipe(tmp_path: Path, encoding: str) -> None:
    """Windows' pipes are cp1252, and a cron job's are ASCII."""
    legend = Legend.from_names({0: "其他", 1: "建筑 où"})
    model = toys.brightness(tmp_path / "m.onnx", legend=legend)
    scene = toys.write_raster(tmp_path / "scène.tif", toys.noise((40, 40)))
    words = [sys.executable, "-m", "cegate_geo", "predict", str(scene), "-m", str(model)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    quiet, keyboard = os.pipe()  # its end would be a wish to cancel

    def run(*more: str) -> bytes:
        done = subprocess.run([*words, *more], env=environment, capture_output=True, check=True, stdin=quiet)
        return done.stdout

    try:
        events = [json.loads(line) for line in run("-o", str(tmp_path / "a.tif"), "--events", "jsonl").splitlines()]
    finally:
        os.close(quiet)
        os.close(keyboard)
    assert events[-1]["event"] == "result"
    assert tuple(c["name"] for c in events[-1]["classes"]) == tuple(legend.names)
    quiet = subprocess.DEVNULL
    text = run("-o", str(tmp_path / "b.tif"))
    assert b"b.tif" in text
    assert ("建筑 où".encode() in text) == (encoding != "cp1252")


def test_foreign_projection_data_is_noticed() -> None:
    """What happens when a GIS starts the engine with its own PROJ_LIB."""
    result = subprocess.run(
        [sys.executable, "-m", "cegate_geo.cli.main", "doctor", "--json"],
        env={
            "PATH": "/usr/bin:/bin",
            "PROJ_LIB": "/nonexistent",
            "PROJ_DATA": "/nonexistent",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    findings = {f["name"]: f for f in json.loads(result.stdout)["findings"]}
    assert findings["PROJ_LIB"]["value"] == "/nonexistent"


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["cegate-geo", "predict", "none.tif", "-o", "mask.tif", *{more!r}]
from cegate_geo.__main__ import main
raise SystemExit(main())
"""


@pytest.mark.parametrize("name", ["click", "cegate_geo.cli.predict", "cegate_geo.infer.providers"])
@pytest.mark.parametrize("more", [[], ["--events=jsonl"]])
def test_an_interrupt_while_it_loads_is_a_cancelled_run_in_one_line(name: str, more: list[str]) -> None:
    code = INTERRUPTED.format(name=name, more=more)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "cegate-geo: Cancelled.\n")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(e["event"], e["code"]) for e in events] == ([("error", "cancelled")] if more else [])


def test_an_interrupt_once_the_command_is_loaded_is_told_by_the_command() -> None:
    code = """
import signal, sys
from cegate_geo.__main__ import main
from cegate_geo.cli import doctor
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
sys.argv = ["cegate-geo", "doctor"]
doctor.command.callback = lambda **_: signal.raise_signal(signal.SIGINT)
raise SystemExit(main())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.lstrip()) == (130, "cegate-geo: Cancelled.\n")
