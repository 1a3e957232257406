# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of an evaluation, for the log and as a page. No qgis."""

from __future__ import annotations

from html import escape
from typing import Any, Mapping, Optional

from .outcome import EngineError
from .words import mark, tr

COLUMNS = (("iou", mark("IoU")), ("f1", mark("F1")), ("precision", mark("Precision")), ("recall", mark("Recall")))
SHARES = mark("Rows: the labels. Columns: what was predicted. Shares of a row.")


def check_figures(values: Mapping[str, Any]) -> None:
    """Refuse what are no figures.

    Raises:
        EngineError: If something is missing.
    """
    try:
        _ = [(c["id"], c["name"], c["pixels"], *(c[key] for key, _ in COLUMNS)) for c in values["per_class"]]
        _ = [values["miou"], values["accuracy"], *values["confusion"]]
    except (KeyError, TypeError) as error:
        raise EngineError(tr("The engine's figures lack {error}. Update the engine.").format(error=error)) from error


def percent(value: Optional[float]) -> str:
    """'78.3 %'; a dash for none (a class that neither side has)."""
    return "-" if value is None else f"{100 * value:.1f} %"


def figure_lines(values: Mapping[str, Any]) -> list[str]:
    """For a log."""
    lines = [_means(values)]
    for item in values["per_class"]:
        numbers = ", ".join(f"{tr(title)} {percent(item[key])}" for key, title in COLUMNS)
        lines.append(f"  {item['id']} {item['name']}: {numbers}, {item['pixels']:,} px")
    return lines


def _means(values: Mapping[str, Any]) -> str:
    return tr("Mean IoU {miou}, accuracy {accuracy}").format(
        miou=percent(values["miou"]), accuracy=percent(values["accuracy"])
    )


def figures_html(values: Mapping[str, Any], *, title: str, subtitle: str) -> str:
    """A page that opens without a network: per class, and which class was taken for which."""
    head = "".join(f"<th>{name}</th>" for name in (tr("Class"), *(tr(title) for _, title in COLUMNS), tr("Pixels")))
    rows = "".join(
        f"<tr><td>{escape(str(item['name']))}</td>"
        + "".join(f"<td>{percent(item[key])}</td>" for key, _ in COLUMNS)
        + f"<td>{item['pixels']:,}</td></tr>"
        for item in values["per_class"]
    )
    names = [escape(str(item["name"])) for item in values["per_class"]]
    confusion = "".join(
        f"<tr><th>{name}</th>" + "".join(_share(count, sum(counts)) for count in counts) + "</tr>"
        for name, counts in zip(names, values["confusion"])  # noqa: B905, no `strict` in Python 3.9
    )
    columns = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"
        f"<p><b>{escape(_means(values))}</b></p>"
        f"<table><tr>{head}</tr>{rows}</table>"
        f"<h2>{escape(tr('What was taken for what'))}</h2><p>{escape(tr(SHARES))}</p>"
        f"<table><tr><th></th>{columns}</tr>{confusion}</table></body></html>"
    )


def _share(count: int, total: int) -> str:
    share = count / total if total else 0.0
    ink = "#fff" if share > 0.55 else "#222"
    return (
        f'<td style="background:rgba(33,94,153,{share:.2f});color:{ink}" title="{count:,} px">{100 * share:.1f} %</td>'
    )


STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em;color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.35em .9em;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
)
