"""Runs inside the QGIS desktop (`qgis.bin --code`), started by make_qgis_pictures.py: works the panel, takes pictures.

Everything is done as a user does it: the zip by the plugin manager, the engine by its dialog, the rest by the panel's
buttons. QGIS runs in the folder of the work, and files there are named without it: pictures show no one's folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import processing
from qgis.core import QgsFeature, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.gui import QgsFileWidget
from qgis.PyQt.QtCore import QCoreApplication, Qt, QTimer
from qgis.PyQt.QtWidgets import QApplication, QDockWidget, QMessageBox, QPushButton, QTextEdit, QToolButton
from qgis.utils import iface, plugins

NAME = "cegate_geo_qgis"
TARGET = Path(os.environ["PICTURES_TARGET"])
SCENE, LABELS = os.environ["PICTURES_SCENE"], os.environ.get("PICTURES_LABELS", "")
MODEL, WHEELS = os.environ.get("PICTURES_MODEL", ""), os.environ.get("PICTURES_WHEELS", "")
STEPS = int(os.environ.get("PICTURES_STEPS", "150"))
REGION_CLASSES = {0: "other", 1: "building", 2: "road", 3: "tree", 4: "water"}
"""Of the demo's regions, which hold numbers."""


def wait(until, seconds: float = 1500.0) -> None:
    """Process events until something is so."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise RuntimeError("it never came to this")
        QCoreApplication.processEvents()
        time.sleep(0.01)


def settle(seconds: float = 1.0) -> None:
    """Let the window draw itself."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)
    canvas = iface.mapCanvas()
    canvas.refresh()
    wait(lambda: not canvas.isDrawing())


def picture(name: str, widget=None) -> None:
    """Of a widget, or of the whole screen."""
    settle()
    path = str(TARGET / f"{name}.png")
    if widget is None:
        subprocess.run(["import", "-window", "root", path], check=True)
    else:
        widget.grab().save(path)
    subprocess.run(["convert", path, "-colors", "128", f"PNG8:{path}"], check=True)


def say(text: str) -> None:
    """Tell whoever started this."""
    print(text, file=sys.stderr, flush=True)


def inside(find, act, trigger) -> None:
    """Do something in a dialog that `trigger` opens; what fails there, fails here."""
    problems, done = [], []

    def guarded() -> None:
        dialog = next((w for w in QApplication.topLevelWidgets() if w.isVisible() and find(w)), None)
        if dialog is None:  # not open yet
            QTimer.singleShot(200, guarded)
            return
        try:
            act(dialog)
        except Exception as error:
            problems.append(error)
        dialog.close()
        done.append(True)

    QTimer.singleShot(200, guarded)
    trigger()
    wait(lambda: bool(done))
    if problems:
        raise problems[0]


def install(zip_file: str) -> None:
    """By Plugins > Manage and Install Plugins > Install from ZIP."""

    def agree() -> None:
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):  # may an unknown plugin be installed?
            box.button(QMessageBox.StandardButton.Yes).click()

    def choose(manager) -> None:
        manager.findChild(QgsFileWidget, "mZipFileWidget").setFilePath(zip_file)
        timer = QTimer(manager)
        timer.timeout.connect(agree)
        timer.start(200)
        manager.findChild(QPushButton, "buttonInstallFromZip").click()
        wait(lambda: NAME in plugins, 60)
        timer.stop()

    inside(lambda w: w.objectName() == "QgsPluginManagerBase", choose, iface.actionManagePlugins().trigger)
    say("The plugin was installed from its zip by the plugin manager.")


def set_up(panel) -> None:
    """By the panel's button and the dialog behind it, from a folder of wheels."""

    def fill(dialog) -> None:
        ended = []
        dialog.setParameters({"ACTION": "install", "VARIANT": os.environ["PICTURES_VARIANT"], "FOLDER": WHEELS})
        dialog.resize(1000, 560)
        picture("qgis-set-up-engine", dialog)
        dialog.algorithmFinished.connect(lambda ok, results: ended.append((ok, results)))
        begun = time.monotonic()
        dialog.runButton().click()
        wait(lambda: bool(ended))
        say(f"Set up: {ended[0]} in {time.monotonic() - begun:.0f} s")
        if not ended[0][0]:
            log = "\n".join(edit.toPlainText() for edit in dialog.findChildren(QTextEdit))
            raise RuntimeError(f"setting up failed: {log}")

    if not panel.form.engine_row.isVisible():
        raise RuntimeError("the panel does not offer to set up the engine")
    inside(lambda w: hasattr(w, "algorithmFinished"), fill, panel.form.set_up.click)
    if panel.form.engine_row.isVisible():
        raise RuntimeError("the panel still offers to set up the engine")


def finished(panel) -> None:
    """Wait for the panel's run, and fail where it failed."""
    stalls, last, begun = [0.0], [time.monotonic()], time.monotonic()

    def look() -> bool:
        now = time.monotonic()
        stalls.append(now - last[0])
        last[0] = now
        return not panel.runs.is_running()

    wait(look)
    text = panel.form.status.text()
    say(f"{text} ({time.monotonic() - begun:.1f} s, longest stall of the window {max(stalls) * 1000:.0f} ms)")
    if "color" in panel.form.status.styleSheet():
        raise RuntimeError(text + panel.form.log.toPlainText())


