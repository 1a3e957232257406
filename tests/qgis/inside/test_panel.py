"""The panel: its buttons, with the fake engine; runs beside the window, a closed project, unloading in the middle."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest
from qgis.core import (
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsFeature,
    QgsGeometry,
    QgsProcessingException,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsSettings,
    QgsVectorLayer,
)
from qgis.gui import QgsBrowserGuiModel
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QCoreApplication
from qgis.PyQt.QtWidgets import QApplication

CLASSES = ["other", "building"]


def wait(until, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it never came to this"
        QCoreApplication.processEvents()
        time.sleep(0.005)


@pytest.fixture
def plugin(qgis_processing, qgis_iface, fake_engine, scene, monkeypatch):
    """The plugin as the desktop loads it, with a scene in the project that the map shows."""
    from cegate_geo_qgis import classFactory

    for name in ("addPluginToRasterMenu", "removePluginRasterMenu", "addToolBarIcon", "removeToolBarIcon"):
        monkeypatch.setattr(qgis_iface, name, lambda *words: None, raising=False)
    QgsProject.instance().clear()
    made = classFactory(qgis_iface)
    made.initGui()
    layer = QgsRasterLayer(str(scene), "Banepa", "gdal")
    QgsProject.instance().addMapLayer(layer)
    canvas = qgis_iface.mapCanvas()
    canvas.setDestinationCrs(layer.crs())
    canvas.setExtent(layer.extent())
    made.panel.show()
    yield made
    made.unload()
    QgsProject.instance().clear()


@pytest.fixture
def panel(plugin):
    wait(lambda: plugin.panel.card() is not None)
    return plugin.panel


def finish(panel) -> str:
    wait(lambda: not panel.runs.is_running())
    return panel.form.status.text()


def given(fake_engine, command: str) -> list[str]:
    return [entry["argv"] for entry in fake_engine.log if entry.get("argv", [""])[0] == command][-1]


def test_the_panel_shows_itself_once_when_the_plugin_is_new(qgis_processing, qgis_iface, fake_engine, monkeypatch):
    from cegate_geo_qgis import classFactory

    for name in ("addPluginToRasterMenu", "removePluginRasterMenu", "addToolBarIcon", "removeToolBarIcon"):
        monkeypatch.setattr(qgis_iface, name, lambda *words: None, raising=False)
    QgsSettings().remove("cegate_geo")
    for is_visible in (True, False, False):
        made = classFactory(qgis_iface)
        made.initGui()
        assert made.panel.isHidden() is not is_visible
        made.unload()


def test_the_card_is_read_beside_the_window_once_and_judged(plugin, fake_engine):
    panel = plugin.panel
    wait(lambda: panel.card() is not None)
    text = panel.form.card.toPlainText()
    assert "roofs <1>" in text
    assert "Pixels of 0.5 m" in text
    assert "CC0" in text
    panel._refresh()
    assert len([entry for entry in fake_engine.log if entry.get("argv", [""])[0] == "info"]) == 1


def test_a_scene_that_does_not_suit_is_told(panel, scene):
    from osgeo import gdal

    path = scene.with_name("grey.tif")
    gdal.Translate(str(path), str(scene), bandList=[1], outputType=gdal.GDT_UInt16)
    layer = QgsRasterLayer(str(path), "grey", "gdal")
    QgsProject.instance().addMapLayer(layer)
    panel.form.scene.setLayer(layer)
    text = panel.form.card.toPlainText()
    assert "the scene has 1" in text
    assert "UInt16" in text


def test_a_model_that_can_not_be_read_is_told_in_the_engines_words(panel, fake_engine, tmp_path):
    fake_engine.mode("error")
    broken = tmp_path / "broken.onnx"
    broken.touch()
    panel.form.model.setFilePath(str(broken))
    wait(lambda: "No model" in panel.form.card.toPlainText())
    assert panel.form.card.toPlainText() == "No model of this name. Check the path."
    assert panel.card() is None


def test_an_engine_that_was_set_up_anew_in_its_place_is_asked_again(panel, fake_engine, tmp_path, monkeypatch):
    engine = tmp_path / "cegate-geo"
    engine.write_text("#!/bin/sh\nexit 1\n")
    engine.chmod(0o755)
    usual = os.environ["CEGATE_GEO_ENGINE"]
    monkeypatch.setenv("CEGATE_GEO_ENGINE", str(engine))
    panel._refresh()
    wait(lambda: "exit code 1" in panel.form.card.toPlainText())
    engine.write_text(f'#!/bin/sh\nexec {usual} "$@"\n')
    os.utime(engine, (1, 1))
    panel._refresh()
    wait(lambda: panel.card() is not None)
    assert "exit code" not in panel.form.card.toPlainText()


def test_without_an_engine_the_way_to_one_is_shown(panel, monkeypatch):
    assert not panel.form.engine_row.isVisibleTo(panel)
    monkeypatch.setenv("CEGATE_GEO_ENGINE", "/no/such/engine")
    panel._refresh()
    assert panel.form.engine_row.isVisibleTo(panel)
    assert not panel.form.preview.isEnabled()
    assert "/no/such/engine" in panel.form.engine_text.toolTip()


def test_a_preview_is_of_what_the_map_shows_and_takes_the_place_of_the_last(panel, fake_engine):
    for _ in range(2):
        panel.form.preview.click()
        assert panel.runs.is_running()
        assert not panel.form.preview.isEnabled()
        assert panel.form.cancel.isVisibleTo(panel)
        assert finish(panel) == "Done."
    names = [layer.name() for layer in QgsProject.instance().mapLayers().values()]
    assert sorted(names) == ["Banepa", "Preview of Banepa"]
    assert QgsProject.instance().mapLayersByName("Preview of Banepa")[0].opacity() < 1
    assert "predict" in panel.form.log.toPlainText()


def test_running_on_all_takes_the_preview_and_its_empty_group_away(panel, fake_engine, tmp_path):
    panel.form.preview.click()
    assert finish(panel) == "Done."
    model = tmp_path / "other.onnx"
    model.touch()
    panel.form.model.setFilePath(str(model))
    panel.form.run_all.click()
    assert finish(panel) == "Done."
    root = QgsProject.instance().layerTreeRoot()
    assert [child.name() for child in root.children()] == ["Banepa, other", "Banepa"]


def test_of_much_the_middle_is_previewed(panel, qgis_iface, monkeypatch):
    from cegate_geo_qgis import panel_extent

    monkeypatch.setattr(panel_extent, "PREVIEW_PX", 16)
    seen = panel.seen(panel.scene(), limit_px=16)
    extent = seen.extent
    assert seen.is_part
    assert (extent.width(), extent.height()) == (8, 8)
    assert extent.center() == panel.scene().extent().center()
    qgis_iface.mapCanvas().setExtent(QgsRectangle(0, 0, 10, 10))
    panel.form.preview.click()
    assert "does not show the scene" in panel.form.status.text()


def test_a_map_in_another_crs_shows_the_same(panel, qgis_iface):
    scene = panel.scene()
    before = panel.seen(scene, limit_px=None).extent
    canvas = qgis_iface.mapCanvas()
    web = QgsCoordinateReferenceSystem("EPSG:3857")
    there = QgsCoordinateTransform(scene.crs(), web, QgsProject.instance()).transformBoundingBox(scene.extent())
    canvas.setDestinationCrs(web)
    canvas.setExtent(there)
    after = panel.seen(scene, limit_px=None).extent
    assert after.crs() == scene.crs()
    for name in ("xMinimum", "yMinimum", "xMaximum", "yMaximum"):  # the scene's box in another CRS is a little larger
        assert getattr(after, name)() == pytest.approx(getattr(before, name)(), abs=1.0)
    canvas.setExtent(QgsRectangle(0, 0, 10, 10))
    assert panel.seen(scene, limit_px=None) is None


def test_run_on_all_saves_and_loads_class_map_and_polygons(panel, fake_engine, scene, tmp_path):
    panel.form.target.setFilePath(str(tmp_path / "all.tif"))
    panel.form.polygons.setChecked(True)
    panel.form.run_all.click()
    assert finish(panel) == "Done."
    assert given(fake_engine, "predict")[1] == str(scene)
    assert (tmp_path / "all.tif").is_file()
    assert (tmp_path / "all.gpkg").is_file()
    root = QgsProject.instance().layerTreeRoot()
    assert [child.name() for child in root.children()] == ["Banepa, buildings-drone-15cm", "Banepa"]


def test_cancelling_is_told_and_leaves_nothing(panel, fake_engine, tmp_path):
    fake_engine.mode("long")
    panel.form.target.setFilePath(str(tmp_path / "all.tif"))
    panel.form.run_all.click()
    wait(lambda: panel.form.bar.value() > 10)
    panel.form.cancel.click()
    assert "Cancel" in finish(panel)
    assert panel.form.preview.isEnabled()
    wait(lambda: not fake_engine.is_alive())
    assert not (tmp_path / "all.tif").exists()


def test_a_failure_is_told_in_the_engines_words(panel, fake_engine):
    fake_engine.mode("error")
    panel.form.run_all.click()
    assert "The model has 4 bands, the scene 3." in finish(panel)
    assert "color" in panel.form.status.styleSheet()


def test_what_fails_before_it_begins_is_told_and_ends(panel, monkeypatch):
    """A task whose preparation fails is never executed."""
    from cegate_geo_qgis.segment_raster import SegmentRaster

    def prepare(*words):
        raise QgsProcessingException("The layer is not usable.")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentRaster, "prepareAlgorithm", prepare)
        panel.form.run_all.click()
        assert not panel.runs.is_running()
        assert panel.form.status.text() == "The layer is not usable."
    panel.form.run_all.click()
    assert finish(panel) == "Done."


def test_results_are_loaded_by_a_newer_processing_too(panel, monkeypatch):
    """From QGIS 3.30 on it takes no `showResults`."""
    from cegate_geo_qgis import panel_run

    usual = panel_run.handleAlgorithmResults

    def newer(alg, context, feedback=None, parameters=None):
        return usual(alg, context, feedback, parameters=parameters)

    monkeypatch.setattr(panel_run, "handleAlgorithmResults", newer)
    panel.form.run_all.click()
    assert finish(panel) == "Done."
    assert len(QgsProject.instance().mapLayers()) == 2


@pytest.fixture
def browser(qgis_iface, monkeypatch):
    """What QGIS' file widgets ask of the window."""
    model = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: model, raising=False)


