"""The table of a benchmark: numbers as JSON and Markdown, failures included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cegate_geo.train.benchmark import RunRecord
from cegate_geo.train.spread import Difference, Spread
from cegate_geo.train.suite import SuiteConfig

INTERVAL = "95 % interval of the mean difference by Student's t, paired by seed"
ALL = "all regions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method on a region."""

    setting: str
    region: str
    method: str
    lr: float | None
    """Chosen on source validation; None where every run failed."""
    active_parameters: int
    stored_parameters: int
    values: dict[int, float]
    """Seed → mean IoU."""
    difference: Difference | None
    """To the reference; None for the reference itself, or where no seed is shared."""
    oracle: float | None = None
    """Best mean IoU on this region over all rates, with the first seed: chosen on the test labels, an upper bound."""
    failures: int = 0

    @property
    def spread(self) -> Spread | None:
        """Over the seeds; None where no run succeeded."""
        return Spread.of(list(self.values.values())) if self.values else None

    def to_json(self) -> dict[str, Any]:
        """As numbers, strings, lists and dictionaries."""
        return {
            "setting": self.setting,
            "region": self.region,
            "method": self.method,
            "lr": self.lr,
            "active_parameters": self.active_parameters,
            "stored_parameters": self.stored_parameters,
            "miou": self.spread.to_json() if self.spread else None,
            "by_seed": {str(k): v for k, v in self.values.items()},
            "difference": self.difference.to_json() if self.difference else None,
            "oracle": self.oracle,
            "failures": self.failures,
        }


def make_rows(config: SuiteConfig, records: Sequence[RunRecord]) -> list[Row]:
    """One row for each method on each region, then one for each method over all regions, if there are several."""
    regions = [(s.name, t.name) for s in config.setting for t in s.test]
    rows = []
    for setting, region in regions:
        values = {m: _values(records, setting, m, region) for m in config.names}
        rows += [_row(config, records, setting, region, m, values) for m in config.names]
    if len(regions) > 1:
        means = {m: _means([r.values for r in rows if r.method == m]) for m in config.names}
        rows += [_overall(config, [r for r in rows if r.method == m], means) for m in config.names]
    return rows


def to_json(config: SuiteConfig, records: Sequence[RunRecord]) -> dict[str, Any]:
    """The whole table as numbers, strings, lists and dictionaries."""
    return {
        "name": config.name,
        "reference": config.compared_with,
        "interval": INTERVAL,
        "seeds": list(config.seeds),
        "lr": list(config.lr),
        "rows": [row.to_json() for row in make_rows(config, records)],
        "failures": [{"run": str(r.key), "failure": r.failure} for r in records if r.failure],
        "runs": [
            {
                "setting": r.key.setting,
                "method": r.key.method,
                "lr": r.key.lr,
                "seed": r.key.seed,
                "is_chosen": r.is_chosen,
                "validation": r.validation,
                "regions": r.regions,
                "seconds": r.seconds,
                "failure": r.failure,
            }
            for r in records
        ],
    }


def to_markdown(config: SuiteConfig, records: Sequence[RunRecord]) -> str:
    """The table for people who read text."""
    rows = make_rows(config, records)
    oracle = " oracle |" if config.oracle else ""
    lines = [f"# {config.name}", "", *explain(config), "", *_overview(config, rows)]
    for setting, region in dict.fromkeys((r.setting, r.region) for r in rows):
        lines += [f"## {heading(setting, region)}", ""]
        lines += [f"| method | rate | trained at a time | mean IoU | against {config.compared_with} | seeds |{oracle}"]
        lines += ["|---|---|---|---|---|---|" + ("---|" if oracle else "")]
        for row in (r for r in rows if (r.setting, r.region) == (setting, region)):
            lines.append("| " + " | ".join(cells(config, row)) + " |")
        lines.append("")
    failures = [r for r in records if r.failure]
    if failures:
        lines += ["## Failures", "", *(f"- {r.key}: {r.failure}" for r in failures), ""]
    else:
        lines += ["No run failed.", ""]
    return "\n".join(lines)


