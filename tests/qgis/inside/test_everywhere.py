"""Each algorithm in the Model Designer, and in the batch window of Processing."""

from __future__ import annotations

import json

import processing
import pytest
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
from qgis.PyQt.QtWidgets import QTextEdit

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


@pytest.mark.parametrize("name", ["segment_raster", "evaluate", "check_model", "model_information"])
def test_it_works_in_batch(fake_engine, given, qgis_iface, monkeypatch, tmp_path, name):
    parameters, output = given[name]
    browser = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: browser, raising=False)
    rows = []
    for n in range(2):
        plain = {key: repr(value) for key, value in parameters.items() if key != "OUTPUT"}
        rows.append({"PARAMETERS": plain, "OUTPUTS": {"OUTPUT": f"{tmp_path}/{n}.tif"} if output == "OUTPUT" else {}})
    (tmp_path / "batch.json").write_text(json.dumps(rows))
    monkeypatch.setattr(
        BatchPanel.QFileDialog, "getOpenFileName", staticmethod(lambda *words: (f"{tmp_path}/batch.json", ""))
    )
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"cegate_geo:{name}")
    dialog = BatchAlgorithmDialog(algorithm)
    panel = dialog.mainWidget()
    panel.load()
    panel.checkLoadLayersOnCompletion.setChecked(False)
    dialog.runButton().click()
    log = "\n".join(edit.toPlainText() for edit in dialog.findChildren(QTextEdit))
    assert log.count("Equivalent command line:") == 2, log
    assert "Batch execution completed" in log
    assert "executions failed" not in log
    if output == "OUTPUT":
        assert sorted(path.name for path in tmp_path.glob("*.tif")) == ["0.tif", "1.tif"]
    dialog.close()
