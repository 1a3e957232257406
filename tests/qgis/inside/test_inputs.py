"""Layers that are no plain files, parts of layers, and where results go in the layer tree."""

from __future__ import annotations

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import processing
import pytest
from osgeo import gdal, gdal_array
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsLayerTreeModel,
    QgsPointXY,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
)

ID = "cegate_geo:segment_raster"
pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture(autouse=True)
def empty_project():
    QgsProject.instance().removeAllMapLayers()
    yield
    QgsProject.instance().clear()


def added(source: str, name: str, provider: str = "gdal") -> QgsRasterLayer:
    layer = QgsRasterLayer(source, name, provider)
    assert layer.isValid(), source
    QgsProject.instance().addMapLayer(layer)
    return layer


def problem(**parameters) -> str:
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    return algorithm.checkParameterValues(parameters, context)[1] or ""


def given_scene(fake_engine) -> gdal.Dataset:
    predicting = next(entry["argv"] for entry in fake_engine.log if entry.get("argv", [""])[0] == "predict")
    return gdal.Open(predicting[1])


def test_an_extent_makes_a_part_of_a_file_the_scene(fake_engine, scene, tmp_path):
    """The pixels that it touches, on the grid of the file; test_real_engine.py looks at what comes of it."""
    extent = "300002.1,300006.9,2999980.2,2999992.4 [EPSG:32645]"
    processing.run(ID, {"INPUT": str(scene), "EXTENT": extent, "OUTPUT": str(tmp_path / "m.tif")})
    assert fake_engine.argv[1] == f"vrt://{scene}?projwin=300002.0,2999992.5,300007.0,2999980.0"


def test_an_extent_in_another_crs_is_transformed(fake_engine, scene, tmp_path):
    extent = "85,85.00001,27.1,27.11 [EPSG:4326]"
    with pytest.raises(QgsProcessingException, match="lies outside of the layer"):
        processing.run(ID, {"INPUT": str(scene), "EXTENT": extent, "OUTPUT": str(tmp_path / "m.tif")})


def test_an_extent_of_the_whole_scene_and_more_is_the_file_itself(fake_engine, scene, tmp_path):
    extent = "299000,310000,2990000,3100000 [EPSG:32645]"
    processing.run(ID, {"INPUT": str(scene), "EXTENT": extent, "OUTPUT": str(tmp_path / "m.tif")})
    assert fake_engine.argv[1] == str(scene)


def test_an_extent_beside_the_scene_is_refused(scene, tmp_path):
    extent = "400000,400010,2999980,2999990 [EPSG:32645]"
    with pytest.raises(QgsProcessingException, match="lies outside of the layer"):
        processing.run(ID, {"INPUT": str(scene), "EXTENT": extent, "OUTPUT": str(tmp_path / "m.tif")})


def test_a_band_subset_is_passed_on_with_its_part(fake_engine, scene, tmp_path):
    source = f"vrt://{scene}?bands=3,1"
    extent = "300002,300007,2999980,2999992.5 [EPSG:32645]"
    layer = added(source, "two bands")
    processing.run(ID, {"INPUT": layer.id(), "OUTPUT": str(tmp_path / "m.tif")})
    processing.run(ID, {"INPUT": layer.id(), "EXTENT": extent, "OUTPUT": str(tmp_path / "n.tif")})
    scenes = [entry["argv"][1] for entry in fake_engine.log if "argv" in entry]
    assert scenes == [source, f"{source}&projwin=300002.0,2999992.5,300007.0,2999980.0"]


def test_a_name_that_can_not_be_cut_is_refused(scene, tmp_path):
    strange = scene.with_name("a&b.tif")
    strange.write_bytes(scene.read_bytes())
    extent = "300002,300007,2999980,2999992.5 [EPSG:32645]"
    words = problem(INPUT=str(strange), EXTENT=extent, OUTPUT=str(tmp_path / "m.tif"))
    assert "'?' or '&': rename it" in words


