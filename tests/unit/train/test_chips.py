"""Laws of chips and validation tiles: where they come from, how often, and what they hold."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_files import LEGEND, noise, write_raster

from cegate_geo.domain.legend import IGNORE_INDEX, Legend
from cegate_geo.domain.windows import Window
from cegate_geo.errors import InputError, LabelError
from cegate_geo.train.chips import ChipSampler, _Cells, read_tile, validation_tiles
from cegate_geo.train.config import SourceConfig
from cegate_geo.train.scenes import LabelledScene, open_scenes
from cegate_geo.train.splits import Area, split_scenes, whole


def scene_of(folder: Path, image: np.ndarray, labels: np.ndarray, **options: Any) -> LabelledScene:
    folder.mkdir(exist_ok=True)
    write_raster(folder / "scene.tif", image)
    write_raster(folder / "labels.tif", labels)
    config = SourceConfig(images=str(folder / "scene.tif"), labels=str(folder / "labels.tif"), **options)
    (scene,) = open_scenes(config, LEGEND)
    return scene


def sampler(areas: list[Area], **options: Any) -> ChipSampler:
    settings: dict[str, Any] = {"crop": 32, "scale": (1.0, 1.0), "balance": 0.5, "classes": 3, "photometric": 0.0}
    return ChipSampler(areas, **{**settings, **options})


@pytest.fixture
def coded(tmp_path: Path) -> LabelledScene:
    """A scene whose red and green tell the column and row, with three classes that depend on both."""
    rows, cols = np.indices((200, 240))
    image = np.stack([cols, rows, (rows + cols) % 256]).astype(np.uint8)
    labels = np.choose((rows // 20 + cols // 30) % 3, [0, 1, 7]).astype(np.uint8)
    return scene_of(tmp_path, image, labels)


def test_labels_lie_under_their_pixels_in_every_orientation(coded: LabelledScene) -> None:
    chips = sampler([whole(coded)])
    seen = set()
    for seed in range(40):
        image, labels = chips.sample(np.random.default_rng(seed))
        assert (image.shape, image.dtype) == ((3, 32, 32), np.float32)
        assert (labels.shape, labels.dtype) == ((32, 32), np.int64)
        cols, rows = np.round(image[:2] * 255).astype(int)
        np.testing.assert_array_equal(labels, (rows // 20 + cols // 30) % 3)
        seen.add((cols[0, 1] - cols[0, 0], rows[0, 1] - rows[0, 0], cols[1, 0] - cols[0, 0], rows[1, 0] - rows[0, 0]))
    assert len(seen) == 8


class _Endless:
    """An area as large as it is said to be, of which nothing is in memory: all of it is the first class."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.extent, self.scene = Window.of_shape(shape), self
        self.name = "endless"

    def may_be_labelled(self, window: Window) -> bool:
        return True

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = np.zeros((3, *window.shape), np.uint8)
        return values, np.ones(window.shape, np.bool_), values[0]


def test_counting_takes_memory_for_what_is_counted_and_not_for_its_tables() -> None:
    """A table of a row of cells has a number for each of 256 labels; of these, those of the classes are kept."""
    peaks = []
    for rows in (1024, 4096):
        tracemalloc.start()
        cells = _Cells.of(_Endless((rows, 8000)), 3)  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert cells.counts.sum(0).tolist() == [rows * 8000, 0, 0]
        assert cells.window(len(cells) - 1) == Window(col_off=7936, row_off=rows - 64, width=64, height=64)
    added = 48 * 125  # cells
    assert peaks[1] - peaks[0] < 100 * added