def cancelled(panel) -> None:
    """Begin to run on all, and cancel in the middle."""
    panel.form.run_all.click()
    wait(lambda: panel.form.bar.value() > 20 or not panel.runs.is_running())
    begun = time.monotonic()
    panel.form.cancel.click()
    wait(lambda: not panel.runs.is_running())
    say(f"{panel.form.status.text()} {time.monotonic() - begun:.2f} s after Cancel was pressed")


def show_panel() -> object:
    """Window and panel, as they are in the pictures."""
    panel, window = plugins[NAME].panel, iface.mainWindow()
    if not panel.isVisible():
        raise RuntimeError("the panel did not show itself when the plugin was installed")
    window.resize(1500, 940)
    window.move(0, 0)
    for dock in window.findChildren(QDockWidget):
        dock.setVisible(dock.objectName() in ("Layers", panel.objectName()))
    window.resizeDocks([panel], [400], Qt.Orientation.Horizontal)
    return panel


def drive() -> None:
    """The whole story."""
    install(os.environ["PICTURES_ZIP"])
    panel = show_panel()
    (button,) = [b for b in iface.mainWindow().findChildren(QToolButton) if b.text() == "CEGate-Geo panel"]
    for is_visible in (False, True):
        button.click()
        if panel.isVisible() is not is_visible:
            raise RuntimeError("the button in the tool bar does not show and hide the panel")
    project = QgsProject.instance()
    if WHEELS:
        set_up(panel)
    scene = QgsRasterLayer(SCENE, os.environ.get("PICTURES_NAME", "Region B"), "gdal")
    project.addMapLayer(scene)
    project.setCrs(scene.crs())
    iface.mapCanvas().setExtent(scene.extent())
    wait(lambda: panel.card() is not None)
    panel.form.preview.click()
    finished(panel)
    picture("qgis-panel-demo-model")
    if WHEELS:
        cancelled(panel)
        run_on_all(panel)
        picture("qgis-panel-all")
        for group in project.layerTreeRoot().findGroups():
            group.setItemVisibilityChecked(False)  # to draw on the scene
    if LABELS:
        teach(panel)
        panel.form.preview.click()
        finished(panel)
        run_on_all(panel)
        for node in project.layerTreeRoot().findLayers():
            if node.name().endswith(": class map"):
                node.setItemVisibilityChecked(False)  # the scene shows through the polygons
        picture("qgis-panel")
    for layer in project.mapLayers().values():
        renderer = layer.renderer().type() if layer.renderer() is not None else ""
        say(f"layer {layer.name()}: {renderer}")
    dialogs(panel)


def run_on_all(panel) -> None:
    """Class map and polygons of the whole scene."""
    panel.form.polygons.setChecked(True)
    panel.form.run_all.click()
    finished(panel)


def teach(panel) -> None:
    """Labels, then a model of them."""
    given = QgsVectorLayer(LABELS, "given", "ogr")
    values = given.uniqueValues(given.fields().lookupField("class"))
    names = list(REGION_CLASSES.values()) if values <= set(REGION_CLASSES) else sorted(map(str, values))
    panel.labels.make(names, "my labels.gpkg")
    draw(panel, given)
    panel.form.steps.setValue(STEPS)
    picture("qgis-panel-labels")
    if MODEL:
        panel.form.model.setFilePath(MODEL)
        wait(lambda: panel.card() is not None)
    else:
        panel.form.adapt.click()
        wait(lambda: panel.form.bar.value() > 300 or not panel.runs.is_running())
        picture("qgis-panel-adapting", panel)
        finished(panel)
    node = QgsProject.instance().layerTreeRoot().findLayer(panel.labels.layer().id())
    node.setItemVisibilityChecked(False)


def draw(panel, given: QgsVectorLayer) -> None:
    """Polygons of a file, as if they had been drawn: those of the scene's west."""
    layer = panel.labels.layer()
    panel.form.draw.click()
    west = given.extent()
    west.setXMaximum(west.xMinimum() + 0.6 * west.width())
    for feature in given.getFeatures():
        if not west.contains(feature.geometry().boundingBox()):
            continue
        value = feature["class"]
        made = QgsFeature(layer.fields())
        made.setGeometry(feature.geometry())
        made.setAttribute("class", REGION_CLASSES.get(value, str(value)))
        layer.addFeature(made)
    if not layer.commitChanges():
        raise RuntimeError(str(layer.commitErrors()))
    iface.actionPan().trigger()


def dialogs(panel) -> None:
    """The dialogs of the algorithms with the scene, not run."""
    iface.setActiveLayer(panel.scene())
    for name in ("segment_raster", "adapt_model", "evaluate", "check_model", "model_information"):
        given = panel.labels.parameters() if name == "adapt_model" and LABELS else {}
        dialog = processing.createAlgorithmDialog(f"cegate_geo:{name}", given)
        dialog.resize(1120, 860 if name == "segment_raster" else 760)
        dialog.show()
        picture(f"qgis-{name.replace('_', '-')}", dialog)
        dialog.close()


def main() -> None:
    """Drive, then leave QGIS without a question."""
    code = 1
    try:
        drive()
        code = 0
    except Exception:
        traceback.print_exc()
        subprocess.run(["import", "-window", "root", str(TARGET / "failed.png")], check=False)
        if NAME in plugins:
            say(plugins[NAME].panel.form.log.toPlainText())
    QgsProject.instance().removeAllMapLayers()
    QgsProject.instance().setDirty(False)
    Path("exit-code").write_text(str(code))
    iface.actionExit().trigger()


QTimer.singleShot(1500, main)