@pytest.mark.parametrize(
    "transform",
    [(300000, 0.5, 0, 2999976, 0, 0.5), (300032, -0.5, 0, 3000000, 0, -0.5), (300000, 0.49, 0.1, 3000000, 0.1, -0.49)],
    ids=["upside down", "mirrored", "rotated"],
)
def test_a_part_of_a_file_that_is_not_north_up_is_saved_as_it_is_shown(fake_engine, scene, tmp_path, transform):
    """GDAL can't cut it out of the file; all of it is passed on as it is."""
    turned = scene.with_name("turned.tif")
    gdal.Translate(str(turned), str(scene))
    file = gdal.Open(str(turned), gdal.GA_Update)
    file.SetGeoTransform(transform)
    file = None
    layer = added(str(turned), "turned")
    extent = "300010,300020,2999980,2999990 [EPSG:32645]"
    processing.run(ID, {"INPUT": layer.id(), "EXTENT": extent, "OUTPUT": str(tmp_path / "m.tif")})
    saved = given_scene(fake_engine)
    left, across, _, top, _, down = saved.GetGeoTransform()
    assert (left, top) == (pytest.approx(300010, abs=across), pytest.approx(2999990, abs=across))
    assert saved.GetSpatialRef().GetAuthorityCode(None) == "32645"
    values = saved.GetRasterBand(1).ReadAsArray()
    assert values.shape == (pytest.approx(10 / -down, abs=1.5), pytest.approx(10 / across, abs=1.5))
    for row, column in ((0, 0), (3, 7), (11, 15)):
        point = QgsPointXY(left + (column + 0.5) * across, top + (row + 0.5) * down)
        assert layer.dataProvider().sample(point, 1) == (values[row, column], True)
    processing.run(ID, {"INPUT": layer.id(), "OUTPUT": str(tmp_path / "n.tif")})
    assert [entry["argv"][1] for entry in fake_engine.log if "argv" in entry][-1] == str(turned)


def test_a_part_of_a_file_that_says_nothing_of_its_place_is_saved(fake_engine, scene, scene_values, tmp_path):
    nowhere = scene.with_name("nowhere.png")
    gdal.Translate(str(nowhere), str(scene), format="PNG")
    nowhere.with_name("nowhere.png.aux.xml").unlink()
    layer = added(str(nowhere), "nowhere")
    processing.run(ID, {"INPUT": layer.id(), "EXTENT": "4,14,-30,-10", "OUTPUT": str(tmp_path / "m.tif")})
    assert np.array_equal(given_scene(fake_engine).GetRasterBand(1).ReadAsArray(), scene_values[10:30, 4:14])


def test_a_raster_in_the_memory_of_qgis_is_refused(scene, tmp_path):
    gdal.Translate("/vsimem/scene.tif", str(scene))
    layer = added("/vsimem/scene.tif", "in memory")
    assert "lies in QGIS' memory" in problem(INPUT=layer.id(), OUTPUT=str(tmp_path / "m.tif"))
    QgsProject.instance().removeAllMapLayers()
    gdal.Unlink("/vsimem/scene.tif")


def test_an_array_in_the_memory_of_qgis_is_refused(scene_values, tmp_path):
    place = f"MEM:::DATAPOINTER={scene_values.ctypes.data},PIXELS=64,LINES=48,DATATYPE=Byte"
    layer = added(place, "an array")
    assert "lies in QGIS' memory" in problem(INPUT=layer.id(), OUTPUT=str(tmp_path / "m.tif"))


def test_a_raster_that_qgis_computes_is_saved_with_its_values(fake_engine, scene, scene_values, tmp_path):
    """The virtual rasters of QGIS' raster calculator."""
    source = (
        "?crs=EPSG:32645&extent=300000,2999976,300032,3000000&width=64&height=48&formula=%22in@1%22%20+%200"
        f"&in:uri={scene}&in:provider=gdal"
    )
    layer = added(source, "computed", "virtualraster")
    processing.run(ID, {"INPUT": layer.id(), "OUTPUT": str(tmp_path / "m.tif")})
    saved = given_scene(fake_engine)
    assert saved.GetGeoTransform() == (300000, 0.5, 0, 3000000, 0, -0.5)
    assert np.array_equal(saved.ReadAsArray(), scene_values)
    assert saved.GetSpatialRef().GetAuthorityCode(None) == "32645"


