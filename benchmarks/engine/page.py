"""The page and the plot, from the figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cegate_geo.html import ACCENT, INK, LINE, QUIET, svg_text

NAMES = {
    "engine": "CEGate-Geo",
    "bare": "bare session",
    "loop": "plain loop",
    "geodeep": "GeoDeep",
    "geodeep-unfiltered": "GeoDeep, unfiltered",
}
BUSY = 0.05
"""Share of the machine in other hands above which its times are those of a busy machine."""

TEXT = """\
# The engine beside others

`{command}` at commit {commit}, {date}. {cpu}, {cores} cores, {memory_gib:g} GiB of memory, {system}; Python {python}.
{versions}.

{quiet}

![Seconds and peak memory of each contestant]({image})

Each figure is that of a whole process, start-up included, on all cores: median and least of {repeats} runs; the
contestants took turns. Memory is the largest sum of resident memory over the process tree, looked at every 20 ms.
*Engine ÷ this* is the median over turns of the engine's seconds divided by this one's: below 1 the engine is faster.

"""

NOTES = """\
## What is what

- The scene is made by code from a seed: an uncompressed tiled RGB GeoTIFF of uint8, patches of 16 px with grain. The
  nearly free model multiplies by a half and has three classes: what is measured is everything around the session. The
  real one is timm's `vit_small_patch16_224` at 512 px with a linear head and six classes, random weights (speed does
  not depend on them), exported as `cegate-geo export` does; its scene is smaller, so that the run ends in minutes.
- **CEGate-Geo**: `cegate-geo predict --provider cpu`. Blends; writes a cloud-optimised, compressed GeoTIFF with
  overviews.
- **bare session**: as many onnxruntime calls of one tile as the engine makes, on tiles that are in memory: no
  reading, no stitching, no writing. What no engine can beat on the same runtime.
- **plain loop**: rasterio and onnxruntime as in many notebooks ([plain_loop.py](../benchmarks/engine/plain_loop.py)):
  boundless reads, one tile at a time, margins cropped, no overviews.
- **GeoDeep** from PyPI in an environment of its own, with scipy, for without it its median filter takes minutes and
  gigabytes. Crops; keeps the whole mask in memory; writes it uncompressed, as the scene is. *Unfiltered*: the
  same with that filter of the finished mask left out, which no other contestant has.
- *step*: the largest step of a probability between neighbouring pixels that comes from joining tiles, and not from
  the model within a tile (`cegate_geo/infer/seams.py`), around nine tiles in the middle of the scene, laid and joined
  as the contestant does. The nearly free model sees one pixel at a time, so there is nothing to join.
- *same class*: share of the pixels that get the class that the engine gives: near seams and under a median filter
  they differ.
- terratorch's tiled inference is left out: to import it takes the whole package (1.2.13 asks for torch, torchgeo,
  lightning, diffusers, lightly and two dozen more), an environment of several gigabytes for one function.
