"""Released weights of CrossEarth, on a made checkpoint of their layout: each key is used, or is told as left out."""

from __future__ import annotations

import math
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from cegate_geo.errors import ModelError, PartialWeightsWarning
from cegate_geo.train.backbone import load_backbone
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.run import new_run

NAME, SIDE = "vit_tiny_patch16_224", 64
LAYERS, DIM, TOKENS, RANK = 12, 192, 7, 3


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=False, num_classes=0, img_size=SIDE).eval()


@pytest.fixture(scope="module")
def table(vit: nn.Module) -> dict[str, Tensor]:
    """Names as in the authors' `reins.py` and `reins_dinov2.py`, and the parts of which only their names are known."""
    torch.manual_seed(1)
    rein = {
        "learnable_tokens_a": torch.randn(LAYERS, TOKENS, RANK),
        "learnable_tokens_b": torch.randn(LAYERS, RANK, DIM),
        "scale": torch.tensor(0.25),
        **{f"{name}.weight": 0.1 * torch.randn(DIM, DIM) for name in ("mlp_token2feat", "mlp_delta_f")},
        **{f"{name}.bias": 0.1 * torch.randn(DIM) for name in ("mlp_token2feat", "mlp_delta_f")},
        "transform.weight": torch.randn(4, DIM),
        "merge.bias": torch.randn(4),
        "high_extractor.0.weight": torch.randn(3, 3, 3, 3),
    }
    return {
        **{f"backbone.{name}": value for name, value in vit.state_dict().items()},
        "backbone.mask_token": torch.zeros(1, DIM),
        **{f"backbone.reins.{name}": value for name, value in rein.items()},
        "decode_head.query_embed.weight": torch.randn(3, 4),
        "style_augmentor.mean": torch.randn(5),
    }


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A class that pickles under the name of mmengine's log, which is not installed here."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        yield buffer


def write(path: Path, table: dict[str, Tensor], buffer: type | None = None) -> Path:
    checkpoint: dict[str, Any] = {"meta": {"iter": 40_000}, "state_dict": table}
    if buffer is not None:
        log = buffer()
        log.values, log.count, log.mean = np.arange(4.0), np.float32(3), Method()
        checkpoint["message_hub"] = {"loss": log}
    torch.save(checkpoint, path)
    return path


class Method:
    """Pickles as the log's statistics do: fetched by `getattr` when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (np.arange(2.0), "mean")


def configuration(weights: Path, **peft: Any) -> AdaptConfig:
    return build(
        AdaptConfig,
        {
            "classes": {"0": "other", "1": "road"},
            "source": [{"images": "a", "labels": "b"}],
            "model": {"backbone": NAME, "weights": str(weights), "head": "linear", "tile_size": SIDE},
            "peft": {"method": "rein", "rein": {"tokens": TOKENS, "rank": RANK}, **peft},
        },
    )


def published(vit: Any, table: dict[str, Tensor], images: Tensor) -> Tensor:
    """Tokens behind the last block, by the authors' `forward_features` and `forward_delta_feat`."""
    rein = {name.removeprefix("backbone.reins."): value for name, value in table.items()}
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for layer, block in enumerate(vit.blocks):
        x = block(x)
        first, feats = x[:, :1], x[:, 1:]
        tokens = rein["learnable_tokens_a"][layer] @ rein["learnable_tokens_b"][layer]
        attention = (feats @ tokens.T / math.sqrt(DIM)).softmax(-1)
        found = nn.functional.linear(tokens[1:], rein["mlp_token2feat.weight"], rein["mlp_token2feat.bias"])
        delta = attention[..., 1:] @ found + feats
        delta = nn.functional.linear(delta, rein["mlp_delta_f.weight"], rein["mlp_delta_f.bias"])
        x = torch.cat((first, feats + rein["scale"] * delta), dim=1)
    return x


