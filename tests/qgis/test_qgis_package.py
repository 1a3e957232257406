"""The plugin's source and its zip, without QGIS."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cegate_geo

PLUGIN = Path(__file__).resolve().parents[2] / "qgis_plugin"
SOURCES = sorted((PLUGIN / "cegate_geo_qgis").rglob("*.py"))


@pytest.fixture
def metadata():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(PLUGIN / "cegate_geo_qgis" / "metadata.txt", encoding="utf-8")
    return parser["general"]


def imported(source: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_imports_the_standard_library_and_qgis_only(source):
    names = imported(source)
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) <= {"qgis", "processing"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_is_python_3_9(source):
    ast.parse(source.read_text(), feature_version=(3, 9))
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--target-version=py39", "--select=E9,F", source]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_needs_no_qgis_imports_none():
    for name in (
        "protocol", "outcome", "engine", "predict_job", "child", "interpreters", "network", "install_advice",
        "setup_recipe", "managed_place", "engine_setup", "ask", "adapt_job", "model_card", "figures", "words",
        "model_use", "check_report", "runtime_words",
    ):  # fmt: skip
        assert not any(
            n.startswith(("qgis", "processing")) for n in imported(PLUGIN / "cegate_geo_qgis" / f"{name}.py")
        )


def test_metadata_is_complete(metadata):
    for key in ("name", "description", "about", "author", "email", "tracker", "repository", "homepage", "tags"):
        assert metadata[key].strip()
    assert (metadata["qgisMinimumVersion"], metadata["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert metadata["hasProcessingProvider"] == "yes"
    assert "external engine" in metadata["about"]
    assert (PLUGIN / "cegate_geo_qgis" / metadata["icon"]).is_file()


def test_plugin_and_engine_have_one_version(metadata):
    assert metadata["version"] == cegate_geo.__version__


def test_the_zip_is_whole_small_and_the_same_each_time(tmp_path, metadata):
    made = []
    for name in ("a", "b"):
        words = [sys.executable, PLUGIN / "package.py", tmp_path / name]
        made.append(Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()))
    assert made[0].name == f"cegate_geo_qgis.{metadata['version']}.zip"
    assert made[0].read_bytes() == made[1].read_bytes()
    assert made[0].stat().st_size < 300_000
    inside = set(zipfile.ZipFile(made[0]).namelist())
    expected = {f"cegate_geo_qgis/{path.name}" for path in SOURCES}
    assert inside == expected | {f"cegate_geo_qgis/{n}" for n in ("metadata.txt", "icon.svg", "LICENSE")}


def test_the_licence_is_the_gpl_2():
    text = (PLUGIN / "LICENSE").read_text()
    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "Version 2, June 1991" in text
    assert all("SPDX-License-Identifier: GPL-2.0-or-later" in path.read_text() for path in SOURCES)
