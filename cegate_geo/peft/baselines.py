"""Methods by name: which modules are placed, and how the gate chooses among them.

Baselines use the module types of the toolbox, at their default places and zero starts, so that a comparison differs in
one thing only; Rein and VPT bring their own (`rivals`). `random`, `fixed` and `grad-norm` are the controls that tell
whether Fisher scores matter, or only that fewer parameters are trained.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import nn

from cegate_geo.errors import ConfigError
from cegate_geo.peft.attach import Toolbox, ToolboxConfig, attach
from cegate_geo.peft.gate import Gate, GateConfig, Policy
from cegate_geo.peft.sites import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Method:
    """A way to adapt a frozen backbone."""

    kinds: tuple[Kind, ...]
    """Module types that it places in every block; empty for none. The ToolboxConfig limits those of the toolbox."""
    policy: Policy
    """How its gate chooses."""


METHODS: dict[str, Method] = {
    "gate": Method(KINDS, "fisher"),
    "random": Method(KINDS, "random"),
    "fixed": Method(KINDS, "fixed"),
    "grad-norm": Method(KINDS, "grad-norm"),
    "all": Method(KINDS, "all"),
    "lora": Method(("spatial",), "all"),
    "adaptformer": Method(("semantic",), "all"),
    "earth-adapter": Method(("frequency",), "all"),
    "rein": Method(("rein",), "all"),
    "vpt": Method(("prompt",), "all"),
    "frozen": Method((), "none"),
}
"""All methods by name."""

ELSEWHERE = frozenset({"full"})
"""Methods without modules: training the backbone itself is a matter of `cegate_geo.train`."""


def find_method(name: str) -> Method:
    """Look a method up.

    Args:
        name: One of `METHODS`.

    Returns:
        The method.

    Raises:
        ConfigError: The name is not known, or the method has no modules.
    """
    if name in ELSEWHERE:
        raise ConfigError(f"The method {name!r} has no modules.", hint="Train the backbone without a toolbox.")
    if name not in METHODS:
        raise ConfigError(f"The method {name!r} is not known.", hint=f"Use one of {', '.join(METHODS)}.")
    return METHODS[name]


def build_toolbox(vit: nn.Module, method: str, config: ToolboxConfig | None = None) -> Toolbox:
    """Attach the modules of a method to a ViT.

    Args:
        vit: A timm ViT; frozen in place.
        method: One of `METHODS`.
        config: Sizes of the modules; its `kinds` limit those of the method. Defaults if None.

    Returns:
        The toolbox; empty for `frozen`.

    Raises:
        ConfigError: The method is not known, or `config.kinds` leave it nothing to place.
        SiteError: A module can't be placed.
    """
    config = ToolboxConfig() if config is None else config
    wanted = find_method(method).kinds
    kinds = tuple(kind for kind in wanted if kind in config.kinds or kind not in KINDS)
    if wanted and not kinds:
        raise ConfigError(
            f"The method {method!r} places {', '.join(wanted)}, but kinds={config.kinds!r}.",
            hint="Leave `kinds` at its default.",
        )
    return attach(vit, dataclasses.replace(config, kinds=kinds))


def build_gate(
    toolbox: Toolbox, method: str, config: GateConfig | None = None, *, seed: int = 0, model: nn.Module | None = None
) -> Gate:
    """The gate of a method.

    Args:
        toolbox: As `build_toolbox` gave for the same method.
        method: One of `METHODS`.
        config: Budget and rhythm. Defaults, with the toolbox's `inactive`, if None.
        seed: See `Gate`.
        model: See `Gate`.

    Returns:
        The gate.

    Raises:
        ConfigError: The method is not known, or gate and toolbox disagree on inactive modules.
    """
    config = GateConfig(inactive=toolbox.config.inactive) if config is None else config
    return Gate(toolbox, config, policy=find_method(method).policy, seed=seed, model=model)
