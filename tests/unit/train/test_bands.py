"""Bands other than 8-bit RGB: how they are read, called, scaled and changed, and what a backbone makes of them."""

from __future__ import annotations

import copy
import json
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn
from train_files import LEGEND, MANIFEST, write_raster

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.domain.windows import Window
from cegate_geo.errors import BandWarning, ConfigError, InputError
from cegate_geo.infer.bands import select_bands
from cegate_geo.infer.foreign.deepness import deepness_facts
from cegate_geo.train.augment import band_shifts
from cegate_geo.train.band_projection import BandProjection, fold_bands, projection_of, take_bands
from cegate_geo.train.chips import ChipSampler, read_tile
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build, read_toml, to_table
from cegate_geo.train.job import read_areas
from cegate_geo.train.raster_input import InputConfig, RasterInput, band_names, rgb_channels
from cegate_geo.train.run import new_run
from cegate_geo.train.run_contract import sample_tiles
from cegate_geo.train.run_files import write_tensors
from cegate_geo.train.scenes import LabelledScene
from cegate_geo.train.settle_input import read_as, settle_input
from cegate_geo.train.splits import whole
from cegate_geo.train.validation import to_pictures

SHAPE = (96, 80)
NAMES = ("B2", "B3", "B4", "B8", "B11", "B12")


def values(dtype: str, bands: int = 6) -> np.ndarray:
    """(bands, H, W), each band with a level of its own."""
    rng = np.random.default_rng(0)
    level = 200 * (1 + np.arange(bands)).reshape(-1, 1, 1)
    image = rng.normal(level, 40, (bands, *SHAPE)).clip(1, None)
    return image.astype(dtype) if dtype != "float32" else (-image / 100).astype(dtype)


def adaptation(folder: Path, image: np.ndarray, *, name: str = "scene", **more: Any) -> dict[str, Any]:
    """A configuration whose only source is an image with class rasters, its bands named NAMES."""
    source = {k: more.pop(k) for k in ("bands", "scale", "nodata") if k in more}
    raster = write_raster(folder / f"{name}.tif", image)
    if len(image) == len(NAMES):
        with rasterio.open(raster, "r+") as target:
            target.descriptions = NAMES
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 40:] = 7
    write_raster(folder / f"{name}-labels.tif", labels)
    images = {"images": str(raster), "labels": str(folder / f"{name}-labels.tif")}
    return {
        "classes": {"0": "other", "1": "building", "7": "road"},
        "source": [{**images, **source}],
        "train": {"crop": 32, "scale": [1.0, 1.0], "validation": 0},
        **more,
    }


def scenes_of(table: dict[str, Any]) -> tuple[AdaptConfig, list[LabelledScene], ChipSampler]:
    config = build(AdaptConfig, table)
    scenes = read_areas(config)[0]
    sampler = ChipSampler(
        [whole(s) for s in scenes], crop=32, scale=(1, 1), balance=0, classes=len(LEGEND), photometric=0
    )
    return config, scenes, sampler


def settled(table: dict[str, Any]) -> RasterInput:
    config, scenes, sampler = scenes_of(table)
    statistics = sampler.image_statistics()
    return settle_input(config, scenes, (statistics["mean"], statistics["std"]))


@pytest.mark.parametrize(("dtype", "scale"), [("uint8", 255), ("uint16", 65535), ("int16", 32767), ("float32", 1)])
def test_bands_of_any_type_are_chosen_by_name_and_divided_by_one_number(
    tmp_path: Path, dtype: str, scale: float
) -> None:
    image = values(dtype) // 8 if dtype == "uint8" else values(dtype)
    _, (scene,), sampler = scenes_of(adaptation(tmp_path, image, bands=["B4", "B3", "B2", "B8"]))
    window = Window(col_off=8, row_off=4, width=32, height=32)
    expected = image[[2, 1, 0, 3], 4:36, 8:40]
    assert (scene.dtype, scene.scale) == (dtype, scale)
    np.testing.assert_array_equal(scene.image(window), expected)
    tile = read_tile(whole(scene), window)[0]
    assert tile.dtype == np.float32
    np.testing.assert_array_equal(tile, expected.astype(np.float32) / np.float32(scale))
    chips, _ = sampler.batch([np.random.default_rng(n) for n in range(3)])
    assert chips.shape == (3, 4, 32, 32)
    known = expected.astype(np.float64).mean((1, 2)) / scale
    np.testing.assert_allclose(chips.numpy().mean((0, 2, 3)), known, rtol=0.1)