CAPABILITIES = """<?xml version="1.0"?>
<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms" xmlns:xlink="http://www.w3.org/1999/xlink">
<Service><Name>WMS</Name><Title>A map</Title></Service>
<Capability><Request>
{operations}
</Request><Layer><Title>all</Title><CRS>EPSG:3857</CRS>
<BoundingBox CRS="EPSG:3857" minx="-1000" miny="-1000" maxx="1000" maxy="1000"/>
<Layer queryable="0"><Name>ground</Name><Title>ground</Title></Layer></Layer></Capability></WMS_Capabilities>"""
OPERATION = """<{name}><Format>{kind}</Format><DCPType><HTTP><Get><OnlineResource xlink:type="simple"
xlink:href="http://127.0.0.1:{port}/wms?"/></Get></HTTP></DCPType></{name}>"""


def picture(width: int, height: int, split: int) -> bytes:
    """A PNG that is blue in columns left of `split`, and red from there on."""
    values = np.zeros((3, height, width), np.uint8)
    values[0], values[2] = 10, 200
    values[0, :, split:], values[2, :, split:] = 200, 10
    name = f"/vsimem/{threading.get_ident()}.png"
    gdal.GetDriverByName("PNG").CreateCopy(name, gdal_array.OpenArray(values))
    file = gdal.VSIFOpenL(name, "rb")
    body = gdal.VSIFReadL(1, 10_000_000, file)
    gdal.VSIFCloseL(file)
    return body


class Maps(BaseHTTPRequestHandler):
    """Web map tiles of 256 px, and a WMS: red in the east of the null meridian, blue in the west."""

    def do_GET(self):
        place = urlsplit(self.path)
        time.sleep(self.server.delay_s)
        if place.path == "/wms":
            asked = {key.upper(): value for key, value in parse_qsl(place.query)}
            body, kind = self.wms(asked), "image/png" if asked["REQUEST"] == "GetMap" else "text/xml"
        else:
            z, x, _ = (int(part) for part in place.path.split(".")[0].strip("/").split("/"))
            body, kind = picture(256, 256, 0 if x >= 2 ** (z - 1) else 256), "image/png"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.asked.append(self.path)

    def wms(self, asked):
        if asked["REQUEST"] != "GetMap":
            operations = "".join(
                OPERATION.format(name=name, kind=kind, port=self.server.server_port)
                for name, kind in (("GetCapabilities", "text/xml"), ("GetMap", "image/png"))
            )
            return CAPABILITIES.format(operations=operations).encode()
        left, _, right, _ = (float(part) for part in asked["BBOX"].split(","))
        width = int(asked["WIDTH"])
        split = round(min(max(-left / (right - left), 0), 1) * width)
        return picture(width, int(asked["HEIGHT"]), split)

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Maps)
    server.asked, server.delay_s = [], 0.0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    QgsProject.instance().removeAllMapLayers()
    server.shutdown()
    server.server_close()


@pytest.fixture
def web_map(server):
    url = f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png"
    return added(f"type=xyz&url={url}&zmax=19&zmin=0", "Map of the web", "wms"), server


def test_a_wms_is_fetched_for_the_extent(fake_engine, server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/wms"
    layer = added(f"crs=EPSG:3857&format=image/png&layers=ground&styles=&url={url}", "A WMS", "wms")
    assert "web map without an end" in problem(INPUT=layer.id(), OUTPUT=str(tmp_path / "m.tif"))
    extent = "-100,100,-50,50 [EPSG:3857]"
    parameters = {"INPUT": layer.id(), "EXTENT": extent, "PIXEL_SIZE": 2, "OUTPUT": str(tmp_path / "m.tif")}
    processing.run(ID, parameters)
    values = given_scene(fake_engine).ReadAsArray()
    assert values[:3, 25, 20].tolist() == [10, 0, 200]
    assert values[:3, 25, 80].tolist() == [200, 0, 10]


def test_cancelling_ends_the_fetching(web_map, fake_engine, tmp_path):
    """In a thread of its own, as in the dialog, which has no event loop."""
    layer, server = web_map
    server.delay_s = 0.05
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ID)
    context, feedback = QgsProcessingContext(), QgsProcessingFeedback()
    context.setProject(QgsProject.instance())
    extent = "-20000,20000,-20000,20000 [EPSG:3857]"
    given = {"INPUT": layer.id(), "EXTENT": extent, "PIXEL_SIZE": 8, "OUTPUT": str(tmp_path / "m.tif")}
    task = QgsProcessingAlgRunnerTask(algorithm, given, context, feedback)
    QgsApplication.taskManager().addTask(task)
    end = time.monotonic() + 60
    while len(server.asked) < 4:
        QgsApplication.processEvents()
        assert time.monotonic() < end
    task.cancel()
    while task.isActive():
        QgsApplication.processEvents()
        assert time.monotonic() < end
    print(f"{len(server.asked)} tiles were fetched")
    assert len(server.asked) < 100
    assert fake_engine.log == []


