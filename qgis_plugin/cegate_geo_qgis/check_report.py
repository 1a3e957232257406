# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` and `predict --dry-run` found, for the log and as a page. No qgis."""

from __future__ import annotations

from html import escape
from typing import Any, Mapping, Optional

from .outcome import EngineError
from .runtime_words import describe_seconds
from .words import mark, tr

STATES = {
    "ok": (mark("good"), "#2e7d32"),
    "warning": (mark("note"), "#b26a00"),
    "fail": (mark("bad"), "#c62828"),
    "skipped": (mark("not tested"), "#666666"),
}
"""The engine's word → ours, and its colour."""
STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em;color:#222;background:#fff}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.35em .9em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}"
)


def check_verdicts(told: Mapping[str, Any]) -> None:
    """Refuse what is no report.

    Raises:
        EngineError: If something is missing.
    """
    try:
        _ = [told[key] for key in ("ok", "scene", "model", "provider")]
        _ = [(v["name"], v["state"], v["message"]) for v in told["verdicts"]]
    except (KeyError, TypeError) as error:
        raise EngineError(tr("The engine's report lacks {error}. Update the engine.").format(error=error)) from error


def verdict_lines(told: Mapping[str, Any]) -> list[str]:
    """For a log: one line a test, and what to do where it is not good."""
    lines = []
    for verdict in told["verdicts"]:
        lines.append(f"{_state(verdict)}: {verdict['name']}: {verdict['message']}")
        if verdict.get("hint") and verdict["state"] != "ok":
            lines.append(f"    → {verdict['hint']}")
    return lines


def summary(told: Mapping[str, Any]) -> str:
    """Whether model, scene and computer suit each other."""
    failed = [str(v["name"]) for v in told["verdicts"] if v["state"] == "fail"]
    if failed:
        return tr("The model does not suit the scene or this computer: {tests}.").format(tests=", ".join(failed))
    noted = [str(v["name"]) for v in told["verdicts"] if v["state"] == "warning"]
    if noted:
        return tr("The model runs on this scene; read the notes on {tests}.").format(tests=", ".join(noted))
    return tr("Model, scene and computer suit each other.")


def forecast_line(plan: Optional[Mapping[str, Any]]) -> str:
    """What a run over all of the scene would take; empty where nothing is known."""
    if not plan:
        return ""
    seconds, memory = plan.get("seconds"), plan.get("memory_mb")
    time = tr("an unknown time") if seconds is None else describe_seconds(float(seconds))
    return tr("All of the scene: {tiles:,} tiles, about {time} on {provider}, {memory:,} MB of memory.").format(
        tiles=int(plan.get("tiles", 0)), time=time, provider=plan.get("provider", ""), memory=int(memory or 0)
    )


def report_html(told: Mapping[str, Any], plan: Optional[Mapping[str, Any]]) -> str:
    """A page that opens without a network, to attach to a report of a problem."""
    rows = "".join(
        f'<tr><td style="color:{STATES.get(v["state"], STATES["skipped"])[1]}"><b>{escape(_state(v))}</b></td>'
        f"<td>{escape(str(v['name']))}</td><td>{escape(str(v['message']))}{_hint(v)}</td>"
        f"<td>{_figure(v.get('number'))}</td><td>{_figure(v.get('limit'))}</td></tr>"
        for v in told["verdicts"]
    )
    head = "".join(f"<th>{escape(title)}</th>" for title in ("", tr("Test"), tr("Result"), tr("Number"), tr("Limit")))
    versions = ", ".join(f"{name} {version}" for name, version in (told.get("versions") or {}).items())
    facts = (told["scene"], told["model"], f"{told['provider']}; {versions}", forecast_line(plan))
    title = escape(tr("Check of a model"))
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1><p><b>{escape(summary(told))}</b></p>"
        + "".join(f"<p>{escape(str(fact))}</p>" for fact in facts if fact)
        + f"<table><tr>{head}</tr>{rows}</table></body></html>"
    )


def _state(verdict: Mapping[str, Any]) -> str:
    return tr(STATES.get(verdict["state"], STATES["skipped"])[0])


def _hint(verdict: Mapping[str, Any]) -> str:
    has_hint = verdict.get("hint") and verdict["state"] != "ok"
    return f"<br><i>{escape(str(verdict['hint']))}</i>" if has_hint else ""


def _figure(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.3g}"
