"""Pictures of what the gate did: which modules it chose in the course of time, and by what scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from cegate_geo.html import INK, LINE, ink_on, mix, svg, svg_text, ticks
from cegate_geo.peft import KINDS, Kind, ModuleKey, Selection

KIND_COLORS: dict[Kind, str] = {"spatial": "#2f6f9f", "semantic": "#c28a1c", "frequency": "#8a4f9e"}
KIND_NAMES: dict[Kind, str] = {
    "spatial": "spatial: LoRA on q and v",
    "semantic": "semantic: adapter beside the MLP",
    "frequency": "frequency: Earth-Adapter",
}

LEFT, TOP, PLOT_WIDTH = 96, 8, 1000
GAP = 10


def gate_map(selections: Sequence[Selection], steps: int) -> str:
    """Time from left to right, one line for each module: coloured while it is trained.

    Args:
        selections: Decisions, ordered by step; at least one.
        steps: Steps of the whole run.
    """
    layers, kinds = _extent(selections)
    height = 7 if layers > 16 else 11
    end = max(steps, selections[-1].step + 1)
    parts = []
    for n, kind in enumerate(kinds):
        top = TOP + n * (layers * height + GAP)
        parts.append(svg_text(LEFT - 34, top + layers * height / 2 + 4, kind, anchor="end", css="dark"))
        for layer in sorted({0, layers - 1}):
            parts.append(svg_text(LEFT - 8, top + layer * height + height - 1, str(layer), anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{PLOT_WIDTH}" height="{layers * height}" fill="#efece3"/>')
        for layer in range(layers):
            key = ModuleKey(layer, kind)
            for start, stop in spans(selections, key, end):
                x, width = LEFT + PLOT_WIDTH * start / end, PLOT_WIDTH * (stop - start) / end
                parts.append(
                    f'<rect x="{x:.1f}" y="{top + layer * height}" width="{max(width, 0.6):.1f}" height="{height - 1}" '
                    f'fill="{KIND_COLORS[kind]}"><title>{key}: steps {start} to {stop}</title></rect>'
                )
    bottom = TOP + len(kinds) * (layers * height + GAP)
    for step in ticks(0, end, 6):
        if step <= end:
            parts.append(svg_text(LEFT + PLOT_WIDTH * step / end, bottom + 10, f"{step:g}", anchor="middle"))
    parts.append(svg_text(LEFT - 8, bottom + 10, "step ", anchor="end"))
    return svg(LEFT + PLOT_WIDTH + 16, bottom + 18, "Modules that were trained, over time", *parts)


def spans(selections: Sequence[Selection], key: ModuleKey, end: int) -> list[tuple[int, int]]:
    """Steps [start, stop) in which a module was trained, neighbours joined."""
    steps = [s.step for s in selections] + [end]
    found: list[tuple[int, int]] = []
    for selection, (start, stop) in zip(selections, pairwise(steps), strict=True):
        if key not in selection.active:
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def score_map(selections: Sequence[Selection]) -> str:
    """Layers from left to right, one row for each type; empty where nothing was measured.

    The colour is the score that decided, averaged over all selections; the number is how often the module was chosen; a
    frame marks those of the last selection.
    """
    measured = [s for s in selections if s.scores]
    if not measured:
        return ""
    layers, kinds = _extent(selections)
    mean = {
        key: sum(s.scores.get(key, 0.0) for s in measured) / len(measured) for s in measured[:1] for key in s.scores
    }
    chosen = Counter(key for s in selections for key in s.active)
    highest = max(mean.values(), default=1.0) or 1.0
    cell = min(46, PLOT_WIDTH // layers)
    parts = [
        svg_text(LEFT + n * cell + cell / 2 - 1, TOP + 8, str(n), anchor="middle")
        for n in range(layers)
        if cell >= 24 or n % 4 == 0
    ]
    for r, kind in enumerate(kinds):
        top = TOP + 16 + r * 40
        parts.append(svg_text(LEFT - 12, top + 23, kind, anchor="end", css="dark"))
        for layer in range(layers):
            key = ModuleKey(layer, kind)
            fill = mix(KIND_COLORS[kind], mean.get(key, 0.0) / highest)
            frame = INK if key in selections[-1].active else LINE
            said = f"{key}: mean score {mean.get(key, 0.0):.3g}, chosen {chosen[key]} of {len(selections)} times"
            parts.append(
                f'<rect x="{LEFT + layer * cell}" y="{top}" width="{cell - 3}" height="36" rx="3" '
                f'fill="{fill}" stroke="{frame}" stroke-width="{2 if frame == INK else 1}">'
                f"<title>{said}</title></rect>"
            )
            if cell >= 24:
                x = LEFT + layer * cell + (cell - 3) / 2
                parts.append(svg_text(x, top + 22, str(chosen[key]), anchor="middle", css=ink_on(fill)))
    width = LEFT + layers * cell + 8
    return svg(width, TOP + 16 + len(kinds) * 40 + 6, "Scores of all modules", *parts)


def _extent(selections: Sequence[Selection]) -> tuple[int, list[Kind]]:
    """Number of layers, and the types that there are."""
    keys = {key for s in selections for key in (*s.active, *s.scores)}
    return max((key.layer for key in keys), default=0) + 1, [k for k in KINDS if any(key.kind == k for key in keys)]