def test_scaled_chips_show_more_or_less_ground(coded: LabelledScene) -> None:
    chips = sampler([whole(coded)], scale=(0.5, 2.0))
    spans = []
    for seed in range(200):
        image, labels = chips.sample(np.random.default_rng(seed))
        cols, rows = image[:2] * 255
        spans.append(max(np.ptp(cols), np.ptp(rows)) + 1)
        inner = np.s_[3:-3, 3:-3]  # a border between classes may fall on either side of a resampled pixel
        agree = labels == (np.floor(rows + 0.5) // 20 + np.floor(cols + 0.5) // 30) % 3
        assert agree[inner].mean() > 0.85
    spans = np.log2(np.array(spans) / 32)
    assert spans.min() < -0.8
    assert spans.max() > 0.8
    assert abs(np.mean(spans < 0) - 0.5) < 0.12  # log-uniform


def test_the_same_generator_gives_the_same_chips_in_any_thread(coded: LabelledScene) -> None:
    chips = sampler([whole(coded)], scale=(0.5, 2.0), photometric=1.0)

    def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return chips.batch([np.random.default_rng([seed, n]) for n in range(3)])

    expected = [batch(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(batch, range(8)))
    for (images, labels), (images_2, labels_2) in zip(expected, again, strict=True):
        assert torch.equal(images, images_2)
        assert torch.equal(labels, labels_2)
    images, labels = expected[0]
    assert (images.shape, images.dtype) == ((3, 3, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((3, 32, 32), torch.int64)
    assert not torch.equal(images[0], images[1])


def rare_scene(folder: Path) -> LabelledScene:
    labels = np.zeros((400, 400), np.uint8)
    labels[200:210, 300:310] = 7  # 0.06 %
    labels[:100] = 1
    return scene_of(folder, noise((400, 400)), labels)


def test_balance_brings_rare_classes_and_none_brings_what_there_is(tmp_path: Path) -> None:
    area = whole(rare_scene(tmp_path))
    for balance, low, high in ((1.0, 0.28, 0.46), (0.0, 0.0, 0.06)):
        chips = sampler([area], balance=balance)
        found = [(chips.sample(np.random.default_rng(n))[1] == 2).any() for n in range(300)]
        assert low <= np.mean(found) <= high


def test_anywhere_means_every_labelled_pixel_alike(tmp_path: Path) -> None:
    labels = np.full((256, 256), 255, np.uint8)
    labels[:128, :128], labels[128:, 128:] = 0, 1
    labels[128:192, 128:] = 255
    chips = sampler([whole(scene_of(tmp_path, noise((256, 256)), labels))], crop=8, balance=0.0)
    counts = np.zeros(3)
    for n in range(600):
        _, chip = chips.sample(np.random.default_rng(n))
        assert (chip != IGNORE_INDEX).any()
        counts += np.bincount(chip[chip != IGNORE_INDEX], minlength=3)
    assert counts[0] / counts.sum() == pytest.approx(2 / 3, abs=0.05)


def test_a_chip_never_shows_a_label_from_outside_its_area(coded: LabelledScene) -> None:
    training, validation = split_scenes([coded], fraction=0.2, block=40, buffer=6, seed=0)
    for areas in (training, validation):
        allowed = areas[0].labels(coded.grid.window) != IGNORE_INDEX
        for seed in range(60):
            image, labels = sampler(areas).sample(np.random.default_rng(seed))
            cols, rows = np.round(image[:2] * 255).astype(int)
            np.testing.assert_array_equal(labels != IGNORE_INDEX, allowed[rows, cols])


def test_weights_share_the_chips_between_sources(tmp_path: Path) -> None:
    areas = []
    for n, (value, shape) in enumerate([(50, (300, 300)), (200, (100, 100))]):
        image = np.full((3, *shape), value, np.uint8)
        areas.append(whole(scene_of(tmp_path / str(n), image, np.full(shape, n, np.uint8), weight=1.0 + 2 * n)))

    def share(chips: ChipSampler) -> float:
        return float(np.mean([chips.sample(np.random.default_rng(n))[0].mean() > 0.5 for n in range(400)]))

    assert share(sampler(areas, balance=0.0)) == pytest.approx(0.75, abs=0.07)  # weights 1 and 3, whatever their size
    assert share(sampler(areas, balance=0.0, weights=[4, 1])) == pytest.approx(0.2, abs=0.07)
    assert share(sampler(areas, balance=1.0)) == pytest.approx(0.5, abs=0.08)  # one class each
    with pytest.raises(InputError, match="weights"):
        sampler(areas, weights=[1])


def test_a_raster_smaller_than_a_chip_is_mirrored_and_ignored_beyond(tmp_path: Path) -> None:
    image = noise((20, 24))
    labels = np.zeros((20, 24), np.uint8)
    labels[:, 12:] = 1
    chips = sampler([whole(scene_of(tmp_path, image, labels))], crop=64)
    for seed in range(10):
        picture, chip = chips.sample(np.random.default_rng(seed))
        assert (chip != IGNORE_INDEX).sum() == 20 * 24
        values = set(np.round(picture * 255).astype(np.uint8).ravel())
        assert values <= set(image.ravel())  # nothing made up, such as black


def test_holes_are_filled_from_what_is_valid_and_never_seen(tmp_path: Path) -> None:
    image = noise((100, 100))
    image[:] = image // 4 + 100
    pictures = []
    for n, junk in enumerate((0, 255)):
        image[:, 30:60, 30:60] = junk
        scene = scene_of(tmp_path / str(n), image, np.zeros((100, 100), np.uint8), nodata=(float(junk),))
        area = whole(scene)
        picture, labels = read_tile(area, scene.grid.window)
        assert (labels[30:60, 30:60] == IGNORE_INDEX).all()
        assert (labels != IGNORE_INDEX).sum() == 100 * 100 - 900
        assert picture.min() >= 100 / 255
        assert picture.max() <= 164 / 255
        pictures.append(picture)
        for seed in range(20):
            chip, _ = sampler([area]).sample(np.random.default_rng(seed))
            assert chip.min() >= 100 / 255
            assert chip.max() <= 164 / 255
    np.testing.assert_array_equal(*pictures)


def test_counts_and_statistics_are_those_of_the_labelled_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = np.stack([rng.normal(mean, 10, (150, 170)) for mean in (60, 120, 180)]).clip(0, 255).astype(np.uint8)
    labels = rng.choice([0, 1, 7], (150, 170)).astype(np.uint8)
    chips = sampler([whole(scene_of(tmp_path, image, labels))])
    assert chips.pixel_counts() == [int((labels == v).sum()) for v in (0, 1, 7)]
    statistics = chips.image_statistics()
    np.testing.assert_allclose(statistics["mean"], image.mean((1, 2)) / 255, atol=0.001)
    np.testing.assert_allclose(statistics["std"], image.std((1, 2)) / 255, atol=0.001)


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, np.full((3, 50, 50), 9, np.uint8), np.zeros((50, 50), np.uint8), nodata=(9.0,))
    with pytest.raises(LabelError, match="no labelled, valid pixel"):
        sampler([whole(scene)])


def test_validation_tiles_hold_every_labelled_pixel_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = np.kron(rng.choice([0, 1, 7, 255], (7, 9)), np.ones((17, 17))).astype(np.uint8)
    scene = scene_of(tmp_path, noise(labels.shape), labels)
    areas = [whole(scene), *split_scenes([scene], fraction=0.3, block=32, buffer=4, seed=0)[1]]
    for area in areas:
        seen = np.zeros(scene.grid.shape, int)
        for owner, window in validation_tiles([area], crop=48):
            assert window.shape == (48, 48)
            image, tile = read_tile(owner, window)
            assert (image.shape, image.dtype, tile.dtype) == ((3, 48, 48), np.float32, np.int64)
            inside = window.intersection(scene.grid.window)
            assert inside is not None
            rows, cols = inside.slices(window)
            place = inside.slices(scene.grid.window)
            seen[place] += tile[rows, cols] != IGNORE_INDEX
            unscaled = np.round(image[:, rows, cols] * 255).astype(np.uint8)
            np.testing.assert_array_equal(unscaled, scene.image(inside))
            np.testing.assert_array_equal(tile[rows, cols], area.labels(inside))
            assert (tile != IGNORE_INDEX).any()
        np.testing.assert_array_equal(seen, area.labels(scene.grid.window) != IGNORE_INDEX)


def test_chips_from_file_and_from_memory_are_the_same(tmp_path: Path) -> None:
    labels = np.kron(np.arange(16).reshape(4, 4) % 2, np.ones((64, 64))).astype(np.uint8)
    scene_of(tmp_path, noise((256, 256)), labels)
    config = SourceConfig(images=str(tmp_path / "scene.tif"), labels=str(tmp_path / "labels.tif"))
    batches = []
    for cache_mb in (0, 64):
        (scene,) = open_scenes(config, LEGEND, cache_mb=cache_mb)
        assert (scene.held_bytes > 0) == (cache_mb > 0)
        chips = sampler([whole(scene)], scale=(0.5, 2.0), photometric=1.0)
        batches.append(chips.batch([np.random.default_rng(n) for n in range(6)]))
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])


@pytest.mark.shared_data
def test_chips_of_a_real_scene_hold_both_classes(shared_data: Path) -> None:
    folder = shared_data / "buildings"
    config = SourceConfig(images=str(folder / "kampala_z20_b0.tif"), labels=str(folder / "kampala_z20_b0_mask.tif"))
    scenes = open_scenes(config, Legend.from_names(["other", "building"]))
    training, validation = split_scenes(scenes, fraction=0.15, block=256, buffer=32, seed=0)
    chips = sampler(training, crop=256, scale=(0.5, 2.0), classes=2, photometric=1.0)
    images, labels = chips.batch([np.random.default_rng(n) for n in range(8)])
    assert 0.05 < float((labels == 1).float().mean()) < 0.8
    assert 0.1 < float(images.std()) < 0.4
    assert validation_tiles(validation, crop=256)
