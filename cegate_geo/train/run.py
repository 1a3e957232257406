"""The folder of one adaptation: build its model, save what was trained, load it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cegate_geo.errors import InputError, ModelError
from cegate_geo.peft import ModuleKey, Toolbox, ToolboxConfig, build_toolbox
from cegate_geo.train import crossearth
from cegate_geo.train.backbone import load_backbone, read_weights
from cegate_geo.train.band_projection import PROJECTION, in_order, projection_of, projection_parameters, take_bands
from cegate_geo.train.config import AdaptConfig, ModelConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.raster_input import RasterInput
from cegate_geo.train.run_files import write_tensors
from cegate_geo.train.segmenter import Segmenter

ADAPTER = "adapter.safetensors"
METADATA_KEY = "cegate_geo_run"
PICKLED = (".pth", ".pt", ".bin")
"""Files in which CrossEarth's weights may stand."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What a run's folder holds, ready to compute."""

    folder: Path
    config: AdaptConfig
    segmenter: Segmenter
    """With the toolbox attached."""
    toolbox: Toolbox
    """Empty for methods without modules."""
    taken: RasterInput = field(default_factory=RasterInput)
    """Its bands, and how their values are scaled."""
    active: frozenset[ModuleKey] = frozenset()
    """Active at the step whose weights were kept."""
    ever_active: frozenset[ModuleKey] = frozenset()
    """Active at that step or any before it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """GSD, bands, validation figures, provenance: see `loop`."""

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """Everything that training may change, in a stable order.

        Modules, head, and what is trained of the backbone.
        """
        return [*self.toolbox.parameters(), *self.segmenter.head.parameters(), *self.unfrozen().values()]

    def unfrozen(self) -> dict[str, torch.nn.Parameter]:
        """What is trained of the backbone itself by name, in a stable order.

        All of it with the method "full"; else its patch embedding where the configuration says so; always `new_bands`.
        """
        vit = self.segmenter.backbone
        if self.config.peft.method == "full":
            return dict(vit.named_parameters())
        return self.new_bands() | (projection_parameters(vit) if self.config.peft.trains_patch_embed else {})

    def new_bands(self) -> dict[str, torch.nn.Parameter]:
        """Weights of the patch embedding for bands that the backbone does not know by name; none for three bands."""
        projection = projection_of(self.segmenter.backbone)
        return {} if projection is None else {f"{PROJECTION}new": projection.new}

    def running_statistics(self) -> list[torch.Tensor]:
        """Means and variances that the head's batch normalisation keeps, in a stable order; none in most heads."""
        return [b for b in self.segmenter.head.buffers() if b.is_floating_point()]

    @property
    def keeps_backbone(self) -> bool:
        """Whether the backbone's weights can't be had elsewhere: they were trained, or drawn at random."""
        return self.config.peft.method == "full" or self.config.model.weights == "random"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights that can't be had elsewhere by name; `load_state_dict` takes them back."""
        state = {f"head.{k}": v for k, v in self.segmenter.head.state_dict().items()}
        state |= {f"module.{k}": v for k, v in self.toolbox.state_dict().items()}
        own = self.segmenter.backbone.state_dict() if self.keeps_backbone else self.unfrozen()
        return state | {f"backbone.{k}": v.detach() for k, v in own.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Strictly: nothing missing, nothing left over."""
        parts: dict[str, dict[str, torch.Tensor]] = {"head": {}, "module": {}, "backbone": {}}
        for key, value in state.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        self.segmenter.head.load_state_dict(parts["head"])
        self.toolbox.load_state_dict(parts["module"])
        vit = self.segmenter.backbone
        if self.keeps_backbone:
            vit.load_state_dict(parts["backbone"])
            return
        if parts["backbone"].keys() != self.unfrozen().keys():
            raise KeyError(f"{sorted(parts['backbone'])} of the backbone, {sorted(self.unfrozen())} are trained.")
        vit.load_state_dict(parts["backbone"], strict=False)

    def save(self) -> None:
        """Write `adapter.safetensors`: the weights of `state_dict`, the active modules, the facts."""
        table = {
            "active": sorted(str(k) for k in self.active),
            "ever_active": sorted(str(k) for k in self.ever_active),
            "facts": self.facts,
        }
        write_tensors(self.state_dict(), self.folder / ADAPTER, metadata={METADATA_KEY: json.dumps(table)})


def new_run(folder: Path, config: AdaptConfig, taken: RasterInput | None = None) -> Run:
    """Build the model of a configuration; modules are at their identity start, or at CrossEarth's released weights.

    It takes `taken`, or 8-bit RGB. The caller seeds torch: head and modules are initialised from its global generator.
    """
    weights = config.model.weights
    path = str(shipped_base()) if weights == "shipped" else weights
    is_rein = config.peft.method == "rein"
    backbone, spec = load_backbone(config.model.backbone, path, image_size=config.model.tile_size, takes_rein=is_rein)
    taken = taken or RasterInput()
    take_bands(backbone, channels=len(taken.bands), rgb=taken.rgb)
    if taken.mean:
        spec = replace(spec, mean=taken.mean, std=taken.std)
    elif taken.rgb:
        spec = replace(spec, mean=tuple(in_order(spec.mean, taken.rgb)), std=tuple(in_order(spec.std, taken.rgb)))
    toolbox = build_toolbox(
        backbone, "frozen" if config.peft.method == "full" else config.peft.method, _toolbox_config(config)
    )
    if is_rein and Path(path).suffix in PICKLED:
        _start_from_crossearth(toolbox, Path(path))
    backbone.requires_grad_(False)
    toolbox.set_active(toolbox.keys)
    segmenter = Segmenter(
        backbone,
        spec,
        head=config.model.head,
        head_dim=config.model.head_dim,
        classes=len(config.legend),
        norm=config.model.norm,
        queries=config.model.mask2former,
    )
    run = Run(folder=folder, config=config, segmenter=segmenter, toolbox=toolbox, taken=taken)
    for parameter in run.unfrozen().values():
        parameter.requires_grad_(True)
    return run


def _start_from_crossearth(toolbox: Toolbox, path: Path) -> None:
    """Give the modules the weights of CrossEarth's Rein, where the file holds them."""
    table = read_weights(path)
    if crossearth.is_checkpoint(table):
        toolbox.load_state_dict(crossearth.rein_weights(table))


def load_run(folder: Path) -> Run:
    """The model that a finished or interrupted run kept.

    Raises:
        InputError: If the folder holds no run.
        ModelError: If its weights do not fit its configuration.
    """
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} holds no run: {error}.", hint="Run cegate-geo adapt first.") from error
    run = new_run(folder, build(AdaptConfig, table), RasterInput.of_facts(_read_kept(folder)["facts"]))
    load_weights(run)
    return run


