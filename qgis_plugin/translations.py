# SPDX-License-Identifier: GPL-2.0-or-later
"""Gathers the plugin's texts for translators: `python qgis_plugin/translations.py LANGUAGE [LANGUAGE ...]`.

Writes `cegate_geo_qgis/i18n/cegate_geo_qgis_LANGUAGE.ts` for each, to be worked on with Qt Linguist; what was
translated in a file that is there already is kept. `lrelease FILE.ts` makes the .qm that the plugin loads and
`package.py` packs.

Qt's own lupdate and pylupdate are not used: they take the class around a text as its context, and here all texts have
one, as most stand outside of classes that Qt knows.
"""

from __future__ import annotations

import ast
import re
import sys
import xml.etree.ElementTree as ET  # nosec B405
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping

HERE = Path(__file__).resolve().parent
PLUGIN = HERE / "cegate_geo_qgis"
CONTEXT = "CegateGeo"
FUNCTIONS = ("tr", "mark")


@dataclass(frozen=True)
class Found:
    """A text of the plugin."""

    text: str
    file: str
    line: int


def texts_of(source: Path) -> Iterator[Found]:
    """All that stands literally in `tr(...)` or `mark(...)` in a module."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and node.args:
            given = node.args[0]
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield Found(given.value, source.name, node.lineno)


def gather() -> list[Found]:
    """All texts, each once, in the order of files and lines."""
    found: dict[str, Found] = {}
    for source in sorted(PLUGIN.glob("*.py")):
        for one in sorted(texts_of(source), key=lambda one: one.line):
            found.setdefault(one.text, one)
    return list(found.values())


def known(path: Path) -> dict[str, str]:
    """Text → translation of a .ts file; empty where there is none."""
    if not path.is_file():
        return {}
    messages = ET.parse(path).getroot().iter("message")  # nosec B314
    pairs = ((m.findtext("source", ""), m.find("translation")) for m in messages)
    return {text: (t.text or "") for text, t in pairs if t is not None and t.get("type") != "unfinished"}


def document(language: str, texts: list[Found], translated: Mapping[str, str]) -> str:
    """A .ts file."""
    root = ET.Element("TS", version="2.1", language=language, sourcelanguage="en")
    context = ET.SubElement(root, "context")
    ET.SubElement(context, "name").text = CONTEXT
    for one in texts:
        message = ET.SubElement(context, "message")
        ET.SubElement(message, "location", filename=f"../{one.file}", line=str(one.line))
        ET.SubElement(message, "source").text = one.text
        if one.text in translated:
            ET.SubElement(message, "translation").text = translated[one.text]
        else:
            ET.SubElement(message, "translation", type="unfinished")
    ET.indent(root, "    ")
    return f'<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE TS>\n{ET.tostring(root, encoding="unicode")}\n'


def main(languages: list[str]) -> None:
    """Write or renew the files of some languages."""
    if not languages or not all(re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?", language) for language in languages):
        sys.exit("Name languages as QGIS does: python qgis_plugin/translations.py de fr pt_BR")
    texts = gather()
    folder = PLUGIN / "i18n"
    folder.mkdir(exist_ok=True)
    for language in languages:
        path = folder / f"cegate_geo_qgis_{language}.ts"
        translated = known(path)
        path.write_text(document(language, texts, translated), encoding="utf-8")
        done = sum(one.text in translated for one in texts)
        sys.stdout.write(f"{path}: {len(texts)} texts, {done} of them translated\n")


if __name__ == "__main__":
    main(sys.argv[1:])
