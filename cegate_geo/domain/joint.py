"""One contract for several models whose probabilities are averaged, or why there is none.

They see the same tiles of one scene, so what decides what a tile is has to agree: bands, how values are scaled, the
ground that a pixel covers, the size of a tile. And what they say of it has to mean the same: the classes, in the same
order, and the rule that chooses one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from cegate_geo.domain.legend import Legend
from cegate_geo.domain.manifest import Manifest
from cegate_geo.errors import ModelError

NAME_SEPARATOR = " + "
GSD_TOLERANCE = 1.001
"""Up to this factor beyond another model's range a GSD counts as within: numbers in files are rounded."""
ALONE = "Run each on its own, or take models that were made alike."

Named = tuple[str, Manifest]
"""How a model is called in errors, and its manifest."""


def joint_manifest(models: Sequence[Named], *, tile_size: int) -> Manifest:
    """The contract of the mean of several models.

    Colours are those of the first. The halo is the largest that any asks for, the range of metres per pixel the one
    that all share, the GSD their geometric mean; where a model says nothing of it, that of the others.

    Args:
        models: Two at least.
        tile_size: Side of the tiles that all of them take, in pixels.

    Raises:
        ModelError: If two contradict each other, with both values.
    """
    manifests = [manifest for _, manifest in models]
    first = manifests[0]
    require_same(models, "the classes", lambda m: _classes(m.legend))
    require_same(models, "the bands", lambda m: ", ".join(m.bands))
    require_same(models, "values", scaling_text)
    require_same(models, "a threshold of", lambda m: "none" if m.threshold is None else f"{m.threshold:g}")
    gsd_m, gsd_range_m = _joint_gsd(models)
    halo = max(manifest.halo for manifest in manifests)
    if 2 * halo >= tile_size:
        name = next(name for name, manifest in models if manifest.halo == halo)
        raise ModelError(
            f"These models can't be averaged: {name} asks for {halo} px of context on each side, which leaves nothing "
            f"of the tiles of {tile_size} px that all of them take.",
            hint=ALONE,
        )
    return replace(
        first,
        name=NAME_SEPARATOR.join(manifest.name for manifest in manifests),
        gsd_m=gsd_m,
        gsd_range_m=gsd_range_m,
        tile_size=tile_size,
        halo=halo,
        output="undecided" if any(m.output == "undecided" for m in manifests) else "probabilities",
        size_multiple=math.lcm(*(manifest.size_multiple for manifest in manifests)),
        description=f"Mean of the probabilities of {len(manifests)} models.",
        licence=_each_once(m.licence for m in manifests),
        attribution=_each_once(m.attribution for m in manifests),
        architecture=_each_once(m.architecture for m in manifests),
        parameters=sum(m.parameters for m in manifests),
        modules_kept=(),
        modules_total=0,
        parity={},
        provenance={},
    )


def require_same(
    models: Sequence[tuple[str, Any]], what: str, of: Callable[[Any], object], *, hint: str = ALONE
) -> None:
    """Refuse models of which one has something else than the first.

    Args:
        models: How each is called, and what `of` takes.
        what: What has to be the same; the sentence is "FILE has WHAT VALUE, FILE VALUE".
        of: Gives it, as people read it.
        hint: What to do.

    Raises:
        ModelError: Which two, with both values.
    """
    name, given = models[0]
    value = of(given)
    for other_name, other in models[1:]:
        other_value = of(other)
        if other_value != value:
            raise ModelError(
                f"These models can't be averaged: {name} has {what} {value}, {other_name} has {what} {other_value}.",
                hint=hint,
            )


def scaling_text(manifest: Manifest) -> str:
    """What becomes of raster values, in words; equal words, equal numbers."""
    text = f"of {manifest.dtype}"
    if manifest.clip:
        text += f", limited to {', '.join(f'{low!r}..{high!r}' for low, high in manifest.clip)}"
    text += f", / {manifest.input_maximum!r}" if manifest.scaling == "unit" else ", as they are"
    for values, sign in ((manifest.mean, "-"), (manifest.std, "/")):
        if values:
            text += f", {sign} ({', '.join(map(repr, values))})"
    return text


def _classes(legend: Legend) -> str:
    """Ids are said where they are no plain count."""
    is_counted = legend.ids == tuple(range(len(legend)))
    return ", ".join(c.name if is_counted else f"{c.id} {c.name}" for c in legend)


def _joint_gsd(models: Sequence[Named]) -> tuple[float | None, tuple[float, float] | None]:
    """GSD and range that all models share: each one's GSD lies within the ranges of all others."""
    stated = [(name, m.gsd_m, m.gsd_range_m) for name, m in models if m.gsd_m is not None and m.gsd_range_m is not None]
    if not stated:
        return None, None
    for name, gsd_m, gsd_range in stated:
        for other_name, other_gsd_m, (low, high) in stated:
            if not low / GSD_TOLERANCE <= gsd_m <= high * GSD_TOLERANCE:
                raise ModelError(
                    f"These models can't be averaged: {name} is for {gsd_m:.3g} m per pixel "
                    f"({gsd_range[0]:.3g} to {gsd_range[1]:.3g}), {other_name} for {other_gsd_m:.3g} m "
                    f"({low:.3g} to {high:.3g}).",
                    hint="They see the same pixels: run each on its own, or adapt them at one GSD.",
                )
    low, high = sorted((max(limits[0] for *_, limits in stated), min(limits[1] for *_, limits in stated)))
    values = [gsd_m for _, gsd_m, _ in stated]
    mean = values[0] if len(set(values)) == 1 else math.exp(math.fsum(map(math.log, values)) / len(values))
    return mean, (low, high)


def _each_once(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
