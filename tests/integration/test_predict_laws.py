"""The engine's laws (partition, identity, whole = tiled, seams, nodata, values), on whole predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from cegate_geo.api import predict
from cegate_geo.errors import BandWarning, CegateError, GeoreferenceWarning, InputError, ModelError
from cegate_geo.infer import budget
from tests import toy_models as toys

SHAPES = [
    (1, 1),
    (1, 200),
    (200, 1),
    (3, 5),
    (63, 64),
    (64, 64),
    (65, 64),
    (64, 65),
    (100, 130),
    (127, 250),
    (193, 301),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("stitch", ["blend", "crop"])
def test_identity_gives_the_scene_back_bit_for_bit(
    tmp_path: Path, shape: tuple[int, int], dynamic: bool, stitch: str
) -> None:
    scene = toys.noise(shape)
    model = toys.identity(tmp_path / "identity.onnx", dynamic=dynamic)
    toys.write_raster(tmp_path / "scene.tif", scene)
    result = predict(
        tmp_path / "scene.tif",
        tmp_path / "mask.tif",
        model=model,
        probabilities=tmp_path / "p.tif",
        confidence=tmp_path / "c.tif",
        stitch=stitch,
    )
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], scene.argmax(axis=0))
    np.testing.assert_array_equal(toys.read(tmp_path / "c.tif")[0], np.maximum(scene.max(axis=0), 1))
    assert sum(c.pixels for c in result.classes) == scene[0].size
    assert result.nodata_pixels == 0


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_identity_holds_for_any_shape_halo_and_batch(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 160), st.integers(1, 160)))
    size = data.draw(st.integers(4, 64))
    scene = toys.noise(shape, seed=data.draw(st.integers(0, 99)))
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "identity.onnx", size=size, halo=data.draw(st.integers(0, (size - 1) // 2)))
    batch = data.draw(st.integers(1, 5))
    predict(
        tmp_path / "scene.tif",
        tmp_path / "mask.tif",
        model=model,
        probabilities=tmp_path / "p.tif",
        batch_size=batch,
        overwrite=True,
    )
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)


def test_a_model_with_a_fixed_batch_gives_the_same(tmp_path: Path) -> None:
    scene = toys.noise((100, 130))
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "identity.onnx", batch=4)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)


@pytest.mark.parametrize(
    ("layers", "halo", "stitch"), [(1, 3, "blend"), (3, 7, "blend"), (3, 16, "blend"), (3, 3, "crop")]
)
@pytest.mark.parametrize("shape", [(40, 50), (64, 64), (150, 217)])
def test_tiled_equals_whole_for_convolutions(
    tmp_path: Path, shape: tuple[int, int], layers: int, halo: int, stitch: str
) -> None:
    """Oracle: the same graph on the whole scene at once. Blending needs a halo of the receptive field's whole width."""
    scene = toys.noise(shape, seed=3)
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=layers, halo=halo)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, stitch=stitch)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": scene[None].astype(np.float32) / np.float32(255)})
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], whole[0].argmax(axis=0))


def test_too_small_a_halo_is_seen_at_tile_edges(tmp_path: Path) -> None:
    """That the law above can fail: without context the tiles' edges differ from the whole."""
    scene = toys.noise((128, 128), seed=3)
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3, halo=0)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, stitch="crop")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": scene[None].astype(np.float32) / np.float32(255)})
    assert (toys.read(tmp_path / "mask.tif")[0] != whole[0].argmax(axis=0)).any()


def largest_step(probabilities: np.ndarray) -> float:
    """Largest difference between neighbouring pixels, along both axes, 0 to 1."""
    values = probabilities.astype(float) / 255
    return max(np.abs(np.diff(values, axis=axis)).max() for axis in (1, 2))


