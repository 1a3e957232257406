"""Looks of other places change colours, never outlines, and the same seed gives the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

from cegate_geo.errors import InputError, RasterError
from cegate_geo.train.byte_rasters import UnlabelledSource
from cegate_geo.train.styles import Method, StylePool, cumulative_histograms, match_histograms, swap_amplitudes

Image = npt.NDArray[np.uint8]
SIDE = 64


def noisy(rng: np.random.Generator, mean: float, spread: float, side: int = SIDE) -> Image:
    return np.clip(np.round(rng.normal(mean, spread, (3, side, side))), 0, 255).astype(np.uint8)


def write(path: Path, image: Image) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", count=len(image), height=image.shape[1], width=image.shape[2], dtype=image.dtype,
        crs="EPSG:32633", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6),
    ) as dataset:  # fmt: skip
        dataset.write(image)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A bright region with a red cast, larger than a chip."""
    image = noisy(np.random.default_rng(1), 170, 25, 200)
    image[0] = np.minimum(image[0], 200) + 55
    return write(tmp_path / "elsewhere.tif", image)


def pool(path: Path, method: Method = "histogram") -> StylePool:
    source = UnlabelledSource(images=str(path))
    return StylePool([source], side=SIDE, rng=np.random.default_rng(0), method=method, count=4)


def test_a_wholly_matched_chip_has_the_other_distribution() -> None:
    rng = np.random.default_rng(0)
    image, other = noisy(rng, 80, 20), noisy(rng, 160, 10)
    matched = match_histograms(image, cumulative_histograms(other), weight=1.0)
    assert np.abs(matched.mean((1, 2)) - other.mean((1, 2))).max() < 1
    assert np.abs(matched.std((1, 2)) - other.std((1, 2))).max() < 1
    assert np.abs(cumulative_histograms(matched) - cumulative_histograms(other)).max() < 0.06


def test_matching_keeps_the_order_of_brightness() -> None:
    rng = np.random.default_rng(0)
    image, other = noisy(rng, 80, 20), noisy(rng, 160, 10)
    matched = match_histograms(image, cumulative_histograms(other), weight=0.7)
    for before, after in zip(image, matched, strict=True):
        order = np.argsort(before.reshape(-1), kind="stable")
        assert (np.diff(after.reshape(-1)[order].astype(int)) >= 0).all()


def test_weight_zero_and_a_chip_matched_to_itself_change_nothing() -> None:
    image = noisy(np.random.default_rng(0), 120, 30)
    flat = np.full((3, 256), 1.0, np.float32)
    assert np.array_equal(match_histograms(image, flat, weight=0.0), image)
    assert np.array_equal(match_histograms(image, cumulative_histograms(image), weight=1.0), image)


def low_amplitudes(image: Image, half: int) -> npt.NDArray[np.float32]:
    rows = np.arange(-half, half + 1)
    return np.abs(np.fft.rfft2(image.astype(np.float64)))[:, rows, : half + 1].astype(np.float32)


def test_own_amplitudes_change_nothing() -> None:
    image = noisy(np.random.default_rng(0), 120, 25)
    assert np.array_equal(swap_amplitudes(image, low_amplitudes(image, 6), block=0.1), image)


def test_swapped_amplitudes_bring_the_colours_and_leave_the_fine_structure() -> None:
    rng = np.random.default_rng(0)
    image, other = noisy(rng, 110, 8), noisy(rng, 150, 8)
    swapped = swap_amplitudes(image, low_amplitudes(other, 6), block=0.05)
    assert np.abs(swapped.mean((1, 2)) - other.mean((1, 2))).max() < 1  # the mean is the lowest frequency
    before, after = (np.fft.rfft2(i.astype(float))[:, 8:-8, 8:] for i in (image, swapped))
    assert np.abs(after - before).max() < 0.02 * np.abs(before).max() + 80  # rounding only


@pytest.mark.parametrize("method", ["histogram", "fourier", "both"])
def test_the_pool_restyles_and_repeats(elsewhere: Path, method: Method) -> None:
    image = noisy(np.random.default_rng(5), 60, 15)
    first, again = (pool(elsewhere, method).restyle(image, np.random.default_rng(3)) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert np.array_equal(first, again)
    looks = pool(elsewhere, method)
    styled = [looks.restyle(image, np.random.default_rng(s)).astype(float) for s in range(20)]
    shift = np.mean([s.mean((1, 2)) - image.mean((1, 2)) for s in styled], axis=0)
    assert (shift > 30).all()  # towards the brighter region
    assert shift[0] > shift[1] + 10  # and its red cast


def test_small_rasters_and_featureless_ones_are_good_enough(tmp_path: Path) -> None:
    small = write(tmp_path / "small.tif", noisy(np.random.default_rng(2), 140, 30, 20))
    flat = write(tmp_path / "flat.tif", np.full((3, 80, 80), 7, np.uint8))
    for path in (small, flat):
        image = noisy(np.random.default_rng(0), 100, 20)
        assert pool(path).restyle(image, np.random.default_rng(0)).shape == image.shape


def test_featureless_chips_are_passed_over(tmp_path: Path, elsewhere: Path) -> None:
    sea = write(tmp_path / "sea.tif", np.full((3, 80, 80), 3, np.uint8))
    sources = [UnlabelledSource(images=str(path)) for path in (sea, elsewhere)]
    looks = StylePool(sources, side=SIDE, rng=np.random.default_rng(0), count=24)
    image = noisy(np.random.default_rng(0), 60, 10)
    means = [looks.restyle(image, np.random.default_rng(seed)).mean() for seed in range(24)]
    assert min(means) > 55  # none became darker, as the sea is


@pytest.mark.parametrize("weights", [(), (0.0,), (1.0, -1.0)])
def test_no_source_is_refused(elsewhere: Path, weights: tuple[float, ...]) -> None:
    sources = [UnlabelledSource(images=str(elsewhere), weight=w) for w in weights]
    with pytest.raises(InputError):
        StylePool(sources, side=SIDE, rng=np.random.default_rng(0))


def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "deep.tif", np.zeros((3, 80, 80), np.uint16))  # type: ignore[arg-type]
    with pytest.raises(RasterError, match="uint8"):
        pool(path)
