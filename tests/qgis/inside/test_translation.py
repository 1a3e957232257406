"""Every text that the toolbox, the dialogs and the panel show comes through the translation, in one context."""

# ruff: noqa: N802, the names are Qt's

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from qgis.core import QgsApplication, QgsProject
from qgis.PyQt.QtCore import QCoreApplication, QTranslator
from qgis.PyQt.QtWidgets import QAbstractButton, QGroupBox, QLabel, QWidget

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "qgis_plugin"))
import translations

OURS = re.compile(r"«.*»", re.DOTALL)


class Marking(QTranslator):
    """Knows what `translations.py` gathers, and puts it in brackets."""

    def __init__(self):
        super().__init__()
        self._known = {one.text for one in translations.gather()}

    def isEmpty(self):
        return False

    def translate(self, context, source, disambiguation=None, n=-1):
        return f"«{source}»" if context == translations.CONTEXT and source in self._known else ""


@pytest.fixture
def marked():
    translator = Marking()
    QCoreApplication.installTranslator(translator)
    yield
    QCoreApplication.removeTranslator(translator)


def test_all_that_an_algorithm_shows_is_translated(marked, provider):
    plain = []
    for algorithm in provider.algorithms():
        fresh = algorithm.create()
        shown = [fresh.displayName(), fresh.shortDescription(), fresh.shortHelpString()]
        for parameter in fresh.parameterDefinitions():
            shown += [parameter.description(), parameter.help()]
        shown += [output.description() for output in fresh.outputDefinitions()]
        plain += [f"{fresh.id()}: {text}" for text in shown if not OURS.search(text)]
    assert plain == []
    assert OURS.search(provider.longName())


def test_all_that_the_panel_shows_is_translated(marked, qgis_processing, qgis_iface, fake_engine, monkeypatch):
    from cegate_geo_qgis import classFactory
    from cegate_geo_qgis.new_labels_dialog import NewLabelsDialog

    for name in ("addPluginToRasterMenu", "removePluginRasterMenu", "addToolBarIcon", "removeToolBarIcon"):
        monkeypatch.setattr(qgis_iface, name, lambda *words: None, raising=False)
    QgsProject.instance().clear()
    plugin = classFactory(qgis_iface)
    plugin.initGui()
    dialog = NewLabelsDialog(["a", "b"], "/x/labels")
    try:
        found = [*texts_of(plugin.panel.form), *texts_of(dialog)]
        assert len(found) > 25
        assert [text for text in found if not OURS.search(text)] == []
    finally:
        plugin.unload()


def texts_of(parent: QWidget) -> list[str]:
    """What labels, buttons and boxes say, but for those of QGIS' own widgets (which it translates itself)."""
    found = []
    for widget in parent.findChildren(QWidget):
        inside, owner = widget.parentWidget(), ""
        while inside is not None and inside is not parent:
            owner = inside.metaObject().className() if inside.metaObject().className().startswith("Qgs") else owner
            inside = inside.parentWidget()
        if owner and owner != "QgsCollapsibleGroupBox":
            continue
        if isinstance(widget, QGroupBox):
            found.append(widget.title())
        elif isinstance(widget, (QLabel, QAbstractButton)) and "DialogButton" not in type(inside).__name__:
            found.append(widget.text())
        found.append(widget.toolTip())
    return [text for text in found if text.strip() and text not in ("…", "...", "&OK", "&Cancel")]


def test_a_translation_file_is_loaded_and_taken_away(qgis_processing, monkeypatch):
    """`lrelease` is not everywhere: the file is made by hand as far as its name matters."""
    from cegate_geo_qgis import classFactory, plugin

    asked = []

    class Loading(Marking):
        def load(self, name, folder):
            asked.append((name, Path(folder).name))
            return True

    monkeypatch.setattr(plugin, "QTranslator", Loading)
    monkeypatch.setattr(QgsApplication, "locale", staticmethod(lambda: "de"))
    made = classFactory(None)
    made.initProcessing()
    assert asked == [("cegate_geo_qgis_de", "i18n")]
    algorithm = QgsApplication.processingRegistry().algorithmById("cegate_geo:evaluate")
    assert algorithm.displayName() == "«Evaluate»"
    made.unload()
    made = classFactory(None)
    made.unload()
    assert QCoreApplication.translate(translations.CONTEXT, "Evaluate") == "Evaluate"
