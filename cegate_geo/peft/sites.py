"""Where modules go: the sites of a timm ViT, found by registered object and refused when they can't be reached.

Site names are timm's own: `blocks.3.attn.qkv` (spatial), `blocks.3.mlp` (semantic), `blocks.3` (frequency). A block is
accepted only when its class is one whose `forward` is known: a subclass may compute something else, and a module that
is put into a block that computes something else would be bypassed without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import Any, Literal

from torch import nn

from cegate_geo.errors import InputError, SiteError

Kind = Literal["spatial", "semantic", "frequency", "rein", "prompt"]
"""Module type: LoRA on q and v, parallel adapter, Earth-Adapter, Rein, deep prompts (VPT)."""

KINDS: tuple[Kind, ...] = ("spatial", "semantic", "frequency")
"""Module types of the toolbox, which the gate chooses among, in the order in which a block computes them."""

ALL_KINDS: tuple[Kind, ...] = (*KINDS, "rein", "prompt")
"""All module types, those of other methods included; also the order of modules within a layer."""

BlockFamily = Literal["vit", "eva"]
"""Which of timm's two block forwards a block computes."""

_SITE_SUFFIX: dict[str, str] = {"spatial": ".attn.qkv", "semantic": ".mlp"}
_BLOCKS: dict[tuple[str, str], BlockFamily] = {
    ("timm.models.vision_transformer", "Block"): "vit",
    ("timm.models.eva", "EvaBlock"): "eva",
}
_ATTENTIONS = frozenset(
    {
        ("timm.layers.attention", "Attention"),
        ("timm.layers.attention", "AttentionRope"),
        ("timm.models.vision_transformer", "Attention"),
        ("timm.models.eva", "EvaAttention"),
    }
)


