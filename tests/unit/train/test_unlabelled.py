"""Laws of chips from unlabelled rasters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from train_files import noise, write_raster

from cegate_geo.errors import InputError, RasterError
from cegate_geo.train.byte_rasters import UnlabelledSource, expand
from cegate_geo.train.unlabelled import ChipSampler


def test_chips_have_their_size_and_range_and_the_generator_decides(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", noise((90, 120)))
    write_raster(tmp_path / "b.png", noise((70, 60)), crs=None, transform=Affine.identity())
    sampler = ChipSampler([UnlabelledSource(images=str(tmp_path / "*"))], size=48, scale=(0.5, 2.0))
    first, again, other = (sampler.batch(4, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((4, 3, 48, 48), torch.float32)
    assert 0 <= float(first.min()) < float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bands_and_weights_are_those_of_the_source(tmp_path: Path) -> None:
    values = noise((60, 60), bands=4)
    values[:3] //= 16
    values[3] = values[3] // 16 + 200
    write_raster(tmp_path / "a.tif", values)
    write_raster(tmp_path / "b.tif", np.concatenate([noise((20, 20)) // 8, noise((20, 20), bands=1)]))
    sources = [
        UnlabelledSource(images=str(tmp_path / "a.tif"), weight=3, bands=(4, 4, 4)),
        UnlabelledSource(images=str(tmp_path / "b.tif"), weight=1),
    ]
    chips = ChipSampler(sources, size=16, scale=(1, 1)).batch(300, np.random.default_rng(0))
    assert float((chips.mean((1, 2, 3)) > 0.5).float().mean()) == pytest.approx(0.75, abs=0.08)


def test_empty_places_are_drawn_again(tmp_path: Path) -> None:
    values = np.full((3, 128, 128), 255, np.uint8)
    values[:, :, 96:] = noise((128, 32))
    write_raster(tmp_path / "a.tif", values)
    sampler = ChipSampler([UnlabelledSource(images=str(tmp_path / "a.tif"))], size=24, scale=(1, 1))
    chips = sampler.batch(60, np.random.default_rng(0))
    assert float((chips.std((2, 3)).mean(1) < 0.01).float().mean()) < 0.05


def test_files_are_found_in_order_and_their_absence_told(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "a.tif.aux.xml", "a.tif.ovr", "a.qml", "c.png"):
        (tmp_path / name).touch()
    assert [p.name for p in expand(str(tmp_path / "*.tif"))] == ["a.tif", "b.tif"]
    assert [p.name for p in expand(str(tmp_path / "*"))] == ["a.tif", "b.tif", "c.png"]
    with pytest.raises(InputError, match="No file matches"):
        expand(str(tmp_path / "*.jpg"))


def test_what_can_not_be_read_as_bytes_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "deep.tif", noise((20, 20)).astype(np.uint16))
    with pytest.raises(RasterError, match=r"uint16.*gdal_translate"):
        ChipSampler([UnlabelledSource(images=str(tmp_path / "deep.tif"))], size=8, scale=(1, 1))
    write_raster(tmp_path / "one.tif", noise((20, 20), bands=1))
    with pytest.raises(RasterError, match="1 bands"):
        ChipSampler([UnlabelledSource(images=str(tmp_path / "one.tif"))], size=8, scale=(1, 1))
    (tmp_path / "junk.tif").write_bytes(b"junk")
    with pytest.raises(RasterError, match=r"junk\.tif can't be read"):
        ChipSampler([UnlabelledSource(images=str(tmp_path / "junk.tif"))], size=8, scale=(1, 1))
    with pytest.raises(InputError, match="no source"):
        ChipSampler([], size=8, scale=(1, 1))