def test_blending_leaves_no_seams_where_cropping_does(tmp_path: Path) -> None:
    """A transformer sees its whole tile, so no halo makes neighbours agree. The scene is smooth: steps are seams."""
    rows, cols = np.mgrid[:640, :700] / 100
    bands = [np.sin(rows + cols), np.cos(rows - 2 * cols), np.sin(2 * rows)]
    toys.write_raster(tmp_path / "scene.tif", (np.array(bands) * 100 + 127).astype(np.uint8))
    model = toys.transformer(tmp_path / "vit.onnx")
    steps = {}
    for stitch in ("crop", "blend"):
        predict(
            tmp_path / "scene.tif",
            tmp_path / f"{stitch}.tif",
            model=model,
            probabilities=tmp_path / f"p_{stitch}.tif",
            stitch=stitch,
        )
        steps[stitch] = largest_step(toys.read(tmp_path / f"p_{stitch}.tif"))
    assert steps["crop"] > 0.1, "the model is too tame for this test"
    assert steps["blend"] <= 0.02


def blob(shape: tuple[int, int], *, at: tuple[int, int] = (45, 50), radius: int = 23) -> np.ndarray:
    """Where there is data: all but a disc that crosses tile edges, and a line."""
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    valid = (rows - at[0]) ** 2 + (cols - at[1]) ** 2 > radius**2
    valid[100] = False
    return valid


def flagged(path: Path, values: np.ndarray, valid: np.ndarray, how: str) -> Path:
    """A raster whose holes are flagged one way or another."""
    if how == "alpha":
        stack = np.concatenate([values, np.where(valid, 255, 0).astype(values.dtype)[None]])
        toys.write_raster(path, stack, photometric="RGB", alpha="unspecified")
        with rasterio.open(path, "r+") as dataset:
            dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        return path
    if how == "mask":
        toys.write_raster(path, values)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(valid)
        return path
    raise AssertionError(how)


@pytest.mark.parametrize("how", ["alpha", "mask"])
def test_what_stands_under_nodata_changes_no_class_outside(tmp_path: Path, how: str) -> None:
    shape = (150, 200)
    scene, valid = toys.noise(shape, seed=5), blob(shape)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3, halo=8)
    masks = []
    for name, under in {"zero": 0, "white": 255, "noise": toys.noise(shape, seed=6)}.items():
        flagged(tmp_path / f"{name}.tif", np.where(valid, scene, under).astype(np.uint8), valid, how)
        result = predict(
            tmp_path / f"{name}.tif", tmp_path / f"mask_{name}.tif", model=model, confidence=tmp_path / f"c_{name}.tif"
        )
        mask = toys.read(tmp_path / f"mask_{name}.tif")[0]
        np.testing.assert_array_equal(mask == 255, ~valid)
        np.testing.assert_array_equal(toys.read(tmp_path / f"c_{name}.tif")[0] == 0, ~valid)
        assert result.nodata_pixels == np.count_nonzero(~valid)
        masks.append(mask)
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_valid_pixel_is_written_whole_whatever_is_missing(tmp_path: Path, data: st.DataObject) -> None:
    """Identity again, with only some rectangles of data: skipped tiles take no weight away from their neighbours."""
    shape = data.draw(st.tuples(st.integers(60, 150), st.integers(60, 150)))
    valid = np.zeros(shape, bool)
    for _ in range(data.draw(st.integers(1, 3))):
        row, col = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
        valid[row : row + data.draw(st.integers(1, 30)), col : col + data.draw(st.integers(1, 30))] = True
    scene = np.where(valid, np.maximum(toys.noise(shape), 1), 0).astype(np.uint8)
    toys.write_raster(tmp_path / "scene.tif", scene, nodata=0)
    model = toys.identity(tmp_path / "identity.onnx", size=32, halo=8)
    predict(
        tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", overwrite=True
    )
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)
    with rasterio.open(tmp_path / "p.tif") as dataset:
        np.testing.assert_array_equal(dataset.read_masks(1) > 0, valid)


