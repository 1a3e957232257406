"""The real dialog: run, cancel, failure, and its picture."""

from __future__ import annotations

import pytest
from qgis.core import QgsApplication, QgsProject, QgsRasterLayer
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


def test_pressing_cancel_ends_the_engine_and_leaves_nothing(dialog, fake_engine, tmp_path):
    fake_engine.mode("long")
    progress = []

    def cancel_when_it_runs():
        timer = QTimer(dialog)
        timer.setInterval(20)

        def look():
            QgsApplication.processEvents()
            if fake_engine.log and dialog.cancelButton().isEnabled():
                timer.stop()
                progress.append(True)
                QTimer.singleShot(300, dialog.cancelButton().click)

        timer.timeout.connect(look)
        timer.start()

    end = wait_for_end(dialog, then=cancel_when_it_runs)
    assert progress
    assert not end["ok"]
    assert "Cancelled. Nothing was written." in log_of(dialog)
    assert not fake_engine.is_alive()
    assert not (tmp_path / "mask.tif").exists()
    assert [layer.name() for layer in QgsProject.instance().mapLayers().values()] == ["Banepa"]


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
