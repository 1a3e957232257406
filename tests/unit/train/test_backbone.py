"""Laws of the loader: each published layout gives its own weights; what does not fit is refused, never filled up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from cegate_geo.errors import ModelError
from cegate_geo.train.backbone import BackboneSpec, load_backbone, normalise, patch_size, read_spec, save_backbone

PLAIN = "vit_tiny_patch16_224"
DINOV2 = "vit_small_patch14_dinov2.lvd142m"
DINOV2_REG = "vit_small_patch14_reg4_dinov2.lvd142m"
DINOV3 = "vit_small_patch16_dinov3.lvd1689m"
DINOV3_QKVB = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"


def published(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
    """The model as timm publishes it, with weights that leave no tensor at a constant."""
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, **kwargs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model.eval()


def assert_same_weights(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == {k for k in expected if not k.startswith("head.")}
    for key, value in state.items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("layout", ["safetensors", "pth", "pth of a training script"])
def test_a_timm_file_is_loaded_to_the_last_tensor(tmp_path: Path, layout: str) -> None:
    state = published(PLAIN).state_dict()
    path = tmp_path / ("weights." + layout[:3].replace("saf", "safetensors"))
    if layout == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if layout == "pth" else {"model": state, "epoch": 3}, path)
    model, spec = load_backbone(PLAIN, path, image_size=224)
    assert_same_weights(model, state)
    assert spec.mean == (0.5, 0.5, 0.5)  # of timm's default weights for this name
    assert patch_size(model) == 16


def per_patch(images: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """Each patch of `old` pixels brought to `new` pixels on its own."""
    n, c, h, w = images.shape
    cut = images.reshape(n, c, h // old, old, w // old, old).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, old, old)
    cut = F.interpolate(cut, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    cut = cut.reshape(n, h // old, w // old, c, new, new).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(n, c, h // old * new, w // old * new)


def original_dinov2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names as the authors' .pth has them."""
    state = {**state, "mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        first = 0.02 * torch.randn(1, 1, 384)
        state["cls_token"] = state["cls_token"] - first
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    return state


@pytest.mark.parametrize("name", [DINOV2, DINOV2_REG])
@pytest.mark.parametrize("layout", ["timm safetensors", "original pth"])
def test_dinov2_at_16_pixels_says_what_it_said_at_14(tmp_path: Path, name: str, layout: str) -> None:
    native = published(name)
    if layout == "timm safetensors":
        save_file(native.state_dict(), path := tmp_path / "model.safetensors")
    else:
        torch.save(original_dinov2(native.state_dict()), path := tmp_path / "dinov2_vits14_pretrain.pth")
    side = 37  # patches: as published, so that positions stay as they are
    model, spec = load_backbone(name, path, image_size=16 * side)
    assert patch_size(model) == 16
    assert spec.kwargs == {"dynamic_img_size": True, "img_size": 592, "patch_size": 16}
    torch.manual_seed(1)
    images = torch.randn(1, 3, 14 * side, 14 * side)
    with torch.no_grad():
        expected = native._pos_embed(native.patch_embed(images))
        tokens = model._pos_embed(model.patch_embed(per_patch(images, 14, 16)))
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=0)
    for key, value in native.blocks.state_dict().items():
        assert torch.equal(model.blocks.state_dict()[key], value), key


def test_positions_are_resampled_to_the_crop_and_keep_their_order(tmp_path: Path) -> None:
    state = published(DINOV2).state_dict()
    rows, cols = torch.meshgrid(torch.arange(37) + 0.5, torch.arange(37) + 0.5, indexing="ij")
    state["pos_embed"][0, 1:, 0], state["pos_embed"][0, 1:, 1] = cols.reshape(-1), rows.reshape(-1)
    save_file(state, path := tmp_path / "model.safetensors")
    model, _ = load_backbone(DINOV2, path, image_size=192)
    position = model.pos_embed
    assert isinstance(position, torch.Tensor)
    assert position.shape == (1, 1 + 12 * 12, 384)
    grid = position[0, 1:].reshape(12, 12, 384)
    centres = (torch.arange(12) + 0.5) * 37 / 12
    torch.testing.assert_close(grid[3, 2:-2, 0], centres[2:-2], atol=0.05, rtol=0)
    torch.testing.assert_close(grid[2:-2, 3, 1], centres[2:-2], atol=0.05, rtol=0)
    assert torch.equal(position[:, 0], state["pos_embed"][:, 0])
    assert torch.equal(model.get_parameter("blocks.5.mlp.fc1.weight"), state["blocks.5.mlp.fc1.weight"])


