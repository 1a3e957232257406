"""The plugin's zip in a fresh profile, run by `qgis_process` with the real engine on real rasters.

Nothing is faked here: this is what a user has after "Install from ZIP".
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
from cegate_geo_qgis.adapt_job import can_resume
from qgis_here import ROOT, headless, missing, qgis_process, qgis_python
from tiny_model import save_threshold_model

ID = "cegate_geo:segment_raster"
pytestmark = pytest.mark.qgis


@dataclass(frozen=True)
class Installed:
    """QGIS with the plugin in a profile of its own."""

    program: str
    home: Path
    environment: dict[str, str]

    def call(self, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *map(str, words)], env={**self.environment, **more}, cwd=self.home, capture_output=True,
            text=True, timeout=500, check=False,
        )  # fmt: skip

    def run_other(self, name: str, **parameters: object):
        return self.call("run", f"cegate_geo:{name}", "--", *self.words(parameters))

    def run(self, environment: dict[str, str] | None = None, **parameters: object):
        return self.call("run", ID, "--", *self.words(parameters), **(environment or {}))

    def words(self, parameters: dict[str, object]) -> list[str]:
        return [f"{key}={value}" for key, value in parameters.items()]


@pytest.fixture(scope="session")
def plugin_zip(tmp_path_factory) -> Path:
    words = [sys.executable, ROOT / "qgis_plugin" / "package.py", tmp_path_factory.mktemp("zip")]
    return Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="session")
def qgis(tmp_path_factory, plugin_zip, engine) -> Installed:
    """A fresh profile, in a folder with a space and an accent, with the engine named in the settings."""
    home = tmp_path_factory.mktemp("qgis") / "un profil é"
    profile = home / "profiles" / "default"
    plugins = profile / "python" / "plugins"
    plugins.mkdir(parents=True)
    zipfile.ZipFile(plugin_zip).extractall(plugins)
    (profile / "QGIS").mkdir()
    setting = f"[Processing]\nConfiguration\\CEGATE_GEO_ENGINE={engine}\n"
    (profile / "QGIS" / "QGIS3.ini").write_text(f"[PythonPlugins]\ncegate_geo_qgis=true\n\n{setting}")
    environment = headless(home, QGIS_CUSTOM_CONFIG_PATH=str(home), OMP_NUM_THREADS="1")
    return Installed(qgis_process(), home, environment)


def linked(scene: Path, folder: Path) -> Path:
    """A scene under another path, so that what QGIS lays beside it (statistics) does not land among the data."""
    folder.mkdir(exist_ok=True)
    link = folder / scene.name
    link.symlink_to(scene)
    return link


@pytest.fixture(scope="session")
def landsat(shared_data, tmp_path_factory) -> Path:
    return linked(shared_data / "awkward" / "rasterio" / "RGB.byte.tif", tmp_path_factory.mktemp("landsat"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """For the Landsat chip: 300 m."""
    return save_threshold_model(tmp_path_factory.mktemp("modèles") / "a model.onnx", gsd_m=300.0)


def check_mask(mask: Path, scene: Path) -> None:
    """Every pixel, the grid and the CRS, against the scene itself."""
    with rasterio.open(scene) as source, rasterio.open(mask) as made:
        bands, got = source.read(), made.read(1)
        assert (made.transform, made.shape) == (source.transform, source.shape)
        assert made.crs.to_epsg() == source.crs.to_epsg() == 32618
        assert made.nodata == 255
    full, empty = (bands != 0).all(axis=0), (bands == 0).all(axis=0)
    assert np.array_equal(got[full], (bands[0] > 127)[full])
    assert (got[empty] == 255).all()
    assert full.mean() > 0.5
    assert 0.01 < (got == 1).mean() < 0.5


def test_the_provider_is_listed_and_its_help_names_every_parameter(qgis):
    listed = qgis.call("list").stdout
    assert "CEGate-Geo" in listed
    assert "segment_raster" in listed
    told = qgis.call("help", ID).stdout
    for name in (
        "INPUT", "MODEL", "BANDS", "AOI", "NODATA", "PROVIDER", "GSD", "RESAMPLE", "TILE_SIZE", "HALO", "STITCH",
        "BATCH_SIZE", "THREADS", "MAX_MEMORY", "MIN_AREA", "FORCE", "OVERWRITE", "OUTPUT", "VECTOR", "CONFIDENCE",
        "EXTENT", "PIXEL_SIZE", "PROBABILITIES", "INVERT_AOI", "TTA", "REQUIRE_GPU", "CLASSES", "SCALE", "EXTRA",
    ):  # fmt: skip
        assert f"\n{name}:" in told


def test_a_real_scene_becomes_a_right_mask(qgis, landsat, model, tmp_path):
    mask = tmp_path / "masque d'été" / "mask é.tif"
    mask.parent.mkdir()
    done = qgis.run(INPUT=landsat, MODEL=model, OUTPUT=mask)
    assert done.returncode == 0, done.stdout + done.stderr
    check_mask(mask, landsat)
    assert "CEGate-Geo engine" in done.stdout
    assert f"predict {landsat} --output" in done.stdout
    assert "100" in done.stdout


def test_json_results_name_all_files_and_they_are_there(qgis, landsat, model, tmp_path):
    outputs = {"OUTPUT": tmp_path / "m.tif", "VECTOR": tmp_path / "v.gpkg", "CONFIDENCE": tmp_path / "c.tif"}
    words = qgis.words({"INPUT": landsat, "MODEL": model, "MIN_AREA": 1e9, **outputs})
    done = qgis.call("--json", "run", ID, "--", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"] == {key: str(path) for key, path in outputs.items()}
    from pyogrio import read_dataframe

    polygons = read_dataframe(outputs["VECTOR"])
    assert set(polygons["name"]) <= {"sombre é", "bright"}
    assert (polygons["area_m2"] >= 1e9).all()
    assert len(polygons) > 0
    with rasterio.open(outputs["CONFIDENCE"]) as made:
        assert made.read(1).max() == 255


def test_the_environment_of_qgis_does_not_reach_the_engine(qgis, landsat, model, tmp_path):
    """With QGIS' own PROJ_DATA the engine would lose the EPSG code, with its packages another numpy."""
    wrong = {
        "PROJ_LIB": "/usr/share/proj", "PROJ_DATA": "/usr/share/proj", "GDAL_DATA": "/nowhere",
        "PYTHONPATH": "/usr/lib/python3/dist-packages", "PYTHONSTARTUP": "/nowhere", "VIRTUAL_ENV": "/nowhere",
    }  # fmt: skip
    done = qgis.run(wrong, INPUT=landsat, MODEL=model, OUTPUT=tmp_path / "m.tif")
    assert done.returncode == 0, done.stdout + done.stderr
    check_mask(tmp_path / "m.tif", landsat)