def shown(name: str) -> list:
    windows = [w for w in QApplication.topLevelWidgets() if hasattr(w, "algorithmFinished") and w.isVisible()]
    return [window for window in windows if window.algorithm().name() == name]


def opened(name: str):
    """The dialog of an algorithm that is on the screen, held by nobody but the panel.

    The desktop's window does not hold the Python halves of its children: without its own a dialog's Run does nothing.
    """
    for dialog in shown(name):
        sip.transferback(dialog)
    del dialog
    gc.collect()
    (dialog,) = shown(name)
    return dialog


def test_setting_up_does_not_block_the_window(panel, browser, monkeypatch):
    engine = os.environ["CEGATE_GEO_ENGINE"]
    monkeypatch.setenv("CEGATE_GEO_ENGINE", "/no/such/engine")
    panel._refresh()
    panel.form.set_up.click()
    dialog, ended = opened("set_up_engine"), []
    assert not dialog.isModal()
    assert panel.form.engine_row.isVisibleTo(panel)
    monkeypatch.setenv("CEGATE_GEO_ENGINE", engine)  # as if it were set up
    dialog.setParameters({"ACTION": "remove"})
    dialog.algorithmFinished.connect(lambda ok, results: ended.append(ok))
    dialog.runButton().click()
    wait(lambda: ended)
    assert ended == [True]
    assert not panel.form.engine_row.isVisibleTo(panel)
    dialog.close()


