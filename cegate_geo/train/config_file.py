"""TOML tables as checked value types: unknown keys and wrong types are refused, with the mend."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from cegate_geo.errors import ConfigError, InputError

T = TypeVar("T")
PLACES = frozenset({"images", "labels", "aoi", "leave_out", "weights", "teacher"})
"""Keys whose values are files."""


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        InputError: If the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.", hint="Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no valid TOML: {error}.", hint="Check the line that it names.") from error


def apply_overrides(table: dict[str, Any], overrides: typing.Iterable[str]) -> dict[str, Any]:
    """A copy of `table` with `section.key=value` entries set; values are TOML, bare words are strings.

    Entries of a list of tables are named by number, from 0: `source.0.images=a.tif`.

    Example:
        >>> apply_overrides({}, ["train.steps=10", "model.head=dpt"])
        {'train': {'steps': 10}, 'model': {'head': 'dpt'}}
    """
    result = _deep_copy(table)
    for text in overrides:
        name, equals, raw = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"{text!r} sets nothing.", hint="Write it as section.key=value.")
        try:
            value = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw
        place: Any = result
        for key in keys[:-1]:
            place = _inner(place, key, name)
        if not isinstance(place, dict):
            raise ConfigError(
                f"{name!r} sets a key of a list.", hint="Name the entry by number, as in source.0.images."
            )
        place[keys[-1]] = value
    return result


def _inner(place: Any, key: str, name: str) -> Any:
    """The table or list under a key; a missing table is made."""
    if isinstance(place, list):
        if not key.isdecimal() or int(key) >= len(place):
            raise ConfigError(f"{name!r}: the list has no entry {key!r}.", hint=f"It has {len(place)}, from 0.")
        inner = place[int(key)]
    else:
        inner = place.setdefault(key, {})
    if not isinstance(inner, dict | list):
        raise ConfigError(f"{name!r} reaches into {key!r}, which is no table.", hint="Set it in the file.")
    return inner


def build(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """An instance of the dataclass `kind` from a table; nested dataclasses, tuples of them, and choices included.

    Args:
        kind: A dataclass with annotated fields.
        table: Keys are field names.
        where: Name of the table for messages, for example "train".

    Raises:
        ConfigError: For an unknown key (with the nearest known one), a missing one, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    place = f"[{where}] " if where else ""
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(fields)}."
            raise ConfigError(f"{place}has the unknown key {key!r}.".lstrip(), hint=hint)
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], f"{where}.{name}" if where else name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place}lacks the key {name!r}.".lstrip(), hint=f"Add {name} = ... to it.")
    return kind(**values)


def to_table(value: Any) -> Any:
    """The JSON-able form of a configuration: the inverse of `build`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_table(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_table(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_table(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def without_folders(table: Any) -> Any:
    """A copy of what `to_table` gives in which files have their names only: what stays the same where they were moved.

    Example:
        >>> without_folders({"name": "a/b", "source": [{"images": "/a/*.tif"}]})
        {'name': 'a/b', 'source': [{'images': '*.tif'}]}
    """
    if isinstance(table, list):
        return [without_folders(entry) for entry in table]
    if not isinstance(table, dict):
        return table
    return {
        key: Path(value).name if key in PLACES and isinstance(value, str) else without_folders(value)
        for key, value in table.items()
    }


def is_same_elsewhere(text: str, table: Any) -> bool:
    """Whether a text is a table as JSON, wherever their files lie: what these hold is known when they are read."""
    try:
        before = json.loads(text)
    except json.JSONDecodeError:
        return False
    return bool(without_folders(before) == without_folders(json.loads(json.dumps(table))))


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r} is no table.", hint=f"Write [{where}] and its keys below.")
        return build(kind, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert_first([a for a in args if a is not type(None)], value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} = {value!r} is no choice.", hint=f"Use one of {', '.join(map(str, args))}.")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r} is no table.", hint=f"Write [{where}] and its keys below.")
        result = {_key(args[0], k, where): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
        if len(result) < len(value):
            raise ConfigError(f"[{where}] has a key twice: {', '.join(map(repr, value))}.", hint="Keep one of them.")
        return result
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Any or (
        isinstance(kind, type) and isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
    ):
        return value
    raise ConfigError(f"{where} = {value!r} should be of type {getattr(kind, '__name__', kind)}.", hint="Change it.")


def _convert_first(kinds: list[Any], value: Any, where: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return _convert(kind, value, where)
        except ConfigError:
            continue
    return _convert(kinds[-1], value, where)


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} = {value!r} is no list.", hint="Write it in [brackets].")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{where}[{n}]") for n, v in enumerate(value))
    if len(args) != len(value):
        raise ConfigError(f"{where} = {value!r} should have {len(args)} values.", hint="Change it.")
    return tuple(_convert(a, v, f"{where}[{n}]") for n, (a, v) in enumerate(zip(args, value, strict=True)))


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError as error:
        raise ConfigError(f"[{where}] has the key {key!r}, which is no whole number.", hint="Write 0 = ...") from error


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deep_copy(v) for k, v in value.items()}
    return [_deep_copy(v) for v in value] if isinstance(value, list) else value
