"""HTML and SVG as text: pages that open without a network, charts, tables, pictures. Pure functions, no framework."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

INK, QUIET, LINE, ACCENT = "#23282b", "#6a7074", "#d8d4c8", "#c42942"
PLOT_WIDTH, PLOT_HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40

STYLE = """\
:root { --paper: #f4f2ec; --ink: #23282b; --quiet: #6a7074; --line: #d8d4c8; --card: #fffefb; --accent: #c42942; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.6rem 1.5rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; font-weight: 650; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; font-weight: 650; margin: 2.8rem 0 .5rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 650; margin: 1.2rem 0 .4rem; }
p { max-width: 52em; margin: .4rem 0 .8rem; }
.lead { font-size: 1.08rem; color: #3c4347; }
.small, figcaption { color: var(--quiet); font-size: .86rem; line-height: 1.45; }
.figures { display: flex; flex-wrap: wrap; gap: .4rem 2.8rem; margin: 1.4rem 0 .4rem; }
.figures strong { display: block; font-size: 2rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.figures span { color: var(--quiet); font-size: .86rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 1rem 1.1rem;
  margin: .6rem 0; flex: 1 1 420px; min-width: 0; overflow-x: auto; }
.card h3:first-child { margin-top: 0; }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 4px; border: 1px solid var(--line); }
figcaption { padding: .3rem 0 .9rem; }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: .2rem .8rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.2rem; font-size: .88rem; margin: .4rem 0; }
.legend i, td i { display: inline-block; width: .85em; height: .85em; border-radius: 2px; margin-right: .45em;
  vertical-align: -.05em; border: 1px solid rgb(0 0 0 / .15); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; width: 100%; }
th, td { text-align: right; padding: .34rem .45rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; font-size: .82rem; color: var(--quiet); white-space: nowrap; }
td { white-space: nowrap; } table.text td { white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
table.text td { text-align: left; overflow-wrap: anywhere; }
table.text td:first-child { white-space: nowrap; color: var(--quiet); width: 1%; padding-right: 1.4rem; }
.meter { display: inline-block; width: 80px; height: 8px; background: #e9e5da; border-radius: 2px; margin-left: .6em; }
.meter b { display: block; height: 100%; background: var(--accent); border-radius: 2px; }
svg { max-width: 100%; height: auto; display: block; }
svg text { font: 12px "Source Sans 3", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; fill: var(--quiet); }
svg text.dark { fill: var(--ink); } svg text.light { fill: #fff; }
details summary { cursor: pointer; color: var(--quiet); }
pre { background: var(--ink); color: #f1efe8; padding: .9rem 1.1rem; border-radius: 6px; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""


class Markup(str):
    """Text that is HTML already. Everything else is escaped."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y), finite, ordered by x."""
    color: str = ACCENT
    dots: bool = False
    """Whether each point is marked."""
    opacity: float = 1.0


def html(value: object) -> str:
    """Escaped, unless it is `Markup`."""
    return value if isinstance(value, Markup) else escape(str(value))


def page(title: str, *parts: str, style: str = STYLE, script: str = "") -> str:
    """A whole HTML document; empty parts are left out."""
    tail = f"<script>{script}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n{tail}</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what belongs to it; nothing where nothing does."""
    content = "\n".join(part for part in parts if part)
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def card(title: str, content: str) -> str:
    """A framed part with a small heading."""
    return f'<div class="card"><h3>{escape(title)}</h3>\n{content}</div>'


def row(*parts: str) -> str:
    """Parts side by side where there is room."""
    return '<div class="row">' + "\n".join(part for part in parts if part) + "</div>"


def figures(pairs: Sequence[tuple[str, str]]) -> str:
    """Large values with what they are."""
    cells = (f"<div><strong>{html(value)}</strong><span>{html(text)}</span></div>" for value, text in pairs)
    return f'<div class="figures">{"".join(cells)}</div>'


def legend(pairs: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours: (name, '#rrggbb')."""
    return '<div class="legend">' + "".join(f"<span>{swatch(c)}{html(name)}</span>" for name, c in pairs) + "</div>"


def swatch(color: str) -> Markup:
    """A small square of a colour."""
    return Markup(f'<i style="background:{escape(color)}"></i>')


def table(head: Sequence[object], rows: Sequence[Sequence[object]], *, text: bool = False) -> str:
    """A table; numbers to the right, or with `text` everything to the left."""
    top = "<thead><tr>" + "".join(f"<th>{html(h)}</th>" for h in head) + "</tr></thead>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{html(c)}</td>" for c in cells) + "</tr>\n" for cells in rows)
    kind = ' class="text"' if text else ""
    return f"<table{kind}>{top}<tbody>\n{body}</tbody></table>"


def meter(share: float | None) -> Markup:
    """A bar that is full at 1."""
    return Markup(f'<span class="meter"><b style="width:{100 * min(max(share or 0.0, 0.0), 1.0):.1f}%"></b></span>')


def picture(png: bytes, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(png).decode("ascii")
    caption = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def svg(width: float, height: float, label: str, *parts: str) -> str:
    """An inline SVG of a size in pixels."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )


def svg_text(x: float, y: float, value: str, *, anchor: str = "start", css: str = "") -> str:
    """Text in an SVG."""
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(value)}</text>'


def line_chart(
    series: Sequence[Series], *, label: str, x_label: str, y_range: tuple[float, float] | None = None
) -> str:
    """A chart with axes and grid lines; empty where no series has a point.

    Args:
        series: Lines, drawn in order.
        label: What it shows, for those who can't see it.
        x_label: What the x axis is.
        y_range: Lowest and highest y; None for that of the points.
    """
    points = [p for s in series for p in s.points]
    if not points:
        return ""
    xs = ticks(min(0.0, *(x for x, _ in points)), max(x for x, _ in points), 6)
    low, high = y_range or (min(y for _, y in points), max(y for _, y in points))
    ys = ticks(low, high, 5)
    to_x = _scale(xs[0], max(*(x for x, _ in points), xs[0] + 1e-9), LEFT, PLOT_WIDTH - RIGHT)
    to_y = _scale(ys[0], ys[-1], PLOT_HEIGHT - BOTTOM, TOP)
    parts = []
    for y in ys:
        parts.append(f'<path d="M{LEFT} {to_y(y):.1f}H{PLOT_WIDTH - RIGHT}" stroke="{LINE}"/>')
        parts.append(svg_text(LEFT - 8, to_y(y) + 4, f"{y:g}", anchor="end"))
    for x in xs:
        if to_x(x) <= PLOT_WIDTH - RIGHT:
            parts.append(svg_text(to_x(x), PLOT_HEIGHT - BOTTOM + 18, f"{x:g}", anchor="middle"))
    parts.append(svg_text(PLOT_WIDTH - RIGHT, PLOT_HEIGHT - 4, x_label, anchor="end"))
    parts += [_line(s, to_x, to_y) for s in series if s.points]
    return svg(PLOT_WIDTH, PLOT_HEIGHT, label, *parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values from at most `low` to at least `high`, about `count` of them, evenly spaced.

    Law: first <= low, last >= high, at least two.
    """
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """At most `count` points: the mean of each of as many groups of neighbours."""
    size = math.ceil(len(points) / count) if points else 1
    groups = [points[n : n + size] for n in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def mix(color: str, share: float) -> str:
    """A colour on white: share 0 is nearly white, 1 the colour itself."""
    share = min(max(share, 0.0), 1.0)
    parts = (int(color[n : n + 2], 16) for n in (1, 3, 5))
    return "#" + "".join(f"{round(250 + (part - 250) * share):02x}" for part in parts)


def ink_on(color: str) -> str:
    """The class of SVG text that can be read on a colour: "dark" or "light"."""
    red, green, blue = (int(color[n : n + 2], 16) for n in (1, 3, 5))
    return "dark" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "light"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    factor = (end - start) / (high - low)
    return lambda value: start + (value - low) * factor


def _line(series: Series, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> str:
    places = [(to_x(x), to_y(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{series.color}" stroke-width="1.8" stroke-linejoin="round"/>'
    marks = zip(places, series.points, strict=True) if series.dots else ()
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{series.color}"><title>{at:g}: {value:.4g}</title></circle>'
        for (x, y), (at, value) in marks
    )
    return f'<g opacity="{series.opacity:g}"><title>{escape(series.name)}</title>{line}{dots}</g>'
