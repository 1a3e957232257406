"""The page that says what happened: one HTML file that opens without a network, pictures inside."""

from __future__ import annotations

from html import escape
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from cegate_geo import html
from cegate_geo.demo.charts import figures, gate_chart, iou_table, legend_row, timing_bar
from cegate_geo.demo.pictures import data_uri, paint_classes, paint_errors, paint_imagery, paint_over
from cegate_geo.demo.regions import Region
from cegate_geo.demo.story import Outcome, Story

SWIPE_SCRIPT = (
    "document.querySelectorAll('.swipe input').forEach(i=>i.addEventListener('input',"
    "()=>i.parentNode.style.setProperty('--at',i.value+'%')));"
)


def render_page(story: Story) -> str:
    """The whole page as HTML. It refers to nothing outside itself."""
    style = (files("cegate_geo.demo") / "page.css").read_text(encoding="utf-8")
    parts = [_head(story), _swipe(story), _training(story), _result(story), _gate(story), _cost(story), _next(story)]
    return html.page("CEGate-Geo demo", *parts, style=style, script=SWIPE_SCRIPT)


def _figure(picture: npt.NDArray[np.uint8], title: str, text: str, *, is_map: bool = False) -> str:
    uri = data_uri(picture, "PNG" if is_map else "JPEG")
    return (
        f'<figure><img src="{uri}" alt="{escape(title)}">'
        f"<figcaption><b>{escape(title)}</b> {escape(text)}</figcaption></figure>"
    )


def _grid(*cells: str) -> str:
    return f'<div class="grid {"two" if len(cells) == 2 else "three"}">{"".join(cells)}</div>'


def _size(region: Region) -> str:
    height, width = region.spec.shape
    return f"{width:,} x {height:,} px at {region.spec.gsd_m:.2f} m, {region.spec.crs}"


def _head(story: Story) -> str:
    if story.labelled is None:
        title = "The shipped model on a region made by code"
        text = (
            "Nothing was trained: the packages for it are not installed here. The demo made a georeferenced region "
            "with exact truth and predicted it with the small model that comes with CEGate-Geo."
        )
    else:
        title = "Adapted on one region, used on another that looks different"
        text = (
            "The demo made two georeferenced regions by code. It adapted a small vision transformer on the labels of "
            "region A, exported one ONNX file, and predicted region B with it, which the model had never seen: another "
            "sensor, season, light, pixel size and coordinate system."
        )
    return f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(text)}</p>\n{figures(story)}'


def _swipe(story: Story) -> str:
    region = story.unseen
    below = data_uri(paint_imagery(region.picture, region.valid), "JPEG")
    above = data_uri(paint_over(region.picture, story.adapted.class_map, story.legend, opacity=0.72), "JPEG")
    return (
        f'<div class="swipe"><img src="{below}" alt="Imagery of {escape(region.spec.title)}">'
        f'<img src="{above}" alt="Predicted classes">'
        '<input type="range" min="0" max="100" value="50" step="0.1" aria-label="Move between imagery and prediction">'
        f"</div>\n<p class='small'>{escape(region.spec.title)}: imagery on the left, prediction on the right; drag to "
        f"move the edge. {escape(region.spec.story)} {escape(_size(region))}.</p>\n{legend_row(story.legend)}"
    )


def _training(story: Story) -> str:
    region = story.labelled
    if region is None:
        return ""
    counted = sum(class_id != 0 for class_id, _ in region.polygons)
    return (
        f"<h2>What it learned from</h2>\n<p>{escape(region.spec.title)}: {counted} polygons of "
        f"{len(story.legend) - 1} classes. {escape(region.spec.story)} {escape(story.backbone)}</p>\n"
        + _grid(
            _figure(region.picture, "Imagery of region A.", _size(region)),
            _figure(
                paint_over(region.picture, region.truth, story.legend, opacity=0.72),
                "Its labels.",
                "Polygons in a GeoPackage; exact, because the same code drew the picture.",
            ),
        )
    )