def test_a_web_map_needs_an_extent(web_map, tmp_path):
    assert "without an end: choose an Extent" in problem(INPUT=web_map[0].id(), OUTPUT=str(tmp_path / "m.tif"))


def test_a_web_map_is_fetched_for_the_extent_at_the_pixel_size(fake_engine, web_map, tmp_path):
    extent = "-100,100,-50,50 [EPSG:3857]"
    parameters = {"INPUT": web_map[0].id(), "EXTENT": extent, "PIXEL_SIZE": 2, "OUTPUT": str(tmp_path / "m.tif")}
    processing.run(ID, parameters)
    assert len(web_map[1].asked) > 1
    saved = given_scene(fake_engine)
    assert (saved.RasterXSize, saved.RasterYSize) == (100, 50)
    assert saved.GetGeoTransform() == pytest.approx((-100, 2, 0, 50, 0, -2), abs=0.2)
    assert saved.GetSpatialRef().GetAuthorityCode(None) == "3857"
    values = saved.ReadAsArray()
    assert values.dtype == np.uint8
    assert values[:3, 25, 20].tolist() == [10, 0, 200]
    assert values[:3, 25, 80].tolist() == [200, 0, 10]
    assert saved.RasterCount == 4
    assert saved.GetRasterBand(4).GetColorInterpretation() == gdal.GCI_AlphaBand


def test_the_pixel_size_of_a_web_map_is_the_ground_that_the_model_wants(fake_engine, web_map, tmp_path):
    """EPSG:3857 at 60 degrees north: 200 units are 100 m, 0.5 m a pixel."""
    extent = "0,200,8399700,8399800 [EPSG:3857]"
    processing.run(ID, {"INPUT": web_map[0].id(), "EXTENT": extent, "OUTPUT": str(tmp_path / "m.tif")})
    assert fake_engine.log[0]["argv"] == ["info", "buildings-drone-15cm", "--json"]
    saved = given_scene(fake_engine)
    assert (saved.RasterXSize, saved.RasterYSize) == (pytest.approx(200, abs=1), 100)


def test_the_real_engine_segments_what_was_fetched(web_map, tmp_path, monkeypatch):
    """The model says 1 where the first band is bright: in the east."""
    monkeypatch.setenv("CEGATE_GEO_ENGINE", os.environ["CEGATE_TEST_ENGINE"])
    parameters = {"INPUT": web_map[0].id(), "MODEL": os.environ["CEGATE_TEST_MODEL"], "OUTPUT": f"{tmp_path}/m.tif"}
    made = gdal.Open(processing.run(ID, {**parameters, "EXTENT": "-50,50,-20,20 [EPSG:3857]"})["OUTPUT"])
    values = made.ReadAsArray()
    assert values.shape == (pytest.approx(80, abs=1), pytest.approx(200, abs=1))
    assert (values[:, :90] == 0).all()
    assert (values[:, 110:] == 1).all()


def test_too_much_of_a_web_map_is_refused(fake_engine, web_map, tmp_path):
    parameters = {"EXTENT": "0,1000000,0,1000000 [EPSG:3857]", "PIXEL_SIZE": 1, "OUTPUT": str(tmp_path / "m.tif")}
    with pytest.raises(QgsProcessingException, match="too many to fetch: choose a smaller extent"):
        processing.run(ID, {"INPUT": web_map[0].id(), **parameters})
    assert fake_engine.log == []


def test_pixels_on_the_ground_are_measured_in_any_crs(scene):
    from cegate_geo_qgis.raster_export import ground_size

    layer = added(str(scene), "scene")
    assert ground_size(layer) == pytest.approx(0.5, rel=2e-3)
    layer.setCrs(QgsCoordinateReferenceSystem("EPSG:3857"))
    assert ground_size(layer) == pytest.approx(0.5 * np.cos(np.radians(26.0)), rel=2e-2)
    layer.setCrs(QgsCoordinateReferenceSystem())
    assert ground_size(layer) is None


