"""Finds the weights of a model and everything that stands beside them, whatever tool it comes from."""

from __future__ import annotations

from pathlib import Path

from cegate_geo.domain.contract import StatedContract
from cegate_geo.errors import InputError
from cegate_geo.infer.foreign import deepness, esri, geoai, stac_mlm
from cegate_geo.infer.foreign.facts import STATED, Facts, merge, read_object, stated_facts


def find_weights(path: Path) -> tuple[Path, list[tuple[str, Facts]]]:
    """The ONNX file of a model, and what files beside it say.

    Args:
        path: An ONNX file, an `.emd`, a STAC item, or a sidecar of geoai.

    Raises:
        ModelError: If a description can't be read or used, or its weights are not there.
    """
    if path.suffix.lower() == ".emd":
        weights, facts = esri.read_emd(path)
        return weights, [(esri.SOURCE, facts)]
    if path.suffix.lower() == ".json" and path.is_file():
        if not stac_mlm.is_item(read_object(path)) and path.with_suffix("").suffix.lower() == ".onnx":
            return find_weights(path.with_suffix(""))
        weights, facts = stac_mlm.read_item(path)
        return weights, [(stac_mlm.SOURCE, facts)]
    return path, []


def gather(
    weights: Path, metadata: dict[str, str], beside: list[tuple[str, Facts]], stated: StatedContract
) -> tuple[Facts, dict[str, str]]:
    """Everything that is known of a model without a manifest: the user first, then files, then the model's own keys.

    Raises:
        ModelError: If something can't be read, or says that the model does something else than segmentation.
    """
    found = [(STATED, stated_facts(stated)), *beside]
    keys = deepness.deepness_facts(metadata, name=weights.name)
    if keys is not None:
        found.append((deepness.SOURCE, keys))
    sidecar = geoai.sidecar_of(weights)
    if sidecar.is_file():
        facts = geoai.geoai_facts(sidecar)
        if facts is not None:
            found.append((geoai.SOURCE, facts))
    return merge(found)


def require_no_options(weights: Path, stated: StatedContract) -> None:
    """A model with a manifest says everything itself.

    Raises:
        InputError: If the user states something else.
    """
    options = stated.options()
    if options:
        names = ", ".join("--" + name.replace("_", "-") for name in options)
        raise InputError(f"{weights.name} carries its own contract; {names} can't change it.", hint="Leave it out.")
