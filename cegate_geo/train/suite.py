"""A benchmark suite: methods x settings x seeds over one base configuration, as plain runs of `adapt`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from cegate_geo.errors import ConfigError
from cegate_geo.train.config import AdaptConfig, Method, SourceConfig
from cegate_geo.train.config_file import build, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantConfig:
    """[[variant]]: a method with other settings, under a name of its own."""

    name: str
    set: Mapping[str, Any]
    """Tables over those of the setting, for example { peft = { method = "gate", every = 50 } }."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingConfig:
    """[[setting]]: what is trained on, and where it is measured."""

    name: str
    set: Mapping[str, Any] = field(default_factory=dict)
    """Tables over those of the base configuration; lists such as `source` are replaced."""
    test: tuple[SourceConfig, ...] = ()
    """[[setting.test]]: regions that are only measured, each with a name."""

    def __post_init__(self) -> None:
        names = [t.name for t in self.test]
        if not names or not all(names) or len(set(names)) < len(names):
            raise ConfigError(
                f"The setting {self.name!r} has the test regions {names}.", hint="Give at least one, each with a name."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig:
    """A suite file."""

    config: str
    """The base configuration of `adapt`, relative to the suite."""
    setting: tuple[SettingConfig, ...]
    methods: tuple[str, ...] = ("gate", "full", "frozen")
    variant: tuple[VariantConfig, ...] = ()
    reference: str = ""
    """Method or variant that the others are compared with; empty: the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    lr: tuple[float, ...] = ()
    """Learning rates that each method may choose from, on source validation with the first seed; the head's rate keeps
    its ratio to it. Empty: that of the configuration."""
    oracle: bool = False
    """Whether the runs that were not chosen are measured on the test regions, too: the best of them is the oracle."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Tables over those of the base configuration, for all settings."""
    name: str = "benchmark"

    def __post_init__(self) -> None:
        names, settings = self.names, [s.name for s in self.setting]
        unknown = sorted(set(self.methods) - set(get_args(Method)))
        if unknown:
            raise ConfigError(f"The methods {unknown} are not known.", hint=f"Use {', '.join(get_args(Method))}.")
        for what, given in (("methods", names), ("settings", settings), ("seeds", self.seeds), ("rates", self.lr)):
            if len(set(given)) < len(given) or (not given and what != "rates"):
                raise ConfigError(f"The {what} are {list(given)}.", hint="Name each once, and at least one.")
        slugs = [slug(n) for n in (*names, "", *settings)]
        if len(set(slugs)) < len(slugs):
            raise ConfigError(
                f"The names {[*names, *settings]} do not give folders of their own.", hint="Use other letters in them."
            )
        if self.reference and self.reference not in names:
            raise ConfigError(f"The reference {self.reference!r} is no method here.", hint=f"Use {', '.join(names)}.")
        if any(not rate > 0 for rate in self.lr):
            raise ConfigError(f"lr = {list(self.lr)} holds no rates.", hint="Use positive numbers.")

    @property
    def names(self) -> tuple[str, ...]:
        """Methods and variants, in the order of the table."""
        return (*self.methods, *(v.name for v in self.variant))

    @property
    def compared_with(self) -> str:
        """The reference's name."""
        return self.reference or self.names[0]


@dataclass(frozen=True, slots=True)
class RunKey:
    """One run of a suite."""

    setting: str
    method: str
    lr: float
    seed: int

    @property
    def folder(self) -> Path:
        """Where it lies, relative to the table's folder."""
        return Path("runs") / slug(self.setting) / slug(self.method) / f"lr-{self.lr:g}-seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.setting}, {self.method}, lr {self.lr:g}, seed {self.seed}"


class Suite:
    """A suite with its base configuration: gives the configuration of each run.

    Args:
        config: What the suite's file says.
        base: The table of the base configuration.
    """

    def __init__(self, config: SuiteConfig, base: Mapping[str, Any]) -> None:
        self.config = config
        self.base = base
        for setting in config.setting:  # refuse what can't run before anything does
            for method in config.names:
                self.adapt_config(RunKey(setting.name, method, self.rates(setting.name, method)[0], config.seeds[0]))

    def rates(self, setting: str, method: str) -> tuple[float, ...]:
        """Learning rates to choose from, ascending."""
        own = build(AdaptConfig, self._table(setting, method)).train.lr
        return tuple(sorted(self.config.lr)) or (own,)

    def adapt_config(self, key: RunKey) -> AdaptConfig:
        """The configuration of one run."""
        table = self._table(key.setting, key.method)
        own = build(AdaptConfig, table).train
        train: dict[str, Any] = {"seed": key.seed, "lr": key.lr}
        for name, stated in (("head_lr", own.head_lr), ("backbone_lr", own.backbone_lr)):
            if stated is not None:
                train[name] = stated * key.lr / own.lr
        return build(AdaptConfig, merged(table, {"train": train}))

    def setting(self, name: str) -> SettingConfig:
        """A setting by name."""
        return next(s for s in self.config.setting if s.name == name)

    def _table(self, setting: str, method: str) -> dict[str, Any]:
        variants = {v.name: v.set for v in self.config.variant}
        over = variants.get(method, {"peft": {"method": method}})
        found: Mapping[str, Any] = self.base
        for table in (self.config.set, self.setting(setting).set, over):
            found = merged(found, table)
        return dict(found)


def read_suite(path: Path, *, settings: Sequence[str] = ()) -> Suite:
    """The suite in a TOML file.

    Args:
        path: The file.
        settings: Names of the settings that are wanted; empty: all.

    Raises:
        InputError: If a file is missing or no TOML, or says what can't be run, or has no such setting.
    """
    config = build(SuiteConfig, read_toml(path))
    if unknown := sorted(set(settings) - {s.name for s in config.setting}):
        raise ConfigError(f"{path} has no setting {unknown}.", hint=f"It has {[s.name for s in config.setting]}.")
    wanted = tuple(s for s in config.setting if not settings or s.name in settings)
    return Suite(dataclasses.replace(config, setting=wanted), read_toml(path.parent / config.config))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of `over` laid over those of `base`; values and lists are replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def slug(name: str) -> str:
    """A name as part of a path: letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", name).strip("-.").lower()
