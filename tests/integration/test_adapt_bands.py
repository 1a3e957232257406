"""Bands that are no 8-bit RGB through the whole way: adapt, resume, export, predict, evaluate, report."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import timm
import torch
from safetensors.torch import load_file

from cegate_geo import api
from cegate_geo.cli.main import main
from cegate_geo.errors import BandWarning, CancelledError, ConfigError, InputError
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.predictor import SessionOptions
from cegate_geo.infer.reader import Scene
from cegate_geo.infer.sample_tiles import NeighbouringTiles
from cegate_geo.infer.settle import PredictOptions, settle
from cegate_geo.train.backbone import BackboneSpec, save_backbone
from cegate_geo.train.band_projection import projection_of
from cegate_geo.train.chips import read_tile
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.export import export_run
from cegate_geo.train.job import read_areas
from cegate_geo.train.loop import adapt
from cegate_geo.train.run import load_run
from cegate_geo.train.splits import whole

from .scenes import write_squares

NAMES = ("B2", "B3", "B4", "B8", "B11", "B12")
VIT = "test_vit2.r160_in1k"
TILE = 64
NEAR_INFRARED = 3


def write_bands(folder: Path, dtype: str, *, bands: int = 6, seed: int = 0, name: str = "bands") -> tuple[Path, Path]:
    """Squares that only the fourth band (or the only one) sees, a hole without data, and their polygons."""
    rgb, labels = write_squares(folder, seed=seed, name=name)
    with rasterio.open(rgb) as source:
        bright, profile = source.read(1).astype(np.float32), source.profile
    rng = np.random.default_rng(seed)
    image = rng.normal(800, 60, (bands, *bright.shape))
    image[min(NEAR_INFRARED, bands - 1)] = 500 + 12 * bright
    nodata = -9999.0 if dtype == "float32" else 0
    if dtype == "float32":
        image = 10 * np.log10(image.clip(1)) - 40  # as radar backscatter in dB
    image = (image / 16 if dtype == "uint8" else image).astype(dtype)
    image[:, 200:, 200:] = nodata
    raster = folder / f"{name}-{dtype}.tif"
    profile.update(count=bands, dtype=dtype, nodata=nodata)
    with rasterio.open(raster, "w", **profile) as target:
        target.write(image)
        target.descriptions = NAMES[:bands] if bands > 1 else ("VV",)
    return raster, labels


def write_backbone(path: Path) -> Path:
    """A backbone of three bands that can be had elsewhere."""
    torch.manual_seed(0)
    kwargs = {"dynamic_img_size": True, "img_size": TILE}
    vit = timm.create_model(VIT, num_classes=0, **kwargs)
    save_backbone(vit, BackboneSpec(architecture=VIT, kwargs=kwargs), path, provenance={})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("base") / "backbone.safetensors")


def config(raster: Path, labels: Path, weights: Path, **more: Any) -> dict[str, Any]:
    """A toy adaptation as TOML has it; what is given is put into its tables."""
    table: dict[str, Any] = {
        "classes": {"0": "other", "1": "building"},
        "source": [{"images": str(raster), "labels": str(labels), "label_field": "class"}],
        "input": {},
        "model": {"backbone": VIT, "weights": str(weights), "head": "dpt-detail", "head_dim": 16, "tile_size": TILE},
        "peft": {
            "every": 4, "samples": 2, "budget": 0.34,
            "spatial": {"rank": 4}, "semantic": {"dim": 4}, "frequency": {"dim": 4},
        },
        "train": {
            "steps": 8, "batch_size": 2, "crop": TILE, "lr": 5e-3, "validate_every": 8, "save_every": 8, "ema": 0.9,
            "precision": "fp32", "photometric": 0.3, "scale": [1.0, 1.0], "validation": 0.2,
        },
    }  # fmt: skip
    for name, given in more.items():
        if name == "source":
            table["source"][0] |= given
        else:
            table[name] |= given
    return table


def to_toml(table: dict[str, Any]) -> str:
    """JSON's values are TOML's; tables of a table as inline ones."""

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f'"{k}" = {shown(v)}' for k, v in value.items()) + " }"
        return json.dumps(value)

    lines = []
    for name, part in table.items():
        for entry in part if isinstance(part, list) else [part]:
            head = f"[[{name}]]" if isinstance(part, list) else f"[{name}]"
            lines += [head, *(f'"{k}" = {shown(v)}' for k, v in entry.items())]
    return "\n".join(lines)


def run(*words: object) -> None:
    """A command that succeeds."""
    assert main([str(word) for word in words]) == 0


def engine_tiles(raster: Path, model: Path) -> dict[tuple[int, int], tuple[Any, np.ndarray]]:
    """Windows and inputs that the engine makes of a raster."""
    predictor = load_predictor(model, SessionOptions(provider="cpu"))
    with closing(Scene(str(raster), predictor.manifest)) as scene:
        settled = settle(scene, predictor, PredictOptions())
        found = NeighbouringTiles.take(settled)
        assert found is not None
        return {at: (settled.plan.tile(*at).window, values[0]) for at, values in found.inputs.items()}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> tuple[Path, dict[str, Any]]:
    """A run by the command line, long enough to find squares that are in no visible band."""
    folder = tmp_path_factory.mktemp("learned")
    raster, labels = write_bands(folder, "uint16")
    table = config(
        raster, labels, weights, source={"bands": ["B4", "B3", "B2", "B8"]},
        input={"rgb": ["B4", "B3", "B2"], "scale": 10000}, train={"steps": 60, "validate_every": 30},
    )  # fmt: skip
    (folder / "s2.toml").write_text(to_toml(table), encoding="utf-8")
    run("adapt", folder / "s2.toml", "-o", folder / "run")
    return folder, table


def test_the_command_line_adapts_predicts_and_evaluates_four_bands_of_sixteen_bits(
    learned: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = learned
    manifest = api.describe_model(folder / "run" / "model.onnx").manifest
    assert (manifest.bands, manifest.dtype, manifest.input_maximum) == (("B4", "B3", "B2", "B8"), "uint16", 10000)
    assert manifest.is_portable
    raster, labels = write_bands(tmp_path, "uint16", seed=1)
    run("predict", raster, "-m", folder / "run" / "model.onnx", "-o", tmp_path / "mask.tif")
    run("evaluate", tmp_path / "mask.tif", "--labels", labels, "--label-field", "class")
    told = capsys.readouterr().out
    assert float(told.rsplit("mean IoU", 1)[1].split(",")[0]) > 0.6
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.read(1)[200:, 200:] == mask.nodata).all()
        assert (mask.read(1)[:200] != mask.nodata).all()
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page
    assert "10000" in page


def test_the_engine_gives_the_model_the_bits_that_it_was_trained_on(learned: tuple[Path, dict[str, Any]]) -> None:
    folder, table = learned
    trained = load_run(folder / "run")
    trained.segmenter.eval()
    (scene,) = read_areas(build(AdaptConfig, {**table, "train": {**table["train"], "validation": 0}}))[0]
    model = folder / "run" / "model.onnx"
    predictor = load_predictor(model, SessionOptions(provider="cpu"))
    tiles = engine_tiles(Path(table["source"][0]["images"]), model)
    assert len(tiles) >= 4
    for window, values in tiles.values():
        own, _ = read_tile(whole(scene), window)
        np.testing.assert_array_equal(values, own)
        with torch.no_grad():
            expected = trained.segmenter(torch.from_numpy(own)[None]).softmax(1)[0].numpy()
        np.testing.assert_allclose(predictor.run(own[None])[0], expected, atol=1e-4)


def test_only_new_bands_of_the_patch_embedding_and_chosen_modules_move(
    learned: tuple[Path, dict[str, Any]], weights: Path
) -> None:
    folder, _ = learned
    trained = load_run(folder / "run")
    base = load_file(weights)
    state = trained.segmenter.backbone.state_dict()
    shared = [k for k in base if k in state and not k.startswith("patch_embed")]
    assert len(shared) > 5
    for key in shared:
        assert torch.equal(state[key], base[key].float()), key
    projection = projection_of(trained.segmenter.backbone)
    assert projection is not None
    rgb = base["patch_embed.proj.weight"].float()
    assert torch.equal(projection.weight[:, :3], rgb)
    assert torch.equal(projection.bias, base["patch_embed.proj.bias"].float())  # type: ignore[arg-type]
    assert not torch.equal(projection.weight[:, 3:], rgb.mean(1, keepdim=True))
    keys = load_file(folder / "run" / "adapter.safetensors")
    assert [k for k in keys if k.startswith("backbone")] == ["backbone.patch_embed.proj.new"]
    total = len(trained.toolbox.keys)
    for line in (folder / "run" / "gate.jsonl").read_text(encoding="utf-8").splitlines():
        choice = json.loads(line)
        assert len(choice["active"]) == round(0.34 * total)
        assert len(choice["scores"]) == total
    for key, module in trained.toolbox.modules.items():
        moved = any(p.abs().sum() > 0 for n, p in module.named_parameters() if n.endswith("up.weight"))
        assert moved == (key in trained.ever_active), key


def test_one_band_of_floats_is_resumed_bit_by_bit_and_predicted(tmp_path: Path, weights: Path) -> None:
    raster, labels = write_bands(tmp_path, "float32", bands=1)
    settings = build(AdaptConfig, config(raster, labels, weights, source={"bands": ["VV"]}))
    adapt(settings, tmp_path / "whole", device="cpu")
    calls = iter([False] * 4 + [True])
    with pytest.raises(CancelledError):
        adapt(settings, tmp_path / "parts", device="cpu", cancelled=lambda: next(calls))
    adapt(settings, tmp_path / "parts", device="cpu", resume=True)
    whole_run, parts = (load_file(tmp_path / n / "adapter.safetensors") for n in ("whole", "parts"))
    assert whole_run.keys() == parts.keys()
    assert all(torch.equal(whole_run[k], parts[k]) for k in whole_run)
    export_run(tmp_path / "whole", tmp_path / "model.onnx", precision="fp16")
    manifest = api.describe_model(tmp_path / "model.onnx").manifest
    assert (manifest.bands, manifest.dtype, manifest.input_maximum) == (("VV",), "float32", 1.0)
    api.predict(raster, tmp_path / "mask.tif", model=tmp_path / "model.onnx")
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert (mask.read(1)[200:, 200:] == mask.nodata).all()


def test_a_run_is_not_resumed_on_rasters_of_other_values(tmp_path: Path, weights: Path) -> None:
    raster, labels = write_bands(tmp_path, "uint16", bands=1)
    settings = build(AdaptConfig, config(raster, labels, weights, source={"bands": [1]}))
    with pytest.raises(CancelledError):
        adapt(settings, tmp_path / "run", device="cpu", cancelled=lambda: True)
    with rasterio.open(raster, "r+") as target:
        values = target.read()
        target.write(np.where(values > 0, 2 * values, 0).astype(values.dtype))
    with pytest.raises(InputError, match=r"rasters have changed.*input.mean was \[0.025.*and is \[0.051"):
        adapt(settings, tmp_path / "run", device="cpu", resume=True)


def test_four_bands_of_eight_bits_are_exported_without_held_out_tiles(tmp_path: Path, weights: Path) -> None:
    raster, labels = write_bands(tmp_path, "uint8", bands=4)
    table = config(raster, labels, weights, source={"bands": [1, 2, 3, 4]}, train={"steps": 1, "validation": 0})
    with pytest.warns(BandWarning, match="red, green or blue"):
        adapt(build(AdaptConfig, table), tmp_path / "run", device="cpu")
    report = export_run(tmp_path / "run", tmp_path / "model.onnx", profile="native", keep="all")
    assert report.parity["max_abs"] < 1e-4


def test_looks_of_other_places_are_refused_for_sixteen_bits(tmp_path: Path, weights: Path) -> None:
    raster, labels = write_bands(tmp_path, "uint16")
    table = config(raster, labels, weights, source={"bands": [4, 3]})
    with pytest.raises(ConfigError, match=r"bands-uint16.tif holds uint16.*8 bits only"):
        adapt(build(AdaptConfig, {**table, "style": [{"images": str(raster)}]}), tmp_path / "run", device="cpu")


@pytest.mark.shared_data
def test_koreas_alpha_is_no_fourth_band(shared_data: Path, tmp_path: Path, weights: Path) -> None:
    folder = shared_data / "korea_s2"
    raster, labels = (sorted((folder / kind).glob("*.tif"))[0] for kind in ("images", "labels"))
    source = {"bands": [3, 2, 1, 4], "label_field": "", "remap": {"70": "building", "*": "other"}}
    table = config(raster, labels, weights, source=source)
    with pytest.raises(InputError, match="255 everywhere in the labelled area"):
        adapt(build(AdaptConfig, table), tmp_path / "run", device="cpu")
