"""Load a timm ViT: from the hub, from a local file of the published layout, or from a file that `pretrain` wrote."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data.config import resolve_model_data_config
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import load_state_dict
from torch import nn

from cegate_geo.errors import ModelError, PartialWeightsWarning
from cegate_geo.train import crossearth
from cegate_geo.train.run_files import write_tensors

METADATA_KEY = "cegate_geo_backbone"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSpec:
    """How to build a backbone again: timm name, constructor arguments, normalisation of its input."""

    architecture: str
    """timm model name, for example "vit_small_patch14_dinov2.lvd142m"."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `timm.create_model` beyond the name, JSON values."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean per channel, in 0-1 units."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation per channel, in 0-1 units."""
    positions: Literal["stored", "sincos"] = "stored"
    """Whether a saved file holds the position embeddings, or they are sines and cosines that are made again."""


def load_backbone(
    architecture: str, weights: str | Path = "", *, image_size: int, takes_rein: bool = False
) -> tuple[nn.Module, BackboneSpec]:
    """A ViT without a classifier, and how it was built.

    Args:
        architecture: timm name; ignored where `weights` is a file that `save_backbone` wrote.
        weights: Local `.safetensors`, `.pth` or `.bin` (`weights_only`); empty for the hub; "random" for none.
        image_size: Side of the training crops in pixels; position embeddings are resampled to it.
        takes_rein: Whether the caller places the Rein modules that a checkpoint of CrossEarth holds beside the ViT
            (`crossearth.rein_weights` of `read_weights`); else such a file is refused.

    Raises:
        ModelError: If the name is unknown, the file is missing or does not fit, or the hub can't be reached.
    """
    path = Path(weights) if weights and str(weights) != "random" else None
    if path is not None and not path.is_file():
        raise ModelError(f"The weights {path} do not exist.", hint="Check the path, or leave it empty for the hub.")
    spec = read_spec(path) if path is not None else None
    if spec is not None and path is not None:
        return _load_own(spec, path, image_size)
    is_random = str(weights) == "random"
    return _load_published(architecture, path, image_size, pretrained=not is_random, takes_rein=takes_rein)


def _load_own(spec: BackboneSpec, path: Path, image_size: int) -> tuple[nn.Module, BackboneSpec]:
    kwargs = {**spec.kwargs, "img_size": image_size}
    made = {"pos_embed": _made_positions(spec)} if spec.positions == "sincos" else {}
    model = _create(spec.architecture, path, read_weights(path) | made, **kwargs)
    return model, dataclasses.replace(spec, kwargs=kwargs)


def _made_positions(spec: BackboneSpec) -> torch.Tensor:
    """Position embeddings (1, P + T, D) of a backbone whose file does not hold them, at its own image size."""
    with torch.device("meta"):
        vit: Any = timm.create_model(spec.architecture, num_classes=0, **spec.kwargs)
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    table = sincos_positions(vit.patch_embed.grid_size, vit.embed_dim)
    return torch.cat([torch.zeros(prefix, vit.embed_dim), table])[None]


def sincos_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """(rows * cols, dim) fixed sine-cosine position embeddings of a token grid."""
    return build_sincos2d_pos_embed(list(grid), dim=dim, interleave_sin_cos=True)


def _load_published(
    architecture: str, path: Path | None, image_size: int, *, pretrained: bool, takes_rein: bool
) -> tuple[nn.Module, BackboneSpec]:
    kwargs: dict[str, Any] = {"dynamic_img_size": True}
    if "dinov3" not in architecture:  # RoPE takes any size; others resample position embeddings, DINOv2 also 14 to 16
        kwargs["img_size"] = image_size
        if "patch14" in architecture:
            kwargs["patch_size"] = 16
    table = None if path is None else _vit_weights(path, takes_rein=takes_rein)
    model = _create(architecture, path, table, pretrained=pretrained, **kwargs)
    config = resolve_model_data_config(model)
    return model, BackboneSpec(
        architecture=architecture, kwargs=kwargs, mean=tuple(config["mean"]), std=tuple(config["std"])
    )