def original_dinov3(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names as the authors' .pth has them."""
    result = {"mask_token": torch.zeros(1, 1), "rope_embed.periods": torch.ones(16)}
    for key, value in state.items():
        if key.endswith(("q_bias", "v_bias")):
            continue
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        result[key.replace("reg_token", "storage_tokens")] = value
        if key.endswith("qkv.weight"):
            stem, width = key.removesuffix("qkv.weight"), len(value) // 3
            q = state.get(stem + "q_bias", torch.zeros(width))
            v = state.get(stem + "v_bias", torch.zeros(width))
            result[stem + "qkv.bias"] = torch.cat([q, torch.zeros(width), v])
            result[stem + "qkv.bias_mask"] = torch.ones(3 * width)
    return result


@pytest.mark.parametrize("name", [DINOV3, DINOV3_QKVB])
@pytest.mark.parametrize("layout", ["timm safetensors", "original pth"])
def test_dinov3_is_loaded_and_takes_any_size(
    tmp_path: Path, name: str, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    native = published(name)
    if layout == "timm safetensors":
        save_file(native.state_dict(), path := tmp_path / "model.safetensors")
    else:
        torch.save(original_dinov3(native.state_dict()), path := tmp_path / "dinov3_pretrain.pth")
    model, spec = load_backbone(name, path, image_size=512)
    assert_same_weights(model, native.state_dict())
    assert "img_size" not in spec.kwargs
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = model.eval().forward_intermediates(images, indices=[2, 5], intermediates_only=True)
        reference = native.forward_intermediates(images, indices=[2, 5], intermediates_only=True)
    assert [f.shape[2:] for f in features] == [(4, 6), (4, 6)]
    torch.testing.assert_close(features, reference)
    assert capsys.readouterr().out == ""  # stdout belongs to results


@pytest.mark.parametrize("name", [PLAIN, DINOV2])
def test_sides_other_than_the_crop_and_oblong_ones_work(name: str) -> None:
    model, _ = load_backbone(name, "random", image_size=128)
    with torch.no_grad():
        (features,) = model.eval().forward_intermediates(
            torch.randn(1, 3, 128, 160), indices=[3], intermediates_only=True
        )
    assert features.shape == (1, model.embed_dim, 8, 10)


def test_what_was_saved_comes_back_with_how_it_was_built(tmp_path: Path) -> None:
    model, spec = load_backbone(PLAIN, "random", image_size=224)
    spec = BackboneSpec(architecture=spec.architecture, kwargs=spec.kwargs, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    path = tmp_path / "own.safetensors"
    save_backbone(model, spec, path, provenance={"steps": 3})
    assert read_spec(path) == spec
    again, spec_again = load_backbone("another name is ignored", path, image_size=224)
    assert spec_again == spec
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.half().float()), key
    larger, spec_larger = load_backbone("", path, image_size=320)
    assert spec_larger.kwargs["img_size"] == 320
    assert larger.pos_embed.shape == (1, 401, 192)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.safetensors"]


def test_weights_that_half_precision_can_not_hold_are_not_saved(tmp_path: Path) -> None:
    model, spec = load_backbone(PLAIN, "random", image_size=224)
    with torch.no_grad():
        model.get_parameter("norm.weight")[0] = 1e6
    with pytest.raises(ModelError, match=r"norm\.weight"):
        save_backbone(model, spec, tmp_path / "own.safetensors", provenance={})
    assert not list(tmp_path.iterdir())


def without(state: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if part not in k}


def test_a_file_that_lacks_tensors_or_has_others_is_refused(tmp_path: Path) -> None:
    state, path = published(PLAIN).state_dict(), tmp_path / "weights.safetensors"
    for table, message in (
        (without(state, "blocks.3."), r"blocks\.3\.norm1"),
        ({"something": torch.zeros(3)}, "Missing key"),
        ({**state, "decoder.weight": torch.zeros(3)}, r"decoder\.weight"),
        ({**state, "norm.weight": torch.zeros(3)}, r"norm\.weight"),
    ):
        save_file(table, path)
        with pytest.raises(ModelError, match=message):
            load_backbone(PLAIN, path, image_size=224)


def test_an_own_file_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    model, spec = load_backbone(PLAIN, "random", image_size=224)
    save_backbone(model, spec, path := tmp_path / "own.safetensors", provenance={})
    table = {"architecture": PLAIN, "kwargs": {}, "mean": spec.mean, "std": spec.std}
    save_file(without(load_file(path), "blocks.11."), path, metadata={"cegate_geo_backbone": json.dumps(table)})
    with pytest.raises(ModelError, match=r"blocks\.11\."):
        load_backbone(PLAIN, path, image_size=224)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("trap-was-sprung"), "yes")


def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Trap()}, "weights.pth")
    with pytest.raises(ModelError, match="safely"):
        load_backbone(PLAIN, "weights.pth", image_size=224)
    assert not Path("trap-was-sprung").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"<html>not found</html>" * 30)
    with pytest.raises(ModelError, match=path.name):
        load_backbone(PLAIN, path, image_size=224)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=path.name):
        load_backbone(PLAIN, path, image_size=224)


def test_names_that_can_not_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="vit_nonsense"):
        load_backbone("vit_nonsense", "random", image_size=224)
    with pytest.raises(ModelError, match="no plain ViT"):
        load_backbone("swin_tiny_patch4_window7_224", "random", image_size=224)
    with pytest.raises(ModelError, match="resnet18"):
        load_backbone("resnet18", "random", image_size=224)
    with pytest.raises(ModelError, match="do not exist"):
        load_backbone(PLAIN, tmp_path / "missing.pth", image_size=224)


def test_a_hub_out_of_reach_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(ModelError, match=r"couldn't connect.*weights = 'path"):
        load_backbone(DINOV2, image_size=224)


def test_the_hub_gives_its_file_to_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    native, asked = published(DINOV2), []

    def hub(name: str, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(name)
        return dict(native.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", hub)
    model, spec = load_backbone(DINOV2, image_size=592)
    assert asked == ["timm/vit_small_patch14_dinov2.lvd142m"]
    assert spec.mean == (0.485, 0.456, 0.406)
    assert torch.equal(model.get_parameter("blocks.0.attn.qkv.weight"), native.state_dict()["blocks.0.attn.qkv.weight"])


def test_images_are_normalised_by_the_spec() -> None:
    spec = BackboneSpec(architecture="x", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    images = torch.tensor([0.6, 0.2, 0.05]).view(1, 3, 1, 1)
    torch.testing.assert_close(normalise(images, spec).flatten(), torch.tensor([1.0, 0.0, -2.0]))
