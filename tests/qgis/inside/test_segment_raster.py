"""The algorithm inside QGIS: parameters, pixels, layers, refusals."""

# ruff: noqa: N802, the names are QGIS'

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import processing
import pytest
from osgeo import gdal, ogr
from qgis.core import (
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsPalettedRasterRenderer,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

ID = "cegate_geo:segment_raster"
pytestmark = pytest.mark.usefixtures("provider")


class Recorder(QgsProcessingFeedback):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(False)
        self.lines, self.warnings, self.commands = [], [], []

    def pushInfo(self, info):
        self.lines.append(info)

    def pushWarning(self, warning):
        self.warnings.append(warning)

    def pushCommandInfo(self, info):
        self.commands.append(info)


def run(feedback=None, **parameters):
    return processing.run(ID, parameters, feedback=feedback or Recorder())


def problem(**parameters) -> str:
    """What the dialog would say, with Run not yet pressed."""
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    ok, message = algorithm.checkParameterValues(parameters, context)
    assert ok is not bool(message)
    return message


def polygon_layer(crs="EPSG:32645", name="area", count=2):
    layer = QgsVectorLayer(f"Polygon?crs={crs}&field=fid:integer", name, "memory")
    for n in range(count):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromWkt(f"POLYGON(({n} 0, {n + 1} 0, {n + 1} 1, {n} 1, {n} 0))"))
        feature.setAttribute("fid", 7)  # twice the same: must not hinder writing
        layer.dataProvider().addFeature(feature)
    layer.updateExtents()
    return layer


def test_the_provider_and_its_algorithm_are_registered(provider):
    assert provider.id() == "cegate_geo"
    names = ("segment_raster", "adapt_model", "evaluate", "check_model", "model_information", "set_up_engine")
    assert {a.id() for a in provider.algorithms()} == {f"cegate_geo:{name}" for name in names}
    assert not provider.icon().isNull()
    assert QgsApplication.processingRegistry().providerById("cegate_geo") is not None


def test_unloading_leaves_nothing_and_loading_again_works(qgis_processing):
    from cegate_geo_qgis import classFactory
    from processing.core.ProcessingConfig import ProcessingConfig

    registry = QgsApplication.processingRegistry()
    registry.removeProvider("cegate_geo")
    for _ in range(2):
        plugin = classFactory(None)
        plugin.initGui()
        plugin.initProcessing()
        assert registry.algorithmById(ID) is not None
        assert "CEGATE_GEO_ENGINE" in ProcessingConfig.settings
        plugin.unload()
        plugin.unload()
        assert registry.providerById("cegate_geo") is None
        assert "CEGATE_GEO_ENGINE" not in ProcessingConfig.settings


def test_every_parameter_has_help():
    algorithm = QgsApplication.processingRegistry().algorithmById(ID)
    without = [p.name() for p in algorithm.parameterDefinitions() if len(p.help()) < 10]
    assert without == []


def test_pixels_and_grid_are_the_scenes(fake_engine, scene, scene_values, tmp_path):
    made = run(INPUT=str(scene), OUTPUT=str(tmp_path / "mask.tif"))
    mask, source = gdal.Open(made["OUTPUT"]), gdal.Open(str(scene))
    assert np.array_equal(mask.ReadAsArray(), np.where(scene_values == 0, 255, scene_values > 127))
    assert mask.GetGeoTransform() == source.GetGeoTransform()
    assert mask.GetSpatialRef().IsSame(source.GetSpatialRef())


def test_only_what_was_given_reaches_the_command_line(fake_engine, scene, tmp_path):
    feedback = Recorder()
    run(feedback, INPUT=str(scene), OUTPUT=str(tmp_path / "m.tif"))
    words = [
        "predict",
        str(scene),
        "--output",
        str(tmp_path / "m.tif"),
        "--no-resume",
        "--overwrite",
        "--events",
        "jsonl",
    ]
    assert fake_engine.argv == words
    assert len(feedback.commands) == 1
    assert feedback.commands[0].endswith(f"predict '{scene}' --output {tmp_path}/m.tif --no-resume --overwrite")


