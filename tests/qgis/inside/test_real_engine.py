"""The real engine inside QGIS: what it writes is loaded and styled as the fake engine's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import processing
import pytest
from osgeo import gdal
from qgis.core import QgsCategorizedSymbolRenderer, QgsPalettedRasterRenderer, QgsProject, QgsRasterLayer

ID = "cegate_geo:segment_raster"
CLASSES = [(0, "sombre é", "#0c2238"), (1, "bright", "#fac80a")]


@pytest.fixture
def layers(provider, scene, tmp_path, monkeypatch):
    """Results by name, loaded into the project as the dialog does."""
    monkeypatch.setenv("CEGATE_GEO_ENGINE", os.environ["CEGATE_TEST_ENGINE"])
    project = QgsProject.instance()
    project.removeAllMapLayers()
    project.addMapLayer(QgsRasterLayer(str(scene), "Banepa", "gdal"))
    parameters = {
        "INPUT": next(iter(project.mapLayers())), "MODEL": os.environ["CEGATE_TEST_MODEL"], "NODATA": "0",
        "OUTPUT": str(tmp_path / "m.tif"), "VECTOR": str(tmp_path / "v.gpkg"), "CONFIDENCE": str(tmp_path / "c.tif"),
    }  # fmt: skip
    processing.runAndLoadResults(ID, parameters)
    yield {layer.name(): layer for layer in project.mapLayers().values()}
    project.removeAllMapLayers()


def test_the_results_are_right_and_styled(layers, scene_values):
    mask = layers["Banepa: class map"]
    got = gdal.Open(mask.source()).ReadAsArray()
    assert np.array_equal(got, np.where(scene_values == 0, 255, scene_values > 127))
    assert mask.crs().authid() == "EPSG:32645"
    assert isinstance(mask.renderer(), QgsPalettedRasterRenderer)
    assert [(round(c.value), c.label, c.color.name()) for c in mask.renderer().classes()] == CLASSES
    assert Path(mask.source()).with_suffix(".qml").is_file()

    polygons = layers["Banepa: polygons"]
    renderer = polygons.renderer()
    assert isinstance(renderer, QgsCategorizedSymbolRenderer)
    categories = {c.value(): c.label() for c in renderer.categories()}
    assert categories == {0: "sombre é", 1: "bright"}
    assert {f["class"]: f["name"] for f in polygons.getFeatures()} == categories
    assert polygons.crs().authid() == "EPSG:32645"
    area = sum(f.geometry().area() for f in polygons.getFeatures())
    assert area == pytest.approx((got != 255).sum() * 0.25)

    confidence = layers["Banepa: confidence"]
    assert confidence.renderer().contrastEnhancement().maximumValue() == 255


def test_the_engines_own_style_file_is_one_that_qgis_accepts(layers, tmp_path):
    mask = QgsRasterLayer(str(tmp_path / "m.tif"), "again", "gdal")
    message, good = mask.loadNamedStyle(str(tmp_path / "m.qml"))
    assert good, message
    assert [(round(c.value), c.label, c.color.name()) for c in mask.renderer().classes()] == CLASSES


def test_an_extent_cuts_pixels_out_of_the_scene(provider, scene, scene_values, tmp_path, monkeypatch):
    monkeypatch.setenv("CEGATE_GEO_ENGINE", os.environ["CEGATE_TEST_ENGINE"])
    for source in (str(scene), f"vrt://{scene}?bands=1,2,3"):
        parameters = {
            "INPUT": QgsRasterLayer(source, "scene", "gdal"), "MODEL": os.environ["CEGATE_TEST_MODEL"],
            "EXTENT": "300002.1,300006.9,2999980.2,2999992.4 [EPSG:32645]", "OUTPUT": str(tmp_path / "part.tif"),
        }  # fmt: skip
        made = gdal.Open(processing.run(ID, parameters)["OUTPUT"])
        assert np.array_equal(made.ReadAsArray(), scene_values[15:40, 4:14] > 127)
        assert made.GetGeoTransform() == (300002, 0.5, 0, 2999992.5, 0, -0.5)
        assert made.GetSpatialRef().GetAuthorityCode(None) == "32645"
        made = None