def _overview(config: SuiteConfig, rows: Sequence[Row]) -> list[str]:
    """Means of all methods in all regions, the best of each region in bold; nothing where there is one region."""
    regions = list(dict.fromkeys((r.setting, r.region) for r in rows))
    if len(regions) < 2:
        return []
    lines = ["## At a glance", "", "| method | " + " | ".join(heading(*region) for region in regions) + " |"]
    lines += ["|---|" + "---:|" * len(regions)]
    found = {(r.setting, r.region, r.method): r.spread.mean for r in rows if r.spread is not None}
    best = {region: max(found.get((*region, m), 0.0) for m in config.names) for region in regions}
    for method in config.names:
        means = [(found.get((*region, method)), best[region]) for region in regions]
        shown = ["-" if m is None else f"**{100 * m:.1f}**" if m == top else f"{100 * m:.1f}" for m, top in means]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def explain(config: SuiteConfig) -> list[str]:
    """What the figures are, in sentences."""
    grid = f"of {', '.join(f'{r:g}' for r in config.lr)}" if config.lr else "as configured"
    text = [
        f"Mean IoU x 100, mean ± standard deviation over the seeds {', '.join(map(str, config.seeds))}. "
        "Weights were chosen on source validation, never on a test region.",
        f"Learning rate {grid}, chosen for each method on source validation with seed {config.seeds[0]}.",
        f"In brackets: {INTERVAL}.",
    ]
    if "gate" in config.methods:
        text.append(
            "`gate` without a `peft.budget` is what `adapt` does by default: every module at once, and the patch "
            "embedding. With a budget it chooses so large a share of the modules."
        )
    if config.oracle:
        text.append("Oracle: the best rate on the test labels themselves, first seed; an upper bound, not a result.")
    return text


def heading(setting: str, region: str) -> str:
    """Setting and region in words."""
    return region if region == ALL else f"{setting}: {region}"


def cells(config: SuiteConfig, row: Row) -> list[str]:
    """A row as text."""
    spread, difference = row.spread, row.difference
    figure = "-" if spread is None else f"{100 * spread.mean:.1f}"
    if spread is not None and spread.deviation is not None:
        figure += f" ± {100 * spread.deviation:.1f}"
    against = "" if row.method == config.compared_with else "-"
    if difference is not None:
        against = f"{100 * difference.mean:+.1f}"
        if difference.low is not None and difference.high is not None:
            against += f" [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    failed = f", {row.failures} failed" if row.failures else ""
    found = [
        row.method,
        "-" if row.lr is None else f"{row.lr:g}",
        f"{row.active_parameters / 1e6:.3f} M",
        figure,
        against,
        f"{len(row.values)}{failed}",
    ]
    if config.oracle:
        found.append("-" if row.oracle is None else f"{100 * row.oracle:.1f}")
    return found


def _values(records: Sequence[RunRecord], setting: str, method: str, region: str) -> dict[int, float]:
    chosen = [r for r in records if r.is_chosen and (r.key.setting, r.key.method) == (setting, method)]
    return {r.key.seed: r.regions[region] for r in chosen if region in r.regions}


def _row(
    config: SuiteConfig,
    records: Sequence[RunRecord],
    setting: str,
    region: str,
    method: str,
    values: dict[str, dict[int, float]],
) -> Row:
    own = [r for r in records if (r.key.setting, r.key.method) == (setting, method)]
    chosen = [r for r in own if r.is_chosen and r.validation is not None]
    first = [r.regions[region] for r in own if r.key.seed == config.seeds[0] and region in r.regions]
    reference = config.compared_with
    return Row(
        setting=setting,
        region=region,
        method=method,
        lr=chosen[0].key.lr if chosen else None,
        active_parameters=max((r.active_parameters for r in chosen), default=0),
        stored_parameters=max((r.stored_parameters for r in chosen), default=0),
        values=values[method],
        difference=None if method == reference else Difference.of(values[method], values[reference]),
        oracle=max(first, default=None) if config.oracle else None,
        failures=sum(bool(r.failure) for r in own),
    )


def _overall(config: SuiteConfig, rows: list[Row], means: dict[str, dict[int, float]]) -> Row:
    method, reference = rows[0].method, config.compared_with
    rates, oracles = {r.lr for r in rows}, [r.oracle for r in rows if r.oracle is not None]
    failures = {(r.setting, r.failures) for r in rows}
    return Row(
        setting="",
        region=ALL,
        method=method,
        lr=rates.pop() if len(rates) == 1 else None,
        active_parameters=max(r.active_parameters for r in rows),
        stored_parameters=max(r.stored_parameters for r in rows),
        values=means[method],
        difference=None if method == reference else Difference.of(means[method], means[reference]),
        oracle=sum(oracles) / len(oracles) if len(oracles) == len(rows) else None,
        failures=sum(count for _, count in failures),
    )


def _means(regions: list[dict[int, float]]) -> dict[int, float]:
    """Seed → mean over the regions, of the seeds that all regions have."""
    seeds = set.intersection(*(set(values) for values in regions))
    return {seed: sum(values[seed] for values in regions) / len(regions) for seed in sorted(seeds)}