def test_each_parameter_reaches_the_engine(fake_engine, scene, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"onnx")
    area = _saved(polygon_layer(), tmp_path / "area.gpkg")
    run(
        INPUT=str(scene), MODEL=str(model), BANDS=[3, 2, 1], NODATA="-9999, 0,nan", PROVIDER="cpu", STITCH="crop",
        GSD="model", RESAMPLE="always", TILE_SIZE=256, HALO=0, BATCH_SIZE=2, THREADS=3, MAX_MEMORY=512, MIN_AREA=2.5,
        SIMPLIFY=0.3, VECTOR_CLASSES="building", FORCE=True, OVERWRITE=False, TTA="flips", REQUIRE_GPU=True,
        CLASSES="other, house", SCALE="255", MEAN="0.1, 0.2, 0.3", STD="1,1,1", MODEL_GSD=0.5, OUTPUT_KIND="logits",
        THRESHOLD=0.25, EXTRA="--shard-rows 8192", AOI=str(area), INVERT_AOI=True,
        OUTPUT=str(tmp_path / "m.tif"), VECTOR=str(tmp_path / "v.gpkg"), CONFIDENCE=str(tmp_path / "c.tif"),
        PROBABILITIES=str(tmp_path / "p.tif"),
    )  # fmt: skip
    assert fake_engine.argv[4:-2] == [
        f"--model={model}", "--bands=3,2,1", "--nodata=-9999,0,nan", "--resample=always", "--tile-size=256", "--halo=0",
        "--stitch=crop", "--tta=flips", "--provider=cpu", "--threads=3", "--require-gpu", "--classes=other,house",
        "--scale=255", "--mean=0.1,0.2,0.3", "--std=1,1,1", "--gsd-m=0.5", "--output-kind=logits", "--threshold=0.25",
        f"--vector={tmp_path}/v.gpkg", f"--confidence={tmp_path}/c.tif", f"--probabilities={tmp_path}/p.tif",
        f"--aoi={area}", "--min-area=2.5", "--simplify=0.3", "--vector-classes=building", "--gsd=model",
        "--batch-size=2", "--max-memory=512M", "--invert-aoi", "--no-resume", "--force", "--shard-rows", "8192",
    ]  # fmt: skip


def test_temporary_output_is_a_tif_and_a_gpkg(fake_engine, scene):
    made = run(INPUT=str(scene), OUTPUT="TEMPORARY_OUTPUT", VECTOR="TEMPORARY_OUTPUT")
    assert set(made) == {"OUTPUT", "VECTOR"}
    assert made["OUTPUT"].endswith(".tif")
    assert made["VECTOR"].endswith(".gpkg")
    assert gdal.Open(made["OUTPUT"]).RasterXSize == 64
    assert ogr.Open(made["VECTOR"]).GetLayer(0).GetFeatureCount() > 3


def test_the_engines_words_are_the_error(fake_engine, scene, tmp_path):
    fake_engine.mode("error")
    with pytest.raises(QgsProcessingException, match=r"The model has 4 bands, the scene 3. Choose with --bands."):
        run(INPUT=str(scene), OUTPUT=str(tmp_path / "m.tif"))


@pytest.mark.parametrize("mode", ["crash", "deaf"])
def test_what_a_killed_engine_left_is_removed_and_nothing_else(fake_engine, scene, tmp_path, mode):
    folder = tmp_path / "out"
    other = folder / ".m.tif.host-1.part"
    other.mkdir(parents=True)
    (folder / "m.tif").write_text("of an earlier run")
    fake_engine.mode(mode)
    feedback = Recorder()
    feedback.progressChanged.connect(lambda percent: percent and feedback.cancel())
    with pytest.raises(QgsProcessingException, match=r"crashed|Cancelled"):
        run(feedback, INPUT=str(scene), OUTPUT=str(folder / "m.tif"))
    assert not fake_engine.is_alive()
    assert sorted(folder.iterdir()) == [other, folder / "m.tif"]
    assert (folder / "m.tif").read_text() == "of an earlier run"


def test_warnings_and_class_areas_are_logged(fake_engine, scene, scene_values, tmp_path):
    feedback = Recorder()
    run(feedback, INPUT=str(scene), OUTPUT=str(tmp_path / "m.tif"))
    assert feedback.warnings == ["The scene has no CRS."]
    assert f"  1 building: {(scene_values > 127).sum():,} px, 1 m²" in feedback.lines


