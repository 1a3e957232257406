"""Setting up the engine inside QGIS: parameters, QGIS' network settings, the dialog; Python and pip are faked."""

# ruff: noqa: N802, the names are QGIS'

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import processing
import pytest
from qgis.core import (
    QgsApplication,
    QgsNetworkAccessManager,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsSettings,
)
from qgis.gui import QgsBrowserGuiModel
from qgis.PyQt.QtCore import QEventLoop, QTimer

sys.path.insert(0, str(Path(__file__).parents[1]))
import fake_python

ID = "cegate_geo:set_up_engine"
pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The managed environment, in a folder with a space and an accent."""
    from cegate_geo_qgis import engine_algorithm, set_up_engine

    folder = tmp_path / "un profil é" / "cegate_geo" / "engine"
    for module in (engine_algorithm, set_up_engine):
        monkeypatch.setattr(module, "managed_environment", lambda: folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


@pytest.fixture
def python(tmp_path) -> str:
    return str(fake_python.install(tmp_path / "a Python" / "python3.12"))


class Recorder(QgsProcessingFeedback):
    """Keeps what is logged; cancels when a line is seen."""

    def __init__(self, cancel_at: str = "never said"):
        super().__init__(False)
        self.lines, self.warnings, self._cancel_at = [], [], cancel_at

    def pushInfo(self, info):
        self.lines.append(info)

    def pushConsoleInfo(self, info):
        self.lines.append(info)
        if self._cancel_at in info:
            self.cancel()

    def pushWarning(self, warning):
        self.warnings.append(warning)


def test_every_parameter_has_help_and_it_can_always_run():
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
    assert [p.name() for p in algorithm.parameterDefinitions()] == ["ACTION", "VARIANT", "WHEEL", "FOLDER", "PYTHON"]
    assert [p.name() for p in algorithm.parameterDefinitions() if len(p.help()) < 10] == []
    assert algorithm.canExecute()[0]


def test_segment_raster_names_it_then_finds_what_it_made(place, python):
    segment = QgsApplication.processingRegistry().createAlgorithmById("cegate_geo:segment_raster")
    ok, message = segment.canExecute()
    assert not ok
    assert "Run 'Set up the engine' in the Processing Toolbox" in message
    feedback = Recorder()
    made = processing.run(ID, {"PYTHON": python}, feedback=feedback)
    assert made == {"ENGINE": str(place), "VERSION": "0.1.0"}
    assert segment.canExecute()[0]
    assert "Successfully installed cegate-geo-0.1.0" in feedback.lines
    assert feedback.warnings == []
    assert processing.run(ID, {"ACTION": "check"}) == made
    assert processing.run(ID, {"ACTION": "remove"}) == {}
    assert not place.exists()
    assert not segment.canExecute()[0]


def test_setting_up_leaves_qgis_own_python_as_it_was(place, python):
    code = "from osgeo import gdal_array; import numpy, sys; print(numpy.__version__, numpy.__file__, sys.path)"
    look = [sys.executable, "-c", code]
    before = subprocess.run(look, capture_output=True, text=True, check=True).stdout
    path = list(sys.path)
    processing.run(ID, {"PYTHON": python}, feedback=Recorder())
    assert subprocess.run(look, capture_output=True, text=True, check=True).stdout == before
    assert sys.path == path


def test_a_setting_that_goes_first_is_warned_of(place, python, monkeypatch):
    monkeypatch.setenv("CEGATE_GEO_ENGINE", "/another/engine")
    feedback = Recorder()
    processing.run(ID, {"PYTHON": python}, feedback=feedback)
    assert "CEGATE_GEO_ENGINE names another engine, /another/engine, which goes first" in feedback.warnings[0]


def test_another_version_is_told_with_what_to_install(place, python, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "0.1.9")
    feedback = Recorder()
    processing.run(ID, {"PYTHON": python}, feedback=feedback)
    assert "install the plugin of version 0.1.9" in feedback.warnings[0]


def test_a_failure_is_an_error_in_plain_words(place, python, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_MODE", "full")
    with pytest.raises(QgsProcessingException, match="The disk is full"):
        processing.run(ID, {"PYTHON": python}, feedback=Recorder())
    with pytest.raises(QgsProcessingException, match="There is no engine"):
        processing.run(ID, {"ACTION": "check"}, feedback=Recorder())


def test_cancelling_leaves_nothing(place, python, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PIP_MODE", "deaf")
    monkeypatch.setenv("FAKE_PIP_PIDS", str(tmp_path / "pids"))
    with pytest.raises(QgsProcessingException, match="Cancelled"):
        processing.run(ID, {"PYTHON": python}, feedback=Recorder(cancel_at="Downloading"))
    assert {path.name for path in place.parent.iterdir()} == {"setup.lock"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WHEEL": "{folder}/x.whl"}, "x.whl is no wheel"),
        ({"FOLDER": "{folder}"}, "holds no wheel of cegate-geo"),
        ({"FOLDER": "{folder}", "ACTION": "remove"}, ""),
    ],
)
def test_what_can_not_work_is_said_before_the_run(tmp_path, given, words):
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
    given = {key: value.format(folder=tmp_path) for key, value in given.items()}
    ok, message = algorithm.checkParameterValues(given, QgsProcessingContext())
    assert ok is not bool(words)
    assert words in (message or "")


@pytest.fixture
def qgis_settings():
    """QGIS' settings, put back at the end."""
    settings = QgsSettings()
    names = [f"proxy/{n}" for n in ("proxyEnabled", "proxyType", "proxyHost", "proxyPort", "proxyUser")]
    names += ["proxy/proxyPassword", "proxy/proxyExcludedUrls", "proxy/noProxyUrls"]
    yield settings
    for name in names:
        settings.remove(name)
    QgsNetworkAccessManager.instance().setupDefaultProxyAndCache()