def test_holes_are_filled_from_valid_pixels(tmp_path: Path) -> None:
    """In a scene of one colour a hole changes nothing around it, as if the colour went on beneath."""
    shape = (150, 200)
    valid, scene = blob(shape), np.full((3, 150, 200), 77, np.uint8)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3)
    toys.write_raster(tmp_path / "whole.tif", scene)
    toys.write_raster(tmp_path / "holed.tif", np.where(valid, scene, 0).astype(np.uint8), nodata=0)
    for name in ("whole", "holed"):
        predict(
            tmp_path / f"{name}.tif", tmp_path / f"m_{name}.tif", model=model, probabilities=tmp_path / f"p_{name}.tif"
        )
    whole, holed = toys.read(tmp_path / "p_whole.tif"), toys.read(tmp_path / "p_holed.tif")
    np.testing.assert_array_equal(holed[:, valid], whole[:, valid])


def test_nodata_by_value_by_option_and_by_nan_give_the_same_mask(tmp_path: Path) -> None:
    shape = (150, 200)
    scene, valid = np.maximum(toys.noise(shape, seed=5), 1), blob(shape)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3)
    holed = np.where(valid, scene, 0).astype(np.uint8)
    toys.write_raster(tmp_path / "flag.tif", holed, nodata=0)
    toys.write_raster(tmp_path / "option.tif", holed)
    toys.write_raster(tmp_path / "nan.tif", np.where(valid, scene, np.nan).astype(np.float32))
    real = toys.convolutions(tmp_path / "float.onnx", layers=3, dtype="float32")
    predict(tmp_path / "flag.tif", tmp_path / "a.tif", model=model)
    predict(tmp_path / "option.tif", tmp_path / "b.tif", model=model, nodata=[0, 0, 0])
    predict(tmp_path / "nan.tif", tmp_path / "c.tif", model=real)
    expected = toys.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(expected[0] == 255, ~valid)
    np.testing.assert_array_equal(toys.read(tmp_path / "b.tif"), expected)
    np.testing.assert_array_equal(toys.read(tmp_path / "c.tif"), expected)


def test_a_dark_pixel_is_no_nodata_unless_all_its_bands_are(tmp_path: Path) -> None:
    scene = toys.noise((40, 40))
    scene[0, :5], scene[1, :5], scene[2, :5] = 0, 7, 0
    toys.write_raster(tmp_path / "scene.tif", scene, nodata=0)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=toys.identity(tmp_path / "m.onnx"))
    assert (toys.read(tmp_path / "mask.tif") != 255).all()


def test_empty_tiles_are_skipped_and_counted(tmp_path: Path) -> None:
    scene = toys.noise((300, 300))
    scene[:, :210] = 0
    toys.write_raster(tmp_path / "scene.tif", scene, nodata=0)
    model = toys.identity(tmp_path / "identity.onnx")
    result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model)
    assert result.tiles == 36
    assert result.skipped_tiles == 24  # four of six tile columns have all of their weight left of column 210
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0] == 255, (scene == 0).all(axis=0))


def test_a_scene_without_any_data_gives_an_empty_mask(tmp_path: Path) -> None:
    toys.write_raster(tmp_path / "scene.tif", np.zeros((3, 100, 90), np.uint8), nodata=0)
    model = toys.identity(tmp_path / "m.onnx")
    with pytest.warns(GeoreferenceWarning, match="No pixel got a class"):
        result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, vector=tmp_path / "v.gpkg")
    assert (toys.read(tmp_path / "mask.tif") == 255).all()
    assert result.skipped_tiles == result.tiles
    assert result.polygons == 0


@pytest.mark.parametrize("is_narrow", [True, False])
def test_shards_give_the_same_bytes_as_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_narrow: bool
) -> None:
    """With little memory the scene is cut into column shards."""
    if is_narrow:
        monkeypatch.setattr(budget, "MAX_WIDTH", 512)
    scene = toys.noise((90, 1700), seed=8)
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.convolutions(tmp_path / "conv.onnx", layers=3)
    result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    assert (result.tiles > 72) == is_narrow
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": scene[None].astype(np.float32) / np.float32(255)})
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], whole[0].argmax(axis=0))
    assert np.abs(toys.read(tmp_path / "p.tif") - np.rint(whole[0] * 255)).max() <= 1