def test_a_missing_engine_is_told_by_canexecute_and_by_the_run(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("CEGATE_GEO_ENGINE", "/no/such/engine")
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
    ok, message = algorithm.canExecute()
    assert not ok
    assert "/no/such/engine" in message
    with pytest.raises(QgsProcessingException, match="/no/such/engine"):
        run(INPUT=str(scene), OUTPUT=str(tmp_path / "m.tif"))


def test_the_setting_wins_over_the_variable(fake_engine, monkeypatch):
    from processing.core.ProcessingConfig import ProcessingConfig

    monkeypatch.setattr(ProcessingConfig, "getSetting", staticmethod(lambda name, readable=False: "/from/the/setting"))
    ok, message = QgsApplication.processingRegistry().createAlgorithmById(ID).canExecute()
    assert not ok
    assert "/from/the/setting" in message


def test_a_web_map_without_an_extent_is_refused_in_plain_words(tmp_path):
    web = QgsRasterLayer("type=xyz&url=http://localhost/{z}/{x}/{y}.png&zmax=19&zmin=0", "Map of the web", "wms")
    assert web.isValid()
    QgsProject.instance().addMapLayer(web)
    words = problem(INPUT=web.id(), OUTPUT=str(tmp_path / "m.tif"))
    assert "Map of the web" in words
    assert "choose an Extent" in words
    assert "save it first" in words
    with pytest.raises(QgsProcessingException, match="choose an Extent"):
        run(INPUT=web, OUTPUT=str(tmp_path / "m.tif"))
    QgsProject.instance().removeAllMapLayers()


def test_open_options_are_refused(scene, tmp_path):
    layer = QgsRasterLayer(f"{scene}|option:NUM_THREADS=2", "with options", "gdal")
    assert layer.isValid()
    QgsProject.instance().addMapLayer(layer)
    assert "NUM_THREADS=2" in problem(INPUT=layer.id(), OUTPUT=str(tmp_path / "m.tif"))
    QgsProject.instance().removeAllMapLayers()


def test_a_vsi_source_is_passed_on(fake_engine, scene, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(scene, "in side.tif")
    source = f"/vsizip/{tmp_path}/z.zip/in side.tif"
    run(INPUT=QgsRasterLayer(source, "zipped", "gdal"), OUTPUT=str(tmp_path / "m.tif"))
    assert fake_engine.argv[1] == source


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"INPUT": "/no/scene.tif"}, "scene.tif"),
        ({"MODEL": "/no/model.onnx"}, "/no/model.onnx does not exist"),
        ({"BANDS": [4]}, "Band 4 does not exist: the scene has 3"),
        ({"NODATA": "white"}, "'white' is no number"),
        ({"OUTPUT": "{scene}"}, "OUTPUT would overwrite the scene"),
        ({"CONFIDENCE": "{folder}/m.tif"}, "CONFIDENCE would overwrite OUTPUT"),
        ({"OUTPUT": "{folder}/m.jpg"}, "jpg"),
        ({"VECTOR": "{folder}/m.dxf"}, "dxf"),
        ({"TILE_SIZE": 3}, "TILE_SIZE"),
        ({"PROBABILITIES": "{folder}/m.tif"}, "PROBABILITIES would overwrite OUTPUT"),
        ({"EXTRA": "--output=x.tif"}, "--output=x.tif can't be among the further options"),
    ],
)
def test_what_can_not_work_is_said_before_the_run(scene, tmp_path, given, words):
    parameters = {"INPUT": str(scene), "OUTPUT": f"{tmp_path}/m.tif"}
    assert problem(**parameters) in ("", None)
    given = {k: v.format(scene=scene, folder=tmp_path) if isinstance(v, str) else v for k, v in given.items()}
    assert words in problem(**{**parameters, **given})


def aoi_given(fake_engine) -> str:
    return next(word.split("=", 1)[1] for word in fake_engine.argv if word.startswith("--aoi="))


def test_polygons_in_a_file_are_passed_on(fake_engine, scene, tmp_path):
    path = tmp_path / "area.geojson"
    gdal.VectorTranslate(str(path), gdal.OpenEx(_saved(polygon_layer(), tmp_path / "all.gpkg")), format="GeoJSON")
    run(INPUT=str(scene), AOI=str(path), OUTPUT=str(tmp_path / "m.tif"))
    assert aoi_given(fake_engine) == str(path)


