"""Model information, Evaluate and Adapt model inside QGIS, with the fake engine."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import processing
import pytest
from osgeo import ogr
from qgis.core import (
    QgsApplication,
    QgsCategorizedSymbolRenderer,
    QgsEditorWidgetSetup,
    QgsFeature,
    QgsFillSymbol,
    QgsGeometry,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProject,
    QgsRasterLayer,
    QgsRendererCategory,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QDesktopServices

NAMES = ("model_information", "evaluate", "adapt_model", "check_model")
INFORMATION, EVALUATE, ADAPT, CHECK = (f"cegate_geo:{name}" for name in NAMES)
pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture(autouse=True)
def empty_project():
    yield
    QgsProject.instance().removeAllMapLayers()


@pytest.fixture
def labels() -> QgsVectorLayer:
    """Five polygons in the project, in another CRS: house, road, road, nothing, house."""
    layer = QgsVectorLayer("Polygon?crs=EPSG:4326&field=id:integer&field=kind:string", "labels", "memory")
    for n, kind in enumerate(["house", "road", "road", None, "house"]):
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromWkt(f"POLYGON(({n} 0, {n + 1} 0, {n + 1} 1, {n} 1, {n} 0))"))
        feature.setAttributes([n, kind])
        layer.dataProvider().addFeature(feature)
    layer.updateExtents()
    QgsProject.instance().addMapLayer(layer)
    return layer


def problem(algorithm_id: str, **parameters) -> str:
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(algorithm_id)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    ok, message = algorithm.checkParameterValues(parameters, context)
    assert ok is not bool(message)
    return message


def written(path) -> list[str]:
    """The classes of the labels that the engine was given."""
    source = ogr.Open(str(path))
    layer = source.GetLayer(0)
    fields = [layer.GetLayerDefn().GetFieldDefn(n).GetName() for n in range(layer.GetLayerDefn().GetFieldCount())]
    assert fields in (["class"], [])
    return [f.GetField("class") if fields else "" for f in layer]


def options(fake_engine) -> dict[str, str]:
    return dict(word[2:].partition("=")[::2] for word in fake_engine.argv if word.startswith("--"))


@pytest.mark.parametrize("name", [INFORMATION, EVALUATE, ADAPT, CHECK])
def test_every_parameter_has_help(name):
    algorithm = QgsApplication.processingRegistry().algorithmById(name)
    assert [p.name() for p in algorithm.parameterDefinitions() if len(p.help()) < 10] == []
    assert algorithm.helpUrl()
    assert len(algorithm.shortHelpString()) > 200


def test_the_card_of_a_model_is_logged_written_and_given(fake_engine, feedback, tmp_path):
    model = tmp_path / "un modèle.onnx"
    model.touch()
    page = tmp_path / "card.html"
    made = processing.run(INFORMATION, {"MODEL": str(model), "HTML": str(page)}, feedback=feedback)
    assert fake_engine.argv == ["info", str(model), "--json"]
    assert made == {
        "NAME": "roofs <1>", "CLASSES": "other,building", "BANDS": "red,green,blue", "LICENCE": "CC0", "GSD": 0.5,
        "HTML": str(page),
    }  # fmt: skip
    assert "roofs &lt;1&gt;" in page.read_text()
    assert "  Licence: CC0" in feedback.lines
    assert feedback.commands[0].endswith("--json")


def test_without_a_model_the_demo_model_is_asked(fake_engine):
    processing.run(INFORMATION, {})
    assert fake_engine.argv == ["info", "buildings-drone-15cm", "--json"]


def test_what_is_wrong_with_a_model_is_said_in_the_engines_words(fake_engine, tmp_path):
    assert "/no/model.onnx does not exist" in problem(INFORMATION, MODEL="/no/model.onnx")
    fake_engine.mode("error")
    with pytest.raises(QgsProcessingException, match=r"No model of this name\. Check the path\."):
        processing.run(INFORMATION, {})


def test_evaluating_a_class_map_beside_polygons(fake_engine, feedback, scene, labels, tmp_path):
    page, figures = tmp_path / "e.html", tmp_path / "e.json"
    made = processing.run(
        EVALUATE,
        {"INPUT": str(scene), "LABELS": labels.id(), "FIELD": "kind", "BACKGROUND": "ignore", "CLASSES": "other, house",
         "HTML": str(page), "JSON": str(figures)},
        feedback=feedback,
    )  # fmt: skip
    assert made == {"MIOU": 0.5, "ACCURACY": 0.75, "HTML": str(page), "JSON": str(figures)}
    given = options(fake_engine)
    assert fake_engine.argv[:2] == ["evaluate", str(scene)]
    assert (given["label-field"], given["background"]) == ("class", "ignore")
    assert [word for word in fake_engine.argv if word.startswith("--class=")] == ["--class=other", "--class=house"]
    assert written(given["labels"]) == ["house", "road", "road", "house"]
    assert "--model" not in given
    assert json.loads(figures.read_text())["accuracy"] == 0.75
    assert "Mean IoU 50.0 %" in page.read_text()
    assert "Mean IoU 50.0 %, accuracy 75.0 %" in feedback.lines


def test_evaluating_a_model_on_a_scene_with_a_selection_and_an_area(fake_engine, scene, labels, tmp_path):
    model = tmp_path / "m.onnx"
    model.touch()
    labels.selectByIds([next(labels.getFeatures()).id()])
    selected = QgsProcessingFeatureSourceDefinition(labels.id(), True)
    processing.run(
        EVALUATE,
        {"INPUT": str(scene), "MODEL": str(model), "LABELS": selected, "AREA": labels, "LABEL_CLASS": "house",
         "BANDS": [3, 2, 1], "NODATA": "0, 0,0", "RESAMPLE": "never", "FORCE": True},
    )  # fmt: skip
    given = options(fake_engine)
    assert fake_engine.argv[1].startswith("--model=")
    assert (given["images"], given["bands"], given["nodata"]) == (str(scene), "3,2,1", "0,0,0")
    assert (given["resample"], given["label-class"], given["force"]) == ("never", "house", "")
    assert len(written(given["labels"])) == 1
    assert len(written(given["aoi"])) == 5


def test_evaluating_against_a_class_raster(fake_engine, scene):
    processing.run(EVALUATE, {"INPUT": str(scene), "LABEL_RASTER": str(scene)})
    assert options(fake_engine)["labels"] == str(scene)
    assert "label-field" not in options(fake_engine)


def test_what_can_not_be_evaluated_is_said_before_the_run(scene, labels):
    assert "either as polygons or as a class raster" in problem(EVALUATE, INPUT=str(scene))
    both = {"LABELS": labels.id(), "LABEL_RASTER": str(scene)}
    assert "either as polygons or as a class raster" in problem(EVALUATE, INPUT=str(scene), **both)
    assert "does not exist" in problem(EVALUATE, INPUT=str(scene), LABELS=labels.id(), MODEL="/no.onnx")
    assert "no number" in problem(EVALUATE, INPUT=str(scene), LABELS=labels.id(), NODATA="white")
    assert problem(EVALUATE, INPUT=str(scene), LABELS=labels.id()) in ("", None)


def test_several_class_maps_are_evaluated_together(fake_engine, scene, labels, tmp_path):
    other = tmp_path / "a [2].tif"
    shutil.copy(scene, other)
    given = {"INPUT": str(scene), "MORE": [str(other), str(scene)], "LABELS": labels.id(), "CLASSES": "a,b"}
    processing.run(EVALUATE, {**given, "REMAP": "house=b, road = ignore", "HTML": str(tmp_path / "e.html")})
    assert fake_engine.argv[:4] == ["evaluate", str(scene), str(other), fake_engine.argv[3]]
    assert [word for word in fake_engine.argv if word.startswith("--remap=")] == [
        "--remap=house=b",
        "--remap=road=ignore",
    ]
    assert "and 1 more" in (tmp_path / "e.html").read_text()
    assert "house=building" in problem(EVALUATE, **given, REMAP="house")
    raster = {**given, "LABELS": None, "LABEL_RASTER": str(scene)}
    assert "labels of one raster" in problem(EVALUATE, **raster)


def test_a_model_is_evaluated_on_several_scenes(fake_engine, scene, labels, tmp_path):
    other, model = tmp_path / "a [2].tif", tmp_path / "m.onnx"
    shutil.copy(scene, other)
    model.touch()
    given = {"INPUT": str(scene), "MORE": [str(other)], "MODEL": str(model), "LABELS": labels.id(), "SCALE": "255"}
    processing.run(EVALUATE, {**given, "CLASSES": "a, b"})
    images = [word.partition("=")[2] for word in fake_engine.argv if word.startswith("--images=")]
    assert images == [str(scene), str(other).replace("[", "[[]")]
    assert (options(fake_engine)["classes"], options(fake_engine)["scale"]) == ("a,b", "255")


def test_a_check_tells_each_test_and_forecasts_a_run(fake_engine, feedback, scene, tmp_path):
    page = tmp_path / "check.html"
    given = {"INPUT": str(scene), "BANDS": [3, 2, 1], "TTA": "d4", "CLASSES": "a, b", "HTML": str(page)}
    made = processing.run(CHECK, given, feedback=feedback)
    assert made == {"OK": True, "SECONDS": 65.0, "HTML": str(page)}
    options_given = ["--bands=3,2,1", "--tta=d4", "--classes=a,b"]
    assert fake_engine.log[0]["argv"] == ["check", str(scene), *options_given, "--json"]
    run = fake_engine.log[1]["argv"]
    assert run[:2] == ["predict", str(scene)]
    assert set(options_given) | {"--dry-run"} <= set(run)
    assert "good: bands: They fit." in feedback.lines
    assert "    → More halo." in feedback.lines
    assert "    → Nothing." not in feedback.lines
    assert "All of the scene: 1,234 tiles, about 65 s on cpu, 300 MB of memory." in feedback.lines
    assert "The model runs on this scene; read the notes on seams." in feedback.lines
    text = page.read_text()
    assert "a &lt; b" in text
    assert "roofs &lt;1&gt;" in text
    assert "1,234 tiles" in text
    assert len(feedback.commands) == 2


def test_a_check_that_fails_is_a_result_with_what_failed(fake_engine, feedback, scene):
    fake_engine.mode("unfit")
    made = processing.run(CHECK, {"INPUT": str(scene)}, feedback=feedback)
    assert made == {"OK": False, "SECONDS": None}
    assert feedback.warnings == ["The model does not suit the scene or this computer: bands."]
    assert len(fake_engine.log) == 1  # no forecast


def test_a_check_without_a_forecast_asks_once(fake_engine, scene):
    processing.run(CHECK, {"INPUT": str(scene), "FORECAST": False})
    assert len(fake_engine.log) == 1


def test_a_check_that_can_not_be_made_is_told(fake_engine, scene):
    assert "Band 9 does not exist" in problem(CHECK, INPUT=str(scene), BANDS=[9])
    assert "/no.onnx does not exist" in problem(CHECK, INPUT=str(scene), MODEL="/no.onnx")
    fake_engine.mode("error")
    with pytest.raises(QgsProcessingException, match=r"The model has 4 bands, the scene 3|exit code"):
        processing.run(CHECK, {"INPUT": str(scene)})


def test_labels_without_any_polygon_are_refused(fake_engine, scene, labels):
    labels.dataProvider().truncate()
    with pytest.raises(QgsProcessingException, match="LABELS holds no polygon"):
        processing.run(EVALUATE, {"INPUT": str(scene), "LABELS": labels})


def test_evaluate_works_in_a_model_of_the_designer(fake_engine, scene, labels, tmp_path):
    """Its numbers can be used by what comes after it."""
    model = QgsProcessingModelAlgorithm("m", "m")
    child = QgsProcessingModelChildAlgorithm(EVALUATE)
    child.setChildId("evaluate")
    value = QgsProcessingModelChildParameterSource.fromStaticValue
    child.addParameterSources("INPUT", [value(str(scene))])
    child.addParameterSources("LABELS", [value(labels.id())])
    child.addParameterSources("HTML", [value(str(tmp_path / "e.html"))])
    model.addChildAlgorithm(child)
    after = QgsProcessingModelChildAlgorithm("native:stringconcatenation")
    after.setChildId("after")
    after.addParameterSources("INPUT_1", [value("IoU is ")])
    after.addParameterSources("INPUT_2", [QgsProcessingModelChildParameterSource.fromChildOutput("evaluate", "MIOU")])
    given = QgsProcessingModelOutput("told", "told")
    given.setChildId("after")
    given.setChildOutputName("CONCATENATION")
    after.setModelOutputs({"told": given})
    model.addChildAlgorithm(after)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    assert processing.run(model, {}, context=context)["after:told"] == "IoU is 0.5"


def adapt(feedback=None, **parameters):
    return processing.run(ADAPT, {"OPEN_REPORT": False, **parameters}, feedback=feedback)


def test_adapting_writes_labels_and_configuration_and_gives_the_model(fake_engine, feedback, scene, labels, tmp_path):
    run = tmp_path / "un essai é"
    made = adapt(
        feedback, IMAGES=[str(scene)], LABELS=labels.id(), FIELD="kind", TARGETS=[str(scene)], AREA=labels.id(),
        BACKGROUND="other", STEPS=50, BUDGET=0.5, SEED=3, HEAD="linear", DEVICE="cpu", BANDS="3,2,1", RUN=str(run),
    )  # fmt: skip
    assert made == {"RUN": str(run), "MODEL": f"{run}/model.onnx", "REPORT": f"{run}/report.html", "MIOU": 0.5}
    assert fake_engine.argv[:-2] == ["adapt", f"{run}/adapt.toml", f"--output={run}", "--device=cpu"]
    config = tomllib.loads((run / "adapt.toml").read_text())
    assert config["classes"] == {"0": "other", "1": "house", "2": "road"}
    assert config["source"][0]["images"] == str(scene)
    assert config["source"][0]["background"] == "other"
    assert config["source"][0]["bands"] == [3, 2, 1]
    assert config["style"][0]["images"] == str(scene)
    assert (config["train"]["steps"], config["train"]["seed"]) == (50, 3)
    assert (config["peft"]["budget"], config["model"]["head"]) == (0.5, "linear")
    assert written(config["source"][0]["labels"]) == ["house", "road", "road", "house"]
    assert len(written(config["source"][0]["aoi"])) == 5


def test_steps_are_logged_now_and_then_and_at_each_validation(fake_engine, feedback, scene, labels, tmp_path):
    adapt(feedback, IMAGES=[str(scene)], LABELS=labels, FIELD="kind", RUN=str(tmp_path / "run"))
    steps = [line for line in feedback.lines if line.startswith("step ")]
    assert steps[0] == "step 1 of 20: loss 1.000, about 1 s left"
    assert "step 10 of 20: loss 0.100, validation mIoU 0.500, about 1 s left" in steps
    assert steps[-1] == "step 20 of 20: loss 0.050, validation mIoU 0.500, now the model is exported"
    assert "Mean IoU 0.500 on the parts held out, at step 20" in feedback.lines


def test_a_long_training_is_not_logged_step_by_step(fake_engine, feedback, scene, labels, tmp_path):
    from cegate_geo_qgis.protocol import Progress
    from cegate_geo_qgis.runtime import ToldSteps

    told = ToldSteps()
    lines = [told.line(Progress(n / 1000, n, 1000, 1.0, 0.5, 0.1 if n < 333 else 0.2)) for n in range(1, 1001)]
    said = [n for n, line in enumerate(lines, 1) if line]
    assert len(said) == 22  # the first, one each 50, and the new validation
    assert 333 in said


def test_names_and_colours_of_a_categorised_layer_become_the_models(fake_engine, scene, labels, tmp_path):
    style = [("road", "Straße", "#112233"), ("house", "Haus", "#d64541")]
    categories = [QgsRendererCategory(v, QgsFillSymbol.createSimple({"color": c}), name) for v, name, c in style]
    labels.setRenderer(QgsCategorizedSymbolRenderer("kind", categories))
    run = tmp_path / "run"
    adapt(IMAGES=[str(scene)], LABELS=labels.id(), FIELD="kind", RUN=str(run))
    config = tomllib.loads((run / "adapt.toml").read_text())
    assert config["classes"] == {"0": "Straße", "1": "Haus"}
    assert config["colors"] == {"Straße": "#112233", "Haus": "#d64541"}
    assert written(run / "labels.gpkg") == ["Haus", "Straße", "Straße", "Haus"]


def test_a_value_map_names_the_numbers_of_a_field(fake_engine, scene, labels, tmp_path):
    setup = QgsEditorWidgetSetup("ValueMap", {"map": [{"ground": "0"}, {"first": "1"}, {"second": "2"}]})
    labels.setEditorWidgetSetup(0, setup)
    run = tmp_path / "run"
    adapt(IMAGES=[str(scene)], LABELS=labels.id(), FIELD="id", RUN=str(run))
    config = tomllib.loads((run / "adapt.toml").read_text())
    assert config["classes"] == {"0": "ground", "1": "first", "2": "second", "3": "3", "4": "4"}


def test_unsaved_edits_count(fake_engine, scene, labels, tmp_path):
    labels.startEditing()
    labels.changeAttributeValue(next(labels.getFeatures()).id(), 1, "tree")
    run = tmp_path / "run"
    adapt(IMAGES=[str(scene)], LABELS=labels.id(), FIELD="kind", RUN=str(run))
    labels.rollBack()
    assert written(run / "labels.gpkg") == ["tree", "road", "road", "house"]


def test_cancelling_waits_until_the_state_is_saved_and_says_how_to_go_on(
    fake_engine, feedback, scene, labels, tmp_path
):
    run = tmp_path / "run"
    fake_engine.mode("long")
    feedback.progressChanged.connect(lambda percent: percent > 2 and feedback.cancel())
    with pytest.raises(QgsProcessingException, match=r"What was learned is saved in .*'Resume' to go on"):
        adapt(feedback, IMAGES=[str(scene)], LABELS=labels.id(), FIELD="kind", RUN=str(run))
    assert {"stdin": "cancel\n"} in fake_engine.log
    assert not fake_engine.is_alive()
    before = (run / "adapt.toml").read_bytes(), (run / "labels.gpkg").read_bytes()
    again = {"IMAGES": [str(scene)], "LABELS": labels.id(), "FIELD": "kind", "RUN": str(run)}
    assert "tick Resume" in problem(ADAPT, **again)
    fake_engine.mode("ok")
    assert adapt(**again, STEPS=7, RESUME=True)["MODEL"] == f"{run}/model.onnx"
    assert fake_engine.log[-1]["argv"][:-2] == ["adapt", f"{run}/adapt.toml", f"--output={run}", "--resume"]
    assert ((run / "adapt.toml").read_bytes(), (run / "labels.gpkg").read_bytes()) == before


def test_before_the_first_step_cancelling_takes_less_than_a_second(fake_engine, feedback, scene, labels, tmp_path):
    fake_engine.mode("never")
    feedback.progressChanged.connect(lambda percent: fake_engine.log and feedback.cancel())
    with pytest.raises(QgsProcessingException, match="Cancelled before training began"):
        adapt(feedback, IMAGES=[str(scene)], LABELS=labels.id(), FIELD="kind", RUN=str(tmp_path / "run"))
    assert not fake_engine.is_alive()


def test_a_folder_without_a_run_can_not_be_resumed(scene, labels, tmp_path):
    given = {"IMAGES": [str(scene)], "LABELS": labels.id(), "FIELD": "kind", "RUN": str(tmp_path), "RESUME": True}
    assert "holds no run of this plugin" in problem(ADAPT, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"BANDS": "1,,2"}, "are no list"),
        ({"BANDS": "0,1,2"}, "are no list"),
        ({"NODATA": "white"}, "no number"),
        ({"WEIGHTS": "/no/weights"}, "WEIGHTS"),
        ({"BUDGET": 2}, "BUDGET"),
        ({"IMAGES": ["/no/scene.tif"]}, "IMAGES"),
    ],
)
def test_what_can_not_be_adapted_is_said_before_the_run(scene, labels, tmp_path, given, words):
    parameters = {"IMAGES": [str(scene)], "LABELS": labels.id(), "FIELD": "kind", "RUN": str(tmp_path / "run")}
    assert problem(ADAPT, **parameters) in ("", None)
    assert words in problem(ADAPT, **{**parameters, **given})


def test_one_class_alone_is_refused_with_the_mend(fake_engine, scene, labels, tmp_path):
    labels.dataProvider().deleteFeatures([f.id() for f in labels.getFeatures() if f["kind"] != "house"])
    given = {"IMAGES": [str(scene)], "LABELS": labels.id(), "FIELD": "kind", "RUN": str(tmp_path / "run")}
    with pytest.raises(QgsProcessingException, match=r"only the class 'house'.*Background"):
        adapt(**given)
    assert not (tmp_path / "run").exists()
    assert adapt(**given, BACKGROUND="other")["MIOU"] == 0.5


def test_an_engine_that_can_only_predict_is_told(fake_engine, scene, labels, tmp_path):
    fake_engine.mode("untrained")
    with pytest.raises(QgsProcessingException, match=r"package torch. .*Set up the engine.* with the variant 'train'"):
        adapt(IMAGES=[str(scene)], LABELS=labels.id(), FIELD="kind", RUN=str(tmp_path / "run"))


def test_an_own_engine_that_was_set_up_without_torch_says_so_before_the_run(tmp_path, monkeypatch):
    from cegate_geo_qgis import adapt_model, engine_algorithm

    folder = tmp_path / "engine"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "cegate-geo").write_text("#!/bin/sh\n")
    for module in (engine_algorithm, adapt_model):
        monkeypatch.setattr(module, "managed_environment", lambda: folder)
    algorithm = QgsApplication.processingRegistry().createAlgorithmById(ADAPT)
    for variant, can in (("cpu", False), ("train", True)):
        (folder / "cegate-geo-ready.json").write_text(json.dumps({"variant": variant}))
        ok, message = algorithm.canExecute()
        assert ok is can
        assert ("variant 'train'" in (message or "")) is not can


def test_layers_that_are_no_plain_files_are_refused(scene, labels, tmp_path):
    web = QgsRasterLayer("type=xyz&url=http://localhost/{z}/{x}/{y}.png&zmax=19&zmin=0", "Web", "wms")
    QgsProject.instance().addMapLayer(web)
    given = {"LABELS": labels.id(), "FIELD": "kind", "RUN": str(tmp_path / "run")}
    assert "Save it first" in problem(ADAPT, IMAGES=[web.id()], **given)
    one_band = QgsRasterLayer(f"vrt://{scene}?bands=1", "one band", "gdal")
    assert one_band.isValid()
    QgsProject.instance().addMapLayer(one_band)
    assert "no plain file" in problem(ADAPT, IMAGES=[one_band.id()], **given)
    assert "no plain file" in problem(EVALUATE, INPUT=one_band.id(), LABELS=labels.id())


def test_the_report_is_opened_where_there_is_a_window(fake_engine, scene, labels, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    from cegate_geo_qgis import adapt_model

    given = {"IMAGES": [str(scene)], "LABELS": labels.id(), "FIELD": "kind"}
    for n, (window, wanted) in enumerate([(False, True), (True, False), (True, True)]):
        monkeypatch.setattr(adapt_model, "has_window", lambda window=window: window)
        processing.run(ADAPT, {**given, "RUN": str(tmp_path / f"run{n}"), "OPEN_REPORT": wanted})
    assert opened == [str(tmp_path / "run2" / "report.html")]
    assert Path(opened[0]).is_file()
