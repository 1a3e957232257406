"""Laws of augmentation: labels only move, strength 0 changes nothing, the generator decides."""

from __future__ import annotations

import numpy as np
import pytest
from train_files import noise

from cegate_geo.train import augment


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_image_and_labels_move_alike(quarters: int, flip: bool) -> None:
    image = noise((12, 12))
    moved, labels = augment.turn(image, image[0], quarters=quarters, flip=flip)
    np.testing.assert_array_equal(moved[0], labels)
    assert sorted(moved[1].ravel()) == sorted(image[1].ravel())


def test_all_eight_symmetries_differ() -> None:
    image = noise((5, 5))
    seen = {augment.turn(image, image[0], quarters=q, flip=f)[1].tobytes() for q in range(4) for f in (False, True)}
    assert len(seen) == 8


@pytest.mark.parametrize("side", [7, 16, 31, 64, 100])
def test_labels_are_never_interpolated_and_stay_under_their_image(side: int) -> None:
    rng = np.random.default_rng(side)
    labels = np.kron(rng.choice([0, 3, 255], (8, 8)), np.ones((4, 4))).astype(np.uint8)
    image = np.repeat(labels[None], 3, 0)
    resized, moved = augment.resample(image, labels, side=side)
    assert resized.shape == (3, side, side)
    assert moved.shape == (side, side)
    assert set(np.unique(moved)) <= {0, 3, 255}
    columns = np.repeat(np.arange(32, dtype=np.uint8)[None], 32, 0)
    resized, moved = augment.resample(np.stack([columns, columns.T, columns]), columns, side=side)
    assert np.abs(resized[0].astype(int) - moved).max() <= 1
    resized, moved = augment.resample(np.stack([columns, columns.T, columns]), columns.T, side=side)
    assert np.abs(resized[1].astype(int) - moved).max() <= 1


def test_shrinking_averages_and_growing_interpolates() -> None:
    stripes = np.where(np.indices((64, 64))[1] % 4 == 0, 200, 0).astype(np.uint8)
    shrunk, _ = augment.resample(np.repeat(stripes[None], 3, 0), stripes, side=16)
    assert np.abs(shrunk[:, 2:-2, 2:-2].astype(int) - 50).max() <= 10  # single pixels would be 0 or 200
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None], 20, 0)
    grown, _ = augment.resample(np.repeat(ramp[None], 3, 0), ramp, side=40)
    assert np.diff(grown[0, 0, 2:-2].astype(int)).max() <= 6


def test_strength_zero_is_the_identity() -> None:
    image = noise((30, 40))
    result = augment.photometric(image, strength=0, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(result, image.astype(np.float32) / np.float32(255))
    assert result.dtype == np.float32


def test_small_strength_changes_little_and_large_changes_much() -> None:
    image = noise((32, 32))
    unit = image / 255
    changes = []
    for strength in (0.001, 0.3, 1.0):
        results = [augment.photometric(image, strength=strength, rng=np.random.default_rng(seed)) for seed in range(60)]
        assert all(r.dtype == np.float32 and r.min() >= 0 and r.max() <= 1 for r in results)
        changes.append(float(np.mean([np.abs(r - unit).mean() for r in results])))
    assert changes[0] < 0.002
    assert changes[0] < changes[1] < changes[2]
    assert changes[2] > 0.05


def test_the_generator_decides_and_the_input_stays() -> None:
    image = noise((16, 16))
    before = image.copy()
    first, again, other = (
        augment.photometric(image, strength=1, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(image, before)


def test_curves_rise_and_are_looked_up_per_channel() -> None:
    for seed in range(50):
        curves = augment.tone_curves(1.0, np.random.default_rng(seed))
        assert curves.shape == (3, 256)
        assert (np.diff(curves, axis=1) >= 0).all()
        assert curves[:, -1].min() - curves[:, 0].max() > 0.3  # the picture stays visible
    image = noise((9, 9))
    expected = np.stack([curve[channel] for curve, channel in zip(curves, image, strict=True)])
    np.testing.assert_array_equal(augment.apply_curves(image, curves), expected)


def test_grey_stays_grey_under_colour_mixing() -> None:
    grey = np.repeat(np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 4), 3, 0)
    for seed in range(20):
        matrix = augment.color_matrix(1.0, np.random.default_rng(seed))
        np.testing.assert_allclose(augment.mix_channels(grey, matrix), grey, atol=1e-6)
        assert np.abs(matrix - np.eye(3)).max() > 1e-3


def test_blur_is_the_convolution_that_it_says() -> None:
    image = noise((7, 9)).astype(np.float32)
    weight = 0.2
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    kernel = np.outer([weight, 1 - 2 * weight, weight], [weight, 1 - 2 * weight, weight])
    expected = sum(
        kernel[r, c] * padded[:, r : r + 7, c : c + 9] for r in range(3) for c in range(3)
    )  # fmt: skip
    np.testing.assert_allclose(augment.blur(image, weight), expected, rtol=1e-5)


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    image = np.full((3, 200, 200), 0.5, np.float32)
    augment.add_noise(image, sigma=0.03, rng=np.random.default_rng(0))
    assert image.std() == pytest.approx(0.03, rel=0.02)
    assert image.mean() == pytest.approx(0.5, abs=0.001)
    assert abs(np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1]) < 0.02