@pytest.mark.parametrize("kind", ["HttpProxy", "HttpCachingProxy", "Socks5Proxy", "NoProxy"])
def test_the_proxy_of_qgis_is_read(qgis_settings, kind):
    from cegate_geo_qgis.network import Proxy
    from cegate_geo_qgis.set_up_engine import qgis_network

    assert qgis_network().proxy is None
    for name, value in {
        "proxyEnabled": True, "proxyType": kind, "proxyHost": "proxy.lan", "proxyPort": "3128", "proxyUser": "me",
        "proxyPassword": "geheim", "proxyExcludedUrls": ["https://intern.lan/x"],
    }.items():  # fmt: skip
        qgis_settings.setValue(f"proxy/{name}", value)
    QgsNetworkAccessManager.instance().setupDefaultProxyAndCache()
    network = qgis_network()
    meant = Proxy("proxy.lan", 3128, "me", "geheim", is_socks=kind == "Socks5Proxy")
    assert network.proxy == (None if kind == "NoProxy" else meant)
    assert network.without_proxy == ("https://intern.lan/x",)


def test_an_index_that_qgis_reaches_without_proxy_gets_none(qgis_settings):
    from cegate_geo_qgis.set_up_engine import INDEX, qgis_network

    for name, value in {"proxyEnabled": True, "proxyType": "HttpProxy", "proxyHost": "p", "proxyPort": "1"}.items():
        qgis_settings.setValue(f"proxy/{name}", value)
    qgis_settings.setValue("proxy/proxyExcludedUrls", [INDEX])
    QgsNetworkAccessManager.instance().setupDefaultProxyAndCache()
    assert qgis_network().proxy is None


def test_the_certificates_that_qgis_trusts_are_read():
    from cegate_geo_qgis.set_up_engine import qgis_network

    network = qgis_network()
    assert network.certificates.startswith(b"-----BEGIN CERTIFICATE-----")
    assert not network.has_own_certificates


def test_pressing_run_in_the_dialog_installs(place, python, qgis_iface, monkeypatch, pictures):
    model = QgsBrowserGuiModel()
    monkeypatch.setattr(qgis_iface, "browserModel", lambda: model, raising=False)
    dialog = processing.createAlgorithmDialog(ID, {"PYTHON": python})
    dialog.resize(1000, 640)
    dialog.show()
    for _ in range(5):
        QgsApplication.processEvents()
    assert dialog.grab().save(str(pictures / "set-up-engine.png"))
    loop, end = QEventLoop(), {}

    def finished(ok, results):
        end.update(ok=ok, results=results)
        loop.quit()

    dialog.algorithmFinished.connect(finished)
    QTimer.singleShot(60_000, loop.quit)
    dialog.runButton().click()
    if not end:
        loop.exec()
    assert end["ok"]
    assert end["results"]["VERSION"] == "0.1.0"
    dialog.close()
