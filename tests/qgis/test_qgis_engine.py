"""Finding the engine, its environment, its command line: without QGIS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cegate_geo_qgis.engine import READY, UNWANTED, WATCH_INPUT, EngineCommand, clean_environment, find_engine
from cegate_geo_qgis.model_use import ModelUse
from cegate_geo_qgis.outcome import EngineError
from cegate_geo_qgis.predict_job import OWN_OPTIONS, PredictJob, describe_command, further_options, nodata_problem

from cegate_geo.cli import starter


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def places(tmp_path):
    """An engine at each place where one is looked for."""
    program(tmp_path / "managed" / READY)
    return {
        "setting": program(tmp_path / "by setting" / "cegate-geo"),
        "variable": program(tmp_path / "by variable" / "cegate-geo"),
        "managed": program(tmp_path / "managed" / "bin" / "cegate-geo"),
        "path": program(tmp_path / "path" / "cegate-geo"),
        "local": program(tmp_path / "home" / ".local" / "bin" / "cegate-geo"),
    }


def test_the_order_is_setting_variable_own_environment_path_local(places, tmp_path):
    setting = str(places["setting"])
    environ = {
        "CEGATE_GEO_ENGINE": str(places["variable"]), "PATH": str(tmp_path / "path"), "HOME": str(tmp_path / "home"),
    }  # fmt: skip
    for name in places:
        found = find_engine(setting=setting, environ=environ, managed=tmp_path / "managed")
        assert (found.program, found.arguments) == (str(places[name]), ())
        if name == "setting":
            setting = "  "
        elif name == "variable":
            del environ["CEGATE_GEO_ENGINE"]
        else:
            places[name].unlink()
    with pytest.raises(EngineError, match="Run 'Set up the engine' in the Processing Toolbox"):
        find_engine(setting="", environ=environ, managed=tmp_path / "managed")


def test_a_named_place_without_an_engine_is_no_reason_to_take_another(places, tmp_path):
    for text in ("/no/such/file", str(tmp_path), "no-such-command --fast", "'half a quote"):
        with pytest.raises(EngineError, match="named by the Processing setting"):
            find_engine(setting=text, environ={"PATH": str(tmp_path / "path")}, managed=tmp_path / "managed")


def test_an_environment_folder_an_interpreter_and_a_command_are_understood(places, tmp_path):
    def named(text: str) -> EngineCommand:
        return find_engine(setting=text, environ={"PATH": str(tmp_path / "path")}, managed=Path("/nowhere"))

    assert named(str(tmp_path / "managed")).program == str(places["managed"])
    for name in ("python", "python3", "python3.11", "pypy3"):
        python = program(tmp_path / "an env" / name)
        assert named(str(python)) == EngineCommand(
            str(python), ("-I", "-u", "-m", "cegate_geo"), "the Processing setting"
        )
    runner = program(tmp_path / "path" / "uvx")
    assert named("uvx --from 'a wheel.whl' cegate-geo").arguments == ("--from", "a wheel.whl", "cegate-geo")
    assert named("uvx").program == str(runner)


def test_windows_paths_are_not_taken_apart(tmp_path):
    with pytest.raises(EngineError, match=r"C:\\\\Program Files"):
        find_engine(setting=r"C:\Program Files\x\cegate-geo.exe", environ={}, managed=tmp_path, windows=True)
    script = program(tmp_path / "Scripts" / "cegate-geo.exe")
    program(tmp_path / READY)
    assert find_engine(setting="", environ={}, managed=tmp_path, windows=True).program == str(script)


def test_the_environment_keeps_all_but_what_qgis_sets_for_itself():
    kept = {"PATH": "/usr/bin", "HOME": "/root", "HTTPS_PROXY": "p", "GDAL_HTTP_TIMEOUT": "3", "FAKE": "x"}
    clean = clean_environment({**kept, **dict.fromkeys(UNWANTED, "/qgis")}, windows=False)
    own = dict.fromkeys(("PYTHONNOUSERSITE", "PYTHONUTF8", "PYTHONUNBUFFERED", WATCH_INPUT), "1")
    assert clean == {**kept, **own}
    assert WATCH_INPUT == starter.VARIABLE


def test_on_windows_qgis_leaves_the_path():
    given = r'C:\Windows;"C:\OSGeo4W\bin";c:\osgeo4w\apps\qgis\bin\;C:\OSGeo4W-tools'
    clean = clean_environment({"Path": given}, host_folders=["C:/OSGeo4W/", ""], windows=True)
    assert clean["Path"] == r"C:\Windows;C:\OSGeo4W-tools"


def test_a_python_started_with_the_clean_environment_sees_only_its_own(tmp_path):
    (tmp_path / "poison.py").write_text("")
    wrong = {**os.environ, "PYTHONPATH": str(tmp_path), "PROJ_LIB": "/wrong"}
    code = "import importlib.util as u, os; print(u.find_spec('poison'), os.environ.get('PROJ_LIB'))"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, env=wrong, capture_output=True, text=True, check=True).stdout != "None None\n"
    clean = clean_environment(wrong)
    assert subprocess.run(words, env=clean, capture_output=True, text=True, check=True).stdout == "None None\n"


USE = ModelUse(
    model="m.onnx", bands=(3, 2, 1), nodata="-1,0,0", resample="always", tile_size=256, halo=0, stitch="crop",
    views="d4", provider="cpu", require_gpu=True, threads=2, classes="a,b", scale="255", mean="0,0,0", std="1,1,1",
    gsd_m=0.5, output_kind="logits", threshold=0.5,
)  # fmt: skip
FULL = PredictJob(
    scene="s.tif", output="m.tif", use=USE, vector="v.gpkg", confidence="c.tif", probabilities="p.tif",
    aoi="a.gpkg|area", invert_aoi=True, min_area_m2=2.5, simplify_m=0.3, vector_classes="building", gsd="model",
    batch_size=1, max_memory_mb=512, overwrite=True, force=True, extra=("--shard-rows", "8192"),
)  # fmt: skip


def test_only_what_differs_from_the_engines_own_choice_is_written():
    job = PredictJob(scene="s.tif", output="m.tif", overwrite=False)
    assert job.arguments() == ["predict", "s.tif", "--output", "m.tif", "--no-resume"]


def test_every_option_is_one_that_the_engine_has():
    from cegate_geo.cli.predict import command

    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    used = {word.split("=")[0] for word in FULL.arguments() if word.startswith("--")} | {"--events"}
    assert used - known == set()
    left = {name for name in known - used if name.startswith("--")} - set(OWN_OPTIONS) - {"--help", "--verbose"}
    to_be_given_as_further_options, for_many_machines_or_rasters = (
        {"--head", "--dtype"},
        {"--dask", "--workers", "--mosaic"},
    )
    assert left == to_be_given_as_further_options | for_many_machines_or_rasters


def test_every_option_of_a_check_is_one_that_the_engine_has():
    from cegate_geo.cli.check import command

    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    assert {word.split("=")[0] for word in USE.arguments()} - known == set()


def test_further_options_are_words_and_none_that_the_plugin_sets():
    assert further_options("") == ()
    assert further_options("--shard-rows 8192 --head 'an output'") == ("--shard-rows", "8192", "--head", "an output")
    for text in ("--output=x.tif", "-o x.tif", "--events jsonl", "--dry-run"):
        with pytest.raises(EngineError, match="the plugin itself sets it"):
            further_options(text)
    with pytest.raises(EngineError, match="can't be read"):
        further_options("--head 'half")


def test_every_choice_is_one_that_the_engine_has():
    from cegate_geo_qgis.model_use import OUTPUT_KINDS, PROVIDERS, RESAMPLINGS, STITCHES, VIEWS
    from cegate_geo_qgis.predict_job import GRIDS

    from cegate_geo.cli.predict import command

    choices = {p.name: list(getattr(p.type, "choices", ())) for p in command.params}
    assert list(PROVIDERS) == choices["provider"]
    assert list(STITCHES) == choices["stitch"]
    assert list(GRIDS) == choices["gsd"]
    assert list(RESAMPLINGS) == choices["resample"]
    assert list(VIEWS) == choices["tta"]
    assert list(OUTPUT_KINDS[1:]) == choices["output_kind"]


def test_the_command_can_be_pasted_into_a_terminal():
    job = PredictJob(scene="/a b/scène 'x'.tif", output="/tmp/$m.tif", use=ModelUse(nodata="-1"))
    command = EngineCommand("/an env/cegate-geo", ("-u",), "the test")
    text = describe_command(command, job.arguments(), windows=False)
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [command.program, "-u", *job.arguments()]
    assert describe_command(command, ["a b"], windows=True) == '"/an env/cegate-geo" -u "a b"'


def test_nodata_is_numbers():
    assert [nodata_problem(t) for t in ("", "  ", "255", "-9999.5, nan,0")] == [""] * 4
    assert all("is no number" in nodata_problem(t) for t in ("white", "1;2", "1,,2"))
