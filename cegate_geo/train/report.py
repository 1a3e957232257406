"""`report.html`: what a run did, as one page that opens without a network."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from cegate_geo.domain.confusion import Metrics
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import InputError
from cegate_geo.html import (
    ACCENT,
    Markup,
    Series,
    card,
    figures,
    ink_on,
    legend,
    line_chart,
    meter,
    mix,
    page,
    picture,
    row,
    section,
    svg,
    svg_text,
    swatch,
    table,
    thin,
)
from cegate_geo.train.config import AdaptConfig
from cegate_geo.train.config_file import build
from cegate_geo.train.gate_charts import KIND_COLORS, KIND_NAMES, gate_map, score_map
from cegate_geo.train.report_sizes import sizes
from cegate_geo.train.run_files import MODEL
from cegate_geo.train.run_log import RunLog, read_run_log

CONFUSION_COLOR = "#2f6f9f"
LOSS_COLOR = "#7d8790"
CURVE_POINTS = 300
COLLAPSED = "the model said one class on all held-out tiles: lower train.lr, and train again."


def write_report(folder: Path, export: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` from what the folder of a run holds; parts that are missing are left out.

    Args:
        folder: Folder of a run, finished or not.
        export: What was exported of it, as `ExportReport.to_json` gives it.

    Returns:
        Path of the page.

    Raises:
        InputError: If the folder holds no run, or the page can't be written.
    """
    log = read_run_log(folder)
    path, part = folder / "report.html", folder / "report.html.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(render(log, export))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path} can't be written: {error.strerror}.", hint="Choose another place.") from error
    return path


def renew_report(folder: Path, model: Path, export: Mapping[str, Any]) -> Path | None:
    """Write the report of a run anew where an export of it is the run's own model, `model.onnx` in its folder.

    Args:
        folder: Folder of a run, finished or not.
        model: The file that was exported.
        export: What was measured of it, as `ExportReport.to_json` gives it.

    Returns:
        Path of the page; None for an export elsewhere, of which the page does not tell.

    Raises:
        InputError: If the page can't be written.
    """
    own = folder / MODEL
    return write_report(folder, export) if own.is_file() and own.samefile(model) else None


def render(log: RunLog, export: Mapping[str, Any] | None = None) -> str:
    """The page of a run, and of what was exported of it, as HTML."""
    settings = build(AdaptConfig, log.config)
    title = f"{settings.name}: {settings.peft.method} on {settings.model.backbone}"
    return page(
        title,
        _head(log, settings, title),
        section("Course of the training", _curves(log)),
        section("The gate", _gate(log, settings)),
        section("Self-training", _self_training(log)),
        section("Classes", _classes(log, settings.legend)),
        section("Held-out tiles", _pictures(log, settings.legend)),
        section("Sizes and time", sizes(log, export)),
        section("All settings", _settings(log)),
    )


def _head(log: RunLog, settings: AdaptConfig, title: str) -> str:
    steps, done = settings.train.steps, max(log.losses, default=0)
    metrics = log.metrics
    if log.result:
        told = f"Finished after {done} steps; the weights of step {log.result.get('best_step', done)} were kept"
        told += ", those with the best mean IoU on held-out tiles." if metrics else "."
    else:
        told = f"Not finished: {done} of {steps} steps are on record. Figures are of the last validation."
    values = []
    if metrics is not None:
        values += [(_percent(metrics["miou"]), "mean IoU in %"), (_percent(metrics["accuracy"]), "pixels right, in %")]
    if log.selections:
        values.append((f"{len(log.selections[-1].active)}", f"of {_total(log)} modules trained at a time"))
    if "trained_parameters" in log.result:
        values.append((_count(log.result["trained_parameters"]), "parameters that were trained"))
    collapsed = ", ".join(str(step) for step in log.result.get("collapsed") or ())
    warning = f"<p><b>After {collapsed} steps</b> {COLLAPSED}</p>" if collapsed else ""
    text = f'<p class="small">{log.unreadable} lines of the logs could not be read.</p>' if log.unreadable else ""
    described = f"<p>{escape(settings.description)}</p>" if settings.description else ""
    return f'<h1>{escape(title)}</h1>\n<p class="lead">{told}</p>\n{warning}{described}{figures(values)}{text}'