def test_more_options_open_the_dialog_of_adapting_which_runs(panel, browser, tmp_path):
    draw_two(make_labels(panel, str(tmp_path / "labels.gpkg")))
    panel.form.more.click()
    dialog, ended = opened("adapt_model"), []
    dialog.algorithmFinished.connect(lambda ok, results: ended.append(results.get("MODEL")))
    dialog.runButton().click()
    wait(lambda: ended)
    assert ended == [str(tmp_path / "run_1" / "model.onnx")]
    dialog.close()
    panel.labels.layer().rollBack()


def test_the_window_is_never_blocked(panel, fake_engine):
    fake_engine.mode("steady")
    panel.form.run_all.click()
    stalls, last = [], time.monotonic()
    while panel.runs.is_running():
        QCoreApplication.processEvents()
        time.sleep(0.002)
        stalls.append(time.monotonic() - last)
        last = time.monotonic()
    assert len(stalls) > 20
    print(f"longest stall {max(stalls):.3f} s")


def make_labels(panel, path: str = "") -> QgsVectorLayer:
    panel.labels.make(CLASSES, path)
    return panel.labels.layer()


@pytest.mark.parametrize("name", ["", "mes étiquettes.gpkg"])
def test_labels_are_drawn_by_class_without_a_form(panel, qgis_iface, tmp_path, name):
    layer = make_labels(panel, str(tmp_path / name) if name else "")
    assert layer.providerType() == ("ogr" if name else "memory")
    assert layer.crs() == panel.scene().crs()
    assert isinstance(layer.renderer(), QgsCategorizedSymbolRenderer)
    assert [c.symbol().color().name() for c in layer.renderer().categories()] == ["#e4e4de", "#d64541"]
    setup = layer.editorWidgetSetup(layer.fields().lookupField("class"))
    assert setup.type() == "ValueMap"
    assert [panel.form.label_class.itemText(n) for n in range(2)] == CLASSES
    panel.form.label_class.setCurrentIndex(1)
    panel.form.draw.click()
    assert layer.isEditable()
    index = layer.fields().lookupField("class")
    assert layer.defaultValueDefinition(index).expression() == "'building'"
    assert layer.editFormConfig().suppress() == 1
    layer.rollBack()