def test_sixteen_bits_are_refused_with_the_mend(tmp_path: Path) -> None:
    toys.write_raster(tmp_path / "scene.tif", toys.noise((40, 40)).astype(np.uint16) * 100)
    with pytest.raises(InputError, match="uint16") as caught:
        predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=toys.identity(tmp_path / "m.onnx"))
    assert "gdal_translate" in caught.value.hint
    assert "-scale" in caught.value.hint


def test_a_sixteen_bit_model_takes_sixteen_bits(tmp_path: Path) -> None:
    scene = toys.noise((40, 90)).astype(np.uint16) * 40
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "m.onnx", dtype="uint16", input_maximum=10200.0)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene // 40)


def test_bands_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    scene = toys.noise((40, 90), channels=4)
    path = toys.write_raster(tmp_path / "scene.tif", scene[[2, 3, 1, 0]], photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("Blue", "nir", "GREEN", "red")
    predict(path, tmp_path / "mask.tif", model=toys.identity(tmp_path / "m.onnx"), probabilities=tmp_path / "p.tif")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene[:3])


@pytest.mark.parametrize("bands", [[4, 3, 1], ["red", "3", "blue"]])
def test_bands_can_be_chosen(tmp_path: Path, bands: list[int | str]) -> None:
    scene = toys.noise((40, 90), channels=4)
    path = toys.write_raster(tmp_path / "scene.tif", scene[[2, 3, 1, 0]], photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("blue", "", "", "red")
    model = toys.identity(tmp_path / "m.onnx")
    predict(path, tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", bands=bands)
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene[:3])


def test_nameless_bands_are_guessed_with_a_warning_and_too_few_refused(tmp_path: Path) -> None:
    scene = toys.noise((40, 90), channels=4)
    model = toys.identity(tmp_path / "m.onnx")
    toys.write_raster(tmp_path / "four.tif", scene, photometric="MINISBLACK")
    with pytest.warns(BandWarning, match="1 = red"):
        predict(tmp_path / "four.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene[:3])
    toys.write_raster(tmp_path / "one.tif", scene[:1])
    with pytest.raises(InputError, match="1 data band"):
        predict(tmp_path / "one.tif", tmp_path / "m2.tif", model=model)
    predict(tmp_path / "one.tif", tmp_path / "m2.tif", model=model, probabilities=tmp_path / "p2.tif", bands=[1, 1, 1])
    np.testing.assert_array_equal(toys.read(tmp_path / "p2.tif"), scene[[0, 0, 0]])
    for bands in ([1, 2], [1, 2, 9], ["red", "green", "purple"]):
        with pytest.raises(InputError):
            predict(tmp_path / "four.tif", tmp_path / "m3.tif", model=model, bands=bands)


def test_a_palette_is_expanded_with_a_warning(tmp_path: Path) -> None:
    index = toys.noise((40, 90), channels=1) % 4
    colors = {0: (10, 20, 30, 255), 1: (200, 0, 3, 255), 2: (0, 255, 9, 255), 3: (1, 2, 3, 0)}
    path = toys.write_raster(tmp_path / "scene.tif", index)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, colors)
    with pytest.warns(BandWarning, match="palette"):
        predict(path, tmp_path / "m.tif", model=toys.identity(tmp_path / "m.onnx"), probabilities=tmp_path / "p.tif")
    expected = np.array([colors[n][:3] for n in range(4)], np.uint8)[index[0]].transpose(2, 0, 1)
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), expected)


def test_a_jpeg_scene_keeps_class_ids_exact(tmp_path: Path) -> None:
    scene = np.kron(toys.noise((10, 20), seed=2), np.ones((1, 16, 16), np.uint8))
    path = toys.write_raster(
        tmp_path / "scene.tif", scene, compress="JPEG", photometric="YCBCR", tiled=True, blockxsize=64, blockysize=64
    )
    predict(path, tmp_path / "mask.tif", model=toys.identity(tmp_path / "m.onnx"))
    np.testing.assert_array_equal(toys.read(tmp_path / "mask.tif")[0], toys.read(path).argmax(axis=0))
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.profile["compress"] == "deflate"
        assert mask.nodata == 255