def _curves(log: RunLog) -> str:
    losses = list(log.losses.items())
    top = max((y for _, y in thin(losses, CURVE_POINTS)), default=0.0)
    loss = line_chart(
        [
            Series(name="loss", points=thin(losses, CURVE_POINTS), color=LOSS_COLOR, opacity=0.45),
            Series(name="loss, smoothed", points=thin(losses, 40), color=ACCENT),
        ],
        label="Loss over the steps",
        x_label="step",
        y_range=(0.0, top) if losses else None,
    )
    mious = [(float(step), 100 * m["miou"]) for step, m in log.validations.items() if m["miou"] is not None]
    miou = line_chart(
        [Series(name="mean IoU", points=mious, dots=True)], label="Mean IoU on held-out tiles", x_label="step"
    )
    return row(
        card("Loss: mean cross entropy of a batch", loss) if loss else "",
        card("Mean IoU on held-out tiles, in %", miou) if miou else "",
    ) if loss or miou else ""  # fmt: skip


def _gate(log: RunLog, settings: AdaptConfig) -> str:
    chosen = [s for s in log.selections if s.active]
    if not chosen:
        return ""
    kinds = [k for k in KIND_COLORS if any(key.kind == k for s in chosen for key in (*s.active, *s.scores))]
    colors = legend([(KIND_NAMES[k], KIND_COLORS[k]) for k in kinds])
    scores = score_map(log.selections)
    often = f"Every {settings.peft.every} steps" if len(chosen) > 1 else "Once"
    scored = f"the gate scored all {_total(log)} modules and trained those with the highest scores"
    how = scored if scores else f"{len(chosen[-1].active)} of {_total(log)} modules were chosen to be trained"
    others = "kept the weights that they had" if settings.peft.inactive == "frozen" else "were left out of the model"
    told = [f"{often} {how} until the next selection; the others {others}.", *_gate_choices(settings)]
    if settings.peft.share == 1 and not scores:
        told = ["All modules were trained: the budget left nothing to choose."]
    if settings.peft.trains_patch_embed:
        told.append("The backbone's patch embedding was trained, too, from the first step to the last.")
    note = f'<p class="small">{_score_note(settings)} Number: how often it was chosen, of {len(log.selections)}.'
    note += " Frame: chosen in the last selection.</p>"
    return "\n".join(
        (
            f"<p>{' '.join(told)}</p>",
            colors,
            card("Trained modules over time: one line for each block, block 0 on top", gate_map(chosen, _steps(log))),
            card("Scores by type and block", scores + note) if scores else "",
        )
    )


def _gate_choices(settings: AdaptConfig) -> list[str]:
    """Sentences on what the gate did otherwise than it does by default."""
    peft = settings.peft
    told = []
    if peft.start:
        told.append(f"In the first {peft.start} steps none was trained, the head alone.")
    if peft.until < 1:
        told.append(f"After {peft.until:.0%} of the steps the last choice stayed.")
    if peft.quota == "type":
        told.append("Each type had the same number of places.")
    return told


def _score_note(settings: AdaptConfig) -> str:
    """What the colour of a module stands for."""
    peft = settings.peft
    score = "gradient norm" if peft.method == "grad-norm" else "Fisher score"
    what = {"type": f"share of the {score} of its type", "size": f"{score} per parameter", "none": score}
    memory = f", each with {peft.memory:g} of the one before it" if peft.memory else ""
    return f"Colour: {what[peft.normalise]}, mean of all selections{memory}."


def _self_training(log: RunLog) -> str:
    told = (log.result.get("facts") or {}).get("self_training")
    if not told:
        return ""
    intro = (
        f"<p>{told['weight']:.0%} of the chips come from targets without labels. Where {escape(told['teacher'])} was "
        "sure of what it saw there, its predictions were taken for labels; none of them validates.</p>"
    )
    head = ["class of the teacher", "predicted pixels", "kept", "share kept in %", "from a probability of"]
    cards = []
    for target in told["targets"]:
        rows = [
            [
                c["name"],
                f"{c['predicted']:,}",
                f"{c['kept']:,}",
                _percent(c["kept"] / c["predicted"] if c["predicted"] else None),
                f"{c['least']:.2f}",
            ]
            for c in target["classes"]
        ]
        cards.append(card(target["name"], table(head, rows)))
    return intro + row(*cards)


def _classes(log: RunLog, names: Legend) -> str:
    metrics = log.metrics
    if metrics is None:
        return ""
    colors = {c.id: c.hex for c in names}
    rows = [
        [
            Markup(f"{swatch(colors.get(c['id'], '#ffffff'))}{escape(c['name'])}"),
            Markup(f"{_percent(c['iou'])}{meter(c['iou'])}"),
            *(_percent(value) for value in (c["f1"], c["precision"], c["recall"])),
            f"{c['pixels']:,}",
        ]
        for c in metrics["per_class"]
    ]
    mean = Markup(f"<b>{_percent(metrics['miou'])}</b>{meter(metrics['miou'])}")
    rows.append([Markup("<b>mean</b>"), mean, "", "", "", ""])
    head = ["class", "IoU in %", "F1", "precision", "recall", "true pixels"]
    matrix = _confusion(metrics)
    note = '<p class="small">Of each true class (row), the share in % that was given each class (column).</p>'
    return row(card("By class", table(head, rows)), card("Confusion", matrix + note) if matrix else "")