def test_one_layer_of_several_in_a_file_is_named(fake_engine, scene, tmp_path):
    path = _saved(polygon_layer(), tmp_path / "all.gpkg", name="first")
    gdal.VectorTranslate(path, gdal.OpenEx(path), accessMode="update", layerName="second", layers=["first"])
    run(INPUT=str(scene), AOI=f"{path}|layername=second", OUTPUT=str(tmp_path / "m.tif"))
    assert aoi_given(fake_engine) == f"{path}|second"


def test_a_memory_layer_is_written_with_its_crs(fake_engine, scene, tmp_path):
    layer = polygon_layer("EPSG:3857")
    run(INPUT=str(scene), AOI=layer, OUTPUT=str(tmp_path / "m.tif"))
    written = QgsVectorLayer(aoi_given(fake_engine), "written", "ogr")
    assert written.featureCount() == 2
    assert written.crs() == QgsCoordinateReferenceSystem("EPSG:3857")


def test_only_selected_polygons_are_written(fake_engine, scene, tmp_path):
    layer = QgsVectorLayer(_saved(polygon_layer(count=5), tmp_path / "all.gpkg"), "area", "ogr")
    QgsProject.instance().addMapLayer(layer)
    layer.selectByIds([next(f.id() for f in layer.getFeatures())])
    given = QgsProcessingFeatureSourceDefinition(layer.id(), True)
    run(INPUT=str(scene), AOI=given, OUTPUT=str(tmp_path / "m.tif"))
    assert QgsVectorLayer(aoi_given(fake_engine), "written", "ogr").featureCount() == 1
    layer.removeSelection()
    with pytest.raises(QgsProcessingException, match="none is selected"):
        run(INPUT=str(scene), AOI=given, OUTPUT=str(tmp_path / "m.tif"))
    QgsProject.instance().removeAllMapLayers()


def test_a_filter_on_the_layer_counts(fake_engine, scene, tmp_path):
    layer = QgsVectorLayer(_saved(polygon_layer(count=5), tmp_path / "all.gpkg"), "area", "ogr")
    assert layer.setSubsetString('"fid" <= 2')
    run(INPUT=str(scene), AOI=layer, OUTPUT=str(tmp_path / "m.tif"))
    assert QgsVectorLayer(aoi_given(fake_engine), "written", "ogr").featureCount() == 2


def test_unsaved_edits_of_an_area_count(fake_engine, scene, tmp_path):
    layer = QgsVectorLayer(_saved(polygon_layer(count=3), tmp_path / "all.gpkg"), "area", "ogr")
    layer.startEditing()
    layer.deleteFeature(next(f.id() for f in layer.getFeatures()))
    run(INPUT=str(scene), AOI=layer, OUTPUT=str(tmp_path / "m.tif"))
    assert QgsVectorLayer(aoi_given(fake_engine), "written", "ogr").featureCount() == 2
    layer.rollBack()


@pytest.mark.parametrize("provider_name", ["delimitedtext", "virtual"])
def test_polygons_that_are_no_file_of_shapes_are_written(fake_engine, scene, tmp_path, provider_name):
    table = tmp_path / "shapes.csv"
    table.write_text('wkt\n"POLYGON((0 0, 1 0, 1 1, 0 0))"\n"POLYGON((2 0, 3 0, 3 1, 2 0))"\n')
    source = f"{table.as_uri()}?wktField=wkt&crs=EPSG:3857&delimiter=,&geomType=polygon"
    if provider_name == "virtual":
        query = "SELECT geom_from_wkt('POLYGON((0 0, 1 0, 1 1, 0 0))') AS geometry UNION ALL SELECT "
        query += "geom_from_wkt('POLYGON((2 0, 3 0, 3 1, 2 0))')"
        source = f"?query={quote(query)}&geometry=geometry:3:3857"
    layer = QgsVectorLayer(source, "shapes", provider_name)
    assert layer.isValid()
    run(INPUT=str(scene), AOI=layer, OUTPUT=str(tmp_path / "m.tif"))
    written = QgsVectorLayer(aoi_given(fake_engine), "written", "ogr")
    assert (written.featureCount(), written.crs().authid()) == (2, "EPSG:3857")


def _saved(layer, path, name="area") -> str:
    from qgis.core import QgsVectorFileWriter

    options = QgsVectorFileWriter.SaveVectorOptions()
    options.layerName, options.skipAttributeCreation = name, True
    context = QgsProject.instance().transformContext()
    assert QgsVectorFileWriter.writeAsVectorFormatV3(layer, str(path), context, options)[0] == 0
    return str(path)