def _result(story: Story) -> str:
    region, adapted, frozen = story.unseen, story.adapted, story.frozen
    nodata = (
        "Corners without imagery stay nodata: nothing is invented there, and they count for nothing."
        if not region.valid.all()
        else ""
    )
    lines = [f"<h2>What it says about {escape(region.spec.title[0].lower() + region.spec.title[1:])}</h2>"]
    if adapted.metrics is not None:
        lines.append(iou_table(story))
    lines += [f'<p class="note">{escape(note)}</p>' for note in story.notes]
    if adapted.metrics is None:
        return "\n".join([*lines, _grid(_map(story, adapted))])
    maps = [_figure(paint_classes(region.truth, story.legend), "Truth.", nodata, is_map=True)]
    maps += [_map(story, outcome) for outcome in (frozen, adapted) if outcome is not None]
    if frozen is None:
        return "\n".join([*lines, _grid(*maps, _errors(region, adapted))])
    lines.append(_grid(*maps))
    lines.append(_grid(_errors(region, frozen), _errors(region, adapted), _gain(region, frozen, adapted)))
    return "\n".join(lines)


def _map(story: Story, outcome: Outcome) -> str:
    return _figure(paint_classes(outcome.class_map, story.legend), f"{outcome.title}.", "", is_map=True)


def _errors(region: Region, outcome: Outcome) -> str:
    wrong = paint_errors(region.truth, outcome.class_map)
    text = ""
    if outcome.metrics is not None and outcome.metrics["accuracy"] is not None:
        text = f"{1 - outcome.metrics['accuracy']:.1%} of the pixels, in red."
    return _figure(wrong, f"Where it is wrong: {outcome.title[0].lower() + outcome.title[1:]}.", text, is_map=True)


def _gain(region: Region, frozen: Outcome, adapted: Outcome) -> str:
    """Green where only the adapted model is right, red where only the frozen one is."""
    before, after = frozen.class_map == region.truth, adapted.class_map == region.truth
    picture = paint_errors(region.truth, region.truth)
    picture[:, region.valid & after & ~before] = np.array([46, 125, 91], np.uint8)[:, None]
    picture[:, region.valid & before & ~after] = np.array([196, 41, 66], np.uint8)[:, None]
    better, worse = (region.valid & after & ~before).sum(), (region.valid & before & ~after).sum()
    total = region.valid.sum()
    return _figure(
        picture,
        "The difference.",
        f"Green: only the adapted model is right ({better / total:.1%}). Red: only the frozen ({worse / total:.1%}).",
        is_map=True,
    )


def _gate(story: Story) -> str:
    if story.gate is None:
        return ""
    total = story.gate.layers * len(story.gate.kinds)
    return (
        "<h2>What the gate chose</h2>\n"
        f"<p>Every block of the transformer has three places for a small module. {story.gate.selections} times during "
        f"training the gate measured on single chips how much each of the {total} modules matters to the loss (its "
        f"Fisher score) and let the {len(story.gate.active)} most important ones learn. {len(story.gate.kept)} of them "
        f"are in the exported model; the others were removed from it.</p>\n{gate_chart(story.gate)}"
    )


def _cost(story: Story) -> str:
    rows = "".join(f"<dt><code>{escape(path)}</code></dt><dd>{escape(what)}</dd>" for path, what in story.files)
    facts = []
    if story.model_bytes:
        facts.append(
            f"The model is {story.model_bytes / 1e6:.1f} MB with {story.model_parameters / 1e6:.2f} M weights."
        )
    if story.parity is not None:
        facts.append(f"Its probabilities differ from torch's by at most {story.parity:.1e}.")
    if story.polygons is not None:
        facts.append(f"{story.polygons:,} polygons were written.")
    return (
        f"<h2>What it took, and what it left</h2>\n{timing_bar(story.timings)}\n<p>{escape(' '.join(facts))}</p>\n"
        f"<dl>{rows}</dl>"
    )


def _next(story: Story) -> str:
    blocks = "".join(f"<p>{escape(what)}</p><pre>{escape(command)}</pre>" for what, command in story.commands)
    return f"<h2>Now with your own data</h2>\n{blocks}" if blocks else ""
