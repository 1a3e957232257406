"""geoai: the sidecar `<model>.onnx.json` that its ONNX export writes.

geoai feeds uint8 / 255, and enlarges an output that is smaller than its input to the whole of it.
Documentation: opengeoai.org, module `onnx`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cegate_geo.errors import ModelError
from cegate_geo.infer.foreign.facts import Facts, Scaling, class_names, number, read_object

SOURCE = "geoai sidecar"
KEYS = frozenset({"input_height", "input_width", "input_channels", "id2label", "num_labels"})
TASKS = ("segmentation", "semantic-segmentation")


def sidecar_of(weights: Path) -> Path:
    """Where geoai's export puts its sidecar."""
    return weights.with_name(weights.name + ".json")


def geoai_facts(path: Path) -> Facts | None:
    """What the sidecar says; None where the file is not geoai's.

    Raises:
        ModelError: If it can't be read, or the model does something else than segmentation.
    """
    table = read_object(path)
    if not KEYS & table.keys():
        return None
    task = table.get("task") or TASKS[0]
    if task not in TASKS:
        raise ModelError(
            f"{path.name} says that the model's task is {task}: it gives no class for each pixel.",
            hint=f"Use geoai itself, or take a model of one of the tasks {', '.join(TASKS)}.",
        )
    facts: Facts = {"scaling": Scaling(divisor=(255.0,)), "dtype": "uint8", "fit": "stretch"}
    if table.get("id2label"):
        facts["names"] = (class_names(table["id2label"], what=f"id2label of {path.name}"),)
    sides = [table.get(key) for key in ("input_height", "input_width")]
    if all(sides):
        height, width = (_side(side, path) for side in sides)
        facts["tile_shape"] = (height, width)
    if table.get("output_names") == ["logits"]:
        facts["output"] = "logits"
    if table.get("model_name"):
        facts["description"] = str(table["model_name"])
    return facts


def _side(value: Any, path: Path) -> int:
    side = number(value, what=f"The input's size in {path.name}", mend="Correct the sidecar.")
    if side < 1 or side != int(side):
        raise ModelError(f"The input's size in {path.name} is {value!r}.", hint="Correct the sidecar.")
    return int(side)