def test_a_label_file_that_can_not_be_made_is_told(panel):
    panel.labels.make(CLASSES, "/no/such/folder/labels.gpkg")
    assert "could not be made" in panel.form.status.text()
    assert panel.labels.layer() is None


def test_the_dialog_for_labels_wants_two_classes(panel):
    from cegate_geo_qgis.new_labels_dialog import NewLabelsDialog
    from qgis.PyQt.QtWidgets import QDialogButtonBox

    dialog = NewLabelsDialog(CLASSES, "/x/labels")
    ok = dialog.buttons.button(QDialogButtonBox.StandardButton.Ok)
    assert (dialog.classes(), dialog.path(), ok.isEnabled()) == (CLASSES, "/x/labels.gpkg", True)
    dialog.names.setPlainText(" tree \n\ntree\n")
    assert (dialog.classes(), ok.isEnabled()) == (["tree"], False)


def draw_two(layer) -> None:
    layer.startEditing()
    for n, name in enumerate(CLASSES):
        feature = QgsFeature(layer.fields())
        x = 300000 + 5 * n
        feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(x, 2999980, x + 4, 2999984)))
        feature.setAttribute("class", name)
        assert layer.addFeature(feature)


def test_adapting_from_drawn_polygons_gives_the_model_to_look_with(panel, fake_engine, tmp_path):
    draw_two(make_labels(panel, str(tmp_path / "labels.gpkg")))
    panel.form.steps.setValue(7)
    panel.form.adapt.click()
    assert "The model has learned. Mean IoU on the parts held out: 0.500. Look again" in finish(panel)
    run = tmp_path / "run_1"
    assert panel.model() == str(run / "model.onnx")
    assert "steps = 7" in (run / "adapt.toml").read_text()
    assert panel.labels.layer().isEditable()  # unsaved edits stay the user's
    panel.form.adapt.click()
    assert "learned" in finish(panel)
    assert panel.model() == str(tmp_path / "run_2" / "model.onnx")
    panel.labels.layer().rollBack()


def test_what_can_not_be_adapted_is_told(panel, tmp_path):
    make_labels(panel)
    panel.form.folder.setFilePath(str(tmp_path / "run"))
    panel.form.adapt.click()
    assert "hold no class" in finish(panel)


def test_a_project_that_is_closed_meanwhile_gets_no_layers(panel, fake_engine, tmp_path):
    fake_engine.mode("steady")
    panel.form.target.setFilePath(str(tmp_path / "all.tif"))
    panel.form.run_all.click()
    wait(lambda: panel.form.bar.value() > 10)
    QgsProject.instance().clear()
    assert str(tmp_path / "all.tif") in finish(panel)
    assert QgsProject.instance().mapLayers() == {}
    assert (tmp_path / "all.tif").is_file()


def test_unloading_in_the_middle_of_a_run_ends_the_engine(plugin, fake_engine, tmp_path):
    wait(lambda: plugin.panel.card() is not None)
    fake_engine.mode("long")
    plugin.panel.form.target.setFilePath(str(tmp_path / "all.tif"))
    plugin.panel.form.run_all.click()
    wait(lambda: plugin.panel.form.bar.value() > 10)
    task = plugin.panel.runs._running.task
    plugin.unload()
    assert plugin.panel is None
    assert not task.isActive()
    pid = [entry["pid"] for entry in fake_engine.log if entry.get("argv", [""])[0] == "predict"][-1]
    wait(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2], 5)
    assert not (tmp_path / "all.tif").exists()
    for _ in range(20):
        QCoreApplication.processEvents()
    assert QgsApplication.processingRegistry().providerById("cegate_geo") is None


def test_two_runs_at_once_are_refused_in_the_panel(panel, fake_engine):
    fake_engine.mode("steady")
    panel.form.run_all.click()
    assert panel.runs.start("cegate_geo:segment_raster", {}, print) == "Something is running already."
    assert finish(panel) == "Done."


def test_steps_of_a_training_are_told_as_it_goes(panel, fake_engine, tmp_path):
    draw_two(panel.labels.layer() or make_labels(panel, str(tmp_path / "labels.gpkg")))
    told = []
    panel.runs.stepped.connect(told.append)
    panel.form.adapt.click()
    assert "learned" in finish(panel)
    assert told[0].startswith("step 1 of 20: loss 1.000")
    assert told[0] in panel.form.log.toPlainText()
    panel.labels.layer().rollBack()


def test_the_panel_has_a_picture(panel, pictures):
    panel.resize(420, 900)
    for _ in range(10):
        QCoreApplication.processEvents()
    assert panel.grab().save(str(pictures / "panel.png"))
