"""One decision of the gate, and the rules by which scores become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cegate_geo.peft.sites import Kind, ModuleKey

Quota = Literal["global", "type"]
"""How the budget is shared. global: the highest scores of all modules (arXiv 2511.20302). type: each module type gets
the same number of places, see `select_by_type`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """One decision of the gate."""

    step: int
    """Training step before which it was made."""
    active: tuple[ModuleKey, ...]
    """Modules that are trained from now on, ordered by key."""
    scores: Mapping[ModuleKey, float] = field(default_factory=dict)
    """Scores that it was made by, normalised and, with a memory, averaged; empty where the policy measures nothing."""
    raw_scores: Mapping[ModuleKey, float] = field(default_factory=dict)
    """Scores as they were measured for this decision alone, before normalisation."""

    def to_json(self) -> dict[str, Any]:
        """The selection as numbers, strings, lists and dictionaries."""
        return {
            "step": self.step,
            "active": [str(key) for key in self.active],
            "scores": {str(key): score for key, score in self.scores.items()},
            "raw": {str(key): score for key, score in self.raw_scores.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selection:
        """Read back what `to_json` gave.

        Args:
            data: `step`, `active`, `scores`, `raw`.

        Returns:
            The selection.

        Raises:
            InputError: A name is no module's.
        """
        return cls(
            step=int(data["step"]),
            active=tuple(ModuleKey.parse(name) for name in data["active"]),
            scores={ModuleKey.parse(name): float(score) for name, score in data["scores"].items()},
            raw_scores={ModuleKey.parse(name): float(score) for name, score in data["raw"].items()},
        )


def select(scores: Mapping[ModuleKey, float], count: int) -> tuple[ModuleKey, ...]:
    """The modules with the highest scores over all layers and types; ties go to the lower key.

    Args:
        scores: Score of each module.
        count: How many, 0 to the number of scores.

    Returns:
        Their keys, ordered by key.
    """
    ranked = sorted(scores, key=lambda key: (-scores[key], key))
    return tuple(sorted(ranked[:count]))


def select_by_type(scores: Mapping[ModuleKey, float], count: int) -> tuple[ModuleKey, ...]:
    """As `select`, with the places split evenly over the module types.

    Each type in turn gets a place for its best module that has none yet. Where fewer places are left than types, those
    best modules compete by score; a type that has no module left leaves its places to the others.

    Args:
        scores: Score of each module.
        count: How many, 0 to the number of scores.

    Returns:
        Their keys, ordered by key.
    """
    ranked: dict[Kind, list[ModuleKey]] = {}
    for key in sorted(scores, key=lambda key: (-scores[key], key)):
        ranked.setdefault(key.kind, []).append(key)
    chosen: list[ModuleKey] = []
    turn = 0
    while len(chosen) < min(count, len(scores)):
        best = {keys[turn]: scores[keys[turn]] for keys in ranked.values() if turn < len(keys)}
        chosen += select(best, count - len(chosen))
        turn += 1
    return tuple(sorted(chosen))


def blend(old: Mapping[ModuleKey, float], new: Mapping[ModuleKey, float], memory: float) -> dict[ModuleKey, float]:
    """Exponential mean of scores: `memory` of the old ones, the rest of the new ones.

    Args:
        old: Means so far, of all modules in `new`; empty before the first scores.
        new: Scores to take in.
        memory: Share of the old ones, 0 to less than 1.

    Returns:
        The means; `new` itself where nothing is remembered.
    """
    if not old or not memory:
        return dict(new)
    return {key: memory * old[key] + (1 - memory) * score for key, score in new.items()}
