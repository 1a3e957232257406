"""Models of other tools, predicted: what comes out is what their own tools make of the same numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine

from cegate_geo import api
from cegate_geo.cli.main import main
from cegate_geo.domain.manifest import METADATA_KEY
from cegate_geo.errors import BandWarning, ContractWarning, GsdWarning, InputError, ModelError
from tests import foreign_models as foreign
from tests import toy_models as toys
from tests.foreign_models import node

SHAPE = (150, 170)
"""Of the scenes: no multiple of the models' 64 px."""
SEGMENTOR = {"model_type": "Segmentor", "resolution": "13", "tiles_overlap": "25"}
Array = npt.NDArray[Any]


def scene(folder: Path, values: Array | None = None, **profile: Any) -> tuple[Path, Array]:
    values = toys.noise(SHAPE, seed=3) if values is None else values
    return toys.write_raster(folder / "scene.tif", values, **profile), values


def classes(model: Path, raster: Path, **options: Any) -> Array:
    """The class map, without its warnings about the contract."""
    output = raster.with_name("mask.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ContractWarning)
        api.predict(raster, output, model=model, overwrite=True, **options)
    return toys.read(output)[0]


def unit(values: Array) -> Array:
    return (values.astype(np.float64) / 255).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("stitch", ["blend", "crop"])
def test_unsure_pixels_become_the_first_class_as_in_deepness(tmp_path: Path, threshold: float, stitch: str) -> None:
    raster, values = scene(tmp_path)
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata=SEGMENTOR | {"seg_thresh": str(threshold)})
    expected = foreign.deepness_classes(unit(values), threshold)
    assert (classes(model, raster, stitch=stitch) == expected).all()


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0])
def test_one_channel_is_a_class_where_it_reaches_the_threshold(tmp_path: Path, threshold: float) -> None:
    """0.2 = 51 / 255 and 1.0 = 255 / 255 are met exactly: reaching is enough. 0 never is a class."""
    raster, values = scene(tmp_path)
    model = foreign.first_band(tmp_path / "m.onnx", metadata=SEGMENTOR | {"seg_thresh": str(threshold)})
    found = classes(model, raster)
    assert (found == foreign.deepness_classes(unit(values[:1]), threshold)).all()
    assert (found == (values[0] >= max(1, round(threshold * 255 + 0.49)))).all()


def test_confidence_is_that_of_the_class_that_was_chosen(tmp_path: Path) -> None:
    values = np.full((3, 40, 40), 0, np.uint8)
    values[0, :, :20], values[0, :, 20:] = 102, 204  # 0.4 and 0.8
    raster, _ = scene(tmp_path, values)
    model = foreign.first_band(tmp_path / "m.onnx", metadata=SEGMENTOR | {"seg_thresh": "0.3"})
    assert (classes(model, raster, confidence=tmp_path / "c.tif") == 1).all()
    assert np.unique(toys.read(tmp_path / "c.tif")).tolist() == [102, 204]
    model = foreign.first_band(tmp_path / "m.onnx", metadata=SEGMENTOR | {"seg_thresh": "0.5"})
    assert classes(model, raster, confidence=tmp_path / "c.tif")[0].tolist() == [0] * 20 + [1] * 20
    assert np.unique(toys.read(tmp_path / "c.tif")).tolist() == [153, 204], "1 - 0.4 for what was not found"


