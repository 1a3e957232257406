"""The plugin's texts: all can be translated, and translators get all of them. Without QGIS."""

from __future__ import annotations

import ast
import re
import string
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "qgis_plugin"
SOURCES = sorted((PLUGIN / "cegate_geo_qgis").glob("*.py"))
sys.path.insert(0, str(PLUGIN))
import translations  # noqa: E402

PROSE = re.compile(r"[A-Za-z]{2,}[,.:;']? [A-Za-z{(]{2,}|^[A-Z][a-z]+( \.\.\.|\.|:)?$")
"""Words with a space between, or one that begins like a sentence or a label."""
NO_TEXT = re.compile(
    r"</?[a-z]+[ >]"  # HTML around texts; what people read goes in by placeholders
    r"|[;{]\w[\w-]*:"  # styles
    r"|\\[bs]|\|"  # patterns of what pip and uv say
)
OTHERS = {
    "child.py": {"import os, runpy, sys, threading"},  # code for the child
    "interpreters.py": {"import importlib.util as u"},
    "install_advice.py": {"Missing dependencies for SOCKS", "No solution found"},  # pip's and uv's words
    "protocol.py": {"no object: "},  # never shown
}
"""Beginnings of what people don't read, though it looks like it."""
NAMES = {
    "Byte", "Float32", "Float64", "Int16", "Int32", "GPKG", "Deflate", "Polygon", "MultiPolygon", "ValueMap", "Layers",
    "Scripts", "uv ({})", "CegateGeo", "CegateGeoPanel", "CEGate-Geo",
}  # fmt: skip
"""Of types, drivers, folders and widgets."""
NO_WORDS = r"CEGate-Geo|\bpx\b"
SINKS = {
    "pushInfo", "pushWarning", "reportError", "setText", "setToolTip", "setPlaceholderText", "setWindowTitle",
    "EngineError", "EngineCancelledError", "QgsProcessingException", "QLabel", "QPushButton", "QCheckBox", "addRow",
    "QgsCollapsibleGroupBox", "Verdict",
}  # fmt: skip
"""What is given to these is read by people, also where it is one word."""


def literal(node: ast.AST) -> str | None:
    """The text of a string, with {} where values go in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return None


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def untranslated(tree: ast.AST, *, sink: str = "") -> Iterator[tuple[int, str]]:
    """Strings for people that stand outside of tr() and mark()."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and called(node) in translations.FUNCTIONS and isinstance(node.func, ast.Name):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # docstrings
        text = literal(node)
        if text is not None:
            letters = sink and re.search(r"[A-Za-z]{2,}", re.sub(NO_WORDS, "", text)) and sink != "Verdict"
            if (PROSE.search(text) or letters) and not NO_TEXT.search(text) and text not in NAMES:
                yield node.lineno, text
            if isinstance(node, ast.JoinedStr):
                for value in node.values:
                    yield from untranslated(value)
            continue
        inside = called(node) if isinstance(node, ast.Call) and called(node) in SINKS else ""
        yield from untranslated(node, sink=inside)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_what_people_read_stands_in_tr(source):
    found = untranslated(ast.parse(source.read_text(encoding="utf-8")))
    others = tuple(OTHERS.get(source.name, ()))
    assert [(line, text) for line, text in found if not (others and text.strip().startswith(others))] == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("raise EngineError('Broken.')", 1),
        ("raise EngineError(tr('Broken.'))", 0),
        ("raise EngineError(f'{path} is broken')", 1),
        ("label.setText('ok')", 1),
        ("x = f'<b>{tr(\"All of it\")}</b>'", 0),
        ("x = 'a text for people'", 1),
        ("x = f\"{tr('a')} {'more words' if y else ''}\"", 1),
        ("x = re.compile(r'No such|wheel found')", 0),
    ],
)
def test_the_search_for_texts_finds_them(code, count):
    assert len(list(untranslated(ast.parse(code)))) == count


def uses(source: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in translations.FUNCTIONS:
            yield node


def test_translators_can_find_every_text():
    """A literal, not a text that was put together; a variable only where marked texts go in."""
    for source in SOURCES:
        for node in uses(source):
            (given,) = node.args
            assert not isinstance(given, (ast.JoinedStr, ast.BinOp)), f"{source.name}:{node.lineno}"
            if node.func.id == "mark":
                assert isinstance(given, ast.Constant), f"{source.name}:{node.lineno}"
    assert len(translations.gather()) > 400


def test_no_text_is_translated_before_the_language_is_known():
    for source in SOURCES:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        outside = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        outside += [n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body if isinstance(n, ast.Assign)]
        early = [n.lineno for node in outside for n in ast.walk(node) if isinstance(n, ast.Call) and called(n) == "tr"]
        assert early == [], source.name


def test_values_go_in_by_name():
    """A translator may put them in another order."""
    for one in translations.gather():
        if "{" in one.text:
            names = [name for _, name, _, _ in string.Formatter().parse(one.text) if name is not None]
            assert all(name.isidentifier() for name in names), one


def test_a_translation_file_has_all_texts_and_keeps_what_was_translated(tmp_path, monkeypatch):
    monkeypatch.setattr(translations, "PLUGIN", tmp_path)
    (tmp_path / "a.py").write_text("x = tr('One <b>')\ny = mark('Two' ' and more')\n")
    translations.main(["de"])
    path = tmp_path / "i18n" / "cegate_geo_qgis_de.ts"
    text = path.read_text(encoding="utf-8")
    assert text.count("unfinished") == 2
    path.write_text(text.replace('<translation type="unfinished" />', "<translation>Eins</translation>", 1))
    (tmp_path / "a.py").write_text("x = tr('One <b>')\nz = tr('Three')\n")
    translations.main(["de"])
    messages = {m.findtext("source"): m.findtext("translation") for m in ET.parse(path).getroot().iter("message")}
    assert messages == {"One <b>": "Eins", "Three": ""}


def test_the_command_wants_a_language():
    words = [sys.executable, PLUGIN / "translations.py"]
    assert subprocess.run(words, capture_output=True, text=True, check=False).returncode != 0
