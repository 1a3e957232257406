"""The real dialog: run, cancel, failure, and its picture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from osgeo import gdal_array
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
)
from qgis.gui import QgsBrowserGuiModel
from qgis.PyQt.QtCore import QEventLoop, QTimer

ID = "cegate_geo:segment_raster"


@pytest.fixture
def dialog(provider, qgis_iface, scene, tmp_path, monkeypatch):
    import processing

    model = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: model, raising=False)
    QgsProject.instance().removeAllMapLayers()
    QgsProject.instance().addMapLayer(QgsRasterLayer(str(scene), "Banepa", "gdal"))
    made = processing.createAlgorithmDialog(ID, {"OUTPUT": str(tmp_path / "mask.tif")})
    made.resize(1000, 720)
    made.show()
    yield made
    made.close()
    QgsProject.instance().removeAllMapLayers()


def wait_for_end(dialog, *, then=None) -> dict:
    """Process events until the algorithm has finished."""
    loop, end = QEventLoop(), {}

    def finished(ok, results):
        end.update(ok=ok, results=results)
        loop.quit()

    dialog.algorithmFinished.connect(finished)
    QTimer.singleShot(60_000, loop.quit)
    dialog.runButton().click()
    if then is not None:
        then()
    if not end:
        loop.exec()
    assert end, "the dialog never finished"
    return end


def log_of(dialog) -> str:
    from qgis.PyQt.QtWidgets import QTextEdit

    return "\n".join(edit.toPlainText() for edit in dialog.findChildren(QTextEdit))


def test_pressing_run_loads_the_styled_layer(dialog, fake_engine, pictures):
    end = wait_for_end(dialog)
    assert end["ok"]
    QgsApplication.processEvents()
    names = {layer.name() for layer in QgsProject.instance().mapLayers().values()}
    assert "Banepa: class map" in names
    assert "CEGate-Geo engine 9.8.7" in log_of(dialog)
    assert dialog.grab().save(str(pictures / "dialog-log.png"))


def when_it_runs(dialog, fake_engine, act, *, after_ms: int = 300):
    """Gives what to do after Run was pressed: act once, soon after the engine has begun."""

    def arm():
        timer = QTimer(dialog)
        timer.setInterval(20)

        def look():
            if fake_engine.log and dialog.cancelButton().isEnabled():
                timer.stop()
                QTimer.singleShot(after_ms, act)

        timer.timeout.connect(look)
        timer.start()

    return arm


@pytest.mark.parametrize("mode", ["long", "deaf"])
def test_pressing_cancel_ends_the_engine_and_leaves_nothing(dialog, fake_engine, tmp_path, mode):
    fake_engine.mode(mode)
    pressed = []

    def cancel():
        pressed.append(time.monotonic())
        dialog.cancelButton().click()

    end = wait_for_end(dialog, then=when_it_runs(dialog, fake_engine, cancel))
    print(f"{mode}: {time.monotonic() - pressed[0]:.3f} s from Cancel to the end")
    assert not end["ok"]
    assert "Cancelled. Nothing was written." in log_of(dialog)
    assert not fake_engine.is_alive()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a scène", "engine.log"]
    assert [layer.name() for layer in QgsProject.instance().mapLayers().values()] == ["Banepa"]


def test_an_engine_that_is_killed_from_outside_is_told_and_qgis_lives(dialog, fake_engine, tmp_path):
    """As the system does where memory runs out."""
    fake_engine.mode("long")
    kill = when_it_runs(dialog, fake_engine, lambda: os.kill(fake_engine.log[0]["pid"], signal.SIGKILL))
    end = wait_for_end(dialog, then=kill)
    assert not end["ok"]
    assert "ended from outside (too little memory?). QGIS itself is unharmed." in log_of(dialog)
    assert not (tmp_path / "mask.tif").exists()
    fake_engine.mode("ok")
    assert wait_for_end(dialog)["ok"]


def test_a_project_that_is_closed_while_it_runs_does_no_harm(dialog, fake_engine, tmp_path):
    fake_engine.mode("steady")
    end = wait_for_end(dialog, then=when_it_runs(dialog, fake_engine, QgsProject.instance().clear))
    assert end["ok"]
    assert (tmp_path / "mask.tif").is_file()


def test_two_runs_at_once_get_their_own_results(provider, fake_engine, scene, tmp_path):
    fake_engine.mode("steady")
    tasks, ended = [], {}
    for name in ("one", "two"):
        algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
        context, feedback = QgsProcessingContext(), QgsProcessingFeedback()
        parameters = {"INPUT": str(scene), "OUTPUT": str(tmp_path / name / "m.tif")}
        (tmp_path / name).mkdir()
        task = QgsProcessingAlgRunnerTask(algorithm, parameters, context, feedback)
        task.executed.connect(lambda ok, results, name=name: ended.update({name: (ok, results["OUTPUT"])}))
        tasks.append((task, algorithm, context, feedback, parameters))  # a task holds none of them
        QgsApplication.taskManager().addTask(task)
    end = time.monotonic() + 60
    while len(ended) < 2:
        QgsApplication.processEvents()
        assert time.monotonic() < end
    assert ended == {name: (True, str(tmp_path / name / "m.tif")) for name in ("one", "two")}
    begun = [entry["pid"] for entry in fake_engine.log if "pid" in entry]
    assert len(set(begun)) == 2
    for name in ("one", "two"):
        assert [path.name for path in (tmp_path / name).iterdir() if path.suffix == ".tif"] == ["m.tif"]


def test_qgis_own_numpy_and_gdal_work_during_a_run_and_after_it(dialog, fake_engine, scene, scene_values):
    """What plugins break that install packages into QGIS' Python."""
    fake_engine.mode("steady")
    before = set(sys.modules)
    seen = []

    def read():
        code = "from osgeo import gdal, gdal_array; import numpy; print(numpy.__file__)"
        fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seen.append((fresh.strip(), gdal_array.LoadFile(str(scene))[0]))

    end = wait_for_end(dialog, then=when_it_runs(dialog, fake_engine, read))
    read()
    assert end["ok"]
    assert len(seen) == 2
    for place, values in seen:
        assert place == np.__file__
        assert np.array_equal(values, scene_values)
    assert not {name for name in set(sys.modules) - before if name.startswith(("numpy", "rasterio", "onnx"))}


def test_a_crash_of_the_engine_is_told_and_qgis_lives(dialog, fake_engine, tmp_path):
    fake_engine.mode("crash")
    end = wait_for_end(dialog)
    assert not end["ok"]
    assert "The engine crashed" in log_of(dialog)
    assert "about to crash" in log_of(dialog)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_the_dialog_has_a_picture(dialog, pictures):
    for _ in range(5):
        QgsApplication.processEvents()
    picture = dialog.grab()
    assert picture.width() >= 800
    assert picture.save(str(pictures / "dialog.png"))
