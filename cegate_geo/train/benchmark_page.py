"""The table of a benchmark as a page with plots of mean IoU against trained parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cegate_geo.html import (
    BOTTOM,
    INK,
    LEFT,
    LINE,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    RIGHT,
    TOP,
    card,
    legend,
    page,
    section,
    svg,
    svg_text,
    table,
    ticks,
)
from cegate_geo.train.benchmark import RunRecord
from cegate_geo.train.benchmark_table import Row, cells, explain, heading, make_rows
from cegate_geo.train.difference_chart import difference_chart, standalone
from cegate_geo.train.suite import SuiteConfig

COLORS = (
    "#c42942", "#2f6f9f", "#c28a1c", "#8a4f9e", "#3b8c5a", "#7a5c3e", "#d9772b", "#4f8f9e", "#9e4f6b", "#6a7074",
    "#1f3f66", "#a3b13c",
)  # fmt: skip


def to_page(config: SuiteConfig, records: Sequence[RunRecord]) -> str:
    """A whole HTML document that opens without a network."""
    rows = make_rows(config, records)
    colors = {name: COLORS[n % len(COLORS)] for n, name in enumerate(config.names)}
    parts = [f"<h1>{config.name}</h1>", *(f"<p>{text}</p>" for text in explain(config))]
    head = ["method", "rate", "trained at a time", "mean IoU", f"against {config.compared_with}", "seeds"]
    head += ["oracle"] if config.oracle else []
    for setting, region in dict.fromkeys((r.setting, r.region) for r in rows):
        own = [r for r in rows if (r.setting, r.region) == (setting, region)]
        plot = scatter(own, colors, label=f"Mean IoU against trained parameters, {heading(setting, region)}")
        shown = card("Mean IoU against parameters that are trained at a time", legend(list(colors.items())) + plot)
        label = f"Difference to {config.compared_with}, {heading(setting, region)}"
        chart = difference_chart(own, reference=config.compared_with, label=label)
        compared = card(f"Difference to {config.compared_with}, with its 95 % interval", chart) if chart else ""
        cut = table(head, [cells(config, r) for r in own])
        parts.append(section(heading(setting, region), cut, compared, shown if plot else ""))
    failed = [[str(r.key), r.failure] for r in records if r.failure]
    parts.append(section("Failures", table(["run", "why"], failed, text=True) if failed else "<p>No run failed.</p>"))
    return page(config.name, *parts)


def overall_chart(config: SuiteConfig, records: Sequence[RunRecord]) -> str:
    """Differences to the reference over all regions, as an SVG file; empty where nothing is compared."""
    rows = make_rows(config, records)
    last = (rows[-1].setting, rows[-1].region)
    own = [r for r in rows if (r.setting, r.region) == last]
    label = f"Difference to {config.compared_with}, {heading(*last)}"
    chart = difference_chart(own, reference=config.compared_with, label=label)
    return standalone(chart) if chart else ""


def scatter(rows: Sequence[Row], colors: dict[str, str], *, label: str) -> str:
    """Points with bars of one standard deviation over a logarithmic axis of parameters; empty without points."""
    shown = [(r, r.spread) for r in rows if r.spread is not None and r.active_parameters > 0]
    if not shown:
        return ""
    logs = [math.log10(r.active_parameters) for r, _ in shown]
    first, last = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    low = min(100 * (s.mean - (s.deviation or 0)) for _, s in shown)
    high = max(100 * (s.mean + (s.deviation or 0)) for _, s in shown)
    ys = ticks(low, high, 5)

    def to_x(value: float) -> float:
        return LEFT + (value - first) / (last - first) * (PLOT_WIDTH - LEFT - RIGHT)

    def to_y(value: float) -> float:
        return PLOT_HEIGHT - BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (PLOT_HEIGHT - BOTTOM - TOP)

    parts = []
    for y in ys:
        parts.append(f'<path d="M{LEFT} {to_y(y):.1f}H{PLOT_WIDTH - RIGHT}" stroke="{LINE}"/>')
        parts.append(svg_text(LEFT - 8, to_y(y) + 4, f"{y:g}", anchor="end"))
    for power in range(first, last + 1):
        parts.append(svg_text(to_x(power), PLOT_HEIGHT - BOTTOM + 18, _count(power), anchor="middle"))
    parts.append(svg_text(PLOT_WIDTH - RIGHT, PLOT_HEIGHT - 4, "parameters", anchor="end"))
    for (row, spread), x in zip(shown, logs, strict=True):
        color, mean, deviation = colors.get(row.method, INK), 100 * spread.mean, 100 * (spread.deviation or 0.0)
        parts.append(
            f'<g><title>{row.method}: {mean:.1f} ± {deviation:.1f}</title><path d="M{to_x(x):.1f} '
            f'{to_y(mean - deviation):.1f}V{to_y(mean + deviation):.1f}" stroke="{color}" stroke-width="1.5"/>'
            f'<circle cx="{to_x(x):.1f}" cy="{to_y(mean):.1f}" r="4.5" fill="{color}"/></g>'
        )
    return svg(PLOT_WIDTH, PLOT_HEIGHT, label, *parts)


def _count(power: int) -> str:
    return f"{10 ** (power - 6):g} M" if power >= 6 else f"{10 ** (power - 3):g} k" if power >= 3 else f"{10**power}"