def test_what_is_no_data_does_not_count_for_mean_and_deviation(tmp_path: Path) -> None:
    image = values("uint16")
    image[:, 10:50, 10:70] = 0
    table = adaptation(tmp_path, image, bands=[1, 4], nodata=[0])
    found = settled({**table, "input": {"scale": 10000}})
    valid = np.ones(SHAPE, bool)
    valid[10:50, 10:70] = False
    for band, mean, std in zip((0, 3), found.mean, found.std, strict=True):
        assert mean == pytest.approx(image[band][valid].mean() / 10000, rel=0.01)
        assert std == pytest.approx(image[band][valid].std() / 10000, rel=0.05)
    assert (found.bands, found.dtype, found.scale, found.rgb) == (("B2", "B8"), "uint16", 10000, ())


def test_eight_bit_rgb_is_taken_as_it_always_was(tmp_path: Path) -> None:
    assert settled(adaptation(tmp_path, values("uint8", 3) // 8)) == RasterInput()
    assert RasterInput.of_facts({"gsd_m": 1}) == RasterInput()


def test_what_was_stated_counts(tmp_path: Path) -> None:
    stated = {"bands": ["r", "g", "b"], "rgb": ["b", "g", "r"], "mean": [10, 20, 30], "std": [1, 2, 5], "scale": 100}
    found = settled({**adaptation(tmp_path, values("float32", 3), bands=[1, 2, 3]), "input": stated})
    assert (found.bands, found.rgb, found.scale) == (("r", "g", "b"), (2, 1, 0), 100)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.01, 0.02, 0.05))
    assert RasterInput.of_facts({"input": json.loads(json.dumps(found.to_json()))}) == found


def test_a_constant_band_is_refused_by_name(tmp_path: Path) -> None:
    image = values("uint16")
    image[3] = 255
    with pytest.raises(InputError, match=r"'B8' is 255 everywhere.*alpha"):
        settled(adaptation(tmp_path, image, bands=["B4", "B8"]))


