"""Each algorithm in the Model Designer, and in the batch window of Processing."""

from __future__ import annotations

import json

import processing
import pytest
from cegate_geo_qgis import runtime
from processing.gui import BatchPanel
from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog
from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsGeometry,
    QgsProcessingContext,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProject,
    QgsVectorLayer,
)
from qgis.gui import QgsBrowserGuiModel
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QProgressBar, QTextEdit

pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture
def labels():
    layer = QgsVectorLayer("Polygon?crs=EPSG:32645&field=kind:string", "labels", "memory")
    for n, kind in enumerate(["house", "road"]):
        feature = QgsFeature(layer.fields())
        x = 300000 + 5 * n
        feature.setGeometry(QgsGeometry.fromWkt(f"POLYGON(({x} 2999980, {x + 4} 2999980, {x} 2999990, {x} 2999980))"))
        feature.setAttributes([kind])
        layer.dataProvider().addFeature(feature)
    QgsProject.instance().addMapLayer(layer)
    yield layer.id()
    QgsProject.instance().removeAllMapLayers()


@pytest.fixture
def given(scene, labels, tmp_path):
    """What each algorithm needs, and one of its outputs."""
    polygons = {"LABELS": labels, "FIELD": "kind"}
    return {
        "segment_raster": ({"INPUT": str(scene), "OUTPUT": f"{tmp_path}/m.tif"}, "OUTPUT"),
        "adapt_model": ({"IMAGES": [str(scene)], **polygons, "RUN": f"{tmp_path}/run", "OPEN_REPORT": False}, "MODEL"),
        "evaluate": ({"INPUT": str(scene), **polygons}, "MIOU"),
        "check_model": ({"INPUT": str(scene), "FORECAST": False}, "OK"),
        "model_information": ({}, "NAME"),
    }


@pytest.mark.parametrize("name", ["segment_raster", "adapt_model", "evaluate", "check_model", "model_information"])
def test_it_works_in_a_model_of_the_designer(fake_engine, given, name):
    parameters, output = given[name]
    child = QgsProcessingModelChildAlgorithm(f"cegate_geo:{name}")
    child.setChildId("child")
    for key, value in parameters.items():
        if key != "OUTPUT":
            child.addParameterSources(key, [QgsProcessingModelChildParameterSource.fromStaticValue(value)])
    if output == "OUTPUT":
        told = QgsProcessingModelOutput("told", "told")
        told.setChildId("child")
        told.setChildOutputName(output)
        child.setModelOutputs({"told": told})
    model = QgsProcessingModelAlgorithm("m", "m")
    model.addChildAlgorithm(child)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    more = {"child:told": parameters["OUTPUT"]} if output == "OUTPUT" else {}
    made = processing.run(model, more, context=context)
    assert made["CHILD_RESULTS"]["child"][output] is not None
    again = QgsProcessingModelAlgorithm()
    assert again.loadVariant(model.toVariant())  # as it is saved and opened
    assert [c.algorithmId() for c in again.childAlgorithms().values()] == [f"cegate_geo:{name}"]


DESTINATIONS = {"segment_raster": ("OUTPUT", ".tif"), "adapt_model": ("RUN", "")}
"""What a row of the batch window has to name: parameter, and the end of its path."""


class Window(BatchAlgorithmDialog):
    """Keeps its feedback: QGIS 3.22 leaks what a failed row of Python held, and at its end waits for a task of it."""

    def createFeedback(self):  # noqa: N802, the name is QGIS'
        self.told = super().createFeedback()
        return self.told


