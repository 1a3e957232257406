"""From what is known of a foreign model to the contract that the engine runs on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cegate_geo.domain.contract import Contract, TensorForm
from cegate_geo.domain.manifest import Manifest, OutputKind
from cegate_geo.errors import ContractWarning, InputError, ModelError
from cegate_geo.infer.foreign.facts import STATED, Facts, Scaling
from cegate_geo.infer.foreign.graph import GraphInput, read_form, read_input
from cegate_geo.infer.foreign.legend import make_legend

GSD_TOLERANCE = 1.25
"""A model that states one GSD is taken to suit scenes up to this factor off."""
HALO_SHARE = 8
"""The halo is this part of a tile's side where nothing says it."""
EVEN = 0.5
"""A class that is as probable as its absence."""
GRAPH, ASSUMED = "graph", "assumed"
UNDECIDED = "a tile of the scene decides"
DETAILS = ("names", "fit", "input_layout", "tile_shape", "overlap", "unscalable")
"""Facts that end up in other parts of the contract."""
BAND_NAMES = {1: ("gray",), 3: ("red", "green", "blue")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A contract with what it takes to run it."""

    contract: Contract
    input: GraphInput


def settle(
    path: Path, session: Any, facts: Facts, sources: dict[str, str], *, tile_size: int | None, for_use: bool
) -> Settled:
    """The contract of a model that carries no manifest.

    Args:
        path: Weights.
        session: Loaded model.
        facts: What is known.
        sources: Part → where it comes from; completed here.
        tile_size: Side of a tile that the user asks for.
        for_use: Refuse what has to be stated before the model can run; else assume it, to describe the model.

    Raises:
        ModelError: If the graph can't be used, contradicts the facts, or too little is known.
        InputError: If what the user states contradicts the graph.
    """
    given = read_input(path, session, facts, tile_size=tile_size)
    if for_use:
        _require(path, facts, sources, given)
    bands = _bands(path, facts, sources, given)
    form, number_type = read_form(path, session, given, facts, bands=len(bands))
    sources["tensors"] = GRAPH
    output = _output(path, facts, sources, form, number_type)
    heads = [o.name for o in session.get_outputs()]
    legend = make_legend(path, facts, form, head=heads.index(form.output), are_ids=output == "class-map")
    sources.setdefault("classes", ASSUMED)
    dtype = _dtype(facts, sources, given)
    gsd = facts.get("gsd_m")
    sources.setdefault("gsd_m", "not known")
    sources["tile_size"] = _tile_source(sources, given, tile_size)
    manifest = Manifest(
        name=facts.get("name") or path.stem,
        legend=legend,
        bands=bands,
        gsd_m=gsd,
        gsd_range_m=None if gsd is None else (gsd / GSD_TOLERANCE, gsd * GSD_TOLERANCE),
        tile_size=min(form.input_shape),
        halo=_halo(facts, sources, form),
        dtype=dtype,
        output=output,
        threshold=_threshold(path, facts, sources, form, output),
        description=facts.get("description", ""),
        licence=facts.get("licence", ""),
        **_values(path, facts, sources, given, dtype=dtype, bands=len(bands)),
    )
    if for_use:
        _warn(path, facts, sources, manifest)
    for part in DETAILS:
        sources.pop(part, None)
    contract = Contract(manifest=manifest, form=form, sources=sources, scene_bands=facts.get("scene_bands", ()))
    return Settled(contract=contract, input=given)


def _require(path: Path, facts: Facts, sources: Mapping[str, str], given: GraphInput) -> None:
    """A file that nothing describes needs its classes and its scaling stated: guesses would look like results."""
    is_bare = set(sources.values()) <= {STATED}
    missing = []
    if is_bare and "classes" not in sources:
        missing.append("its classes (--classes NAME,NAME)")
    if is_bare and "scaling" not in sources and given.dtype.kind == "f":
        missing.append("how values are scaled (--scale 255 for values / 255, --scale 1 for values as they are)")
    if missing:
        raise ModelError(
            f"{path.name} carries no contract: neither a manifest of cegate-geo, nor keys of Deepness, nor a sidecar "
            f"says {' and '.join(missing)}.",
            hint="State it with these options; --mean, --std, --gsd-m, --dtype and --output-kind state more.",
        )
    if "unscalable" in facts and sources.get("scaling") != STATED:
        raise ModelError(
            f"{facts['unscalable']}.", hint="State the scaling with --scale, --mean and --std (in units after --scale)."
        )


def _bands(path: Path, facts: Facts, sources: dict[str, str], given: GraphInput) -> tuple[str, ...]:
    named, scene = facts.get("bands", ()), facts.get("scene_bands", ())
    count = given.channels or len(named) or len(scene) or 3
    for what, values in (("bands", named), ("scene_bands", scene)):
        if values and len(values) != count:
            raise ModelError(
                f"{path.name} takes {count} bands, but {sources[what]} names {len(values)}: {', '.join(values)}.",
                hint="Correct what stands beside the model, or take the model that belongs to it.",
            )
    if named:
        return named
    sources["bands"] = sources.get("scene_bands") or (f"{GRAPH}: {count}" if given.channels else ASSUMED)
    return BAND_NAMES.get(count, tuple(f"band_{n + 1}" for n in range(count)))


def _output(path: Path, facts: Facts, sources: dict[str, str], form: TensorForm, number_type: str) -> OutputKind:
    """What the output's numbers mean, as far as that can be said before a tile is seen."""
    stated = facts.get("output")
    is_whole = not number_type.startswith(("float", "bfloat"))
    if (is_whole or stated == "class-map") and form.channels != 1:
        raise ModelError(
            f"{path.name} gives {number_type} in {form.channels} channels, which are no class ids.",
            hint="Export it with probabilities as floats, or choose another output with --head.",
        )
    if is_whole:
        sources["output"] = f"{GRAPH}: {number_type}"
        return "class-map"
    if stated is not None:
        return stated
    named = max(len(facts.get("classes", ())), *(len(names) for names in facts.get("names", ({},))))
    if form.channels == 1 and named > 2:
        sources["output"] = f"{GRAPH}: one channel for several classes"
        return "class-map"
    sources["output"] = UNDECIDED
    return "undecided"


def _threshold(path: Path, facts: Facts, sources: dict[str, str], form: TensorForm, output: OutputKind) -> float | None:
    """Least probability for any class but the first; a single channel always needs one."""
    if output == "class-map":
        if sources.pop("threshold", None) == STATED:
            raise InputError(f"{path.name} gives class ids, which have no probability.", hint="Leave out --threshold.")
        return None
    if "threshold" not in facts and form.channels == 1:
        sources["threshold"] = ASSUMED
        return EVEN
    return facts.get("threshold")


def _dtype(facts: Facts, sources: dict[str, str], given: GraphInput) -> Literal["uint8", "uint16", "float32"]:
    if given.dtype.kind == "u":
        sources["dtype"] = GRAPH
        return "uint8" if given.dtype == np.uint8 else "uint16"
    sources.setdefault("dtype", ASSUMED)
    return facts.get("dtype", "uint8")


def _halo(facts: Facts, sources: dict[str, str], form: TensorForm) -> int:
    """Context on each side, beyond what the output lacks at its margin anyway."""
    margin, side = form.margin, min(form.input_shape)
    sources["halo"] = sources.get("overlap", ASSUMED)
    wanted = round(facts["overlap"] * side / 2) if "overlap" in facts else side // HALO_SHARE
    within = form.output_shape if form.fit == "centre" else form.input_shape
    return max(0, min(wanted - max(margin.top, margin.left), (min(within) - 1) // 2))


def _tile_source(sources: Mapping[str, str], given: GraphInput, tile_size: int | None) -> str:
    if not any(given.is_free):
        return GRAPH
    return STATED if tile_size else sources.get("tile_shape", ASSUMED)


def _values(
    path: Path, facts: Facts, sources: dict[str, str], given: GraphInput, *, dtype: str, bands: int
) -> dict[str, Any]:
    """Scaling as the manifest has it."""
    scaling = facts.get("scaling", Scaling())
    if given.dtype.kind == "u":
        if sources.get("scaling") == STATED:
            raise InputError(
                f"{path.name} takes whole numbers ({given.dtype}): its values can't be scaled.",
                hint="Leave out --scale, --mean and --std.",
            )
        sources["scaling"] = GRAPH
        return {"scaling": "none"}
    if not scaling.divisor:
        divisor = {"uint8": 255.0, "float32": 1.0}.get(dtype)
        if divisor is None:
            raise ModelError(
                f"{path.name} is for {dtype} rasters, and nothing says how their values are scaled.",
                hint="State it: --scale 10000 divides by 10000, --scale 1 leaves values as they are.",
            )
        if "scaling" not in sources or sources["scaling"] == STATED:
            sources["scaling"] = f"{sources['scaling']}, / {divisor:g} assumed" if "scaling" in sources else ASSUMED
        scaling = Scaling(divisor=(divisor,), mean=scaling.mean, std=scaling.std, clip=scaling.clip)
    divisor_each, mean, std = (_each(values, bands, path) for values in (scaling.divisor, scaling.mean, scaling.std))
    clip = scaling.clip * (bands if len(scaling.clip) == 1 else 1)
    result: dict[str, Any] = {"clip": clip}
    if len(set(divisor_each)) == 1:
        is_unit = divisor_each[0] != 1
        result |= {"scaling": "unit" if is_unit else "none", "input_maximum": divisor_each[0] if is_unit else 255.0}
        return result | {"mean": mean, "std": std}
    mean, std = mean or (0.0,) * bands, std or (1.0,) * bands
    return result | {
        "scaling": "none",
        "mean": tuple(m * d for m, d in zip(mean, divisor_each, strict=True)),
        "std": tuple(s * d for s, d in zip(std, divisor_each, strict=True)),
    }


def _each(values: tuple[float, ...], bands: int, path: Path) -> tuple[float, ...]:
    """One number for each band; () stays ()."""
    if len(values) not in (0, 1, bands):
        raise ModelError(
            f"{path.name} takes {bands} bands, but its scaling has {len(values)} numbers: {list(values)}.",
            hint="State one for all bands, or one for each: --scale, --mean, --std.",
        )
    return values * bands if len(values) == 1 else values


def _warn(path: Path, facts: Facts, sources: Mapping[str, str], manifest: Manifest) -> None:
    """Say once what had to be assumed and changes the result."""
    assumed = []
    if "assumed" in sources["scaling"]:
        text = f"values / {manifest.input_maximum:g}" if manifest.scaling == "unit" else "values as they are"
        assumed.append(f"{text} (--scale)")
    if sources["classes"] == ASSUMED:
        assumed.append(f"the classes {', '.join(manifest.legend.names)} (--classes)")
    if manifest.gsd_m is None:
        assumed.append("that the scene's ground sampling distance suits it (--gsd-m)")
    notes = [f"{note}." for note in facts.get("notes", ())]
    if assumed:
        notes.insert(0, f"nothing says otherwise, so it is assumed: {'; '.join(assumed)}.")
    if notes:
        warnings.warn(f"{path.name}: {' '.join(notes)}", ContractWarning, stacklevel=2)
