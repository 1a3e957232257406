"""A loaded model: tiles in, probabilities out, on a provider that was compared with the CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cegate_geo.domain.contract import Contract, Margin
from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import ContractWarning, ModelError, ProviderWarning
from cegate_geo.infer.class_rule import ClassRule
from cegate_geo.infer.footprint import SMALL_SESSION, Footprint
from cegate_geo.infer.foreign.decide import kind_of
from cegate_geo.infer.outputs import as_probabilities, channels_first, softmax
from cegate_geo.infer.parity import Parity
from cegate_geo.infer.providers import ACCELERATORS, Candidate, is_out_of_memory, open_session
from cegate_geo.infer.tile_sides import tile_sides
from cegate_geo.infer.tta import TtaMode, mean_of_views

GPU_BATCH = 8
"""Tiles in a session call on an accelerator, where nothing is said; a CPU gains nothing from more than one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a session is to run."""

    provider: str = "auto"
    """'auto', or a key of `providers.RUNTIME_NAMES`."""
    require_gpu: bool = False
    threads: int = 0
    """Threads within the session; 0 for all usable cores."""
    tta: TtaMode = "none"
    """Which views of a tile are averaged."""


@dataclass(slots=True)
class BatchLimit:
    """The most tiles that a session's memory took so far."""

    tiles: int | None = None
    """None: nothing has failed yet."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """A loaded model.

    Not thread-safe by promise, though onnxruntime's sessions are.
    """

    path: Path
    """The weights; once they are loaded, nobody needs the file any more."""
    contract: Contract
    provider: str
    """What really runs, by our name."""
    sides: tuple[int | None, int | None]
    """Fixed (height, width) of the input; None where it is free."""
    batch: int | None
    """Fixed batch size; None where it is free."""
    input_type: np.dtype[np.generic]
    session: Any = field(repr=False)
    file_bytes: int = 0
    """Size of the weights."""
    options: SessionOptions = field(default_factory=SessionOptions)
    way: Candidate = field(default_factory=lambda: Candidate(provider="cpu"))
    """How it runs."""
    reference: Any = field(default=None, repr=False)
    """The same on the CPU in float32, until `proven`; None where nothing is left to prove."""
    others: tuple[Candidate, ...] = ()
    """What else may be tried, best first."""
    reason: str = ""
    """Why it runs as it does, in some words."""
    limit: BatchLimit = field(default_factory=BatchLimit, repr=False)
    footprint: Footprint = field(default_factory=Footprint, repr=False)

    @property
    def session_bytes(self) -> int:
        """Memory of sessions: as it was seen, else by the size of the weights, which a session holds about twice."""
        return self.footprint.session_bytes(self.weight_bytes)

    @property
    def weight_bytes(self) -> int:
        """Memory of sessions by the size of the weights alone."""
        return 2 * self.file_bytes + SMALL_SESSION

    @property
    def computed_on(self) -> str:
        """What runs, in which precision: the label of its `way`."""
        return self.way.label

    @property
    def rule(self) -> ClassRule:
        """How a pixel's class is chosen."""
        return ClassRule.of(self.contract)

    def look_at_memory(self, shape: tuple[int, ...]) -> None:
        """See what sessions take, with what they need within a call on inputs of `shape` (N, C, H, W); once."""
        self.footprint.look([self], shape)

    @property
    def is_proven(self) -> bool:
        """Whether it is, or agrees with, the CPU in float32."""
        return self.reference is None or self.reference is self.session

    @property
    def default_batch(self) -> int:
        """Tiles in a session call, where neither graph nor user say it."""
        return GPU_BATCH if self.provider in ACCELERATORS else 1

    @property
    def manifest(self) -> Manifest:
        """What it expects and gives."""
        return self.contract.manifest

    @property
    def margin(self) -> Margin:
        """Pixels of an input, on each side, for which it gives nothing."""
        return self.contract.form.margin if self.contract.form else Margin()

    def tile_shape(self, shape: tuple[int, int], *, asked: int | None) -> tuple[int, int]:
        """Height and width of the tiles that it gives for a scene of `shape`, without `margin`.

        Fixed by the graph, or the manifest's, or what was asked for. Where a graph leaves its sides free, a tile is no
        larger than the scene: then nothing has to be made up.

        Raises:
            ModelError: If it takes no tiles of the size that is asked for.
        """
        margin = self.margin
        height, width = tile_sides(
            shape, asked=asked, fixed=self.sides, manifest=self.manifest, tta=self.options.tta, name=self.path.name
        )
        return height - margin.top - margin.bottom, width - margin.left - margin.right

    def run(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Probabilities (N, K, H, W) float32 for inputs (N, C, H, W); without `margin`, where the model has one.

        Where `options.tta` says so, the mean over views of the tiles.

        Raises:
            ModelError: If the model fails, gives another shape than its contract says, or something that is no number.
        """
        if self.options.tta == "none":
            return self._within_memory(inputs)
        return mean_of_views(self._within_memory, inputs, mode=self.options.tta, margin=self.margin)

    def _within_memory(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """The same of one view, in as many calls as the device's memory asks for."""
        size = self.limit.tiles or len(inputs)
        if len(inputs) <= size:
            try:
                return self._probabilities(inputs)
            except ModelError as error:
                cause = error.__cause__
                if len(inputs) == 1 or self.batch is not None or cause is None or not is_out_of_memory(cause):
                    raise
            self.limit.tiles = size = (len(inputs) + 1) // 2
            warnings.warn(
                f"{len(inputs)} tiles at once are too much for the memory of {self.provider}; {size} are tried. "
                f"--batch-size {size} says it at once.",
                ProviderWarning,
                stacklevel=2,
            )
        parts = [self._within_memory(inputs[n : n + size]) for n in range(0, len(inputs), size)]
        return np.concatenate(parts)

    def _probabilities(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """The same in one call."""
        raw, form = self.call(inputs), self.contract.form
        if form is not None:
            probabilities = as_probabilities(raw, self.manifest.output, form, self.manifest.legend)
        else:
            probabilities = raw.astype(np.float32, copy=False)
            if self.manifest.output == "logits":
                probabilities = softmax(probabilities)
        if not np.isfinite(probabilities.sum(dtype=np.float64)):
            raise ModelError(
                f"{self.path.name} gave values that are no numbers (NaN or infinite).",
                hint="Check that the scene's values are what the model was trained on, and that the export's parity "
                "report is good.",
            )
        return probabilities

    def decided(self, inputs: npt.NDArray[np.generic]) -> Predictor:
        """This model with what its output means, by what it gives for a real tile (1, C, H, W); says so.

        Raises:
            ModelError: If the model fails, or what it gives has to be stated.
        """
        raw = self.call(inputs)
        kind = kind_of(raw, name=self.path.name)
        warnings.warn(
            f"{self.path.name} does not say whether it gives probabilities or logits. In one tile of the scene it gave "
            f"{float(raw.min()):.3g} to {float(raw.max()):.3g}, so they are taken as {kind}; --output-kind states it.",
            ContractWarning,
            stacklevel=2,
        )
        contract = dataclasses.replace(self.contract, manifest=dataclasses.replace(self.manifest, output=kind))
        return dataclasses.replace(self, contract=contract)

    def proven(self, inputs: npt.NDArray[np.generic]) -> Predictor:
        """This model on a provider that gives what the CPU gives in float32, tried on a real tile (1, C, H, W).

        With `--provider auto` the next best is tried where one does not; one that was asked for by name is used all the
        same, with a warning, unless it has a second way of its own.

        Raises:
            ModelError: If `--require-gpu` leaves nothing that could be used.
        """
        if self.is_proven:
            return self
        plain = dataclasses.replace(self.options, tta="none")
        oracle = dataclasses.replace(self, session=self.reference, options=plain, limit=BatchLimit())
        expected = oracle.run(inputs)
        trial, problem = self, ""
        while trial.session is not self.reference:
            try:
                found = dataclasses.replace(trial, options=plain).run(inputs)
            except ModelError as error:
                problem, parity = f"it failed ({_first_line(error.__cause__ or error)})", None
            else:
                parity = Parity.between(found, expected)
                problem = f"{parity} from CPU float32"
                if parity.is_good:
                    return dataclasses.replace(trial, reference=None, reason=f"{trial.reason}; {problem}")
            is_named = self.options.provider != "auto"
            if not trial.others and is_named and parity is not None:
                _warn(f"{trial.way.label} is used as asked, although {problem}: compare with --provider cpu.")
                return dataclasses.replace(trial, reference=None, reason=f"{trial.reason}; {problem}")
            if not trial.others:
                raise ModelError(
                    f"{trial.way.label} can't be used for {self.path.name}: {problem}.", hint="Use --provider cpu."
                )
            _warn(f"{trial.way.label} is not used: {problem}.")
            trial = trial.on(trial.others, reason=f"{trial.way.label} is not used: {problem}")
        return dataclasses.replace(trial, reference=None)

    def preferring(self, label: str) -> Predictor:
        """This model with the way of that `Candidate.label` before all others; as it is where that is not here."""
        wanted = next((way for way in self.others if way.label == label), None)
        if wanted is None or self.reference is None or self.way.label == label:
            return self
        rest = tuple(way for way in (self.way, *self.others) if way is not wanted)
        return self.on((wanted, *rest), reason="finished shards were computed on it")

    def on(self, ways: tuple[Candidate, ...], *, reason: str = "") -> Predictor:
        """This model with the first of `ways` that can be opened; says which could not.

        Raises:
            ModelError: If none can.
        """
        first, *rest = ways
        try:
            session = guarded(
                self.path,
                lambda: open_session(self.path, first, threads=self.options.threads, reference=self.reference),
            )
        except ModelError as error:
            if not rest:
                raise
            _warn(f"{first.label} could not be used: {error.message}")
            return self.on(tuple(rest), reason=f"{first.label} could not be used")
        why = "as asked" if self.options.provider != "auto" else "the best that is here"
        return dataclasses.replace(
            self,
            session=session,
            way=first,
            provider=first.provider,
            others=tuple(rest),
            reason=reason or why,
            limit=BatchLimit(),
        )

    def call(self, inputs: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        """What the graph gives, (N, C, h, w)."""
        count, form = len(inputs), self.contract.form
        if self.batch is not None and count < self.batch:
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], self.batch - count, axis=0)])
        fed = inputs.transpose(0, 2, 3, 1) if form and form.input_layout == "NHWC" else inputs
        output = form.output if form else self.session.get_outputs()[0].name
        try:
            (raw,) = self.session.run([output], {self.session.get_inputs()[0].name: np.ascontiguousarray(fed)})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(
                f"{self.path.name} failed on an input of shape {fed.shape}: {_first_line(error)}.",
                hint="Try a smaller --batch-size, or export the model again.",
            ) from error
        maps = channels_first(raw, form) if form else raw
        sides = form.output_shape if form else inputs.shape[2:]
        expected = (len(inputs), form.channels if form else len(self.manifest.legend), *sides)
        if maps.shape != expected:
            raise ModelError(
                f"{self.path.name} gave an output of shape {maps.shape}, its contract promises {expected}.",
                hint="Export the model again.",
            )
        return maps[:count]


def guarded(path: Path, load: Callable[[], Any]) -> Any:
    """What `load` makes of a model file; whatever fails in it is told as ours.

    Raises:
        ModelError: If there is no such file, or it can't be loaded.
    """
    if not path.is_file():
        raise ModelError(f"There is no model file {path}.", hint="Check the path given with --model.")
    try:
        return load()
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ModelError(
            f"onnxruntime can't load {path.name}: {_first_line(error)}.",
            hint="Check that it is a complete ONNX file, and that this onnxruntime is new enough for its opset.",
        ) from error


def _warn(text: str) -> None:
    warnings.warn(text, ProviderWarning, stacklevel=3)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else repr(error)).rstrip(".")