@pytest.fixture
def batch(qgis_iface, monkeypatch, tmp_path):
    """The batch window of an algorithm, with rows as they are opened from a file."""
    browser = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: browser, raising=False)
    file = tmp_path / "batch.json"
    monkeypatch.setattr(BatchPanel.QFileDialog, "getOpenFileName", staticmethod(lambda *words: (str(file), "")))
    windows = []

    def open_batch(name, rows):
        destinations = [DESTINATIONS[name][0]] if name in DESTINATIONS else []
        file.write_text(
            json.dumps(
                [
                    {
                        "PARAMETERS": {key: repr(value) for key, value in row.items() if key not in destinations},
                        "OUTPUTS": {key: row[key] for key in destinations},
                    }
                    for row in rows
                ]
            )
        )
        window = Window(QgsApplication.processingRegistry().createAlgorithmById(f"cegate_geo:{name}"))
        windows.append(window)
        window.mainWidget().load()
        window.mainWidget().checkLoadLayersOnCompletion.setChecked(False)
        return window

    yield open_batch
    for window in windows:
        window.told.progressChanged.disconnect()
        window.close()


def log_of(window) -> str:
    return "\n".join(edit.toPlainText() for edit in window.findChildren(QTextEdit))


@pytest.mark.parametrize("name", ["segment_raster", "adapt_model", "evaluate", "check_model", "model_information"])
def test_it_works_in_batch(fake_engine, given, batch, tmp_path, name):
    key, suffix = DESTINATIONS.get(name, ("", ""))
    rows = [{**given[name][0], **({key: f"{tmp_path}/row {n}{suffix}"} if key else {})} for n in range(2)]
    window = batch(name, rows)
    window.runButton().click()
    log = log_of(window)
    assert log.count("Equivalent command line:") == 2, log
    assert "Batch execution completed" in log
    assert "executions failed" not in log
    if key:
        assert sorted(path.name for path in tmp_path.glob(f"row *{suffix}")) == [f"row 0{suffix}", f"row 1{suffix}"]
    if name == "adapt_model":
        for n in range(2):
            made = {path.name for path in (tmp_path / f"row {n}").iterdir()}
            assert {"adapt.toml", "labels.gpkg", "model.onnx", "report.html"} <= made


def test_a_run_that_two_rows_of_a_batch_name_is_not_written_over(fake_engine, given, batch, tmp_path):
    row = {**given["adapt_model"][0], "RUN": f"{tmp_path}/same"}
    window = batch("adapt_model", [row, {**row, "STEPS": 7}])
    window.runButton().click()
    log = log_of(window)
    assert f"{tmp_path}/same holds a run already: tick Resume, or choose another folder." in log
    assert "1 executions failed" in log
    assert "steps = 1000" in (tmp_path / "same" / "adapt.toml").read_text()


def test_cancelling_a_batch_of_trainings_saves_the_first_and_begins_no_other(fake_engine, given, batch, tmp_path):
    fake_engine.mode("long")
    row = given["adapt_model"][0]
    window = batch("adapt_model", [{**row, "RUN": f"{tmp_path}/{name}"} for name in ("one", "two")])
    timer = QTimer(window)

    def cancel():
        if window.findChild(QProgressBar).value() > 0:
            timer.stop()
            window.cancelButton().click()

    timer.timeout.connect(cancel)
    timer.start(20)
    window.runButton().click()
    assert f"What was learned is saved in {tmp_path}/one" in log_of(window)
    assert (tmp_path / "one" / "state" / "state.json").is_file()
    assert not (tmp_path / "two").exists()
    assert not fake_engine.is_alive()


def test_the_batch_window_lives_while_the_engine_is_silent(fake_engine, given, batch, tmp_path, monkeypatch):
    fake_engine.mode("slow")
    window = batch("adapt_model", [{**given["adapt_model"][0], "RUN": f"{tmp_path}/run"}])
    window.show()
    waits, lives = [], []
    keep_time = runtime._Run.keep_time
    monkeypatch.setattr(runtime._Run, "keep_time", lambda run: (waits.append(len(lives)), keep_time(run)))
    timer = QTimer()
    timer.timeout.connect(lambda: lives.append(True))
    timer.start(0)
    window.runButton().click()
    timer.stop()
    assert len(set(waits)) == len(waits) > 10  # something was heard between any two waits
