"""A model's contract: everything that the engine must know, inside the ONNX file.

The full manifest is JSON under the metadata key `cegate_geo`. Beside it stand the keys that Deepness and GeoDeep read,
so that the same file runs in both. Each metadata value is a string that is parsed as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cegate_geo.domain.legend import Legend, LegendClass
from cegate_geo.errors import ModelError

METADATA_KEY = "cegate_geo"
SCHEMA_VERSION = 1

InputScaling = Literal["unit", "none"]
OutputKind = Literal["probabilities", "logits", "class-map", "undecided"]
"""'undecided' never stands in a file: a model of another tool that does not say what it gives, before it saw a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a model expects and gives.

    Tensor contract: one input, float32 (N, C, S, S), fed with `dtype` values times `1 / input_maximum` where `scaling`
    is "unit", else with the values as they are, which may be whole numbers; first output: float32 (N, K, S, S).
    Normalisation is part of the graph in our own exports, so `clip`, `mean` and `std` are empty there; how the tensors
    of other tools differ stands in `domain.contract.TensorForm`.
    """

    name: str
    legend: Legend
    bands: tuple[str, ...]
    """Names of the input channels in order, for example ("red", "green", "blue")."""
    gsd_m: float | None
    """Ground sampling distance that the model was trained at, in metres per pixel; None only where a model of another
    tool does not say."""
    gsd_range_m: tuple[float, float] | None
    """Smallest and largest GSD that it saw (multi-scale training included); None together with `gsd_m`."""
    tile_size: int
    """Side S of the input in pixels."""
    halo: int
    """Recommended context on each side of a tile in pixels."""
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Type of the rasters that it was trained on."""
    input_maximum: float = 255.0
    """Raster value that becomes 1.0 where `scaling` is "unit"."""
    scaling: InputScaling = "unit"
    clip: tuple[tuple[float, float], ...] = ()
    """Smallest and largest raster value of each band; what lies beyond is set to them first. Infinite (null in JSON)
    for no limit on one side, empty for none at all."""
    mean: tuple[float, ...] = ()
    """Subtracted from each band after `scaling`, before the division by `std`. Empty for none."""
    std: tuple[float, ...] = ()
    threshold: float | None = None
    """Pixels whose winner is less probable than this become the first class; a model of one class (its graph gives one
    channel) finds it where its probability is this or more. None: the most probable class wins."""
    output: OutputKind = "probabilities"
    size_multiple: int = 1
    """Sides other than `tile_size` must be multiples of it, where the graph's sides are dynamic at all."""
    description: str = ""
    licence: str = ""
    attribution: str = ""
    architecture: str = ""
    """timm name of the backbone, and the head."""
    parameters: int = 0
    """Parameters in the exported graph."""
    modules_kept: tuple[str, ...] = ()
    modules_total: int = 0
    parity: Mapping[str, float] = field(default_factory=dict)
    """Largest absolute difference between eager and ONNX: keys such as "max_abs", "disagreement"."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, version, commit, data, seeds, training statistics: whatever tells how it came to be. JSON values."""

    def __post_init__(self) -> None:
        problems = [
            (not self.bands, f"bands={self.bands} is empty"),
            (len(set(self.bands)) != len(self.bands), f"bands={self.bands} has a name twice"),
            ((self.gsd_m is None) != (self.gsd_range_m is None), "only one of gsd_m and gsd_range_m is known"),
            (self.gsd_m is not None and not 0 < self.gsd_m < math.inf, f"gsd_m={self.gsd_m} is not positive"),
            (not _is_range(self.gsd_range_m), f"gsd_range_m={self.gsd_range_m} is no range"),
            (self.tile_size < 1, f"tile_size={self.tile_size} is not positive"),
            (not 0 <= 2 * self.halo < max(self.tile_size, 1), f"halo={self.halo} leaves no core in {self.tile_size}"),
            (self.input_maximum <= 0, f"input_maximum={self.input_maximum} is not positive"),
            (self.size_multiple < 1, f"size_multiple={self.size_multiple} is not positive"),
            *(
                (
                    len(values) not in (0, len(self.bands)),
                    f"{name} has {len(values)} entries for {len(self.bands)} bands",
                )
                for name, values in (("clip", self.clip), ("mean", self.mean), ("std", self.std))
            ),
            (any(not low < high for low, high in self.clip), f"clip={self.clip} holds no ranges"),
            (not all(map(math.isfinite, self.mean)), f"mean={self.mean} holds something that is no number"),
            (not all(0 < value < math.inf for value in self.std), f"std={self.std} is not positive"),
            (
                self.threshold is not None and not 0 <= self.threshold <= 1,
                f"threshold={self.threshold} is no probability",
            ),
        ]
        for wrong, message in problems:
            if wrong:
                raise ModelError(f"The manifest of {self.name!r} is not usable: {message}.", hint="Export it again.")

    @property
    def is_portable(self) -> bool:
        """Whether the graph takes values in 0-1 units as they are, and gives probabilities: as our own exports do."""
        return self.scaling == "unit" and self.output == "probabilities" and not (self.mean or self.std or self.clip)

    def require_portable(self, what: str) -> None:
        """Refuse to describe the model in a form that knows no other contract.

        Args:
            what: The form, as in "a definition".

        Raises:
            ModelError: If the model takes values that are scaled otherwise, or gives no probabilities.
        """
        if not self.is_portable:
            raise ModelError(
                f"The manifest says scaling={self.scaling!r}, output={self.output!r}.",
                hint=f"Only models that cegate-geo exported get {what}.",
            )

    def to_json(self) -> str:
        """The manifest as one JSON object. Law: `from_json(m.to_json()) == m`."""
        table: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        table["legend"] = [{"id": c.id, "name": c.name, "color": list(c.color)} for c in self.legend]
        table["clip"] = [[limit if math.isfinite(limit) else None for limit in limits] for limits in self.clip]
        table["parity"], table["provenance"] = dict(self.parity), dict(self.provenance)
        return json.dumps({"schema": SCHEMA_VERSION, **table}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            ModelError: If it is no JSON, of a newer schema, or lacks a field.
        """
        try:
            table = json.loads(text)
            schema = table.pop("schema")
            if schema > SCHEMA_VERSION:
                raise ModelError(
                    f"The manifest has schema {schema}, this version reads up to {SCHEMA_VERSION}.",
                    hint="Upgrade cegate-geo.",
                )
            table["legend"] = Legend(
                tuple(LegendClass(id=c["id"], name=c["name"], color=tuple(c["color"])) for c in table["legend"])
            )
            for key in ("bands", "gsd_range_m", "modules_kept", "mean", "std"):
                if table.get(key) is not None:
                    table[key] = tuple(table[key])
            table["clip"] = tuple(
                (-math.inf if low is None else low, math.inf if high is None else high)
                for low, high in table.get("clip", ())
            )
            return cls(**table)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The manifest can't be read: {error!r}.", hint="Export the model again, or pass options that state it."
            ) from error

    def to_metadata(self) -> dict[str, str]:
        """All metadata entries for the ONNX file: our own key, and those of Deepness and GeoDeep if they can run it.

        Both feed values in 0-1 units, and expect consecutive class ids, so their `class_names` holds channel numbers.
        """
        if self.scaling != "unit":
            return {METADATA_KEY: self.to_json()}
        shared: dict[str, Any] = {
            "model_type": "Segmentor",
            "class_names": {str(n): c.name for n, c in enumerate(self.legend)},
            **({} if self.gsd_m is None else {"resolution": round(self.gsd_m * 100, 4)}),
            "tile_size": self.tile_size,
            "tiles_size": self.tile_size,
            "tiles_overlap": round(100 * 2 * self.halo / self.tile_size),
            "seg_thresh": 0.0,
            "seg_small_segment": 0,
            **self._standardisation(),
        }
        return {METADATA_KEY: self.to_json(), **{key: json.dumps(value) for key, value in shared.items()}}

    def _standardisation(self) -> dict[str, list[float]]:
        """What makes a division by `input_maximum` of the one by 255 that Deepness begins with."""
        if self.scaling != "unit" or self.input_maximum == 255:
            return {}
        count = len(self.bands)
        return {"standardization_mean": [0.0] * count, "standardization_std": [self.input_maximum / 255] * count}


def _is_range(limits: tuple[float, float] | None) -> bool:
    return limits is None or 0 < limits[0] <= limits[1]