def test_standardisation_is_in_units_of_0_to_1(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    metadata = SEGMENTOR | {"seg_thresh": 0, "standardization_mean": mean, "standardization_std": std}
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata=metadata)
    logits = (unit(values) - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    power = np.exp(logits)
    found = classes(model, raster, probabilities=tmp_path / "p.tif")
    assert (found == logits.argmax(axis=0)).mean() > 0.9999, "of 25,500 pixels hardly any is nearly a tie"
    difference = toys.read(tmp_path / "p.tif") - np.rint(255 * power / power.sum(axis=0))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("keepdims", [0, 1])
def test_class_ids_are_taken_as_they_are(tmp_path: Path, keepdims: int) -> None:
    raster, values = scene(tmp_path)
    gives = ["n", 1, 64, 64] if keepdims else ["n", 64, 64]
    nodes = [node("ArgMax", axis=1, keepdims=keepdims)]
    metadata = SEGMENTOR | {"class_names": ["a", "b", "c"]}
    types = (foreign.FLOAT, foreign.INT64)
    model = foreign.build(tmp_path / "m.onnx", nodes, gives=gives, types=types, metadata=metadata)
    assert api.describe_model(model).manifest.output == "class-map"
    assert (classes(model, raster) == values.argmax(axis=0)).all()
    assert (classes(model, raster, stitch="crop") == values.argmax(axis=0)).all()
    with pytest.raises(InputError, match="--threshold"):
        classes(model, raster, threshold=0.5)
    with pytest.raises(ModelError, match="class ids 2"):
        classes(model, raster, classes=("a", "b"))
    foreign.build(tmp_path / "m.onnx", nodes, gives=gives, types=types)
    with pytest.raises(ModelError, match="no contract"):
        classes(model, raster)


def test_ids_as_floats_have_to_be_named(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    nodes = [node("ArgMax", "x", "ids", axis=1, keepdims=0), node("Cast", "ids", "y", to=foreign.FLOAT)]
    model = foreign.build(tmp_path / "m.onnx", nodes, gives=["n", 64, 64], metadata=SEGMENTOR)
    with pytest.raises(ModelError, match="seems to give class ids") as caught:
        classes(model, raster)
    assert "--classes" in caught.value.hint
    assert (classes(model, raster, classes=("a", "b", "c")) == values.argmax(axis=0)).all()


def test_a_map_without_channels_may_be_a_probability(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    nodes = [node("ReduceMax", "x", "y", axes=[1], keepdims=0)]
    model = foreign.build(tmp_path / "m.onnx", nodes, gives=["n", 64, 64], metadata=SEGMENTOR | {"seg_thresh": 0.8})
    assert (classes(model, raster) == (unit(values).max(axis=0) >= np.float32(0.8))).all()


@pytest.mark.parametrize("side", [3, 5, 8])
@pytest.mark.parametrize("shape", [(150, 170), (64, 64), (40, 30), (1, 70)])
def test_a_smaller_output_lies_over_the_middle(tmp_path: Path, side: int, shape: tuple[int, int]) -> None:
    """Oracle: the same filter over the whole scene, mirrored at its border. An even filter leaves an odd rest."""
    raster, values = scene(tmp_path, toys.noise(shape, seed=5))
    kernel = np.random.default_rng(0).random((side, side)).astype(np.float32)
    kernel /= kernel.sum()
    model = foreign.valid_convolution(tmp_path / "m.onnx", kernel, metadata=SEGMENTOR | {"seg_thresh": "0"})
    before = (side - 1) // 2
    pad = (before, side - 1 - before)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(unit(values), ((0, 0), pad, pad), mode="symmetric"), (side, side), axis=(1, 2)
    )
    expected = (windows * kernel).sum(axis=(3, 4)).argmax(axis=0)
    found = classes(model, raster)
    assert found.shape == expected.shape
    assert (found != expected).sum() <= 1, "sums of other order may tip one near tie"


def test_a_coarse_output_is_stretched_as_interpolation_does(tmp_path: Path) -> None:
    """Oracle: torch's bilinear interpolation, which is what coarse segmentation heads are trained with."""
    torch = pytest.importorskip("torch")
    raster, values = scene(tmp_path, toys.noise((64, 64), seed=2))
    nodes = [node("AveragePool", "x", "p", kernel_shape=[4, 4], strides=[4, 4]), node("Mul", ["p", "ten"])]
    model = foreign.build(tmp_path / "m.onnx", nodes, gives=["n", 3, 16, 16], weights={"ten": np.float32([10])})
    foreign.write_json(tmp_path / "m.onnx.json", {"id2label": {"0": "a"}, "output_names": ["logits"]})
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(unit(values))[None], 4) * 10
    fine = torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False)
    expected = torch.softmax(fine, 1)[0].numpy()
    found = classes(model, raster, probabilities=tmp_path / "p.tif")
    assert (found == expected.argmax(axis=0)).mean() > 0.999
    assert np.abs(toys.read(tmp_path / "p.tif") - 255 * expected).max() <= 0.51


