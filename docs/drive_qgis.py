"""Runs inside the QGIS desktop (`qgis.bin --code`), started by make_qgis_pictures.py: works the panel, takes pictures.

Everything is done as a user does it: by the plugin that was installed from its zip, its buttons and dialogs.
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
from qgis.PyQt.QtCore import QCoreApplication, Qt, QTimer
from qgis.PyQt.QtWidgets import QDockWidget
from qgis.utils import iface, plugins

HERE = Path(os.environ["PICTURES_WORK"])
TARGET = Path(os.environ["PICTURES_TARGET"])
SCENE, LABELS = os.environ["PICTURES_SCENE"], os.environ.get("PICTURES_LABELS", "")
MODEL = os.environ.get("PICTURES_MODEL", "")
STEPS = int(os.environ.get("PICTURES_STEPS", "150"))


def wait(until, seconds: float = 600.0) -> None:
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


def finished(panel) -> None:
    """Wait for the panel's run, and fail where it failed."""
    stalls, last = [0.0], [time.monotonic()]

    def look() -> bool:
        now = time.monotonic()
        stalls.append(now - last[0])
        last[0] = now
        return not panel.runs.is_running()

    wait(look)
    print(f"{panel.form.status.text()} (longest stall {max(stalls) * 1000:.0f} ms)", file=sys.stderr)
    if "color" in panel.form.status.styleSheet():
        raise RuntimeError(panel.form.status.text() + panel.form.log.toPlainText())


def drive() -> None:
    """The whole story."""
    project, panel = QgsProject.instance(), plugins["cegate_geo_qgis"].panel
    window = iface.mainWindow()
    window.resize(1500, 940)
    window.move(0, 0)
    for dock in window.findChildren(QDockWidget):
        dock.setVisible(dock.objectName() in ("Layers", panel.objectName()))
    scene = QgsRasterLayer(SCENE, os.environ.get("PICTURES_NAME", "Region B"), "gdal")
    project.addMapLayer(scene)
    project.setCrs(scene.crs())
    window.resizeDocks([panel], [400], Qt.Orientation.Horizontal)
    iface.mapCanvas().setExtent(scene.extent())
    wait(lambda: panel.card() is not None)
    panel.form.preview.click()
    finished(panel)
    picture("qgis-panel-demo-model")
    if LABELS:
        panel.make_labels(["other", "building", "road", "tree", "water"], str(HERE / "my labels.gpkg"))
        draw(panel, LABELS)
        panel.form.steps.setValue(STEPS)
        picture("qgis-panel-labels")
        if MODEL:
            panel.form.model.setFilePath(MODEL)
            wait(lambda: panel.card() is not None)
        else:
            panel.form.adapt.click()
            wait(lambda: panel.form.bar.value() > 300)
            picture("qgis-panel-adapting", panel)
            finished(panel)
        project.layerTreeRoot().findLayer(panel.label_layer().id()).setItemVisibilityChecked(False)
        panel.form.preview.click()
        finished(panel)
    if LABELS:
        panel.form.polygons.setChecked(True)
        panel.form.run_all.click()
        finished(panel)
        for node in project.layerTreeRoot().findLayers():
            if node.name().endswith(": class map"):
                node.setItemVisibilityChecked(False)  # the scene shows through the polygons
        picture("qgis-panel")
    dialogs(scene)


def draw(panel, source: str) -> None:
    """Polygons of a file, as if they had been drawn: those of the scene's west."""
    layer = panel.label_layer()
    panel.form.draw.click()
    given = QgsVectorLayer(source, "given", "ogr")
    names = {0: "other", 1: "building", 2: "road", 3: "tree", 4: "water"}
    west = given.extent()
    west.setXMaximum(west.xMinimum() + 0.6 * west.width())
    for feature in given.getFeatures():
        if not west.contains(feature.geometry().boundingBox()):
            continue
        value = feature["class"]
        made = QgsFeature(layer.fields())
        made.setGeometry(feature.geometry())
        made.setAttribute("class", names.get(value, str(value)))
        layer.addFeature(made)
    if not layer.commitChanges():
        raise RuntimeError(str(layer.commitErrors()))
    iface.actionPan().trigger()


def dialogs(scene: QgsRasterLayer) -> None:
    """The dialogs of the algorithms, not run."""
    for name in ("segment_raster", "adapt_model", "evaluate", "model_information"):
        dialog = processing.createAlgorithmDialog(f"cegate_geo:{name}", {})
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
        panel = plugins["cegate_geo_qgis"].panel
        print(panel.form.log.toPlainText(), file=sys.stderr)
    QgsProject.instance().removeAllMapLayers()
    QgsProject.instance().setDirty(False)
    (HERE / "exit-code").write_text(str(code))
    iface.actionExit().trigger()


QTimer.singleShot(1500, main)