def test_values_of_different_types_need_scales(tmp_path: Path) -> None:
    table = adaptation(tmp_path, values("uint16"), bands=[3, 2, 1])
    other = adaptation(tmp_path, values("uint8", 3) // 8, name="bytes", bands=[1, 2, 3])
    mixed = {**table, "source": table["source"] + other["source"]}
    with pytest.raises(InputError, match=r"bytes.tif holds uint8, scene.tif uint16.*scale = 255"):
        settled(mixed)
    for source, scale in zip(mixed["source"], (10000, 255), strict=True):
        source["scale"] = scale
    found = settled(mixed)
    assert (found.dtype, found.scale, len(found.mean)) == ("uint16", 10000, 3)


def test_bands_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scene.tif.*no band 'B9'.*B8"):
        scenes_of(adaptation(tmp_path, values("uint16"), bands=["B4", "B9"]))
    table = adaptation(tmp_path, values("uint16"), bands=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"\[validation\] has 2 bands.*\[source\] 3"):
        build(AdaptConfig, {**table, "validation": [{**table["source"][0], "bands": [1, 2]}]})


@pytest.mark.parametrize("part", ["source", "validation", "style"])
def test_a_first_source_without_bands_has_three(tmp_path: Path, part: str) -> None:
    table = adaptation(tmp_path, values("uint8", 4) // 8)
    four = {"images": "x.tif", "bands": [1, 2, 3, 4], **({} if part == "style" else {"labels": "y.tif"})}
    more = {part: [*table.get(part, []), four]}
    with pytest.raises(ConfigError, match=rf"\[{part}\] has 4 bands.*\[source\] 3, \[1, 2, 3\]"):
        build(AdaptConfig, {**table, **more})
    named = build(AdaptConfig, {**table, **more, "input": {"bands": ["red", "green", "blue", "nir"]}})
    assert read_as(named, named.source[0]).bands == ("red", "green", "blue", "nir")


def test_sources_without_bands_take_those_of_the_first(tmp_path: Path) -> None:
    first = adaptation(tmp_path, values("uint16"), bands=["B8", "B4"])
    second = adaptation(tmp_path, values("uint16"), name="second")
    _, scenes, _ = scenes_of({**first, "source": first["source"] + second["source"]})
    assert [s.bands for s in scenes] == [("B8", "B4")] * 2
    turned = adaptation(tmp_path, values("uint16"), bands=[3, 2, 1])
    _, scenes, _ = scenes_of({**turned, "source": turned["source"] + second["source"]})
    assert [s.bands for s in scenes] == [(3, 2, 1), (1, 2, 3)]  # another order is one raster's own affair


def test_bands_are_called_what_people_call_them() -> None:
    nothing = InputConfig()
    assert band_names(nothing, (3, 2, 1), ("a", "b", "c")) == ("red", "green", "blue")
    assert band_names(nothing, (4, 3, 2, 8), ("B4", None, "B2", None)) == ("B4", "band_3", "B2", "band_8")
    assert band_names(nothing, ("VV",), (None,)) == ("VV",)
    assert rgb_channels(nothing, ("nir", "Blue", "green", "RED")) == (3, 2, 1)
    assert rgb_channels(nothing, ("B4", "B3", "B2")) == ()
    assert rgb_channels(InputConfig(rgb=("B4", "B3", "B2")), ("B2", "B3", "B4", "B8")) == (2, 1, 0)
    with pytest.raises(ConfigError, match="B5"):
        rgb_channels(InputConfig(rgb=("B5", "B3", "B2")), ("B2", "B3", "B4"))
    with pytest.raises(ConfigError, match="apart"):
        band_names(nothing, (4, 4), (None, None))


def test_unnamed_bands_are_found_again_by_their_numbers(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "plain.tif", values("uint16"))
    with rasterio.open(raster) as dataset, pytest.warns(BandWarning, match="4 = band_4, 2 = band_2"):
        assert select_bands(dataset, ("band_4", "band_2")) == (4, 2)


def test_bands_that_have_names_are_found_beside_those_that_have_none(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "half.tif", values("uint16", 4))
    with rasterio.open(raster, "r+") as target:
        target.descriptions = ("blue", "green", "red", None)
    chosen = ("red", "green", "blue", 4)
    with rasterio.open(raster) as dataset:
        trained = select_bands(dataset, chosen, given=[str(band) for band in chosen])
        described = [dataset.descriptions[band - 1] for band in trained]
        names = band_names(InputConfig(), chosen, described)
        with pytest.warns(BandWarning, match=r"not name all of its bands; 4 = band_4 is assumed"):
            assert select_bands(dataset, names) == trained == (3, 2, 1, 4)
        with pytest.warns(BandWarning, match="not name its bands; 1 = band_1, 2 = blue"):  # both were the first
            assert select_bands(dataset, ("band_1", "blue")) == (1, 2)


def test_shifts_are_none_at_strength_0_and_follow_each_bands_own_size() -> None:
    rng = np.random.default_rng(0)
    mean, std = (np.array(v, np.float32).reshape(2, 1, 1) for v in ((-15, 3000), (3, 200)))
    image = (mean + std * rng.standard_normal((2, 64, 64))).astype(np.float32)
    assert band_shifts(image, mean, std, strength=0, rng=np.random.default_rng(0)) is image
    many = [band_shifts(image, mean, std, strength=1, rng=np.random.default_rng(n)) for n in range(40)]
    assert all(one.dtype == np.float32 for one in many)
    moved = np.array([((one - image) / std).mean((1, 2)) for one in many])
    assert (np.abs(moved) < 0.5).all()
    assert (moved.std(0) > 0.05).all()
    assert np.corrcoef(moved.T)[0, 1] > 0.6  # what is common to the bands is the larger part


@pytest.mark.parametrize(
    ("dtype", "scale", "limits"),
    [("uint8", 255, (0, 255)), ("uint16", 1000, (0, 65535)), ("int16", 100, (-32768, 32767)), ("float32", 1, None)],
)
@pytest.mark.parametrize("is_kept", [False, True])
def test_exports_are_compared_on_values_that_a_raster_can_hold(
    tmp_path: Path, dtype: Any, scale: float, limits: tuple[int, int] | None, *, is_kept: bool
) -> None:
    table = adaptation(tmp_path, values("uint8", 4) // 8, bands=[1, 2, 3, 4])
    model = {"backbone": "test_vit.r160_in1k", "weights": "random", "head": "linear", "tile_size": 32}
    taken = RasterInput(bands=NAMES[:4], dtype=dtype, scale=scale, mean=(0.2,) * 4, std=(500.0,) * 4, rgb=())
    run = new_run(tmp_path, build(AdaptConfig, {**table, "model": model}), taken)
    if is_kept:  # of a validation raster of another type, in units of its own scale
        (tmp_path / "pictures").mkdir()
        write_tensors({"tiles": 1e4 * torch.randn(2, 4, 32, 32)}, tmp_path / "pictures" / "tiles.safetensors")
    found = sample_tiles(run) * scale
    assert found.shape == (2 if is_kept else 4, 4, 32, 32)
    if limits is None:
        assert found.min() < -1000
    else:
        assert limits[0] - 0.01 <= found.min() < found.max() <= limits[1] + 0.01


def test_pictures_show_red_green_and_blue_stretched() -> None:
    image = values("uint16").astype(np.float32) / 10000
    taken = RasterInput(bands=NAMES, dtype="uint16", scale=10000, mean=(0.1,) * 6, std=(0.1,) * 6, rgb=(2, 1, 0))
    (picture,) = to_pictures([image], taken)
    assert (picture.shape, picture.dtype) == ((*SHAPE, 3), np.uint8)
    assert [np.corrcoef(picture[..., n].ravel(), image[2 - n].ravel())[0, 1] > 0.98 for n in range(3)] == [True] * 3
    assert (picture.min(), picture.max()) == (0, 255)
    single = RasterInput(bands=("VV",), dtype="float32", scale=1, mean=(0.0,), std=(1.0,), rgb=())
    (grey,) = to_pictures([image[:1]], single)
    assert np.array_equal(grey[..., 0], grey[..., 2])


class Patches(nn.Module):
    """What of a timm ViT takes an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 8, 4, stride=4)


def test_known_bands_keep_their_weights_and_light_excites_a_third_more_at_most() -> None:
    torch.manual_seed(0)
    vit = Patches()
    original = vit.patch_embed.proj
    take_bands(vit, channels=6, rgb=(2, 1, 0))
    projection = projection_of(vit)
    assert projection is not None
    assert torch.equal(projection.weight[:, [2, 1, 0]], original.weight)
    grey = torch.full((1, 6, 4, 4), 0.3)
    bias = original.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(projection(grey) - bias, (original(grey[:, :3]) - bias) * 4 / 3)
    dark = torch.zeros(1, 6, 8, 8)
    dark[:, [2, 1, 0]] = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(projection(dark), original(dark[:, [2, 1, 0]]))


def test_without_known_bands_weights_are_adapted_as_timm_does() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 4, stride=4)
    one, five = (BandProjection(convolution, channels=n) for n in (1, 5))
    torch.testing.assert_close(one.weight, convolution.weight.sum(1, keepdim=True))
    torch.testing.assert_close(five.weight, convolution.weight[:, [0, 1, 2, 0, 1]] * 3 / 5)
    assert five.known.numel() == 0


def test_three_bands_of_any_kind_leave_the_patch_embedding_alone_and_folding_changes_nothing() -> None:
    vit = Patches()
    original = vit.patch_embed.proj
    take_bands(vit, channels=3)
    assert vit.patch_embed.proj is original
    take_bands(vit, channels=5, rgb=(4, 0, 2))
    images = torch.rand(2, 5, 8, 8)
    before = vit.patch_embed.proj(images)
    fold_bands(vit)
    assert type(vit.patch_embed.proj) is nn.Conv2d
    assert torch.equal(vit.patch_embed.proj(images), before)


def test_red_green_and_blue_in_another_order_keep_their_weights_too() -> None:
    torch.manual_seed(0)
    vit = Patches()
    original = copy.deepcopy(vit.patch_embed.proj)
    take_bands(vit, channels=3, rgb=(2, 1, 0))
    assert type(vit.patch_embed.proj) is nn.Conv2d
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(vit.patch_embed.proj(image[:, [2, 1, 0]]), original(image))


def test_a_model_of_blue_green_and_red_computes_what_one_of_red_green_and_blue_computes(tmp_path: Path) -> None:
    table = adaptation(tmp_path, values("uint8", 3) // 8)
    settings = build(AdaptConfig, {**table, "model": {"weights": "shipped", "backbone": "vit_tiny_patch16_224"}})
    found = []
    for rgb in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        torch.manual_seed(0)
        taken = RasterInput(bands=tuple("abc"), rgb=rgb)
        run = new_run(tmp_path, settings, taken)
        image = torch.zeros(1, 3, 64, 64)
        image[:, list(rgb)] = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found.append(run.segmenter.eval()(image))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


def test_deepness_which_divides_by_255_is_told_what_is_missing() -> None:
    legend = Legend.from_names({0: "a", 1: "b"})
    contract = Manifest(
        name="s2", legend=legend, bands=("B4", "B8"), gsd_m=10, gsd_range_m=(10, 10), tile_size=32, halo=4,
        dtype="uint16", input_maximum=10000,
    )  # fmt: skip
    metadata = contract.to_metadata()
    facts = deepness_facts({k: v for k, v in metadata.items() if k != "cegate_geo"}, name="s2")
    assert facts is not None
    scaling = facts["scaling"]
    assert len(scaling.mean) == len(scaling.std) == 2
    raw = np.array([0, 1234, 10000])
    for mean, std in zip(scaling.mean, scaling.std, strict=True):
        np.testing.assert_allclose((raw / scaling.divisor[0] - mean) / std, raw / 10000)
    assert "standardization_std" not in MANIFEST.to_metadata()


def test_the_configuration_survives_its_table(tmp_path: Path) -> None:
    table = adaptation(tmp_path, values("uint16"), bands=["B4", 3, "B2"])
    config = build(AdaptConfig, table)
    assert config.source[0].bands == ("B4", 3, "B2")
    assert build(AdaptConfig, json.loads(json.dumps(to_table(config)))) == config


@pytest.mark.parametrize(
    "stated",
    [
        {"scale": 0}, {"rgb": ["a"]}, {"rgb": ["a", "b", "A"]}, {"bands": ["a", "a"]}, {"bands": ["a", "A"]},
        {"mean": [1.0]}, {"mean": [1.0], "std": [0.0]}, {"mean": [nan], "std": [1.0]}, {"mean": [1.0], "std": [inf]},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, stated: dict[str, Any]) -> None:
    bands = stated.get("bands", [1])
    with pytest.raises(ConfigError, match=r"scale = 0|input\.(bands|rgb|mean)"):
        build(AdaptConfig, {**adaptation(tmp_path, values("uint16"), bands=bands), "input": stated})


def test_the_example_is_a_configuration() -> None:
    example = build(AdaptConfig, read_toml(Path(__file__).resolve().parents[3] / "examples" / "sentinel2.toml"))
    assert rgb_channels(example.input, band_names(example.input, example.source[0].bands, (None,) * 5)) == (0, 1, 2)