def _confusion(metrics: Metrics) -> str:
    counts, names = metrics["confusion"], [c["name"] for c in metrics["per_class"]]
    size = 44 if len(names) <= 8 else 34
    left = 16 + 7 * max(len(n) for n in names)
    slanted = size * 0.9 + 4.2 * max(len(n) for n in names)
    parts = []
    for r, (name, line) in enumerate(zip(names, counts, strict=True)):
        y = slanted + r * size
        parts.append(svg_text(left - 10, y + size / 2 + 4, name, anchor="end", css="dark"))
        x = left + r * size + size / 2
        parts.append(
            f'<text class="dark" transform="translate({x:g},{slanted - 8:g}) rotate(-40)">{escape(name)}</text>'
        )
        for c, count in enumerate(line):
            share = count / sum(line) if sum(line) else 0.0
            fill = mix(CONFUSION_COLOR, share)
            said = f"<title>{escape(name)} called {escape(names[c])}: {count:,} pixels</title>"
            parts.append(
                f'<rect x="{left + c * size}" y="{y}" width="{size - 2}" height="{size - 2}" rx="2" '
                f'fill="{fill}">{said}</rect>'
            )
            text = f"{100 * share:.0f}" if sum(line) else "-"
            parts.append(
                svg_text(left + c * size + size / 2 - 1, y + size / 2 + 4, text, anchor="middle", css=ink_on(fill))
            )
    width = left + len(names) * size + 4.5 * max(len(n) for n in names)
    return svg(width, slanted + len(names) * size + 4, "Confusion matrix", *parts)


def _pictures(log: RunLog, names: Legend) -> str:
    paths = sorted((log.folder / "pictures").glob("*.png"))
    if not paths:
        return ""
    colors = legend([*((c.name, c.hex) for c in names), ("left out", "#ffffff")])
    tiles = "".join(picture(png, f"{path.stem}: {what}") for path in paths for what, png in _parts(path))
    return f'<p>Not seen in training.</p>{colors}<div class="three">{tiles}</div>'


def _parts(path: Path) -> list[tuple[str, bytes]]:
    """What a picture of a tile shows side by side, as PNGs."""
    found = []
    with Image.open(path) as whole:
        side = whole.width // 3
        for n, what in enumerate(("imagery", "truth", "prediction")):
            buffer = io.BytesIO()
            whole.crop((n * side, 0, (n + 1) * side, whole.height)).save(buffer, "PNG", optimize=True)
            found.append((what, buffer.getvalue()))
    return found


def _settings(log: RunLog) -> str:
    unused = () if log.config.get("target") else ("self_training",)
    tables = {key: value for key, value in log.config.items() if isinstance(value, Mapping) and key not in unused}
    plain = {key: value for key, value in log.config.items() if not isinstance(value, Mapping | list) and value}
    parts = [card(name, table([], list(_flat(value)), text=True)) for name, value in tables.items() if value]
    for name in ("source", "validation", "target", "style"):
        for n, entry in enumerate(log.config.get(name) or []):
            parts.append(card(f"{name} {n + 1}", table([], list(_flat(entry)), text=True)))
    parts.insert(0, card("run", table([], list(plain.items()), text=True)) if plain else "")
    facts = log.result.get("facts") or {}
    text = escape(json.dumps(facts, indent=2, ensure_ascii=False))
    told = f"<details><summary>Facts for the manifest</summary><pre>{text}</pre></details>" if facts else ""
    return row(*parts) + told


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values that say something, tables within tables as `name.key`."""
    found: list[tuple[str, str]] = []
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            found += _flat(entry, f"{prefix}{key}.")
        elif entry not in ("", None, [], ()):
            found.append((f"{prefix}{key}", json.dumps(entry) if isinstance(entry, list | bool) else str(entry)))
    return found


def _steps(log: RunLog) -> int:
    """Steps on record, at least those that the selections speak of."""
    return max([*log.losses, *(s.step + 1 for s in log.selections), 1])


def _total(log: RunLog) -> int:
    """Modules that the gate chose among."""
    scored = max((len(s.scores) for s in log.selections), default=0)
    active = {key for s in log.selections for key in s.active}
    return int(log.result.get("modules_total") or max(scored, len(active)))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _count(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 100_000 else f"{value:,}"
