"""What is read from the files of other tools, part by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cegate_geo.api import ModelInfo, describe_model
from cegate_geo.domain.contract import StatedContract
from cegate_geo.errors import InputError, ModelError
from tests import foreign_models as foreign

SEGMENTOR = {"model_type": "Segmentor"}


def deepness(folder: Path, **keys: Any) -> ModelInfo:
    return describe_model(foreign.bands_as_classes(folder / "m.onnx", metadata={**SEGMENTOR, **keys}))


@pytest.mark.parametrize("text", ['"Segmentor"', "Segmentor", "segmentor", "'Segmentor'", '"SEGMENTOR"'])
def test_the_type_is_read_as_json_and_as_a_bare_word(tmp_path: Path, text: str) -> None:
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata={"model_type": text})
    assert describe_model(model).manifest.legend.names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("kind", ['"Detector"', "Detector", '"Regressor"', "Superresolution", '"Recognition"'])
def test_what_is_no_segmentation_is_refused_in_plain_words(tmp_path: Path, kind: str) -> None:
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata={"model_type": kind})
    with pytest.raises(ModelError, match="not a segmentation model") as caught:
        describe_model(model)
    assert kind.strip('"') in caught.value.message


def test_a_detector_is_known_by_its_keys_and_by_its_exporter(tmp_path: Path) -> None:
    for metadata in ({"det_conf": "0.3"}, {"names": "{0: 'car'}", "task": "detect"}):
        with pytest.raises(ModelError, match="not a segmentation model"):
            describe_model(foreign.bands_as_classes(tmp_path / "m.onnx", metadata=metadata))


@pytest.mark.parametrize(
    ("key", "text", "names"),
    [
        ("class_names", '{"0": "a", "1": "b", "2": "c"}', ("a", "b", "c")),
        ("class_names", '{"2": "c", "0": "a", "1": "b"}', ("a", "b", "c")),
        ("class_names", "{0: 'a', 1: 'b', 2: 'c'}", ("a", "b", "c")),
        ("names", '{"0": "a", "1": "b", "2": "c"}', ("a", "b", "c")),
        ("class_names", '["a", "b", "c"]', ("a", "b", "c")),
        ("class_names", '{"0": "a", "2": "c"}', ("a", "class_1", "c")),
        ("class_names", '{"0": "a"}', ("a", "class_1", "class_2")),
        ("class_names", '["a", "a", "b"]', ("a", "a (2)", "b")),
        ("class_names", '[{"0": "a", "1": "b", "2": "c"}]', ("a", "b", "c")),
    ],
)
def test_names_in_every_form_that_files_have(tmp_path: Path, key: str, text: str, names: tuple[str, ...]) -> None:
    info = deepness(tmp_path, **{key: text})
    assert info.manifest.legend.names == names
    assert info.manifest.legend.ids == (0, 1, 2)
    assert info.sources["classes"] == "Deepness keys"


@pytest.mark.parametrize("text", ["roads", "[]", "{}", "3", '{"a": "b"}', '{"-1": "b"}', '["a", "b", "c", "d"]'])
def test_names_that_do_not_fit_are_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        deepness(tmp_path, class_names=text)
    assert "--classes" in caught.value.hint


def test_of_one_channel_the_first_class_is_what_it_does_not_find(tmp_path: Path) -> None:
    cases = {'{"0": "roof"}': ("background", "roof"), '["land", "roof"]': ("land", "roof"), "": ("class_0", "class_1")}
    for text, names in cases.items():
        metadata = SEGMENTOR | ({"class_names": text} if text else {})
        info = describe_model(foreign.first_band(tmp_path / "m.onnx", metadata=metadata))
        assert info.manifest.legend.names == names
        assert info.manifest.threshold == 0.5, "what both tools use where a file does not say"


def test_numbers_of_the_keys_become_ours(tmp_path: Path) -> None:
    info = deepness(tmp_path, resolution="50", tile_size="512", tiles_overlap="25", seg_thresh="0.4",
                    standardization_mean="[0.4, 0.5, 0.6]", standardization_std="[0.1, 0.2, 0.3]")  # fmt: skip
    manifest = info.manifest
    assert manifest.gsd_m == 0.5, "50 cm"
    assert manifest.gsd_range_m == (0.4, 0.625)
    assert manifest.tile_size == 64, "the graph takes nothing else"
    assert manifest.halo == 8, "25 % of 64 px, half on each side"
    assert manifest.threshold == 0.4
    assert (manifest.scaling, manifest.input_maximum) == ("unit", 255)
    assert manifest.mean == (0.4, 0.5, 0.6)
    assert manifest.std == (0.1, 0.2, 0.3)
    assert info.sources["tile_size"] == "graph"


@pytest.mark.parametrize("key", ["tile_size", "tiles_size"])
def test_the_tile_size_counts_where_the_graph_leaves_it_free(tmp_path: Path, key: str) -> None:
    model = foreign.bands_as_classes(tmp_path / "m.onnx", size="h", metadata=SEGMENTOR | {key: "96"})
    assert describe_model(model).manifest.tile_size == 96
    assert describe_model(model, tile_size=128).manifest.tile_size == 128
    assert describe_model(foreign.bands_as_classes(tmp_path / "n.onnx", size="h")).manifest.tile_size == 512


@pytest.mark.parametrize(
    "keys",
    [
        {"resolution": "fine"}, {"resolution": "0"}, {"seg_thresh": "1.5"}, {"tiles_overlap": "-3"},
        {"seg_thresh": "NaN"}, {"tile_size": "-1"}, {"standardization_mean": "[0.1, 0.2]"},
        {"standardization_std": '["a"]'}, {"standardization_std": "[0.1, 0, 0.1]"},
    ],
)  # fmt: skip
def test_a_key_that_makes_no_sense_is_named(tmp_path: Path, keys: dict[str, str]) -> None:
    with pytest.raises(ModelError):
        deepness(tmp_path, **keys)


def test_geoai_tells_by_its_sidecar(tmp_path: Path) -> None:
    model = foreign.bands_as_classes(tmp_path / "m.onnx", size="h")
    sidecar = {"model_name": "nvidia/segformer", "task": "semantic-segmentation", "input_height": 96, "input_width": 96,
               "input_channels": 3, "output_names": ["logits"], "num_labels": 3,
               "id2label": {"0": "wall", "2": "sky"}}  # fmt: skip
    path = foreign.write_json(tmp_path / "m.onnx.json", sidecar)
    for given in (model, path):
        info = describe_model(given)
        assert info.path == model
        assert info.manifest.legend.names == ("wall", "class_1", "sky")
        assert (info.manifest.tile_size, info.manifest.output) == (96, "logits")
        assert (info.manifest.scaling, info.manifest.input_maximum) == ("unit", 255)
        assert info.sources["classes"] == info.sources["scaling"] == info.sources["output"] == "geoai sidecar"
    foreign.write_json(path, sidecar | {"task": "object-detection"})
    with pytest.raises(ModelError, match="object-detection"):
        describe_model(model)
    foreign.write_json(path, {"made by": "another tool"})
    assert describe_model(model).sources["classes"] == "assumed"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="JSON"):
        describe_model(model)


EMD: dict[str, Any] = {
    "Framework": "ONNX",
    "ModelType": "ImageClassification",
    "ModelFile": ".\\weights\\m.onnx",
    "ImageHeight": 64,
    "ImageWidth": 64,
    "ExtractBands": [2, 1, 0],
    "Classes": [{"Value": 3, "Name": "roof", "Color": [10, 20, 30]}, {"Value": 9, "Name": "road", "Color": [1, 2, 3]}],
}


def write_emd(folder: Path, **changes: Any) -> Path:
    (folder / "weights").mkdir(exist_ok=True)
    if not (folder / "weights" / "m.onnx").exists():
        foreign.bands_as_classes(folder / "weights" / "m.onnx")
    return foreign.write_json(folder / "model.emd", EMD | changes)


def test_arcgis_tells_by_its_definition(tmp_path: Path) -> None:
    info = describe_model(write_emd(tmp_path))
    assert info.path == tmp_path / "weights" / "m.onnx"
    classes = [(c.id, c.name, c.color) for c in info.manifest.legend]
    assert classes[1:] == [(3, "roof", (10, 20, 30)), (9, "road", (1, 2, 3))]
    assert classes[0][:2] == (0, "background"), "one channel more than classes, none of them 0"
    assert info.manifest.name == "model"
    assert info.sources["bands"] == info.sources["classes"] == "ArcGIS .emd"
    assert info.sources["scaling"] == "assumed"


def test_arcgis_bands_may_be_names(tmp_path: Path) -> None:
    assert describe_model(write_emd(tmp_path, ExtractBands=["nir", "red", "green"])).manifest.bands == (
        "nir", "red", "green"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"Framework": "PyTorch", "ModelFile": "m.pth"}, "PyTorch"),
        ({"Framework": "Templates"}, "Templates"),
        ({"Framework": "", "ModelFile": "m.pb"}, "m.pb"),
        ({"ModelType": "ObjectDetection"}, "ObjectDetection"),
        ({"ModelFile": "gone.onnx"}, "gone.onnx"),
        ({"Classes": [{"Value": 1}]}, "lacks"),
        ({"Classes": [{"Value": 1, "Name": "a", "Color": [300, 0, 0]}, {"Value": 2, "Name": "b"}]}, "300"),
        ({"Classes": [{"Value": n, "Name": str(n)} for n in range(5)]}, "3 channels, but 5 classes"),
        ({"ExtractBands": [0, 1]}, "takes 3 bands"),
    ],
)
def test_a_definition_that_can_not_run_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        describe_model(write_emd(tmp_path, **changes))


def item(folder: Path, **more: Any) -> Path:
    if not (folder / "m.onnx").exists():
        foreign.bands_as_classes(folder / "m.onnx")
    return foreign.write_json(folder / "item.json", foreign.mlm_item("./m.onnx", **more))


def test_a_stac_item_tells_all(tmp_path: Path) -> None:
    described = {"bands": [{"name": "red", "data_type": "uint8", "gsd": 0.3}], "license": "CC-BY-4.0", "gsd": 0.25}
    info = describe_model(item(tmp_path, properties=described))
    assert info.path.resolve() == (tmp_path / "m.onnx").resolve()
    assert info.manifest.name == "Toy"
    assert [(c.id, c.name) for c in info.manifest.legend] == [(1, "roof"), (2, "road"), (7, "water")]
    assert info.manifest.legend.classes[0].color == (255, 0, 0)
    assert info.manifest.bands == ("red", "green", "blue")
    assert (info.manifest.gsd_m, info.manifest.dtype, info.manifest.licence) == (0.25, "uint8", "CC-BY-4.0")
    assert set(info.sources.values()) >= {"STAC MLM item"}


@pytest.mark.parametrize(
    ("operation", "mean", "std", "clip"),
    [
        ({"type": "min-max", "minimum": 10, "maximum": 210}, (10, 10, 10), (200, 200, 200), ()),
        ({"type": "z-score", "mean": 120, "stddev": 30}, (120,) * 3, (30,) * 3, ()),
        ({"type": "scale", "value": 200}, (0,) * 3, (200,) * 3, ()),
        ({"type": "offset", "value": 100}, (100,) * 3, (1,) * 3, ()),
        ({"type": "clip", "minimum": 5, "maximum": 99}, (0,) * 3, (1,) * 3, ((5, 99),) * 3),
    ],
)
def test_every_kind_of_value_scaling(
    tmp_path: Path, operation: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...], clip: Any
) -> None:
    for operations in ([operation], [operation] * 3):
        manifest = describe_model(item(tmp_path, input={"value_scaling": operations})).manifest
        assert (manifest.scaling, manifest.mean, manifest.std) == ("none", mean, std)
        assert manifest.clip == clip
        assert manifest.dtype == "uint8"


def test_scaling_may_differ_from_band_to_band(tmp_path: Path) -> None:
    operations = [{"type": "z-score", "mean": 1200, "stddev": 300}, {"type": "clip-min", "minimum": 4}, {"type": None}]
    manifest = describe_model(item(tmp_path, input={"value_scaling": operations})).manifest
    assert (manifest.mean, manifest.std) == ((1200, 0, 0), (300, 1, 1))
    assert manifest.clip == ((-float("inf"), float("inf")), (4, float("inf")), (-float("inf"), float("inf")))
    assert manifest.dtype == "uint16", "a mean of 1200 is no mean of bytes"


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"asset": {"href": "https://example.org/m.onnx"}}, "network"),
        ({"asset": {"href": "s3://bucket/m.onnx"}}, "network"),
        ({"asset": {"href": "gone.onnx"}}, "not a file"),
        ({"asset": {"href": "m.pt", "type": "application/octet-stream; framework=pytorch"}}, "no asset with ONNX"),
        ({"asset": {"roles": ["thumbnail"]}}, "no asset with ONNX"),
        ({"properties": {"mlm:tasks": ["object-detection"]}}, "object-detection"),
        ({"properties": {"mlm:input": []}}, "0 inputs"),
        ({"properties": {"mlm:output": [{}]}}, "not as the MLM extension wants it"),
        ({"input": {"bands": [{"name": "ndvi", "format": "gdal-calc", "expression": "A-B"}]}}, "ndvi"),
        ({"input": {"value_scaling": [{"type": "fold"}]}}, "fold"),
        ({"input": {"value_scaling": [{"type": "scale", "value": 255}] * 2}}, "2 numbers|is not for 3 bands"),
        ({"input": {"bands": ["red", "green"]}}, "takes 3 bands"),
    ],
)
def test_an_item_that_can_not_run_is_refused(tmp_path: Path, more: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        describe_model(item(tmp_path, **more))


def test_other_json_is_no_model(tmp_path: Path) -> None:
    for table in ({"type": "FeatureCollection"}, {"properties": {"datetime": None}}):
        with pytest.raises(ModelError, match="no STAC item"):
            describe_model(foreign.write_json(tmp_path / "other.json", table))


def test_who_is_asked_first_has_the_say(tmp_path: Path) -> None:
    """The user, then the file that was named, then the model's own keys, then a sidecar."""
    metadata = SEGMENTOR | {"class_names": '["k0", "k1", "k2"]', "resolution": "40", "seg_thresh": "0.3"}
    (tmp_path / "weights").mkdir()
    model = foreign.bands_as_classes(tmp_path / "weights" / "m.onnx", metadata=metadata)
    foreign.write_json(tmp_path / "weights" / "m.onnx.json", {"id2label": {"0": "s0"}, "output_names": ["logits"]})
    info = describe_model(write_emd(tmp_path), threshold=0.9)
    assert info.manifest.legend.names == ("background", "roof", "road")
    assert info.manifest.gsd_m == 0.4
    assert info.manifest.threshold == 0.9
    assert info.manifest.output == "logits"
    assert {part: info.sources[part] for part in ("classes", "gsd_m", "threshold", "output")} == {
        "classes": "ArcGIS .emd", "gsd_m": "Deepness keys", "threshold": "option", "output": "geoai sidecar",
    }  # fmt: skip
    assert describe_model(model).manifest.legend.names == ("k0", "k1", "k2")


