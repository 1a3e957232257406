"""Attach a toolbox of modules to a timm ViT.

Example:
    >>> import timm
    >>> from cegate_geo.peft import ToolboxConfig, attach
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, dynamic_img_size=True, num_classes=0)
    >>> toolbox = attach(vit, ToolboxConfig(spatial_rank=4, semantic_dim=4, frequency_dim=4))
    >>> [str(key) for key in toolbox.keys[:3]]
    ['blocks.0.spatial', 'blocks.0.semantic', 'blocks.0.frequency']
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cegate_geo.errors import ConfigError, InputError, ModelError
from cegate_geo.peft.blocks import TokenGrid, adapt_block, place, remove, restore_block
from cegate_geo.peft.modules import FrequencyModule, SemanticModule, SiteModule, SpatialModule
from cegate_geo.peft.rivals import PromptModule, ReinModule, ReinProjections
from cegate_geo.peft.sites import ALL_KINDS, KINDS, BlockSites, Kind, ModuleKey, find_sites, qkv_layers

Inactive = Literal["frozen", "bypass"]
"""What an inactive module does: stay in the forward pass with the weights that it has, or be left out of it."""

Gradients = Literal["mask", "skip"]
"""How an inactive module is kept from training. mask: its gradient is computed and dropped before the optimiser's step
(fit for torch.compile and DistributedDataParallel, which do not bear changing requires_grad). skip: it does not require
a gradient, so that backward stops at the shallowest active module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolboxConfig:
    """Which modules are placed in every block, and their sizes. Defaults as in arXiv 2511.20302."""

    kinds: tuple[Kind, ...] = KINDS
    """Module types; empty for a frozen backbone without modules."""
    spatial_rank: int = 64
    """Rank of LoRA on q and on v."""
    semantic_dim: int = 64
    """Inner channels of the parallel adapter."""
    frequency_dim: int = 32
    """Inner channels of each expert of the frequency module."""
    frequency_cutoff: float = 0.3
    """Share of the shorter side of the token grid that counts as low frequency, 0 < cutoff <= 1."""
    rein_tokens: int = 100
    """Learnable tokens of Rein in each layer."""
    rein_rank: int = 16
    """Inner size of the factors of Rein's tokens; 0 for tokens in full."""
    prompt_tokens: int = 100
    """Deep prompts in each layer."""
    inactive: Inactive = "frozen"
    """What modules do that are not active."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in ALL_KINDS]
        if unknown or len(set(self.kinds)) != len(self.kinds):
            hint = f"Name each of {', '.join(ALL_KINDS)} once."
            raise ConfigError(f"kinds={self.kinds!r} is not allowed.", hint=hint)
        sizes = {"spatial_rank": self.spatial_rank, "semantic_dim": self.semantic_dim}
        sizes["frequency_dim"] = self.frequency_dim
        sizes["prompt_tokens"] = self.prompt_tokens
        smallest = {"rein_tokens": 2, "rein_rank": 0}
        for name, size in (sizes | {"rein_tokens": self.rein_tokens, "rein_rank": self.rein_rank}).items():
            if size < (least := smallest.get(name, 1)):
                raise ConfigError(f"{name}={size} is not allowed.", hint=f"Use {least} or more.")
        if not 0 < self.frequency_cutoff <= 1:
            raise ConfigError(
                f"frequency_cutoff={self.frequency_cutoff} is not allowed.", hint="Use more than 0 and at most 1."
            )
        if self.inactive not in ("frozen", "bypass"):
            raise ConfigError(f"inactive={self.inactive!r} is not allowed.", hint="Use 'frozen' or 'bypass'.")


class Toolbox:
    """The modules that are attached to one ViT, by key, in a stable order. Made by `attach`.

    Args:
        vit: The ViT that carries the modules.
        config: What was attached.
        grid: Shape of the token grid, shared by the blocks.
        modules: All modules, in the order of their keys.
        required: requires_grad of the ViT's own parameters, by name, as it was before.
        hook: Handle of the hook that tells the token grid, where a module needs it.
    """

    def __init__(
        self,
        *,
        vit: nn.Module,
        config: ToolboxConfig,
        modules: Mapping[ModuleKey, SiteModule],
        required: Mapping[str, bool],
        hook: Any,
    ) -> None:
        self.vit = vit
        self.config = config
        self._modules = dict(modules)
        self._required = dict(required)
        self._hook = hook
        self._active = frozenset(modules)

    @property
    def modules(self) -> Mapping[ModuleKey, SiteModule]:
        """All attached modules by key, read-only, ordered by key."""
        return MappingProxyType(self._modules)

    @property
    def keys(self) -> tuple[ModuleKey, ...]:
        """Keys of all attached modules, ordered."""
        return tuple(self._modules)

    @property
    def active(self) -> tuple[ModuleKey, ...]:
        """Keys of the modules that are trained now, ordered. All of them until `set_active` is called."""
        return tuple(key for key in self._modules if key in self._active)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of all modules, active or not, ordered by key. What an optimiser is to be given."""
        yield from (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As `parameters`, with the names of `state_dict`."""
        seen: set[int] = set()  # what layers share is named after the first of them
        for key, module in self._modules.items():
            for name, parameter in module.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{key}.{name}", parameter

    def count_parameters(self, keys: Collection[ModuleKey] | None = None) -> int:
        """Number of scalar parameters.

        Args:
            keys: Modules to count; all if None.

        Returns:
            The sum over these modules.
        """
        keys = self._modules.keys() if keys is None else self._known(keys)
        found = {id(p): p.numel() for key in keys for p in self._modules[key].parameters()}
        return sum(found.values())

    def set_active(self, keys: Collection[ModuleKey], *, gradients: Gradients = "mask") -> None:
        """Choose the modules that are trained; with `inactive="bypass"` the others also leave the forward pass.

        With gradients="mask", call `mask_gradients` between backward and the optimiser's step (before clipping).

        Args:
            keys: Modules to train.
            gradients: How the others are kept from training.

        Raises:
            InputError: A key is not in the toolbox.
        """
        self._active = frozenset(self._known(keys))
        for key, module in sorted(self._modules.items(), key=lambda item: item[0] in self._active):
            is_active = key in self._active  # active ones last: what they share with others is trained
            module.requires_grad_(is_active or gradients == "mask")
            module.is_bypassed = not is_active and self.config.inactive == "bypass"

    def mask_gradients(self) -> None:
        """Drop the gradients of inactive modules, so that no optimiser moves them: not even by weight decay."""
        trained = {id(p) for key in self._active for p in self._modules[key].parameters()}
        for parameter in self.parameters():
            if id(parameter) not in trained:
                parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of all modules, and nothing of the ViT.

        Returns:
            Name, such as `blocks.3.spatial.q.down.weight`, to tensor; the tensors share memory with the modules.
        """
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Copy weights into the modules; nothing is copied when something does not fit.

        Args:
            state: As `state_dict` gives.
            strict: Whether names that are missing or not known are refused. Wrong shapes always are.

        Raises:
            ModelError: The weights do not fit the toolbox.
        """
        own = dict(self.named_parameters())
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unknown):
            raise ModelError(
                f"The weights do not fit the toolbox: {len(missing)} missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}.",
                hint="Attach the modules that the file holds: attach(vit, config, keys=keys_of(state)).",
            )
        shared = [name for name in own if name in state]
        shapes = [(name, tuple(state[name].shape), tuple(own[name].shape)) for name in shared]
        wrong = [f"{name} {given}, not {needed}" for name, given, needed in shapes if given != needed]
        if wrong:
            raise ModelError(
                f"{len(wrong)} weights have another shape: {'; '.join(wrong[:3])}.",
                hint="Use the model and the ToolboxConfig that the weights were trained with.",
            )
        for name in shared:
            own[name].copy_(state[name])

    def remove(self, keys: Collection[ModuleKey]) -> None:
        """Take modules off for good. Blocks that carry no module any more compute timm's own forward again.

        Args:
            keys: Modules to remove.

        Raises:
            InputError: A key is not in the toolbox.
        """
        for key in self._known(keys):
            block = self.vit.get_submodule(f"blocks.{key.layer}")
            remove(block, self._modules.pop(key))
            if not any(other.layer == key.layer for other in self._modules):
                restore_block(block)
        self._active &= self._modules.keys()
        if self._hook is not None and not any(key.kind == "frequency" for key in self._modules):
            self._hook.remove()
            self._hook = None

    def detach(self) -> None:
        """Take all modules off: the ViT is again what it was before `attach`, bit for bit, unless LoRA was merged."""
        self.remove(self.keys)
        for name, parameter in self.vit.named_parameters():
            parameter.requires_grad_(self._required.get(name, True))

    def _known(self, keys: Collection[ModuleKey]) -> tuple[ModuleKey, ...]:
        unknown = sorted(set(keys) - self._modules.keys())
        if unknown:
            raise InputError(
                f"{len(unknown)} modules are not in the toolbox: {', '.join(map(str, unknown[:3]))}.",
                hint=f"It holds {len(self._modules)} modules of {len({key.layer for key in self._modules})} layers.",
            )
        return tuple(sorted(set(keys)))


def attach(vit: nn.Module, config: ToolboxConfig, *, keys: Collection[ModuleKey] | None = None) -> Toolbox:
    """Freeze a ViT and place modules in its blocks. The ViT computes what it computed before, until they are trained.

    Args:
        vit: A timm `VisionTransformer` or `Eva`. Changed in place: its parameters no longer require gradients.
        config: Which modules, and their sizes.
        keys: Modules to place, where not all of `config.kinds` in every block: those of a pruned adapter.

    Returns:
        The toolbox, all modules active. Modules take device and dtype of the block they are in.

    Raises:
        SiteError: A module can't be placed, or the model would bypass it. Nothing is changed then.
        InputError: A key lies outside the model or `config.kinds`.
    """
    sites = find_sites(vit, config.kinds)
    possible = [ModuleKey(site.layer, kind) for site in sites for kind in ALL_KINDS if kind in config.kinds]
    wanted = set(possible if keys is None else keys)
    if not wanted <= set(possible):
        raise InputError(
            f"{', '.join(map(str, sorted(wanted - set(possible))[:3]))} can't be placed.",
            hint=f"The model has {len(sites)} blocks and the toolbox the kinds {', '.join(config.kinds)}.",
        )
    required = {name: parameter.requires_grad for name, parameter in vit.named_parameters()}
    vit.requires_grad_(False)
    grid = TokenGrid(int(getattr(vit, "num_prefix_tokens", 0)))
    hook = None
    if any(key.kind == "frequency" for key in wanted):
        hook = vit.get_submodule("patch_embed").register_forward_hook(grid.observe)
    modules: dict[ModuleKey, SiteModule] = {}
    maker = _Maker(config, vit)
    for site in sites:
        own = [key for key in possible if key.layer == site.layer and key in wanted]
        if own:
            adapt_block(site.block, site.family, grid)
        for key in own:
            modules[key] = maker.make(key.kind, site)
            place(site.block, modules[key])
    return Toolbox(vit=vit, config=config, modules=modules, required=required, hook=hook)


def keys_of(state: Mapping[str, Tensor]) -> tuple[ModuleKey, ...]:
    """Keys of the modules whose weights a state holds.

    Args:
        state: As `Toolbox.state_dict` gives.

    Returns:
        The keys, ordered.

    Raises:
        InputError: A name belongs to no module.
    """
    return tuple(sorted({ModuleKey.parse(name) for name in state}))


class _Maker:
    """Makes the modules of one ViT.

    Args:
        config: Their sizes.
        vit: Prompts ask it for the side of its patches.
    """

    def __init__(self, config: ToolboxConfig, vit: Any) -> None:
        self.config = config
        self.vit = vit
        self._shared: ReinProjections | None = None

    def make(self, kind: Kind, site: BlockSites) -> SiteModule:
        """A module for a block, with the block's device and dtype."""
        weight = site.block.norm2.weight
        return self._bare(kind, site).to(device=weight.device, dtype=weight.dtype).train(site.block.training)

    def _bare(self, kind: Kind, site: BlockSites) -> SiteModule:
        config = self.config
        if kind == "spatial":
            layers = qkv_layers(site.block.attn)
            first = next(iter(layers.values()))
            outputs = first.out_features // 3 if "qkv" in layers else first.out_features
            return SpatialModule(first.in_features, outputs, config.spatial_rank)
        if kind == "semantic":
            return SemanticModule(site.dim, config.semantic_dim)
        if kind == "frequency":
            return FrequencyModule(site.dim, config.frequency_dim, config.frequency_cutoff)
        if kind == "prompt":
            return PromptModule(site.dim, config.prompt_tokens, self.vit.patch_embed.patch_size[0])
        self._shared = self._shared or ReinProjections(site.dim)
        return ReinModule(site.dim, config.rein_tokens, config.rein_rank, self._shared)