def test_a_run_starts_from_what_was_released(
    tmp_path: Path, vit: nn.Module, table: dict[str, Tensor], buffers: type
) -> None:
    """The same tokens as by the published formulas, and everything that is left out is named."""
    path = write(tmp_path / "source.pth", table, buffers)
    assert b"HistoryBuffer" in path.read_bytes()
    assert b"getattr" in path.read_bytes()
    torch.manual_seed(2)
    with pytest.warns(PartialWeightsWarning) as told:
        run = new_run(tmp_path, configuration(path))
    assert str(told[0].message) == (
        "Of source.pth these parts are left out: backbone.reins.high_extractor, backbone.reins.merge, "
        "backbone.reins.transform, decode_head, style_augmentor."
    )
    images = torch.randn(2, 3, SIDE, SIDE)
    backbone: Any = run.segmenter.backbone.eval()
    with torch.no_grad():
        expected = published(vit, table, images)
        assert (expected - published(vit, {**table, "backbone.reins.scale": torch.tensor(0.0)}, images)).std() > 0.1
        tokens = backbone.forward_intermediates(images, indices=1, intermediates_only=True, norm=False)[0]
    torch.testing.assert_close(tokens.flatten(2).mT, expected[:, 1:], atol=1e-4, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in run.toolbox.parameters())


def test_tokens_in_full_are_read_too(tmp_path: Path, table: dict[str, Tensor]) -> None:
    names = [f"backbone.reins.learnable_tokens_{part}" for part in "ab"]
    full = {name: value for name, value in table.items() if name not in (*names, "backbone.reins.scale")}
    full["backbone.reins.learnable_tokens"] = table[names[0]] @ table[names[1]]
    with pytest.warns(PartialWeightsWarning):
        run = new_run(tmp_path, configuration(write(tmp_path / "a.pth", full), rein={"tokens": TOKENS, "rank": 0}))
    state = run.toolbox.state_dict()
    assert torch.equal(state["blocks.5.rein.factors.0"], full["backbone.reins.learnable_tokens"][5])
    assert torch.equal(state["blocks.0.rein.shared.delta.weight"], table["backbone.reins.mlp_delta_f.weight"])


@pytest.mark.parametrize(
    ("lacks", "gets", "match"),
    [
        ("backbone.reins.mlp_delta_f.bias", "", "lacks backbone.reins.mlp_delta_f.bias"),
        ("backbone.reins.learnable_tokens_b", "", "lacks backbone.reins.learnable_tokens_b"),
        ("", "backbone.reins.novelty", "holds backbone.reins.novelty"),
        ("backbone.blocks.3.mlp.fc1.weight", "", r"blocks\.3\.mlp\.fc1\.weight"),
        ("", "backbone.blocks.0.novelty", "novelty"),
    ],
)
@pytest.mark.filterwarnings("ignore::cegate_geo.errors.PartialWeightsWarning")
def test_what_is_missing_or_not_known_is_refused(
    tmp_path: Path, table: dict[str, Tensor], lacks: str, gets: str, match: str
) -> None:
    changed = {name: value for name, value in table.items() if name != lacks}
    changed |= {gets: torch.zeros(2)} if gets else {}
    with pytest.raises(ModelError, match=match):
        new_run(tmp_path, configuration(write(tmp_path / "a.pth", changed)))


@pytest.mark.filterwarnings("ignore::cegate_geo.errors.PartialWeightsWarning")
def test_a_file_without_its_vit_and_tokens_of_another_size_are_refused(
    tmp_path: Path, table: dict[str, Tensor]
) -> None:
    path = write(tmp_path / "a.pth", table)
    with pytest.raises(ModelError, match="another shape"):
        new_run(tmp_path, configuration(path, rein={"tokens": TOKENS + 1, "rank": RANK}))
    adapter = {name: value for name, value in table.items() if "reins" in name}
    with pytest.raises(ModelError, match="not the DINOv2"):
        new_run(tmp_path, configuration(write(path, adapter)))


@pytest.mark.parametrize("method", ["gate", "frozen", "full"])
def test_other_methods_do_not_drop_rein_in_silence(tmp_path: Path, table: dict[str, Tensor], method: str) -> None:
    path = write(tmp_path / "a.pth", table)
    with pytest.raises(ModelError, match="Rein modules of CrossEarth") as caught:
        new_run(tmp_path, configuration(path, method=method))
    assert "rein" in caught.value.hint
    with pytest.raises(ModelError, match="Rein modules of CrossEarth"):
        load_backbone(NAME, path, image_size=SIDE)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch trap-was-sprung",)


def test_what_the_log_may_hold_opens_no_door_for_anything_else(
    tmp_path: Path, table: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": table, "message_hub": Trap()}, "a.pth")
    with pytest.raises(ModelError, match="safely"):
        new_run(tmp_path, configuration(Path("a.pth")))
    assert not Path("trap-was-sprung").exists()