def _create(
    architecture: str,
    path: Path | None,
    table: Mapping[str, torch.Tensor] | None,
    *,
    pretrained: bool = True,
    **kwargs: Any,
) -> nn.Module:
    """Build a ViT; weights are those of `table`, read from `path`, else of the hub, and fit to the last tensor."""
    if table is not None:
        # Said to hold no classifier, timm loads strictly; else it would leave what a file lacks at random.
        kwargs["pretrained_cfg_overlay"] = {"state_dict": dict(table), "num_classes": 0}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints when it drops DINOv3's zero biases
            model: nn.Module = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **kwargs)
    except (RuntimeError, OSError, KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400] or repr(error)
        raise ModelError(
            f"The backbone {architecture!r} can't be loaded{f' from {path}' if path is not None else ''}: {reason}",
            hint="Check the timm name and the file; without network give weights = 'path to the file'.",
        ) from error
    if path is not None:
        cast(dict[str, Any], model.pretrained_cfg).pop("state_dict", None)
    if not all(hasattr(model, name) for name in ("blocks", "patch_embed", "num_prefix_tokens")):
        raise ModelError(
            f"{architecture!r} is no plain ViT, but a {type(model).__name__}.",
            hint="Use one, for example vit_small_patch14_dinov2.lvd142m.",
        )
    return model


def _vit_weights(path: Path, *, takes_rein: bool) -> dict[str, torch.Tensor]:
    """Tensors of the ViT in a weights file."""
    table = read_weights(path)
    if not crossearth.is_checkpoint(table):
        return table
    if not takes_rein:
        raise ModelError(
            f"{path} holds the Rein modules of CrossEarth, without which its ViT is a plain DINOv2.",
            hint='Set peft.method = "rein", or take DINOv2 itself: leave model.weights empty.',
        )
    warnings.warn(
        PartialWeightsWarning(f"Of {path.name} these parts are left out: {', '.join(crossearth.left_out(table))}."),
        stacklevel=2,
    )
    return crossearth.backbone_weights(table)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a weights file by name, without those of a classifier.

    Raises:
        ModelError: If it can't be read, or only by running what it holds.
    """
    try:
        with crossearth.without_log():
            table = load_state_dict(str(path), weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path} is damaged, or holds more than tensors and can't be read safely.",
            hint="Fetch it again, or give the tensors only, as safetensors or a state dict of torch.save.",
        ) from error
    if not table or not all(isinstance(v, torch.Tensor) for v in table.values()):
        raise ModelError(f"{path} holds no table of tensors.", hint="Give a state dict.")
    return {k: v for k, v in table.items() if not k.startswith("head.")}


def save_backbone(model: nn.Module, spec: BackboneSpec, path: Path, *, provenance: Mapping[str, Any]) -> None:
    """Write the weights in half precision as safetensors, with what `load_backbone` needs as metadata.

    Raises:
        ModelError: If a weight is not finite, or too large for half precision.
    """
    state = {k: v for k, v in model.state_dict().items() if k != "pos_embed" or spec.positions == "stored"}
    tensors = {k: v.detach().half() for k, v in state.items()}
    wrong = [k for k, v in tensors.items() if not v.isfinite().all()]
    if wrong:
        raise ModelError(f"{wrong[:3]} hold values that half precision can't.", hint="Lower the learning rate.")
    table = {
        "architecture": spec.architecture,
        "kwargs": dict(spec.kwargs),
        "mean": spec.mean,
        "std": spec.std,
        "positions": spec.positions,
        "provenance": dict(provenance),
    }
    write_tensors(tensors, path, metadata={METADATA_KEY: json.dumps(table, sort_keys=True)})


def read_spec(path: Path) -> BackboneSpec | None:
    """The spec in a file that `save_backbone` wrote; None for any other weights file.

    Raises:
        ModelError: If a `.safetensors` file is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no readable safetensors file: {error}.", hint="Fetch it again.") from error
    if text is None:
        return None
    table = json.loads(text)
    return BackboneSpec(
        architecture=table["architecture"],
        kwargs=table["kwargs"],
        mean=tuple(table["mean"]),
        std=tuple(table["std"]),
        positions=table.get("positions", "stored"),
    )


def patch_size(model: nn.Module) -> int:
    """Side of a patch in pixels.

    Raises:
        ModelError: If patches are not square.
    """
    height, width = model.patch_embed.patch_size  # type: ignore[union-attr, misc]
    if height != width:
        raise ModelError(f"Patches of {height} x {width} pixels are not supported.", hint="Use square patches.")
    return int(height)


def normalise(images: torch.Tensor, spec: BackboneSpec) -> torch.Tensor:
    """(N, 3, H, W) in 0-1 units as the backbone wants it."""
    mean = torch.tensor(spec.mean, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    return (images - mean) / std