def test_many_classes_and_large_ids_go_to_sixteen_bits(tmp_path: Path) -> None:
    from cegate_geo.domain.legend import Legend

    legend = Legend.from_names({0: "a", 70: "b", 300: "c"})
    scene = toys.noise((40, 90))
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "m.onnx", legend=legend)
    result = predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.dtypes[0], mask.nodata) == ("uint16", 65535)
        np.testing.assert_array_equal(mask.read(1), np.array([0, 70, 300])[scene.argmax(axis=0)])
    assert [c.id for c in result.classes] == [0, 70, 300]


@pytest.mark.parametrize("kind", ["none", "text", "empty", "logits"])
def test_unusable_models_are_refused_in_plain_words(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    toys.write_raster(tmp_path / "scene.tif", toys.noise((40, 40)))
    if kind == "none":
        toys.save(path, None, [toys.helper.make_node("Identity", ["x"], ["y"])], {}, classes=3, sides=(64, 64))
    elif kind == "text":
        path.write_text("not a model")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        toys.identity(path, output="class-map")
    with pytest.raises(ModelError) as caught:
        predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=path)
    assert caught.value.hint
    assert not (tmp_path / "mask.tif").exists()


def test_logits_become_probabilities(tmp_path: Path) -> None:
    scene = toys.noise((40, 90))
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "m.onnx", output="logits")
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif")
    power = np.exp(scene / 255)
    np.testing.assert_allclose(toys.read(tmp_path / "p.tif"), power / power.sum(axis=0) * 255, atol=0.51)


def test_a_model_that_gives_nan_fails_loudly(tmp_path: Path) -> None:
    toys.write_raster(tmp_path / "scene.tif", np.zeros((3, 40, 40), np.uint8))
    nodes = [toys.helper.make_node("Div", ["x", "x"], ["y"])]
    model = toys.save(tmp_path / "m.onnx", toys.manifest(3), nodes, {}, classes=3, sides=(64, 64))
    with pytest.raises(ModelError, match="no numbers"):
        predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model)
    assert [p.name for p in tmp_path.iterdir() if "mask" in p.name] == []


def test_the_gsd_is_warned_of_and_refused_beyond_eight_times(tmp_path: Path) -> None:
    from affine import Affine

    from cegate_geo.errors import GsdWarning

    scene, model = toys.noise((40, 40)), toys.identity(tmp_path / "m.onnx")
    for factor, name in ((3, "near"), (20, "far")):
        where = Affine(0.13 * factor, 0, 300_000, 0, -0.13 * factor, 3_000_000)
        toys.write_raster(tmp_path / f"{name}.tif", scene, crs="EPSG:32645", transform=where)
    with pytest.warns(GsdWarning, match=r"0\.39"):
        predict(tmp_path / "near.tif", tmp_path / "near_mask.tif", model=model)
    with pytest.raises(InputError, match="times off"):
        predict(tmp_path / "far.tif", tmp_path / "far_mask.tif", model=model)
    with pytest.warns(GsdWarning):
        predict(tmp_path / "far.tif", tmp_path / "far_mask.tif", model=model, force=True)


def test_bad_options_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    toys.write_raster(tmp_path / "scene.tif", toys.noise((40, 40)))
    model = toys.identity(tmp_path / "m.onnx")
    before = sorted(p.name for p in tmp_path.iterdir())
    bad = [{"tile_size": 32}, {"halo": 32}, {"halo": -1}, {"nodata": [1, 2]}, {"vector": tmp_path / "x.shp"},
           {"min_area_m2": -1}, {"min_area_m2": 5}, {"vector_classes": ["a"]},
           {"threads": -1}, {"invert_aoi": True}, {"aoi": tmp_path / "nothing.gpkg"},
           {"max_memory_mb": 1}, {"confidence": tmp_path / "mask.tif"}, {"require_gpu": True}]  # fmt: skip
    for options in bad:
        with pytest.raises(CegateError) as caught:
            predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, **options)
        assert caught.value.exit_code in (2, 3), options
    assert sorted(p.name for p in tmp_path.iterdir()) == before