def load_weights(run: Run) -> None:
    """Bring a run to the weights, modules and facts that its folder keeps.

    Raises:
        InputError: If the folder holds none.
        ModelError: If they do not fit the configuration.
    """
    path, table = run.folder / ADAPTER, _read_kept(run.folder)
    try:
        run.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{run.folder} holds no weights: {error}.", hint="Run cegate-geo adapt first.") from error
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{path} does not fit its config.json: {error}", hint="Adapt again.") from error
    keys = {str(k): k for k in run.toolbox.keys}
    run.active = frozenset(keys[k] for k in table["active"])
    run.ever_active = frozenset(keys[k] for k in table["ever_active"])
    run.facts = table["facts"]


def _read_kept(folder: Path) -> dict[str, Any]:
    """What `Run.save` wrote beside the weights."""
    path = folder / ADAPTER
    try:
        with safe_open(path, framework="pt") as file:
            table: dict[str, Any] = json.loads((file.metadata() or {})[METADATA_KEY])
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder} holds no weights: {error}.", hint="Run cegate-geo adapt first.") from error
    except KeyError as error:
        raise ModelError(f"{path} does not fit its config.json: {error}", hint="Adapt again.") from error
    return table


def shipped_base() -> Path:
    """The small base ViT that comes with the project.

    Raises:
        ModelError: If it is not there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_models", package.parent / "models"):
        found = sorted(folder.glob("*.safetensors"))
        if found:
            return found[0]
    raise ModelError(
        "The shipped base model is missing.", hint="Give model.weights = 'path', or train one with cegate-geo pretrain."
    )


def default_model() -> ModelConfig:
    """The configuration of a model that works offline: the shipped base with a DPT head."""
    return ModelConfig(backbone="vit_tiny_patch16_224", weights="shipped", head="dpt-detail", head_dim=64)


def _toolbox_config(config: AdaptConfig) -> ToolboxConfig:
    peft = config.peft
    return ToolboxConfig(
        spatial_rank=peft.spatial.rank,
        semantic_dim=peft.semantic.dim,
        frequency_dim=peft.frequency.dim,
        frequency_cutoff=peft.frequency.cutoff,
        rein_tokens=peft.rein.tokens,
        rein_rank=peft.rein.rank,
        prompt_tokens=peft.vpt.tokens,
        inactive=peft.inactive,
    )