def test_a_crs_or_nodata_that_only_qgis_knows_is_warned_of(fake_engine, scene, tmp_path):
    from qgis.core import QgsRasterRange

    layer = QgsRasterLayer(str(scene), "scene", "gdal")
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    layer.dataProvider().setUserNoDataValue(2, [QgsRasterRange(255, 255)])
    feedback = Recorder()
    run(feedback, INPUT=layer, OUTPUT=str(tmp_path / "m.tif"))
    assert "band 2" in feedback.warnings[0]
    assert "EPSG:3857 in QGIS, its file has EPSG:32645" in feedback.warnings[1]


def loaded(scene, tmp_path, **more):
    """Run as the dialog does, results loaded into the project; gives layers by name."""
    project = QgsProject.instance()
    project.removeAllMapLayers()
    layer = QgsRasterLayer(str(scene), "Banepa", "gdal")
    project.addMapLayer(layer)
    processing.runAndLoadResults(ID, {"INPUT": layer.id(), "OUTPUT": str(tmp_path / "m.tif"), **more})
    return {one.name(): one for one in project.mapLayers().values()}


def test_the_class_map_is_loaded_with_colours_names_and_legend(fake_engine, scene, tmp_path):
    layer = loaded(scene, tmp_path)["Banepa: class map"]
    renderer = layer.renderer()
    assert isinstance(renderer, QgsPalettedRasterRenderer)
    drawn = [(round(c.value), c.label, c.color.name()) for c in renderer.classes()]
    assert drawn == [(0, "other", "#e4e4de"), (1, "building", "#d64541")]
    tree = QgsProject.instance().layerTreeRoot().findLayer(layer.id())
    assert tree is not None
    from qgis.core import QgsLayerTreeModel

    model = QgsLayerTreeModel(QgsProject.instance().layerTreeRoot())
    assert {"other", "building"} <= {node.data(0) for node in model.layerLegendNodes(tree)}


def test_a_right_style_beside_the_raster_is_kept(fake_engine, scene, tmp_path):
    first = loaded(scene, tmp_path)["Banepa: class map"]
    first.setOpacity(0.4)
    first.setRenderer(first.renderer().clone())
    assert first.saveNamedStyle(str(tmp_path / "m.qml"))[1]
    again = loaded(scene, tmp_path)["Banepa: class map"]
    assert again.opacity() == pytest.approx(0.4)
    assert [c.label for c in again.renderer().classes()] == ["other", "building"]


def test_a_style_of_other_classes_beside_the_raster_is_replaced(fake_engine, scene, tmp_path):
    first = loaded(scene, tmp_path)["Banepa: class map"]
    first.setRenderer(QgsPalettedRasterRenderer(first.dataProvider(), 1, first.renderer().classes()[:1]))
    assert first.saveNamedStyle(str(tmp_path / "m.qml"))[1]
    again = loaded(scene, tmp_path)["Banepa: class map"]
    assert [c.label for c in again.renderer().classes()] == ["other", "building"]


def test_polygons_and_confidence_are_loaded_styled(fake_engine, scene, tmp_path):
    more = {"CONFIDENCE": str(tmp_path / "c.tif"), "PROBABILITIES": str(tmp_path / "p.tif")}
    layers = loaded(scene, tmp_path, VECTOR=str(tmp_path / "v.gpkg"), **more)
    renderer = layers["Banepa: polygons"].renderer()
    assert isinstance(renderer, QgsCategorizedSymbolRenderer)
    assert [(c.value(), c.label()) for c in renderer.categories()] == [(0, "other"), (1, "building")]
    stretch = layers["Banepa: confidence"].renderer().contrastEnhancement()
    assert (stretch.minimumValue(), stretch.maximumValue()) == (0, 255)


def test_a_name_that_was_chosen_stays(fake_engine, scene, tmp_path):
    from qgis.core import QgsProcessingOutputLayerDefinition

    target = QgsProcessingOutputLayerDefinition(str(tmp_path / "x.tif"), QgsProject.instance())
    target.destinationName = "My buildings"
    assert "My buildings" in loaded(scene, tmp_path, OUTPUT=target)
