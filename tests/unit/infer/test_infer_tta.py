"""Laws of test-time augmentation: views come back where they belong, and their mean is the mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from cegate_geo.api import predict
from cegate_geo.domain.contract import Margin
from cegate_geo.errors import InputError
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.predictor import SessionOptions
from cegate_geo.infer.tta import D4, FLIPS, mean_of_views
from tests import toy_models as toys


def tilted(shape: tuple[int, int]) -> Any:
    """A model that adds its own rows and columns to the input: what it gives depends on how a tile is shown."""
    rows, cols = np.mgrid[: shape[0], : shape[1]].astype(np.float32)

    def run(inputs: np.ndarray) -> np.ndarray:
        return (inputs + 10 * rows + cols).astype(np.float32)

    return run


def test_views_are_eight_and_are_undone() -> None:
    values = toys.noise((5, 5), channels=2)
    shown = [view.apply(values) for view in D4]
    assert len({view.tobytes() for view in shown}) == 8
    for view, seen in zip(D4, shown, strict=True):
        np.testing.assert_array_equal(view.undo(seen), values)
    assert len(FLIPS) == 4
    oblong = toys.noise((3, 5))
    for view in D4:
        np.testing.assert_array_equal(view.undo(view.apply(oblong)), oblong)


def test_the_mean_over_flips_is_what_a_hand_calculation_gives() -> None:
    """A tile of 2 x 2 with 10 * row + col: over all flips each pixel gets the mean, 5.5, on top of its own value."""
    values = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)[None, None]
    found = mean_of_views(tilted((2, 2)), values, mode="flips", margin=Margin())
    np.testing.assert_array_equal(found[0, 0], [[6.5, 7.5], [8.5, 9.5]])
    # A quarter turn swaps both: the mean of 10 * row + col over all eight is 5.5 as well, but not over oblong tiles.
    found = mean_of_views(tilted((2, 2)), values, mode="d4", margin=Margin())
    np.testing.assert_array_equal(found[0, 0], [[6.5, 7.5], [8.5, 9.5]])
    oblong = np.zeros((1, 1, 2, 3), np.float32)
    found = mean_of_views(tilted((2, 3)), oblong, mode="flips", margin=Margin())
    np.testing.assert_array_equal(found[0, 0], np.full((2, 3), 6.0))  # rows 0, 10 → 5, columns 0, 1, 2 → 1


def test_turns_are_more_than_flips() -> None:
    """Shares of a diagonal: flips leave what lies above the diagonal apart from what lies below, turns do not."""
    kernel = np.triu(np.ones((4, 4), np.float32), 1)

    def run(inputs: np.ndarray) -> np.ndarray:
        return inputs * kernel

    ones = np.ones((1, 1, 4, 4), np.float32)
    turned = mean_of_views(run, ones, mode="d4", margin=Margin())[0, 0]
    np.testing.assert_array_equal(turned, turned.T)
    np.testing.assert_array_equal(turned, turned[::-1])
    # By hand: pixel (0, 0) meets (0, 0), (0, 3), (3, 0), (3, 3), twice each; only (0, 3) lies above.
    assert turned[0, 0] == 0.25


def test_margins_that_differ_shift_the_views() -> None:
    """A model that gives its input without 1 row above, 2 below, 0 left, 1 right: brought back, its views agree."""
    margin = Margin(top=1, bottom=2, left=0, right=1)

    def run(inputs: np.ndarray) -> np.ndarray:
        return inputs[..., 1:-2, :-1].astype(np.float32)

    values = toys.noise((9, 7))[None].astype(np.float32)
    np.testing.assert_array_equal(mean_of_views(run, values, mode="flips", margin=margin), run(values))

    def square(inputs: np.ndarray) -> np.ndarray:
        return inputs[..., 1:-2, 1:-2].astype(np.float32)

    values = toys.noise((9, 9))[None].astype(np.float32)
    margin = Margin(top=1, bottom=2, left=1, right=2)
    np.testing.assert_array_equal(mean_of_views(square, values, mode="d4", margin=margin), square(values))


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize(("batch", "dynamic"), [("n", False), (4, False), ("n", True)])
def test_an_equivariant_model_gives_the_same_scene(tmp_path: Path, tta: Any, batch: int | str, dynamic: bool) -> None:
    scene = toys.noise((100, 130))
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "m.onnx", batch=batch, dynamic=dynamic)
    result = predict(
        tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", tta=tta
    )
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)
    assert result.tiles > 1


def test_a_scene_that_is_narrower_than_a_tile_is_turned_too(tmp_path: Path) -> None:
    scene = toys.noise((20, 130))
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.identity(tmp_path / "m.onnx", dynamic=True)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", tta="d4")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)


def test_a_model_that_sees_directions_is_averaged(tmp_path: Path) -> None:
    """Oracle: the same session, fed with each view by hand."""
    scene = toys.noise((64, 64), seed=5)
    toys.write_raster(tmp_path / "scene.tif", scene)
    model = toys.transformer(tmp_path / "vit.onnx", size=64, halo=8)
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", tta="d4")
    predictor = load_predictor(model)
    tile = scene[None].astype(np.float32) / np.float32(255)
    views = []
    for turns in range(4):
        for flip in (False, True):
            shown = np.rot90(tile, turns, axes=(2, 3))
            shown = shown[..., ::-1] if flip else shown
            back = predictor.run(np.ascontiguousarray(shown))
            back = back[..., ::-1] if flip else back
            views.append(np.rot90(back, -turns, axes=(2, 3)))
    assert np.abs(views[0] - np.mean(views, axis=0)).max() > 0.05, "the model sees no directions: no test"
    expected = np.rint(np.mean(views, axis=0)[0] * 255)
    np.testing.assert_allclose(toys.read(tmp_path / "p.tif"), expected, atol=1)


def test_oblong_tiles_can_be_flipped_but_not_turned(tmp_path: Path) -> None:
    scene = toys.noise((70, 130))
    toys.write_raster(tmp_path / "scene.tif", scene)
    node = helper.make_node("Identity", ["x"], ["y"])
    model = toys.save(tmp_path / "m.onnx", toys.manifest(3, size=48), [node], {}, classes=3, sides=(48, 64))
    predict(tmp_path / "scene.tif", tmp_path / "mask.tif", model=model, probabilities=tmp_path / "p.tif", tta="flips")
    np.testing.assert_array_equal(toys.read(tmp_path / "p.tif"), scene)
    with pytest.raises(InputError, match=r"64 x 48 px.*--tta flips"):
        predict(tmp_path / "scene.tif", tmp_path / "again.tif", model=model, tta="d4")
    assert not (tmp_path / "again.tif").exists()


def test_models_that_give_class_ids_vote(tmp_path: Path) -> None:
    """Half of the views say one class, the others another: shares are counted, not ids averaged."""
    predictor = load_predictor(toys.identity(tmp_path / "m.onnx"), SessionOptions(tta="flips"))
    assert predictor.options.tta == "flips"
    shares = np.zeros((1, 3, 2, 2), np.float32)
    shares[0, 0, 0], shares[0, 2, 1] = 1, 1  # class 0 above, class 2 below, however a tile is shown

    voted = mean_of_views(lambda _: shares, np.zeros((1, 3, 2, 2), np.float32), mode="flips", margin=Margin())
    np.testing.assert_array_equal(voted[0, :, 0, 0], [0.5, 0, 0.5])
