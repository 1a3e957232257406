"""The report's section on sizes and time: of the run, and of what was exported of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cegate_geo.html import card, row, table
from cegate_geo.train.run_files import MODEL
from cegate_geo.train.run_log import RunLog

SPENT = {
    "waiting": "waiting for chips",
    "scoring": "scoring for the gate, its chips included",
    "validation": "validation",
}
"""What `job.timed` measures, in words."""
TIMED = {
    "trained": "as trained, in torch",
    "eager": "pruned and merged, in torch",
    "onnx": "pruned and merged, in onnxruntime",
}
"""Times of `ExportReport.seconds_per_tile`, in words."""


def sizes(log: RunLog, export: Mapping[str, Any] | None) -> str:
    """Cards of the run and of its export; empty where nothing is known.

    Args:
        log: The run.
        export: As `ExportReport.to_json` gives it.
    """
    cards = [_as_run(log), _as_exported(export), _curve(export)]
    return row(*cards) if any(cards) else ""


def _as_run(log: RunLog) -> str:
    result, folder = log.result, log.folder
    rows: list[tuple[str, object]] = []
    names = {"backbone_parameters": "backbone, with its modules", "trained_parameters": "modules and head (trained)"}
    rows += [(text, f"{result[key]:,} parameters") for key, text in names.items() if key in result]
    if "modules_kept" in result and result.get("modules_total"):
        rows.append(("modules that were ever trained", f"{len(result['modules_kept'])} of {result['modules_total']}"))
    for name in (MODEL, "adapter.safetensors"):
        if (folder / name).is_file():
            rows.append((name, f"{(folder / name).stat().st_size / 1e6:.2f} MB"))
    if result.get("seconds") is not None:
        rows.append(("time", f"{result['seconds']:.0f} s for {max(log.losses, default=0)} steps"))
    for what, seconds in (result.get("spent_seconds") or {}).items():
        share = f", {100 * seconds / result['seconds']:.1f} %" if result.get("seconds") else ""
        rows.append((f"of it {SPENT.get(what, what)}", f"{seconds:.1f} s{share}"))
    rows += [(key, result[key]) for key in ("device", "processes", "precision") if key in result]
    return card("As it was run", table([], rows, text=True)) if rows else ""


def _as_exported(export: Mapping[str, Any] | None) -> str:
    """Size and time before and after pruning, merging and export."""
    if not export:
        return ""
    kept = f"{len(export['modules_kept'])} of {export['modules_total']} modules kept, LoRA folded into the weights"
    rows = [
        ("file", f"{export['bytes'] / 1e6:.2f} MB, weights in {export['precision']}"),
        ("graph", f"{export['parameters']:,} parameters"),
        ("pruned and merged", kept),
        *(
            (f"mean IoU on held-out tiles, {precision}", f"{100 * miou:.1f} %")
            for precision, miou in (export.get("miou") or {}).items()
        ),
        *(
            (f"one tile, {TIMED.get(what, what)}", f"{1000 * seconds:.0f} ms")
            for what, seconds in export["seconds_per_tile"].items()
        ),
    ]
    return card("As it was exported, on this machine's CPU", table([], rows, text=True))


def _curve(export: Mapping[str, Any] | None) -> str:
    """What the choice of modules for the file was made from: mean IoU, parameters and time of each set."""
    points = (export or {}).get("curve") or ()
    if not points:
        return ""
    head = ["modules beside LoRA", "mean IoU in %", "their parameters", "one tile, in torch"]
    rows = [
        [f"{len(p['kept'])}", f"{100 * p['miou']:.1f}", f"{p['parameters']:,}", f"{1000 * p['seconds']:.0f} ms"]
        for p in points
    ]
    return card("Sets of modules that were measured on held-out tiles for the export", table(head, rows))