def test_whole_pixels_are_not_widened_by_rounding(scene):
    from cegate_geo_qgis.sources import pixel_window

    layer = added(str(scene), "scene")
    exact = QgsRectangle(300002, 2999980, 300007, 2999992.5)
    assert pixel_window(layer, exact) == exact
    assert pixel_window(layer, QgsRectangle(300002.01, 2999980.01, 300002.02, 2999980.02)).width() == 0.5


def run_and_load(scene, tmp_path, **more):
    project = QgsProject.instance()
    layer = QgsRasterLayer(str(scene), "Banepa", "gdal")
    project.addMapLayer(layer)
    model = tmp_path / "roofs 1.onnx"
    model.touch()
    outputs = {"OUTPUT": f"{tmp_path}/m.tif", "VECTOR": f"{tmp_path}/v.gpkg", "CONFIDENCE": f"{tmp_path}/c.tif"}
    processing.runAndLoadResults(ID, {"INPUT": layer.id(), "MODEL": str(model), **outputs, **more})
    return project.layerTreeRoot()


def test_results_lie_in_a_group_named_after_scene_and_model(fake_engine, scene, tmp_path):
    root = run_and_load(scene, tmp_path)
    assert [child.name() for child in root.children()] == ["Banepa, roofs 1", "Banepa"]
    group = root.children()[0]
    names = [child.name() for child in group.children()]
    assert names == ["Banepa: polygons", "Banepa: class map", "Banepa: confidence"]
    assert [child.itemVisibilityChecked() for child in group.children()] == [True, True, False]
    assert [child.isExpanded() for child in group.children()] == [True, True, False]
    assert len(QgsProject.instance().mapLayers()) == 4
    model = QgsLayerTreeModel(root)
    for child in group.children()[:2]:
        assert {"other", "building"} <= {node.data(0) for node in model.layerLegendNodes(child)}, child.name()


def test_where_the_desktop_adds_layers_does_not_count(fake_engine, scene, tmp_path):
    """It adds them beside the chosen one: in our own group, or in any other."""
    from qgis.core import QgsLayerTreeRegistryBridge

    project = QgsProject.instance()
    root = project.layerTreeRoot()
    other = root.insertGroup(0, "of the user")
    usual = project.layerTreeRegistryBridge()
    usual.setLayerInsertionPoint(QgsLayerTreeRegistryBridge.InsertionPoint(other, 0))
    run_and_load(scene, tmp_path)
    group = root.findGroup("Banepa, roofs 1")
    assert group.parent() is root or group.parent() == root
    usual.setLayerInsertionPoint(QgsLayerTreeRegistryBridge.InsertionPoint(group, 0))
    more = tmp_path / "more"
    more.mkdir()
    (more / "roofs 1.onnx").touch()
    run_and_load(scene, more)
    names = [child.name().partition(": ")[2] for child in group.children() if ": " in child.name()]
    assert names == ["polygons", "polygons", "class map", "class map", "confidence", "confidence"]
    usual.setLayerInsertionPoint(QgsLayerTreeRegistryBridge.InsertionPoint(root, 0))


def test_a_model_of_a_run_is_named_after_its_folder():
    from cegate_geo_qgis.segment_raster import _short_name

    assert _short_name("/a/houses run/model.onnx") == "houses run"
    assert _short_name("/a/roofs 1.onnx") == "roofs 1"
    assert _short_name("") == "buildings-drone-15cm"


def test_a_second_run_joins_the_group(fake_engine, scene, tmp_path):
    run_and_load(scene, tmp_path)
    more = tmp_path / "more"
    more.mkdir()
    (more / "roofs 1.onnx").touch()
    root = run_and_load(scene, more)
    groups = [child for child in root.children() if child.name() == "Banepa, roofs 1"]
    assert [len(group.children()) for group in groups] == [6]


def test_the_users_own_group_for_results_holds_ours(fake_engine, scene, tmp_path, monkeypatch):
    from processing.core.ProcessingConfig import ProcessingConfig

    usual = ProcessingConfig.getSetting
    name = ProcessingConfig.RESULTS_GROUP_NAME
    monkeypatch.setattr(
        ProcessingConfig, "getSetting", staticmethod(lambda key, *more: "Results" if key == name else usual(key, *more))
    )
    root = run_and_load(scene, tmp_path)
    results = root.findGroup("Results")
    assert [child.name() for child in results.children()] == ["Banepa, roofs 1"]
