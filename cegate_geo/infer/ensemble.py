"""Several models in one pass: each tile is read and cut once, shown to all of them, and their probabilities averaged.

The mean is taken after each model's own softmax, sigmoid or vote, and over its own views of a tile (`infer.tta`), with
equal weights. Models are run and summed in the order of their files' digests, so that the order in which they are named
changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Contract, Margin, StatedContract
from cegate_geo.domain.joint import NAME_SEPARATOR, joint_manifest, require_same
from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import InputError, ModelError
from cegate_geo.infer.class_rule import ClassRule
from cegate_geo.infer.footprint import Footprint
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.predictor import Predictor, SessionOptions, file_sha256
from cegate_geo.infer.tile_sides import tile_sides

SAME_SIZE = "Where their graphs leave the size free, --tile-size N states one for all; else export them alike."


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Several loaded models whose probabilities are averaged; what the engine asks of a `Predictor`."""

    members: tuple[Predictor, ...]
    """In the order of `digests`."""
    digests: tuple[str, ...]
    """SHA-256 of each file of weights, in hexadecimal, in alphabetical order."""
    given: tuple[str, ...]
    """How the user named each."""
    contract: Contract
    """What all of them agree on."""
    sides: tuple[int | None, int | None]
    """(height, width) of the input that a graph fixes; None where all leave it free."""
    footprint: Footprint
    """Of all of them; they share it."""

    @classmethod
    def of(cls, models: Sequence[tuple[str, Predictor]], *, tile_size: int | None = None) -> Ensemble:
        """Put models together.

        Args:
            models: How the user named each, and the loaded model; two at least. The first gives the classes' colours.
            tile_size: Side of a tile that the user asks for, in pixels.

        Raises:
            InputError: If the same weights are named twice.
            ModelError: If two models contradict each other, with both values.
        """
        found = sorted(((file_sha256(model.path), name, model) for name, model in models), key=itemgetter(0))
        for (digest, first, _), (other, second, _) in pairwise(found):
            if digest == other:
                raise InputError(
                    f"{first} and {second} are the same model, which would count twice.", hint="Leave one of them out."
                )
        footprint = models[0][1].footprint
        members = tuple(replace(model, footprint=footprint) for *_, model in found)
        return cls(
            members=members,
            digests=tuple(digest for digest, *_ in found),
            given=tuple(name for _, name, _ in found),
            contract=_joint_contract(members, colours=models[0][1].manifest, tile_size=tile_size),
            sides=_joint_sides(members),
            footprint=footprint,
        )

    @property
    def manifest(self) -> Manifest:
        """What they expect and give together."""
        return self.contract.manifest

    @property
    def rule(self) -> ClassRule:
        """How a pixel's class is chosen."""
        return self.members[0].rule

    @property
    def margin(self) -> Margin:
        """Pixels of an input, on each side, for which they give nothing."""
        return self.members[0].margin

    @property
    def input_type(self) -> np.dtype[np.generic]:
        """What their inputs are made of."""
        return self.members[0].input_type

    @property
    def batch(self) -> int | None:
        """Fixed batch size, of which none is asked to take more; None where it is free."""
        return min((member.batch for member in self.members if member.batch is not None), default=None)

    @property
    def default_batch(self) -> int:
        """Tiles in a session call, where neither graph nor user say it."""
        return min(member.default_batch for member in self.members)

    @property
    def provider(self) -> str:
        """What really runs, by our name; one each where they differ."""
        return _one_or_each([member.provider for member in self.members])

    @property
    def computed_on(self) -> str:
        """The same with the precision."""
        return _one_or_each([member.computed_on for member in self.members])

    @property
    def reason(self) -> str:
        """Why they run as they do, in some words."""
        reasons = [member.reason for member in self.members]
        if len(set(reasons)) == 1:
            return reasons[0]
        return "; ".join(f"{m.path.name}: {m.reason}" for m in self.members)

    @property
    def is_proven(self) -> bool:
        """Whether each is, or agrees with, the CPU in float32."""
        return all(member.is_proven for member in self.members)

    @property
    def session_bytes(self) -> int:
        """Memory of all sessions."""
        return self.footprint.session_bytes(sum(member.weight_bytes for member in self.members))

    def look_at_memory(self, shape: tuple[int, ...]) -> None:
        """See what all sessions take, with what they need within a call on inputs of `shape` (N, C, H, W); once."""
        self.footprint.look(self.members, shape)

    def tile_shape(self, shape: tuple[int, int], *, asked: int | None) -> tuple[int, int]:
        """Height and width of the tiles that they give for a scene of `shape`; as of one model.

        Raises:
            ModelError: If they take no tiles of the size that is asked for.
        """
        height, width = tile_sides(
            shape,
            asked=asked,
            fixed=self.sides,
            manifest=self.manifest,
            tta=self.members[0].options.tta,
            name=NAME_SEPARATOR.join(member.path.name for member in self.members),
        )
        margin = self.margin
        return height - margin.top - margin.bottom, width - margin.left - margin.right

    def run(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Mean over the models of their probabilities (N, K, H, W) float32 for inputs (N, C, H, W).

        Raises:
            ModelError: If one of them fails.
        """
        total = self.members[0].run(inputs).astype(np.float32)  # a copy: it is added to
        for member in self.members[1:]:
            total += member.run(inputs)
        total /= np.float32(len(self.members))
        return total

    def decided(self, inputs: npt.NDArray[np.generic]) -> Ensemble:
        """The models with what their outputs mean, by what they give for a real tile (1, C, H, W)."""
        members = tuple(m.decided(inputs) if m.manifest.output == "undecided" else m for m in self.members)
        contract = replace(self.contract, manifest=replace(self.manifest, output="probabilities"))
        return replace(self, members=members, contract=contract)

    def proven(self, inputs: npt.NDArray[np.generic]) -> Ensemble:
        """The models on providers that give what the CPU gives in float32, tried on a real tile (1, C, H, W)."""
        return replace(self, members=tuple(member.proven(inputs) for member in self.members))

    def preferring(self, label: str) -> Ensemble:
        """The models with what `computed_on` said before all else; as they are where that is not here."""
        labels = label.split(NAME_SEPARATOR)
        if len(labels) == 1:
            labels *= len(self.members)
        if len(labels) != len(self.members):
            return self
        members = tuple(m.preferring(label) for m, label in zip(self.members, labels, strict=True))
        return replace(self, members=members)


AnyPredictor = Predictor | Ensemble
"""One model, or several as one."""


def load_models(
    paths: Sequence[Path],
    options: SessionOptions | None = None,
    *,
    stated: StatedContract | None = None,
    tile_size: int | None = None,
) -> AnyPredictor:
    """Load the model of a run, or several as one; arguments and errors are those of `load_predictor`."""
    loaded = [(str(path), load_predictor(path, options, stated=stated, tile_size=tile_size)) for path in paths]
    return loaded[0][1] if len(loaded) == 1 else Ensemble.of(loaded, tile_size=tile_size)


def members_of(model: AnyPredictor) -> tuple[Predictor, ...]:
    """The models that a run takes."""
    return model.members if isinstance(model, Ensemble) else (model,)


def models_sha256(model: AnyPredictor) -> str:
    """SHA-256 of the weights, in hexadecimal; of several, each in alphabetical order with ' + ' between."""
    return NAME_SEPARATOR.join(model.digests) if isinstance(model, Ensemble) else file_sha256(model.path)


def models_given(model: AnyPredictor, paths: Sequence[Path]) -> str:
    """How the user named the model; of several, each, in the order of `models_sha256`."""
    return NAME_SEPARATOR.join(model.given) if isinstance(model, Ensemble) else str(paths[0])


def _joint_contract(members: Sequence[Predictor], *, colours: Manifest, tile_size: int | None) -> Contract:
    """What all models agree on.

    Raises:
        ModelError: If two contradict each other.
    """
    named = [(member.path.name, member) for member in members]
    require_same(named, "an input of", lambda m: str(m.input_type))
    require_same(named, "margins without a result of", lambda m: _margin_text(m.margin))
    require_same(named, "the scene's bands", lambda m: ", ".join(m.contract.scene_bands) or "by name")
    manifest = joint_manifest(
        [(name, member.manifest) for name, member in named], tile_size=_joint_tile_size(members, asked=tile_size)
    )
    if manifest.threshold is not None:  # it means something else there
        require_same(named, "its classes in", lambda m: "one channel" if m.rule.is_single else "a channel each")
    return Contract(manifest=replace(manifest, legend=colours.legend), scene_bands=members[0].contract.scene_bands)


def _joint_sides(members: Sequence[Predictor]) -> tuple[int | None, int | None]:
    """What any graph fixes, all have to take."""
    height, width = (_joint_side(members, axis) for axis in (0, 1))
    return height, width


def _joint_side(members: Sequence[Predictor], axis: int) -> int | None:
    fixed = [(member.path.name, member.sides[axis]) for member in members if member.sides[axis] is not None]
    if not fixed:
        return None
    require_same(fixed, "tiles of", lambda side: f"{side} px", hint=SAME_SIZE)
    name, side = fixed[0]
    for member in members:
        multiple = member.manifest.size_multiple
        if member.sides[axis] is None and side is not None and side % multiple:
            raise ModelError(
                f"These models can't be averaged: {name} has tiles of {side} px, {member.path.name} of a multiple of "
                f"{multiple} px.",
                hint="Export them alike.",
            )
    return side


def _joint_tile_size(members: Sequence[Predictor], *, asked: int | None) -> int:
    """The side of a tile that all take, where nobody asks for another."""
    fixed = [side for side in _joint_sides(members) if side is not None]
    if fixed:
        return min(fixed)
    named = [(member.path.name, member.manifest.tile_size) for member in members]
    if asked is None:
        require_same(named, "tiles of", lambda size: f"{size} px", hint=SAME_SIZE)
    return max(size for _, size in named)


def _margin_text(margin: Margin) -> str:
    return f"{margin.top}, {margin.bottom}, {margin.left}, {margin.right} px (top, bottom, left, right)"


def _one_or_each(words: Sequence[str]) -> str:
    return words[0] if len(set(words)) == 1 else NAME_SEPARATOR.join(words)
