"""Leave in a trained model only what is needed: remove modules for good, fold LoRA into the base weights.

Pruning to the modules that were ever active does not change the output when inactive modules are frozen: the others
are still at their zero start. Pruning further does, and pays in accuracy for speed. With `inactive="bypass"` the output
of training is that of the last active set.
"""

from __future__ import annotations

from collections.abc import Collection

from cegate_geo.errors import InputError
from cegate_geo.peft.attach import Toolbox
from cegate_geo.peft.blocks import fold
from cegate_geo.peft.modules import SpatialModule
from cegate_geo.peft.sites import ModuleKey


def prune(toolbox: Toolbox, keep: Collection[ModuleKey]) -> tuple[ModuleKey, ...]:
    """Remove all modules outside the keep set for good; the module tree and state dict keep no trace of them.

    Args:
        toolbox: Modules of one ViT; changed in place.
        keep: Keep set: `gate.ever_active`, `gate.active`, or any set of keys of the toolbox. Modules in it take part
            in the forward pass again if they were bypassed.

    Returns:
        Keys of the removed modules, ordered.

    Raises:
        InputError: A key of the keep set is not in the toolbox.
    """
    if unknown := sorted(set(keep) - set(toolbox.keys)):
        raise InputError(
            f"{len(unknown)} modules to keep are not in the toolbox: {', '.join(map(str, unknown[:3]))}.",
            hint="Take it from the gate of this toolbox: gate.ever_active or gate.active.",
        )
    removed = tuple(key for key in toolbox.keys if key not in set(keep))
    toolbox.remove(removed)
    for module in toolbox.modules.values():
        module.is_bypassed = False
    return removed


def merge(toolbox: Toolbox) -> tuple[ModuleKey, ...]:
    """Fold every spatial module into its qkv weights, which are those of a plain `nn.Linear` again afterwards.

    The sum is taken in float64 and rounded once to the weight's dtype. The base weights change for good: `detach` does
    not bring them back.

    Args:
        toolbox: Modules of one ViT; changed in place, merged modules are removed from it.

    Returns:
        Keys of the merged modules, ordered.

    Raises:
        InputError: A spatial module is bypassed: merging it would change the output.
    """
    merged = tuple(key for key, module in toolbox.modules.items() if isinstance(module, SpatialModule))
    bypassed = [key for key in merged if toolbox.modules[key].is_bypassed]
    if bypassed:
        raise InputError(
            f"{len(bypassed)} spatial modules are bypassed: {', '.join(map(str, bypassed[:3]))}.",
            hint="Prune to the active modules first: prune(toolbox, gate.active).",
        )
    for key in merged:
        module = toolbox.modules[key]
        if isinstance(module, SpatialModule):
            fold(toolbox.vit.get_submodule(f"blocks.{key.layer}"), module)
    toolbox.remove(merged)
    return merged