"""


def write(results: Mapping[str, Any], folder: Path, stem: str) -> None:
    """Write STEM.md and images/STEM.svg into a folder."""
    image = Path("images") / f"{stem}.svg"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / image).write_text(plot(results), encoding="utf-8")
    machine = results["machine"]
    text = TEXT.format(
        **machine, command=results["command"], commit=results["commit"], date=results["date"],
        repeats=results["repeats"], image=image.as_posix(), quiet=_quiet(results),
        versions=", ".join(f"{name} {value}" for name, value in results["versions"].items()),
    )  # fmt: skip
    growing = _scaling(results["scaling"]) if results["scaling"] else ""
    parts = [text, *(_case(case) for case in results["cases"]), growing, NOTES]
    (folder / f"{stem}.md").write_text("".join(parts), encoding="utf-8")


def _quiet(results: Mapping[str, Any]) -> str:
    shares = [run["others"] for runs in _all_runs(results) for run in runs]
    middle, most = statistics.median(shares), max(shares)
    said = f"Other processes took {middle:.0%} of the machine's CPU time during a run (median), {most:.0%} at most"
    if middle <= BUSY:
        return f"{said}."
    return f"{said}: **the machine was not quiet**, so seconds are too many, and ratios of turns count for more."


def _all_runs(results: Mapping[str, Any]) -> list[list[dict[str, float]]]:
    runs = [one["runs"] for case in results["cases"] for one in case["contestants"].values()]
    return runs + [row["runs"] for row in results["scaling"]]


def _case(case: Mapping[str, Any]) -> str:
    lines = [
        f"## {case['model']}, {_px(case['scene_px'])}, overlap {case['overlap_px']} px\n",
        f"{case['tiles']:,} tiles of 512 px.\n",
        "| | seconds | least | CPU s | peak MB | engine ÷ this | step | same class |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    engine = case["contestants"]["engine"]["runs"]
    for key, one in case["contestants"].items():
        runs = one["runs"]
        ratio = statistics.median(e["seconds"] / r["seconds"] for e, r in zip(engine, runs, strict=True))
        cells = [
            NAMES[key], f"{_median(runs, 'seconds'):.2f}", f"{min(r['seconds'] for r in runs):.2f}",
            f"{_median(runs, 'cpu_s'):.2f}", f"{max(r['peak_mb'] for r in runs):,.0f}",
            "" if key == "engine" else f"{ratio:.2f}",
            "" if one["seam"] is None else f"{one['seam']:.3f}",
            "" if one["agreement"] is None or key == "engine" else f"{_floor(one['agreement'])} %",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n"


def _floor(share: float) -> str:
    """Per cent with two digits, never rounded up to 100."""
    return "100" if share == 1 else f"{int(share * 10_000) / 100:.2f}"


def _scaling(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## Growing scenes\n",
        f"The engine, nearly free model, overlap {rows[0]['overlap_px']} px.\n",
        "| scene | tiles | seconds | least | megapixels a second | peak MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = _median(row["runs"], "seconds")
        cells = [
            _px(row["scene_px"]), f"{row['tiles']:,}",
            f"{seconds:.2f}", f"{min(r['seconds'] for r in row['runs']):.2f}",
            f"{row['scene_px'] ** 2 / 1e6 / seconds:.1f}", f"{max(r['peak_mb'] for r in row['runs']):,.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n"


def _px(size: int) -> str:
    return f"{size:,} x {size:,} px"


def _median(runs: Sequence[Mapping[str, float]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


WIDTH, PANEL, ROW, HEAD, GAP, NAME = 960, 462, 24, 46, 20, 168


def plot(results: Mapping[str, Any]) -> str:
    """Bars of seconds, with memory beside them: a panel for each case, and one for growing scenes."""
    panels: list[tuple[str, list[tuple[str, float, str, str]]]] = []
    for case in results["cases"]:
        bars = []
        for key, one in case["contestants"].items():
            seconds, peak = _median(one["runs"], "seconds"), max(run["peak_mb"] for run in one["runs"])
            color = {"engine": ACCENT, "bare": LINE}.get(key, "#9aa3a7")
            bars.append((NAMES[key], seconds, f"{seconds:.1f} s, {peak:,.0f} MB", color))
        panels.append((f"{case['model']}, {_px(case['scene_px'])}, overlap {case['overlap_px']} px", bars))
    growing = [
        (_px(row["scene_px"]), s := _median(row["runs"], "seconds"),
         f"{s:.1f} s, {max(run['peak_mb'] for run in row['runs']):,.0f} MB", ACCENT)
        for row in results["scaling"]
    ]  # fmt: skip
    if growing:
        panels.append(("CEGate-Geo on growing scenes, nearly free model", growing))
    parts, top = [], 12
    for pair in (panels[n : n + 2] for n in range(0, len(panels), 2)):
        height = max(HEAD + ROW * len(bars) for _, bars in pair)
        parts += [_panel(title, bars, 8 + x * (PANEL + GAP), top) for x, (title, bars) in enumerate(pair)]
        top += height + GAP
    style = (
        f'text {{ font: 13px "Source Sans 3", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; fill: {INK}; }} '
        f"text.quiet {{ fill: {QUIET}; }} text.title {{ font-weight: 600; }}"
    )
    label = "Seconds and peak memory of the contestants, by model and overlap"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        f'role="img" aria-label="{label}"><style>{style}</style><rect width="{WIDTH}" height="{top}" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(title: str, bars: Sequence[tuple[str, float, str, str]], left: int, top: int) -> str:
    """Horizontal bars (name, value, what stands beside it, colour) from one zero."""
    room = PANEL - NAME - 130
    to_px: Callable[[float], float] = lambda value: room * value / max(bar[1] for bar in bars)  # noqa: E731
    parts = [svg_text(left, top + 20, title, css="title")]
    for n, (name, value, text, color) in enumerate(bars):
        y = top + HEAD - 8 + n * ROW
        parts.append(svg_text(left + NAME - 8, y + 14, name, anchor="end"))
        parts.append(
            f'<rect x="{left + NAME}" y="{y + 2}" width="{max(1, to_px(value)):.1f}" height="{ROW - 7}" rx="2" '
            f'fill="{color}"><title>{escape(text)}</title></rect>'
        )
        parts.append(svg_text(left + NAME + to_px(value) + 7, y + 14, text, css="quiet"))
    return "".join(parts)