@total_ordering
@dataclass(frozen=True, slots=True)
class ModuleKey:
    """Names one module of the toolbox: a layer and a module type. Ordered by layer, then by the order of `ALL_KINDS`.

    Example:
        >>> key = ModuleKey(3, "spatial")
        >>> str(key), key.site
        ('blocks.3.spatial', 'blocks.3.attn.qkv')
        >>> ModuleKey.parse("blocks.3.spatial") == key
        True
    """

    layer: int
    """Index of the block, from 0."""
    kind: Kind
    """Module type."""

    def __post_init__(self) -> None:
        if self.layer < 0 or self.kind not in ALL_KINDS:
            raise InputError(
                f"No module can be called layer={self.layer}, kind={self.kind!r}.",
                hint=f"Count layers from 0 and use a kind of {', '.join(ALL_KINDS)}.",
            )

    def __lt__(self, other: ModuleKey) -> bool:
        return (self.layer, ALL_KINDS.index(self.kind)) < (other.layer, ALL_KINDS.index(other.kind))

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.kind}"

    @property
    def site(self) -> str:
        """Name of the site in timm's words, such as `blocks.3.attn.qkv` (of which q_proj and v_proj may be parts)."""
        return f"blocks.{self.layer}{_SITE_SUFFIX.get(self.kind, '')}"

    @classmethod
    def parse(cls, text: str) -> ModuleKey:
        """Read a key back from its text, or from the name of one of its parameters.

        Args:
            text: `blocks.3.spatial`, or longer: `blocks.3.spatial.q.down.weight`.

        Returns:
            The key.

        Raises:
            InputError: The text names no module.
        """
        root, *rest = text.split(".")
        if root != "blocks" or len(rest) < 2 or not rest[0].isdecimal() or rest[1] not in ALL_KINDS:
            raise InputError(f"{text!r} names no module.", hint="Names look like blocks.3.spatial.")
        return cls(int(rest[0]), rest[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSites:
    """The sites of one block."""

    layer: int
    """Index of the block, from 0."""
    block: Any
    """timm's block (an `nn.Module`; Any because timm is untyped)."""
    family: BlockFamily
    """Which forward the block computes."""
    dim: int
    """Channels of the token stream."""


def find_sites(vit: nn.Module, kinds: Collection[Kind]) -> tuple[BlockSites, ...]:
    """Find the sites of every block of a ViT and check that modules of the given types can be reached there.

    Args:
        vit: A timm `VisionTransformer` or `Eva`, or anything built of their blocks with a timm `PatchEmbed`.
        kinds: Module types that will be placed.

    Returns:
        One entry for each block, in order.

    Raises:
        SiteError: A site does not exist, is taken, or the model would bypass a module placed there.
    """
    blocks = getattr(vit, "blocks", None)
    if not isinstance(blocks, Sequence | nn.ModuleList | nn.Sequential) or len(blocks) == 0:
        raise SiteError(
            f"{type(vit).__name__} has no list of transformer blocks called `blocks`.",
            hint="Use a timm VisionTransformer or Eva (DINOv2, DINOv3) model.",
        )
    if "frequency" in kinds:
        _check_token_grid(vit)
    return tuple(_check_block(layer, block, kinds) for layer, block in enumerate(blocks))


def _check_block(layer: int, block: Any, kinds: Collection[Kind]) -> BlockSites:
    name = f"blocks.{layer}"
    cls = type(block)
    if getattr(block, "token_grid", None) is not None:
        raise SiteError(f"{name} already carries modules.", hint="Detach, prune or merge the first toolbox.")
    family = _BLOCKS.get((cls.__module__, cls.__qualname__))
    if family is None:
        raise SiteError(
            f"{name} is a {cls.__module__}.{cls.__qualname__}, whose forward is not known.",
            hint="Use a model of timm's plain Block or EvaBlock (ViT, DINOv2, DINOv3).",
        )
    if "spatial" in kinds:
        check_qkv(name, block.attn)
    return BlockSites(layer=layer, block=block, family=family, dim=_norm_dim(name, block.norm2))


def check_qkv(name: str, attn: Any) -> None:
    """Check that an attention computes q, k and v by calling one fused linear layer, or one for each.

    Args:
        name: Name of the block, for the message.
        attn: timm's attention module.

    Raises:
        SiteError: It does not, so that LoRA there would be bypassed.
    """
    cls = type(attn)
    if (cls.__module__, cls.__qualname__) not in _ATTENTIONS:
        raise SiteError(
            f"{name}.attn is a {cls.__module__}.{cls.__qualname__}: it may bypass a module at {name}.attn.qkv.",
            hint="Leave the kind 'spatial' out, or use a model with timm's Attention, AttentionRope or EvaAttention.",
        )
    parts = qkv_layers(attn)
    for part, layer in parts.items():
        if type(layer) is not nn.Linear:
            raise SiteError(
                f"{name}.attn.{part} is {type(layer).__name__}, not nn.Linear.",
                hint="Attach before quantising or wrapping the model.",
            )
    outputs = [layer.out_features for layer in parts.values()]
    if len(set(outputs)) > 1 or (len(parts) == 1 and outputs[0] % 3):
        raise SiteError(
            f"{name}.attn.{', '.join(parts)} has {outputs} outputs: q, k and v are not of one size.",
            hint="Leave the kind 'spatial' out for grouped-query attention.",
        )


def qkv_layers(attn: Any) -> dict[str, Any]:
    """The layers of an attention that LoRA goes to, by name: the fused `qkv`, else `q_proj` and `v_proj`.

    Args:
        attn: timm's attention module.

    Returns:
        Name of the attribute to what is there; None where there is nothing.
    """
    if getattr(attn, "qkv", None) is None and getattr(attn, "q_proj", None) is not None:
        return {"q_proj": attn.q_proj, "v_proj": getattr(attn, "v_proj", None)}
    return {"qkv": getattr(attn, "qkv", None)}


def _check_token_grid(vit: nn.Module) -> None:
    patch_embed = getattr(vit, "patch_embed", None)
    if not hasattr(patch_embed, "dynamic_feat_size") or not hasattr(vit, "num_prefix_tokens"):
        raise SiteError(
            f"{type(vit).__name__} does not tell its token grid, which frequency modules need.",
            hint="Use a model with timm's PatchEmbed, or leave the kind 'frequency' out.",
        )
    patch_drop = getattr(vit, "patch_drop", None)
    if patch_drop is not None and not isinstance(patch_drop, nn.Identity):
        raise SiteError(
            "The model drops patches in training, so that its tokens are no grid.",
            hint="Create it with patch_drop_rate=0, or leave the kind 'frequency' out.",
        )


def _norm_dim(name: str, norm: Any) -> int:
    weight = getattr(norm, "weight", None)
    if weight is None or weight.ndim != 1:
        raise SiteError(f"{name}.norm2 has no weight to tell the number of channels.", hint="Use an affine norm.")
    return int(weight.shape[0])
