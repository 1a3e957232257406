"""How far each method lies from the reference, with its interval: the picture of a benchmark that decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cegate_geo.html import ACCENT, INK, LINE, QUIET, svg, svg_text, ticks
from cegate_geo.train.benchmark_table import Row

WIDTH, NAME, FIGURE, TOP, ROW, BOTTOM = 720, 220, 150, 12, 24, 40
STYLE = (
    '<style>text { font: 13px "Source Sans 3", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; '
    f"fill: {INK}; }} text.quiet {{ fill: {QUIET}; }}</style>"
)


def difference_chart(rows: Sequence[Row], *, reference: str, label: str) -> str:
    """A line for each method of one region: mean difference in mean IoU x 100, and its 95 % interval.

    Args:
        rows: Those of one region, in the order in which they are drawn; those without a run are left out.
        reference: Name of the method that the others are compared with.
        label: What it shows, for those who can't see it.

    Returns:
        An inline SVG; empty where nothing is compared.
    """
    shown = [r for r in rows if r.spread is not None and (r.difference is not None or r.method == reference)]
    compared = [r.difference for r in shown if r.difference is not None]
    if not compared:
        return ""
    ends = [100 * value for d in compared for value in (d.mean, d.low, d.high) if value is not None]
    xs = ticks(min(0.0, *ends), max(0.0, *ends), 7)
    height = TOP + ROW * len(shown) + BOTTOM

    def to_x(value: float) -> float:
        return NAME + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - NAME - FIGURE)

    foot = height - BOTTOM
    parts = []
    for x in xs:
        color = INK if x == 0 else LINE
        parts.append(f'<path d="M{to_x(x):.1f} {TOP}V{foot}" stroke="{color}" stroke-width="{1 if x == 0 else 0.7}"/>')
        parts.append(svg_text(to_x(x), foot + 18, f"{x:+g}" if x else "0", anchor="middle"))
    parts.append(svg_text(NAME, height - 6, f"mean IoU x 100, difference to {reference}", css="quiet"))
    for n, row in enumerate(shown):
        parts += _line(row, TOP + ROW * (n + 0.5), to_x)
    return svg(WIDTH, height, label, *parts)


def standalone(chart: str) -> str:
    """An inline SVG as a file of its own."""
    head, tail = chart.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}<rect width="100%" height="100%" fill="#fff"/>{tail}\n'


def _line(row: Row, y: float, to_x: Callable[[float], float]) -> list[str]:
    """Name, interval, point and figures of a method."""
    difference, spread = row.difference, row.spread
    mean = 0.0 if difference is None else 100 * difference.mean
    color = ACCENT if difference is None else INK
    parts = [svg_text(NAME - 12, y + 4, row.method, anchor="end")]
    if difference is not None and difference.low is not None and difference.high is not None:
        low, high = to_x(100 * difference.low), to_x(100 * difference.high)
        parts.append(f'<path d="M{low:.1f} {y:g}H{high:.1f}" stroke="{color}" stroke-width="1.5"/>')
    parts.append(f'<circle cx="{to_x(mean):.1f}" cy="{y:g}" r="4.5" fill="{color}"/>')
    if spread is not None:
        deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
        parts.append(svg_text(WIDTH - 8, y + 4, f"{100 * spread.mean:.1f}{deviation}", anchor="end", css="quiet"))
    return parts
