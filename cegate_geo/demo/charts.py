"""The page's figures, tables and charts, as HTML and SVG."""

from __future__ import annotations

from html import escape

from cegate_geo import html
from cegate_geo.demo.story import GateView, Story
from cegate_geo.domain.legend import Legend

CELL, LEFT, TOP = 46, 92, 26
STEP_COLORS = ("#b9b3a1", "#c42942", "#7d8790", "#2f7fc1", "#3f8f4f", "#d69a2d", "#8a6fb0", "#5b5f6b")
KIND_HINTS = {
    "spatial": "where to look (LoRA on q and v)",
    "semantic": "what it is (adapter beside the MLP)",
    "frequency": "texture and edges (Earth-Adapter)",
}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def figures(story: Story) -> str:
    """The large numbers at the top."""
    cells = []
    if story.frozen is not None and story.frozen.metrics is not None:
        cells.append((_percent(story.frozen.metrics["miou"]), "mean IoU in %, frozen backbone", ""))
    if story.adapted.metrics is not None:
        cells.append((_percent(story.adapted.metrics["miou"]), f"mean IoU in %, {story.adapted.title.lower()}", "best"))
    if story.model_bytes:
        cells.append((f"{story.model_bytes / 1e6:.1f} MB", "the model, one file", ""))
    if story.timings:
        cells.append((f"{sum(s for _, s in story.timings):.0f} s", "for everything, on this machine", ""))
    return '<div class="figures">' + "".join(
        f'<div class="{css}"><strong>{escape(value)}</strong><span>{escape(text)}</span></div>'
        for value, text, css in cells
    ) + "</div>"  # fmt: skip


def legend_row(legend: Legend) -> str:
    """Names beside their colours."""
    return html.legend([(c.name, c.hex) for c in legend])


def _bar(value: float | None, css: str) -> str:
    return f'<div class="bar {css}" style="width:{100 * (value or 0.0):.1f}%"></div>'


def iou_table(story: Story) -> str:
    """IoU by class: frozen beside adapted, with bars."""
    outcomes = [o for o in (story.frozen, story.adapted) if o is not None and o.metrics is not None]
    heads = "".join(f"<th>{escape(o.title)}</th>" for o in outcomes)
    change = "<th>change</th>" if len(outcomes) == 2 else ""
    rows = []
    for n, entry in enumerate(story.legend):
        rows.append(_row(entry.name, [o.metrics["per_class"][n]["iou"] for o in outcomes if o.metrics], ""))
    rows.append(_row("mean", [o.metrics["miou"] for o in outcomes if o.metrics], "total"))
    return (
        "<p>IoU in %, against the exact truth: how much of what is one class, or was called so, is both.</p>\n"
        f"<table><thead><tr><th>class</th>{heads}{change}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _row(name: str, values: list[float | None], css: str) -> str:
    cells = "".join(f"<td>{_percent(v)}</td>" for v in values)
    if len(values) == 2:
        before, after = values
        if before is None or after is None:
            cells += "<td>-</td>"
        else:
            cells += f'<td class="{"up" if after >= before else "down"}">{100 * (after - before):+.1f}</td>'
    bars = "".join(_bar(v, "new" if n == len(values) - 1 else "") for n, v in enumerate(values))
    return f'<tr class="{css}"><td>{escape(name)}</td>{cells}<td class="bars">{bars}</td></tr>'


def gate_chart(gate: GateView) -> str:
    """Modules by type and block: the darker, the higher the score within its type; a frame where it was chosen last."""
    width, height = LEFT + gate.layers * CELL + 8, TOP + len(gate.kinds) * CELL
    top_score = max(gate.scores.values(), default=1.0) or 1.0
    cells = [f'<text x="{LEFT + n * CELL + CELL / 2 - 2}" y="16" text-anchor="middle">{n}</text>'
             for n in range(gate.layers)]  # fmt: skip
    for r, kind in enumerate(gate.kinds):
        y = TOP + r * CELL
        cells.append(f'<text x="0" y="{y + CELL / 2 + 4}">{escape(kind)}</text>')
        for layer in range(gate.layers):
            cells.append(_cell(gate, (layer, kind), LEFT + layer * CELL, y, top_score))
    hints = "; ".join(f"{k}: {KIND_HINTS[k]}" for k in gate.kinds if k in KIND_HINTS)
    caption = (
        "Columns: blocks, from input to output. Red: share of the Fisher score of its type in the last selection. "
        f"Frame: chosen then. Dot: in the exported model. {hints}."
    )
    picture = html.svg(width, height, "Modules that the gate chose", *cells)
    return f'{picture}\n<p class="small">{escape(caption)}</p>'


def _cell(gate: GateView, key: tuple[int, str], x: float, y: float, top_score: float) -> str:
    score = gate.scores.get(key, 0.0)
    frame = ' stroke="#23282b" stroke-width="2"' if key in gate.active else ' stroke="#d8d4c8"'
    dot = f'<circle cx="{x + 20}" cy="{y + 20}" r="4" fill="#23282b"/>' if key in gate.kept else ""
    title = f"<title>block {key[0]}, {key[1]}: {score:.1%} of the score of its type</title>"
    fill = f'fill="#c42942" fill-opacity="{0.04 + 0.86 * score / top_score:.3f}"'
    return f'<g>{title}<rect x="{x}" y="{y}" width="40" height="40" rx="4" {fill}{frame}/>{dot}</g>'


def timing_bar(timings: tuple[tuple[str, float], ...]) -> str:
    """Steps as parts of one bar, and as text below it."""
    total = sum(s for _, s in timings)
    if not total:
        return ""
    pairs = [(name, seconds, STEP_COLORS[n % len(STEP_COLORS)]) for n, (name, seconds) in enumerate(timings)]
    bar = "".join(
        f'<div style="width:{100 * seconds / total:.2f}%;background:{color}" title="{escape(name)}"></div>'
        for name, seconds, color in pairs
    )
    return f'<div class="steps">{bar}</div>\n' + html.legend([(f"{n} {s:.1f} s", color) for n, s, color in pairs])


def text_table(story: Story) -> str:
    """The result for a terminal: IoU in % by class, frozen beside adapted; empty where nothing could be measured."""
    outcomes = [(o.title, o.metrics) for o in (story.frozen, story.adapted) if o is not None and o.metrics is not None]
    if not outcomes:
        return ""
    names = [*story.legend.names, "mean"]
    columns = [[*(c["iou"] for c in metrics["per_class"]), metrics["miou"]] for _, metrics in outcomes]
    width = max(len(title) for title, _ in outcomes) + 3
    lines = [f"{'IoU in %':<12}" + "".join(f"{title:>{width}}" for title, _ in outcomes)]
    for name, *values in zip(names, *columns, strict=True):
        line = f"{name:<12}" + "".join(f"{_percent(v):>{width}}" for v in values)
        if len(values) == 2 and None not in values:
            line += f"{100 * (values[1] - values[0]):>+9.1f}"
        lines.append(line)
    return "\n".join(lines)