@pytest.mark.parametrize(
    "stated",
    [
        {"classes": ("a", "a")}, {"classes": ("",)}, {"scale": (0.0,)}, {"std": (-1.0,)}, {"mean": (float("nan"),)},
        {"gsd_m": 0.0}, {"threshold": 1.1}, {"threshold": float("nan")}, {"output_kind": "scores"}, {"dtype": "int8"},
    ],
)  # fmt: skip
def test_a_stated_contract_that_makes_no_sense_is_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="contract"):
        StatedContract(**stated)


def test_scaling_in_every_form_is_the_same_arithmetic(tmp_path: Path) -> None:
    """A divisor for each band is folded into mean and std: (x / d - m) / s = (x - m d) / (s d)."""
    model = foreign.bands_as_classes(tmp_path / "m.onnx")
    manifest = describe_model(model, scale=(100, 200, 50), mean=(0.5,), std=(0.25, 0.5, 2)).manifest
    assert (manifest.scaling, manifest.mean, manifest.std) == ("none", (50, 100, 25), (25, 100, 100))
    manifest = describe_model(model, scale=(1,)).manifest
    assert (manifest.scaling, manifest.mean) == ("none", ())
    manifest = describe_model(model, mean=(0.5,)).manifest
    assert (manifest.scaling, manifest.input_maximum, manifest.mean) == ("unit", 255, (0.5,) * 3)


def test_a_contract_survives_its_json(tmp_path: Path) -> None:
    operations = [{"type": "z-score", "mean": 1200, "stddev": 300}, {"type": "clip-min", "minimum": 4}, {"type": None}]
    manifest = describe_model(item(tmp_path, input={"value_scaling": operations})).manifest
    assert type(manifest).from_json(manifest.to_json()) == manifest
    table = json.loads(manifest.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert table["gsd_m"] is None
    assert table["clip"] == [[None, None], [4, None], [None, None]]
