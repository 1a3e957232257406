"""Laws of the split: nothing leaks, both sides hold labels, the seed decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from train_files import LEGEND, TRANSFORM, noise, write_raster

from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.scenes import LabelledScene, open_scenes
from cegate_geo.train.splits import Area, split_scenes, whole


def scenes_of(folder: Path, labels: list[np.ndarray], transforms: list[Affine] | None = None) -> list[LabelledScene]:
    folder.mkdir(exist_ok=True)
    for n, values in enumerate(labels):
        transform = transforms[n] if transforms else Affine.translation(0, 1000 * n) @ TRANSFORM
        write_raster(folder / f"scene_{n}.tif", noise(values.shape, seed=n), transform=transform)
        write_raster(folder / f"labels_{n}.tif", values, transform=transform)
    config = SourceConfig(images=str(folder / "scene_*.tif"), labels=str(folder / "labels_*.tif"))
    return open_scenes(config, LEGEND)


def labelled(areas: list[Area], scene: LabelledScene) -> np.ndarray:
    """(H, W) where the areas of a scene hold labels."""
    result = np.zeros(scene.grid.shape, bool)
    for area in areas:
        if area.scene is scene:
            result |= area.labels(scene.grid.window) != IGNORE_INDEX
    return result


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    padded = np.pad(mask, pixels)
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * pixels + 1, 2 * pixels + 1))
    return views.any((2, 3))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fraction=st.floats(0.05, 0.6),
    block=st.integers(20, 200),
    buffer=st.integers(0, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_training_pixel_is_near_a_validation_pixel(
    tmp_path: Path, fraction: float, block: int, buffer: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.choice([0, 1, 7, 255], (6, 8), p=[0.4, 0.25, 0.1, 0.25]), np.ones((25, 25))).astype(np.uint8)
    labels[0, :3] = [0, 1, 7]
    scenes = scenes_of(tmp_path / str(seed), [labels, labels.T.copy()])
    training, validation = split_scenes(scenes, fraction=fraction, block=block, buffer=buffer, seed=seed)
    assert training
    assert validation
    total = held = 0
    for scene in scenes:
        train, test = labelled(training, scene), labelled(validation, scene)
        assert not (grown(test, buffer) & train).any()
        assert not (scene.labels(scene.grid.window)[train | test] == IGNORE_INDEX).any()
        total, held = total + int((labels != 255).sum()), held + int(test.sum())
    assert 0 < held < total


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    labels = np.kron(np.arange(64).reshape(8, 8) % 2, np.ones((20, 20))).astype(np.uint8)
    scenes = scenes_of(tmp_path, [labels])
    first, again, other = (
        split_scenes(scenes, fraction=0.2, block=20, buffer=3, seed=seed)[1][0].allowed for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_the_share_is_met_and_every_class_is_on_both_sides(tmp_path: Path) -> None:
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 200:] = 1
    labels[40:60, 40:60] = labels[330:350, 300:320] = labels[130:150, 250:270] = 7  # 0.75 %
    for seed in range(8):
        (scene,) = scenes_of(tmp_path, [labels])
        training, validation = split_scenes([scene], fraction=0.2, block=50, buffer=5, seed=seed)
        values = scene.labels(scene.grid.window)
        test, train = labelled(validation, scene), labelled(training, scene)
        assert 0.15 <= test.mean() <= 0.25
        assert set(values[test]) == set(values[train]) == {0, 1, 2}


def test_a_block_that_holds_most_of_a_class_is_left_to_training(tmp_path: Path) -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[60:90, 60:90] = 7
    for seed in range(10):
        (scene,) = scenes_of(tmp_path, [labels])
        training, _ = split_scenes([scene], fraction=0.2, block=50, buffer=0, seed=seed)
        assert (labels[labelled(training, scene)] == 7).sum() >= 450


def test_scenes_of_the_same_ground_do_not_leak_into_each_other(tmp_path: Path) -> None:
    labels = np.kron(np.arange(16).reshape(4, 4) % 3 % 2, np.ones((20, 20))).astype(np.uint8)
    fine = np.kron(labels, np.ones((2, 2))).astype(np.uint8)
    transforms = [TRANSFORM, TRANSFORM @ Affine.translation(20, 40) @ Affine.scale(0.5)]
    scenes = scenes_of(tmp_path, [labels, fine], transforms)
    training, validation = split_scenes(scenes, fraction=0.2, block=20, buffer=4, seed=1)
    points = {}
    for n, scene in enumerate(scenes):
        for kind, areas in (("train", training), ("test", validation)):
            rows, cols = np.nonzero(labelled(areas, scene))
            x, y = transforms[n] @ (cols + 0.5, rows + 0.5)
            points[kind, n] = np.stack([x, y], 1)
    assert all(len(p) for p in points.values())
    for (n, m), metres in {(0, 1): 4 * 0.25, (1, 0): 4 * 0.5}.items():
        test = points["test", n][::7]
        apart = np.abs(points["train", m][None] - test[:, None]).max(2).min()
        assert apart >= metres


def test_blocks_shrink_where_a_scene_is_small(tmp_path: Path) -> None:
    labels = np.zeros((300, 300), np.uint8)
    labels[:, 150:] = 1
    (scene,) = scenes_of(tmp_path, [labels])
    training, validation = split_scenes([scene], fraction=0.15, block=512, buffer=16, seed=0)
    assert 0.05 < labelled(validation, scene).mean() < 0.3
    assert labelled(training, scene).mean() > 0.4


def test_what_can_not_be_split_is_refused_with_the_mend(tmp_path: Path) -> None:
    (scene,) = scenes_of(tmp_path, [np.zeros((30, 30), np.uint8)])
    with pytest.raises(InputError, match=r"too small.*\[\[validation\]\]"):
        split_scenes([scene], fraction=0.15, block=512, buffer=64, seed=0)
    with pytest.raises(InputError, match=r"fraction=1\.5"):
        split_scenes([scene], fraction=1.5, block=512, buffer=64, seed=0)


def test_an_area_cuts_any_window_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (scene,) = scenes_of(tmp_path, [rng.choice([0, 1, 7], (60, 80)).astype(np.uint8)])
    inside = Window(col_off=10, row_off=5, width=30, height=40), Window(col_off=50, row_off=0, width=30, height=20)
    hole = Window(col_off=20, row_off=10, width=35, height=15)
    area = Area(scene=scene, allowed=inside, excluded=(hole,))
    expected = np.full((60, 80), IGNORE_INDEX)
    for window in inside:
        place = window.slices(scene.grid.window)
        expected[place] = scene.labels(window)
    expected[hole.slices(scene.grid.window)] = IGNORE_INDEX
    np.testing.assert_array_equal(area.labels(scene.grid.window), expected)
    for _ in range(100):
        col, row = (int(v) for v in rng.integers(-10, 60, 2))
        window = Window(col_off=col, row_off=row, width=int(rng.integers(1, 40)), height=int(rng.integers(1, 40)))
        padded = np.pad(expected, 100, constant_values=IGNORE_INDEX)
        rows, cols = window.slices(scene.grid.window.expanded(100))
        np.testing.assert_array_equal(area.labels(window), padded[rows, cols])
    assert area.extent == Window(col_off=10, row_off=0, width=70, height=45)
    assert whole(scene).labels(scene.grid.window).tolist() == scene.labels(scene.grid.window).tolist()
