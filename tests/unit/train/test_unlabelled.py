"""Laws of chips from unlabelled rasters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from train_files import TRANSFORM, noise, write_raster

from cegate_geo.errors import InputError, RasterError
from cegate_geo.train.byte_rasters import UnlabelledSource, expand, open_uint8
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


def test_bands_of_other_types_are_refused_and_bytes_beside_them_are_read(tmp_path: Path) -> None:
    image = noise((20, 20))
    parts = [write_raster(tmp_path / f"{n}.tif", band) for n, band in enumerate((image[0], image[1].astype("uint16")))]
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{n + 1}"><SimpleSource><SourceFilename>{parts[k]}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for n, (kind, k) in enumerate([("UInt16", 1), ("Byte", 0), ("Byte", 0)])
    )
    mixed = tmp_path / "mixed.vrt"
    mixed.write_text(f'<VRTDataset rasterXSize="20" rasterYSize="20">{bands}</VRTDataset>', encoding="utf-8")
    with open_uint8(mixed, (2, 3)) as raster:
        assert np.array_equal(raster.read(0, 0, 20, 20), image[[0, 0]])
    for chosen in ((1,), (3, 1), ()):
        with pytest.raises(RasterError, match=r"mixed\.vrt holds uint16.*uint8 is needed"), open_uint8(mixed, chosen):
            pass


def test_a_container_of_rasters_names_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    profile = {"driver": "GPKG", "width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:3857"}
    for name in ("one", "two"):
        more = {"RASTER_TABLE": name, "APPEND_SUBDATASET": "YES" if path.exists() else "NO"}
        with rasterio.open(path, "w", **profile, transform=TRANSFORM, **more) as target:
            target.write(noise((8, 8), bands=1))
    with pytest.raises(RasterError, match=r"two\.gpkg has 0 bands.*subdatasets: GPKG.*one"), open_uint8(path):
        pass


def test_the_raster_that_lacks_a_band_of_a_name_is_named(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "plain.tif", noise((20, 20)))
    with pytest.raises(InputError, match=r"plain\.tif.*no band 'nir'"), open_uint8(raster, ("nir",)):
        pass