def test_a_failure_is_told_in_the_engines_own_words(qgis, landsat, engine, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    mask = tmp_path / "m.tif"
    words = [engine, "predict", landsat, "--output", mask, "--model", broken, "--events", "jsonl"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as said:
        assert said.stdout is not None
        error = json.loads(said.stdout.read().splitlines()[-1])  # with its input open: the end of it would cancel
    assert error["event"] == "error"
    done = qgis.run(INPUT=landsat, MODEL=broken, OUTPUT=mask)
    assert done.returncode == 1
    assert error["message"] in done.stderr
    assert error["hint"] in done.stderr
    assert not mask.exists()


def test_a_missing_engine_is_told(qgis, landsat, model, tmp_path):
    ini = qgis.home / "profiles" / "default" / "QGIS" / "QGIS3.ini"
    before = ini.read_text()
    try:
        ini.write_text("[PythonPlugins]\ncegate_geo_qgis=true\n")
        done = qgis.run({"CEGATE_GEO_ENGINE": "/no/such/engine"}, INPUT=landsat, MODEL=model, OUTPUT=tmp_path / "m.tif")
    finally:
        ini.write_text(before)
    assert done.returncode == 1
    assert "'/no/such/engine', named by the variable CEGATE_GEO_ENGINE" in done.stderr


def test_wrong_parameters_are_refused(qgis, landsat, model, tmp_path):
    done = qgis.run(INPUT=landsat, MODEL=model, BANDS=9, OUTPUT=tmp_path / "m.tif")
    assert done.returncode == 1
    assert "Band 9 does not exist: the scene has 3" in done.stderr


LOOK = """
import json, sys
from qgis.core import QgsApplication, QgsRasterLayer
application = QgsApplication([], False)
application.initQgis()
layer = QgsRasterLayer(sys.argv[1], "mask", "gdal")
renderer = layer.renderer()
classes = [[c.value, c.label, c.color.name()] for c in renderer.classes()] if renderer.type() == "paletted" else []
clear = not layer.dataProvider().sourceHasNoDataValue(1) or layer.dataProvider().sourceNoDataValue(1)
print(json.dumps({"type": renderer.type(), "classes": classes, "nodata": clear}))
"""


def test_qgis_draws_the_mask_with_the_class_names_and_colours(qgis, landsat, model, tmp_path):
    mask = tmp_path / "m.tif"
    assert qgis.run(INPUT=landsat, MODEL=model, OUTPUT=mask).returncode == 0
    words = [qgis_python(), "-c", LOOK, mask]
    seen = subprocess.run(words, env=qgis.environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(seen.splitlines()[-1]) == {
        "type": "paletted",
        "classes": [[0, "sombre é", "#0c2238"], [1, "bright", "#fac80a"]],
        "nodata": 255,
    }


def test_an_area_of_interest_limits_the_mask(qgis, landsat, model, tmp_path):
    import geopandas
    from shapely.geometry import box

    with rasterio.open(landsat) as source:
        left, bottom, right, top = source.bounds
        crs = source.crs
    middle = box(left + 60e3, bottom + 60e3, right - 60e3, top - 60e3)
    area = tmp_path / "area.gpkg"
    geopandas.GeoSeries([middle], crs=crs).to_crs(4326).to_file(area, layer="one", engine="pyogrio")
    geopandas.GeoSeries([box(0, 0, 1, 1)], crs=4326).to_file(area, layer="other", engine="pyogrio")
    mask = tmp_path / "m.tif"
    done = qgis.run(INPUT=landsat, MODEL=model, AOI=f"{area}|layername=one", OUTPUT=mask)
    assert done.returncode == 0, done.stderr
    with rasterio.open(mask) as made:
        got = made.read(1)
    assert (got[:190] == 255).all()
    assert (got[:, :190] == 255).all()
    assert (got[300:400, 300:400] != 255).mean() > 0.9


@pytest.fixture
def long_run(qgis, shared_data, tmp_path):
    """Banepa, the whole scene, begun: QGIS and the engine are running."""
    scene = linked(shared_data / "scene" / "banepa_11264x8704_rgb.tif", tmp_path / "in")
    model = save_threshold_model(tmp_path / "drone.onnx", gsd_m=0.132)
    mask = tmp_path / "out" / "mask.tif"
    mask.parent.mkdir()
    words = [qgis.program, "run", ID, "--", *qgis.words({"INPUT": scene, "MODEL": model, "OUTPUT": mask})]
    running = subprocess.Popen(words, env=qgis.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: running.poll() is not None or (engines_of(running) and any(mask.parent.iterdir())))
        assert running.poll() is None, running.communicate()
        yield running, engines_of(running)[0], mask
    finally:
        running.kill()
        running.communicate()


def engines_of(running: subprocess.Popen) -> list[psutil.Process]:
    try:
        children = psutil.Process(running.pid).children(recursive=True)
        return [child for child in children if "predict" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def wait_until(is_so, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.05)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_cancels_and_leaves_nothing(long_run):
    running, engine, mask = long_run
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=300)
    assert running.returncode != 0
    assert "Cancelled. Nothing was written." in stderr
    assert is_gone(engine)
    assert list(mask.parent.iterdir()) == []


def test_when_qgis_is_killed_the_engine_goes_too_and_leaves_nothing(long_run):
    running, engine, mask = long_run
    running.kill()
    running.wait()
    begun = time.monotonic()
    wait_until(lambda: is_gone(engine), 30)  # two seconds are meant; a loaded machine may take longer
    print(f"gone after {time.monotonic() - begun:.2f} s")
    assert list(mask.parent.iterdir()) == []


def test_the_shipped_demo_model_runs_by_default(qgis, shared_data, tmp_path):
    if not list((ROOT / "models").rglob("*.onnx")):
        missing("models/ has no ONNX model")
    scene = linked(shared_data / "buildings" / "kampala_z20_b0.tif", tmp_path / "in")
    mask = tmp_path / "m.tif"
    done = qgis.run(INPUT=scene, OUTPUT=mask)
    assert done.returncode == 0, done.stderr
    with rasterio.open(scene) as source, rasterio.open(mask) as made:
        assert (made.transform, made.shape, made.crs) == (source.transform, source.shape, source.crs)
        got = made.read(1)
    assert set(np.unique(got)) <= {0, 1, 255}
    assert 0.01 < (got == 1).mean() < 0.9


def test_a_model_is_checked_on_a_scene(qgis, landsat, model, tmp_path):
    page = tmp_path / "check é.html"
    done = qgis.run_other("check_model", INPUT=landsat, MODEL=model, HTML=page)
    assert done.returncode == 0, done.stderr
    assert "OK:\ttrue" in done.stdout
    assert "All of the scene: " in done.stdout
    assert "georeference" in page.read_text(encoding="utf-8")
    bad = qgis.run_other("check_model", INPUT=landsat, MODEL=model, BANDS=1)
    assert bad.returncode == 0, bad.stderr
    assert "OK:\tfalse" in bad.stdout
    assert "The model does not suit the scene or this computer: bands" in bad.stdout + bad.stderr


def test_a_models_card_is_told(qgis, model, tmp_path):
    page = tmp_path / "card é.html"
    done = qgis.run_other("model_information", MODEL=model, HTML=page)
    assert done.returncode == 0, done.stderr
    assert "CLASSES:\tsombre é,bright" in done.stdout
    assert f"info '{model}' --json" in done.stdout
    assert "#0c2238" in page.read_text(encoding="utf-8")


@pytest.fixture
def drawn(landsat, tmp_path) -> Path:
    """Two polygons of two classes on the Landsat chip."""
    import geopandas
    from shapely.geometry import box

    with rasterio.open(landsat) as source:
        left, bottom, right, top = source.bounds
        crs = source.crs
    across, down = (right - left) / 10, (top - bottom) / 10
    shapes = [box(left + n * across, bottom + 3 * down, left + (n + 2) * across, top - 3 * down) for n in (3, 5)]
    path = tmp_path / "drawn é.gpkg"
    geopandas.GeoDataFrame({"kind": ["sombre é", "bright"]}, geometry=shapes, crs=crs).to_file(path, engine="pyogrio")
    return path


def test_evaluating_a_mask_gives_the_figures_of_the_command_line(qgis, landsat, model, engine, drawn, tmp_path):
    mask, figures, page = tmp_path / "m.tif", tmp_path / "e.json", tmp_path / "e.html"
    assert qgis.run(INPUT=landsat, MODEL=model, OUTPUT=mask).returncode == 0
    labels = {"LABELS": drawn, "FIELD": "kind", "BACKGROUND": "ignore", "JSON": figures, "HTML": page}
    done = qgis.run_other("evaluate", INPUT=mask, **labels)
    assert done.returncode == 0, done.stderr
    words = [
        engine,
        "evaluate",
        mask,
        "--labels",
        drawn,
        "--label-field",
        "kind",
        "--background",
        "ignore",
        "--json",
        "-",
    ]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert json.loads(figures.read_text(encoding="utf-8")) == json.loads(told)
    assert f"MIOU:\t{json.loads(told)['miou']}" in done.stdout
    with_model = qgis.run_other("evaluate", INPUT=landsat, MODEL=model, **labels)
    assert with_model.returncode == 0, with_model.stderr
    assert json.loads(figures.read_text(encoding="utf-8")) == json.loads(told)


def test_adapting_gives_a_model_that_segments(qgis, landsat, drawn, tmp_path):
    run, mask = tmp_path / "un essai", tmp_path / "m.tif"
    given = {"IMAGES": landsat, "LABELS": drawn, "FIELD": "kind", "RUN": run, "STEPS": 2, "TILE_SIZE": 64}
    done = qgis.run_other("adapt_model", **given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2 of 2: loss" in done.stdout
    assert (run / "report.html").is_file()
    segmented = qgis.run(INPUT=landsat, MODEL=run / "model.onnx", OUTPUT=mask)
    assert segmented.returncode == 0, segmented.stderr
    card = qgis.run_other("model_information", MODEL=run / "model.onnx")
    assert "CLASSES:\tbright,sombre é" in card.stdout
    again = qgis.run_other("adapt_model", **given)
    assert again.returncode == 1
    assert "holds a run already: tick Resume" in again.stderr


def test_when_qgis_is_killed_training_stops_and_what_was_saved_is_whole(qgis, landsat, drawn, tmp_path):
    run = tmp_path / "run"
    given = {"IMAGES": landsat, "LABELS": drawn, "FIELD": "kind", "RUN": run, "STEPS": 5000, "TILE_SIZE": 64}
    words = [qgis.program, "run", "cegate_geo:adapt_model", "--", *qgis.words(given)]
    running = subprocess.Popen(words, env=qgis.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (run / "metrics.jsonl").is_file() or running.poll() is not None)
        engine = next(c for c in psutil.Process(running.pid).children(recursive=True) if "adapt" in c.cmdline())
    finally:
        running.kill()
        running.wait()
    begun = time.monotonic()
    wait_until(lambda: is_gone(engine), 30)  # also where a step takes long
    print(f"gone after {time.monotonic() - begun:.2f} s")
    assert can_resume(run)
    state = run / "state" / "state.json"
    assert not state.exists() or (state.parent / json.loads(state.read_text())["tensors"]).is_file()