def test_coarse_ids_are_repeated_not_mixed(tmp_path: Path) -> None:
    raster, values = scene(tmp_path, toys.noise((64, 64), seed=2))
    nodes = [node("MaxPool", "x", "p", kernel_shape=[4, 4], strides=[4, 4]), node("ArgMax", "p", axis=1, keepdims=0)]
    model = foreign.build(tmp_path / "m.onnx", nodes, gives=["n", 16, 16], types=(foreign.FLOAT, foreign.INT64))
    coarse = values.reshape(3, 16, 4, 16, 4).max(axis=(2, 4)).argmax(axis=0)
    found = classes(model, raster, classes=("a", "b", "c"), scale=(255,))
    assert (found == coarse.repeat(4, axis=0).repeat(4, axis=1)).all()


def test_of_several_outputs_one_is_used_and_named(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    nodes = [node("Identity"), node("Neg", "x", "minus"), node("Add", ["minus", "one"], "aux")]
    heads = {"y": ["n", 3, 64, 64], "aux": ["n", 3, 64, 64]}
    names = [{"0": "a", "1": "b", "2": "c"}, {"0": "p", "1": "q", "2": "r"}]
    metadata = SEGMENTOR | {"class_names": names, "seg_thresh": 0}
    weights = {"one": np.float32([1])}
    model = foreign.build(tmp_path / "m.onnx", nodes, gives=heads, weights=weights, metadata=metadata)
    with pytest.warns(ContractWarning) as caught:
        api.predict(raster, tmp_path / "mask.tif", model=model)
    text = str(caught[0].message)
    assert "2 outputs" in text
    assert "--head" in text
    assert (toys.read(tmp_path / "mask.tif")[0] == values.argmax(axis=0)).all()
    assert (classes(model, raster, head="aux") == values.argmin(axis=0)).all()
    assert api.describe_model(model, head="aux").manifest.legend.names == ("p", "q", "r")
    for several in (model, foreign.bands_as_classes(tmp_path / "one.onnx", metadata=SEGMENTOR)):
        with pytest.raises(ModelError, match="no output 'z'"):
            classes(several, raster, head="z")


@pytest.mark.parametrize(
    ("low", "kind"), [(0.0, "probabilities"), (-0.0005, "probabilities"), (-0.01, "logits"), (0.1, "logits")]
)
def test_one_tile_tells_logits_from_probabilities(tmp_path: Path, low: float, kind: str) -> None:
    """0.1 above probabilities is above 1; half precision may leave 0 to 1 by a thousandth."""
    raster, values = scene(tmp_path)
    metadata = SEGMENTOR | {"class_names": ["no", "yes"], "seg_thresh": "0.6"}
    model = foreign.first_band(tmp_path / "m.onnx", offset=low, metadata=metadata)
    with pytest.warns(ContractWarning, match=f"taken as {kind}"):
        api.predict(raster, tmp_path / "mask.tif", model=model)
    raw = unit(values[0]) + np.float32(low)
    expected = raw >= 0.6 if kind == "probabilities" else 1 / (1 + np.exp(-raw)) >= 0.6
    assert (toys.read(tmp_path / "mask.tif")[0] == expected).all()
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert json.loads(mask.tags()["CEGATE_CONTRACT"])["output"] == kind


def test_what_is_stated_is_not_guessed(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    model = foreign.first_band(tmp_path / "m.onnx", metadata=SEGMENTOR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.predict(raster, tmp_path / "mask.tif", model=model, output_kind="logits", classes=("no", "yes"))
    assert (toys.read(tmp_path / "mask.tif")[0] == (values[0] >= 0)).all(), "a sigmoid of 0 and more is 0.5 and more"


def test_the_decision_is_that_of_the_middle_whatever_is_asked_for(tmp_path: Path) -> None:
    """Logits show only in the middle of the scene; an area in the corner does not change what the model is."""
    values = np.full((3, *SHAPE), 128, np.uint8)
    values[:, 60:90, 70:100] = 255
    raster, _ = scene(tmp_path, values)
    area = tmp_path / "aoi.geojson"
    left, top = toys.UTM["transform"] @ (0, 0)  # type: ignore[operator]
    ring = [[left, top], [left + 2, top], [left + 2, top - 2], [left, top - 2], [left, top]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32645"}}
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    foreign.write_json(area, {"type": "FeatureCollection", "crs": crs, "features": [feature]})
    metadata = SEGMENTOR | {"class_names": ["no", "yes"], "seg_thresh": "0.7"}
    model = foreign.first_band(tmp_path / "m.onnx", factor=1.5, metadata=metadata)
    for options in ({}, {"aoi": area}):
        with pytest.warns(ContractWarning, match="taken as logits"):
            api.predict(raster, tmp_path / "mask.tif", model=model, overwrite=True, **options)
        assert toys.read(tmp_path / "mask.tif")[0, 0, 0] == 0, "sigmoid(0.753) = 0.68"


@pytest.mark.parametrize("options", [{}, {"input_layout": "NHWC"}])
def test_channels_may_come_last(tmp_path: Path, options: dict[str, Any]) -> None:
    raster, values = scene(tmp_path)
    shape = ["n", 64, 64, 3]
    if not options:
        model = foreign.build(tmp_path / "m.onnx", [node("Identity")], given=shape, gives=shape, metadata=SEGMENTOR)
        assert (classes(model, raster, threshold=0.0) == values.argmax(axis=0)).all()
        return
    given = {"shape": [-1, 64, 64, 3], "dim_order": ["batch", "height", "width", "bands"], "data_type": "float32"}
    free = ["n", "a", "b", "c"]
    foreign.build(tmp_path / "m.onnx", [node("Identity")], given=free, gives=free)
    result = {"shape": [-1, 64, 64, 3], "dim_order": ["batch", "height", "width", "class"], "data_type": "float32"}
    table = foreign.mlm_item("m.onnx", input={"input": given}, output={"result": result})
    model = foreign.write_json(tmp_path / "item.json", table)
    assert (classes(model, raster) == np.array([1, 2, 7])[values.argmax(axis=0)]).all()


def test_as_many_classes_as_pixels_along_a_side_lie_as_the_input_does(tmp_path: Path) -> None:
    """An output (n, 8, 8, 8) could be either: its channels are where those of the input are."""
    raster, values = scene(tmp_path, toys.noise((20, 30), seed=6))
    weights = {"mix": np.random.default_rng(0).random((3, 8), np.float32)}
    shapes = {"given": ["n", 8, 8, 3], "gives": ["n", 8, 8, 8]}
    model = foreign.build(tmp_path / "m.onnx", [node("MatMul", ["x", "mix"])], weights=weights, **shapes)
    stated = {"classes": tuple("abcdefgh"), "scale": (255,), "output_kind": "logits", "halo": 1}
    expected = (unit(values).transpose(1, 2, 0) @ weights["mix"]).argmax(axis=2)
    assert (classes(model, raster, **stated) == expected).mean() > 0.99


@pytest.mark.parametrize(
    ("kind", "dtype", "scaled"),
    [("FLOAT16", "uint8", True), ("DOUBLE", "uint8", True), ("UINT8", "uint8", False), ("UINT16", "uint16", False)],
)
def test_inputs_of_other_types(tmp_path: Path, kind: str, dtype: str, scaled: bool) -> None:
    values = (toys.noise(SHAPE, seed=3).astype(dtype) * (1 if dtype == "uint8" else 200)).astype(dtype)
    raster, _ = scene(tmp_path, values, photometric=None)
    nodes = [node("Cast", "x", "f", to=foreign.FLOAT), node("Mul", ["f", "factor"])]
    weights = {"factor": np.float32([1 if scaled else 1 / 65535])}
    types = (getattr(foreign.TensorProto, kind), foreign.FLOAT)
    model = foreign.build(tmp_path / "m.onnx", nodes, weights=weights, types=types)
    options = {"scale": (255,)} if scaled else {}
    if kind == "UINT16":
        with pytest.warns(BandWarning):
            found = classes(model, raster, classes=("a", "b", "c"), **options)
    else:
        found = classes(model, raster, classes=("a", "b", "c"), **options)
    assert (found == values.argmax(axis=0)).all()
    if not scaled:
        with pytest.raises(InputError, match="whole numbers"):
            classes(model, raster, classes=("a", "b", "c"), scale=(255,))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_any_number_of_bands_and_a_fixed_batch(tmp_path: Path, channels: int) -> None:
    raster, values = scene(tmp_path, toys.noise(SHAPE, channels=channels, seed=4), photometric="MINISBLACK")
    metadata = SEGMENTOR | {"seg_thresh": "0.3"}
    model = foreign.bands_as_classes(tmp_path / "m.onnx", channels=channels, batch=2, metadata=metadata)
    if channels == 1:
        found = classes(model, raster)  # a single band is 'gray' by its colour
    else:
        with pytest.warns(BandWarning, match="2 = (band_2|green)"):
            found = classes(model, raster)
    assert (found == foreign.deepness_classes(unit(values), 0.3)).all()
    order = [str(n) for n in reversed(range(1, channels + 1))]
    assert (classes(model, raster, bands=order) == foreign.deepness_classes(unit(values[::-1]), 0.3)).all()


def test_a_graph_with_free_sides_is_fed_with_whole_tiles(tmp_path: Path) -> None:
    """A network that halves four times fails on odd sides: also a small scene is given a whole tile."""
    raster, values = scene(tmp_path, toys.noise((50, 70), seed=1))
    pool = {"kernel_shape": [16, 16], "strides": [16, 16]}
    nodes = [
        node("MaxPool", "x", "p", **pool),
        node("Resize", ["p", "", "up"], "r", mode="nearest"),
        node("Mul", ["r", "no"], "n"),
        node("Add", ["x", "n"]),
    ]
    shape = ["n", 3, "h", "w"]
    weights = {"up": np.float32([1, 1, 16, 16]), "no": np.float32([0])}
    model = foreign.build(tmp_path / "m.onnx", nodes, given=shape, gives=shape, weights=weights, metadata=SEGMENTOR)
    for options in ({}, {"tile_size": 64}):
        assert (classes(model, raster, threshold=0.0, **options) == values.argmax(axis=0)).all()
    with pytest.raises(ModelError, match="failed on 3 bands of 50 x 50") as caught:
        classes(model, raster, tile_size=50)
    assert "--tile-size" in caught.value.hint


def test_arcgis_chooses_bands_by_number(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    foreign.bands_as_classes(tmp_path / "m.onnx")
    table = {"Framework": "onnx", "ModelFile": "m.onnx", "ExtractBands": [2, 0, 1],
             "Classes": [{"Value": v, "Name": n} for v, n in ((10, "a"), (20, "b"), (30, "c"))]}  # fmt: skip
    model = foreign.write_json(tmp_path / "m.emd", table)
    expected = np.array([10, 20, 30])[values[[2, 0, 1]].argmax(axis=0)]
    assert (classes(model, raster) == expected).all()
    assert (classes(model, raster, bands=(1, 2, 3)) == np.array([10, 20, 30])[values.argmax(axis=0)]).all()
    foreign.write_json(model, table | {"NormalizationStats": {"band_min_values": [0]}})
    with pytest.raises(ModelError, match="NormalizationStats"):
        classes(model, raster)
    assert (classes(model, raster, scale=(255,)) == expected).all()


def test_a_stac_item_runs_on_named_bands_and_clipped_values(tmp_path: Path) -> None:
    values = toys.noise(SHAPE, channels=4, seed=9).astype(np.uint16) * 40
    raster, _ = scene(tmp_path, values, photometric="MINISBLACK")
    with rasterio.open(raster, "r+") as dataset:
        for band, name in enumerate(("B04", "B08", "B03", "B02"), start=1):
            dataset.set_band_description(band, name)
    foreign.bands_as_classes(tmp_path / "m.onnx")
    scaling = [{"type": "min-max", "minimum": 0, "maximum": 10200}, {"type": "scale", "value": 20400},
               {"type": "z-score", "mean": 2000, "stddev": 8200}]  # fmt: skip
    table = foreign.mlm_item("m.onnx", input={"bands": ["B02", "B03", "B04"], "value_scaling": scaling})
    model = foreign.write_json(tmp_path / "item.json", table)
    blue, green, red = (values[band].astype(np.float64) for band in (3, 2, 0))
    expected = np.stack([blue / 10200, green / 20400, (red - 2000) / 8200]).argmax(axis=0)
    assert (classes(model, raster) == np.array([1, 2, 7])[expected]).all()
    limit = {"type": "clip", "minimum": 3000, "maximum": 5000}
    table = foreign.mlm_item("m.onnx", input={"bands": ["B02", "B03", "B04"], "value_scaling": [limit]})
    foreign.write_json(model, table)
    clipped = np.clip(np.stack([blue, green, red]), 3000, 5000).argmax(axis=0)
    assert (classes(model, raster) == np.array([1, 2, 7])[clipped]).all(), "equal values: the first wins"


def test_an_item_that_prepares_values_by_code_needs_them_stated(tmp_path: Path) -> None:
    raster, values = scene(tmp_path)
    foreign.bands_as_classes(tmp_path / "m.onnx")
    function = {"format": "python", "expression": "package:normalise"}
    for given in ({"pre_processing_function": function}, {"value_scaling": [{"type": "processing"}]},
                  {"value_scaling": [{"type": "z-score", "mean": 0.4, "stddev": 0.2}]}):  # fmt: skip
        model = foreign.write_json(tmp_path / "item.json", foreign.mlm_item("m.onnx", input=given))
        with pytest.raises(ModelError) as caught:
            classes(model, raster)
        assert "--scale" in caught.value.hint
        assert (classes(model, raster, scale=(255,)) == np.array([1, 2, 7])[values.argmax(axis=0)]).all()


def test_a_bare_file_runs_once_its_contract_is_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raster, values = scene(tmp_path)
    model, mask = foreign.bands_as_classes(tmp_path / "m.onnx"), tmp_path / "mask.tif"
    words = ["predict", str(raster), "-o", str(mask), "-m", str(model)]
    assert main(words) == 3
    error = capsys.readouterr().err
    assert "no contract" in error
    assert "--classes" in error
    assert "--scale" in error
    assert not mask.exists()
    words += ["--classes", "low,mid,high", "--scale", "255"]
    assert main(words) == 0
    assert "--gsd-m" in capsys.readouterr().err
    words += ["--mean", "0.5,0,0", "--gsd-m", "0.13", "--output-kind", "logits", "--overwrite"]
    assert main(words) == 0
    assert capsys.readouterr().err == "", "nothing is left to guess"
    expected = (unit(values) - np.float32([[[0.5]], [[0]], [[0]]])).argmax(axis=0)
    assert (toys.read(mask)[0] == expected).all()
    with rasterio.open(mask) as dataset:
        tags = dataset.tags()
    assert [c["name"] for c in json.loads(tags["CEGATE_LEGEND"])] == ["low", "mid", "high"]
    assert json.loads(tags["CEGATE_CONTRACT"])["mean"] == [0.5, 0, 0]


def test_16_bits_need_their_scale(tmp_path: Path) -> None:
    values = toys.noise(SHAPE, seed=3).astype(np.uint16) * 40
    raster, _ = scene(tmp_path, values)
    bare = {"classes": ("a", "b", "c"), "dtype": "uint16", "mean": (0.0,)}
    model = foreign.bands_as_classes(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="uint16"):
        classes(model, raster, **bare)
    assert (classes(model, raster, **bare, scale=(10200,)) == values.argmax(axis=0)).all()
    with pytest.raises(InputError, match="holds uint16, the model wants uint8"):
        classes(model, raster, classes=("a", "b", "c"), scale=(10200,))
    deepness = foreign.bands_as_classes(tmp_path / "d.onnx", metadata=SEGMENTOR | {"seg_thresh": "0"})
    assert (classes(deepness, raster, dtype="uint16") == values.argmax(axis=0)).all(), "Deepness divides by 255"


@pytest.mark.parametrize(
    ("nodes", "given", "gives"),
    [
        ([node("Reshape", ["x", "to"])], ["n", 3, 64, 64], ["n", 3, 4096]),
        ([node("GlobalMaxPool", "x", "p"), node("Reshape", ["p", "to"])], ["n", 3, 64, 64], ["n", 3]),
        ([node("Resize", ["x", "", "up"], mode="nearest")], ["n", 3, 64, 64], ["n", 3, 128, 128]),
        ([node("Identity")], ["n", 3, 4, 64, 64], ["n", 3, 4, 64, 64]),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, nodes: list[Any], given: list[Any], gives: list[Any]) -> None:
    weights = {"to": np.array([0, 3, -1][: len(gives)]), "up": np.float32([1, 1, 2, 2])}
    names = {name for n in nodes for name in n.input}
    used = {name: value for name, value in weights.items() if name in names}
    model = foreign.build(tmp_path / "m.onnx", nodes, given=given, gives=gives, weights=used)
    with pytest.raises(ModelError, match=r"no map of classes|can't be fed with rasters"):
        api.describe_model(model)


def test_a_file_of_ours_runs_by_its_manifest_alone(tmp_path: Path) -> None:
    """Keys and sidecars of others beside the manifest change not one byte, and nothing can be stated over it."""
    raster, _ = scene(tmp_path)
    plain, strange = tmp_path / "plain.onnx", tmp_path / "strange.onnx"
    toys.convolutions(plain, halo=8)
    loaded = foreign.onnx.load(plain)
    entries = {p.key: p.value for p in loaded.metadata_props}
    foreign.helper.set_model_props(
        loaded, {METADATA_KEY: entries[METADATA_KEY], "model_type": "Detector", "seg_thresh": "1"}
    )
    foreign.onnx.save(loaded, strange)
    foreign.write_json(tmp_path / "strange.onnx.json", {"id2label": {"0": "x"}, "task": "depth-estimation"})
    results = []
    for model in (plain, strange):
        outputs = {name: tmp_path / f"{name}.tif" for name in ("confidence", "probabilities")}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            api.predict(raster, tmp_path / "mask.tif", model=model, overwrite=True, **outputs)
        results.append([toys.read(path) for path in (tmp_path / "mask.tif", *outputs.values())])
        with rasterio.open(tmp_path / "mask.tif") as mask:
            assert "CEGATE_CONTRACT" not in mask.tags()
        assert api.describe_model(model).sources == {}
    assert all((a == b).all() for a, b in zip(*results, strict=True))
    with pytest.raises(InputError, match="--threshold, --head") as caught:
        api.predict(raster, tmp_path / "mask.tif", model=plain, threshold=0.3, head="y", overwrite=True)
    assert caught.value.exit_code == 2


def test_our_export_runs_by_deepness_keys_as_by_its_manifest(tmp_path: Path) -> None:
    """The same file without the manifest: the keys beside it say the same, so the class map is the same."""
    raster, _ = scene(tmp_path)
    ours, theirs = toys.brightness(tmp_path / "ours.onnx", halo=8), tmp_path / "theirs.onnx"
    loaded = foreign.onnx.load(ours)
    foreign.helper.set_model_props(loaded, {p.key: p.value for p in loaded.metadata_props if p.key != METADATA_KEY})
    foreign.onnx.save(loaded, theirs)
    assert (classes(ours, raster) == classes(theirs, raster)).all()
    first, second = api.describe_model(ours).manifest, api.describe_model(theirs).manifest
    assert (first.legend, first.bands, first.gsd_m) == (second.legend, second.bands, second.gsd_m)
    assert (first.tile_size, first.halo) == (second.tile_size, second.halo)


def test_a_bare_file_can_be_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raster, values = scene(tmp_path)
    labels = toys.write_raster(tmp_path / "labels.tif", values.argmax(axis=0)[None].astype(np.uint8))
    model = foreign.bands_as_classes(tmp_path / "m.onnx")
    words = ["evaluate", "--model", str(model), "--images", str(raster), "--labels", str(labels), "--json", "-"]
    assert main(words) == 3
    assert "--classes" in capsys.readouterr().err
    assert main([*words, "--classes", "a,b,c", "--scale", "255"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["accuracy"] == 1
    assert [c["name"] for c in figures["per_class"]] == ["a", "b", "c"]


def test_info_says_where_each_part_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata=SEGMENTOR | {"class_names": ["a", "b", "c"]})
    assert main(["info", str(model), "--json", "--threshold", "0.25"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"]["gsd_m"] == 0.13
    assert facts["manifest"]["output"] == "undecided"
    assert facts["contract"]["gsd_m"] == facts["contract"]["classes"] == "Deepness keys"
    assert facts["contract"]["threshold"] == "option"
    assert facts["contract"]["output"] == "a tile of the scene decides"
    assert facts["tensors"]["output_shape"] == [64, 64]
    assert main(["info", str(model)]) == 0
    assert "classes: Deepness keys" in capsys.readouterr().out
    bare = foreign.bands_as_classes(tmp_path / "bare.onnx")
    assert main(["info", str(bare), "--json"]) == 0, "what is missing does not keep a file from being described"
    assert json.loads(capsys.readouterr().out)["contract"]["classes"] == "assumed"
    assert main(["info", str(toys.identity(tmp_path / "own.onnx")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contract"] == {"all": "manifest"}
    detector = foreign.bands_as_classes(tmp_path / "d.onnx", metadata={"model_type": "Detector"})
    assert main(["info", str(detector)]) == 3
    assert "not a segmentation model" in capsys.readouterr().err


def test_small_parts_that_deepness_would_remove_are_mentioned(tmp_path: Path) -> None:
    raster, _ = scene(tmp_path)
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata=SEGMENTOR | {"seg_small_segment": "7"})
    with pytest.warns(ContractWarning, match="seg_small_segment=7"):
        api.predict(raster, tmp_path / "mask.tif", model=model, output_kind="probabilities", classes=("a", "b", "c"))


def test_nodata_stays_nodata_whatever_a_model_does_to_values(tmp_path: Path) -> None:
    values = toys.noise(SHAPE, seed=3)
    values[:, 20:60, 30:90] = 0
    raster, _ = scene(tmp_path, values, nodata=0)
    metadata = SEGMENTOR | {"seg_thresh": "0", "standardization_mean": [0.4], "standardization_std": [0.2]}
    kernel = np.full((5, 5), 1 / 25, np.float32)
    model = foreign.valid_convolution(tmp_path / "m.onnx", kernel, metadata=metadata)
    found = classes(model, raster)
    assert (found[20:60, 30:90] == 255).all()
    assert (found == 255).sum() == 40 * 60
    values[:, 20:60, 30:90] = 255
    with rasterio.open(raster, "r+") as dataset:
        dataset.write(values)
        dataset.nodata = 255
    assert (classes(model, raster) == found).all(), "what stands under nodata has no say"


def test_a_model_without_gsd_suits_any_scene(tmp_path: Path) -> None:
    raster, _ = scene(tmp_path, transform=Affine(30, 0, 300_000, 0, -30, 3_000_000), crs="EPSG:32645")
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata={"model_type": "Segmentor", "seg_thresh": "0"})
    with pytest.warns(ContractWarning, match="--gsd-m"):
        api.predict(raster, tmp_path / "mask.tif", model=model, output_kind="probabilities")
    with pytest.raises(InputError, match="times off"):
        classes(model, raster, gsd_m=0.5)


@pytest.mark.parametrize("gsd", ["source", "model"])
def test_a_scene_is_resampled_for_their_models_as_for_ours(tmp_path: Path, gsd: str) -> None:
    """26 cm pixels for a model of 13 cm. By keys alone, with an output smaller than its input, as by the manifest."""
    raster, _ = scene(tmp_path, transform=Affine(0.26, 0, 300_000, 0, -0.26, 3_000_000), crs="EPSG:32645")
    ours, theirs = toys.brightness(tmp_path / "ours.onnx", halo=8), tmp_path / "theirs.onnx"
    share = np.full((1, 3, 5, 5), 0, np.float32)
    share[..., 2, 2] = 1 / 3
    weights = {"kernel": np.concatenate([-share, share]), "bias": np.float32([1, 0])}
    nodes = [node("Conv", ["x", "kernel", "bias"])]
    shapes = {"given": ["n", 3, 64, 64], "gives": ["n", 2, 60, 60]}
    foreign.build(theirs, nodes, weights=weights, metadata=SEGMENTOR | {"seg_thresh": 0}, **shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GsdWarning)
        expected, found = (classes(model, raster, gsd=gsd, halo=8) for model in (ours, theirs))
    assert expected.shape == ((300, 340) if gsd == "model" else SHAPE)
    assert (found == expected).all()


def test_nothing_is_resampled_to_a_gsd_that_nobody_knows(tmp_path: Path) -> None:
    raster, _ = scene(tmp_path)
    model = foreign.bands_as_classes(tmp_path / "m.onnx", metadata={"model_type": "Segmentor"})
    with pytest.raises(InputError, match="does not say for which GSD"):
        classes(model, raster, resample="always")
