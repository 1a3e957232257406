"""Laws of configuration files: what is written is what is used, and what is not known is refused with the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cegate_geo.errors import ConfigError, InputError
from cegate_geo.train.config import AdaptConfig, Method, PeftConfig, SourceConfig, TrainConfig
from cegate_geo.train.config_file import apply_overrides, build, read_toml, to_table


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    part: Part = field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    rate: float = 0.5
    is_on: bool = False
    limit: float | None = None
    rows: tuple[int, int] | None = None
    colors: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[int, str] = field(default_factory=dict)


wholes = st.builds(
    Whole,
    name=st.text(max_size=5),
    part=st.builds(Part, size=st.integers(), kind=st.sampled_from(["a", "b"])),
    parts=st.lists(st.builds(Part, size=st.integers()), max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.floats(allow_nan=False)),
    rate=st.floats(allow_nan=False),
    is_on=st.booleans(),
    limit=st.none() | st.floats(allow_nan=False),
    rows=st.none() | st.tuples(st.integers(), st.integers()),
    colors=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    classes=st.dictionaries(st.integers(0, 300), st.text(max_size=3), max_size=3),
)


@given(wholes)
def test_a_table_builds_what_it_was_made_of(value: Whole) -> None:
    assert build(Whole, to_table(value)) == value


def test_what_is_not_written_is_the_default() -> None:
    assert build(Whole, {"name": "x"}) == Whole(name="x")
    assert build(Whole, {"name": "x", "limit": 1}).limit == 1.0
    assert isinstance(build(Whole, {"name": "x", "rate": 1}).rate, float)
    assert build(Whole, {"name": "x", "classes": {"7": "road"}}).classes == {7: "road"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"nam": "x"}, r"unknown key 'nam'.*'name'"),
        ({"name": "x", "part": {"siez": 2}}, r"\[part\].*'siez'.*'size'"),
        ({"name": "x", "zzz": 1}, r"'zzz'.*Known keys: name, part"),
        ({}, r"lacks the key 'name'"),
        ({"name": 3}, r"name = 3.*str"),
        ({"name": "x", "is_on": 1}, r"is_on = 1.*bool"),
        ({"name": "x", "part": {"size": True}}, r"part\.size = True.*int"),
        ({"name": "x", "part": {"size": 1.5}}, r"part\.size = 1\.5.*int"),
        ({"name": "x", "part": {"size": "1"}}, r"part\.size = '1'"),
        ({"name": "x", "part": {"kind": "c"}}, r"part\.kind = 'c'.*a, b"),
        ({"name": "x", "part": 3}, r"part = 3 is no table"),
        ({"name": "x", "parts": {"size": 1}}, r"parts.*is no list"),
        ({"name": "x", "parts": [{"size": 1}, {"sise": 1}]}, r"parts\[1\].*'sise'.*'size'"),
        ({"name": "x", "pair": [1]}, r"pair = \[1\].*2 values"),
        ({"name": "x", "pair": [1, "a"]}, r"pair\[1\] = 'a'"),
        ({"name": "x", "rows": [1, 2, 3]}, r"rows.*2 values"),
        ({"name": "x", "limit": "much"}, r"limit = 'much'"),
        ({"name": "x", "colors": ["red"]}, r"colors.*no table"),
        ({"name": "x", "colors": {"a": 1}}, r"colors\.a = 1"),
        ({"name": "x", "classes": {"one": "a"}}, r"classes.*'one'.*whole number"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place_and_the_mend(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Whole, table)


def test_keys_that_mean_the_same_id_are_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        build(Whole, {"name": "x", "classes": {"1": "a", "01": "b"}})


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("0.5", 0.5), ("true", True), ("dpt", "dpt"), ('"10"', "10"), ("[1, 2]", [1, 2]),
     ("a/*.tif", "a/*.tif"), ("", ""), ("x=y", "x=y"), ("a\nb = 2", "a\nb = 2")],
)  # fmt: skip
def test_overrides_are_toml_or_bare_words(text: str, value: object) -> None:
    assert apply_overrides({"a": {"b": 0, "c": 1}}, [f"a.b={text}"]) == {"a": {"b": value, "c": 1}}


def test_overrides_leave_the_table_alone_and_come_in_order() -> None:
    table = {"a": {"b": [1, {"c": 2}]}}
    result = apply_overrides(table, ["a.x=1", "a.x=2", "new.deep.key=3"])
    assert table == {"a": {"b": [1, {"c": 2}]}}
    assert result == {"a": {"b": [1, {"c": 2}], "x": 2}, "new": {"deep": {"key": 3}}}
    result["a"]["b"][1]["c"] = 9
    assert table["a"]["b"] == [1, {"c": 2}]


def test_an_override_reaches_into_a_list_by_number() -> None:
    table = {"source": [{"images": "a"}, {"images": "b"}]}
    assert apply_overrides(table, ["source.1.images=c"])["source"] == [{"images": "a"}, {"images": "c"}]
    with pytest.raises(ConfigError, match=r"source\.2.*no entry"):
        apply_overrides(table, ["source.2.images=c"])
    for text in ("source.images=c", "source.first.images=c"):
        with pytest.raises(ConfigError, match=r"source.*(number|from 0)"):
            apply_overrides(table, [text])


@pytest.mark.parametrize("text", ["steps", "=3", "train.=3", ".steps=3", ""])
def test_an_override_without_a_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="sets nothing"):
        apply_overrides({}, [text])


def test_an_override_into_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="no table"):
        apply_overrides({"a": 3}, ["a.b=1"])


def test_files_that_can_not_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_toml(tmp_path / "missing.toml")
    (path := tmp_path / "bad.toml").write_text("a = \n")
    with pytest.raises(InputError, match=r"bad\.toml.*line 1"):
        read_toml(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(InputError, match="no valid TOML"):
        read_toml(path)
    path.write_text("[a]\nb = [1, 2]\n")
    assert read_toml(path) == {"a": {"b": [1, 2]}}


def test_a_whole_configuration_survives_file_and_table(tmp_path: Path) -> None:
    (path := tmp_path / "adapt.toml").write_text(
        """
        [classes]
        0 = "other"
        1 = "building"
        [[source]]
        images = "a/*.tif"
        labels = "b.gpkg"
        rows = [3584, 6656]
        remap = { house = "building" }
        nodata = [255]
        [train]
        scale = [0.5, 2]
        head_lr = 1e-3
        [peft]
        spatial = { rank = 8 }
        """
    )
    config = build(AdaptConfig, apply_overrides(read_toml(path), ["train.steps=7"]))
    assert config.legend.names == ("other", "building")
    assert config.source == (
        SourceConfig(
            images="a/*.tif", labels="b.gpkg", rows=(3584, 6656), remap={"house": "building"}, nodata=(255.0,)
        ),
    )
    assert config.train == TrainConfig(steps=7, head_lr=1e-3)
    assert config.peft.spatial.rank == 8
    assert build(AdaptConfig, to_table(config)) == config


@pytest.mark.parametrize("wrong", [{"start": -1}, {"until": 1.1}, {"until": -0.1}, {"memory": 1.0}, {"memory": -0.1}])
def test_a_gate_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        PeftConfig(**wrong)


@pytest.mark.parametrize(("key", "value"), [("normalise", "rank"), ("quota", "block")])
def test_a_choice_that_the_gate_does_not_have_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"peft\.{key} = '{value}' is no choice"):
        build(PeftConfig, {key: value}, "peft")


@pytest.mark.parametrize(("method", "share"), [("gate", 1.0), ("random", 0.25), ("fixed", 0.25), ("grad-norm", 0.25)])
def test_a_control_that_is_named_alone_has_something_to_choose(method: Method, share: float) -> None:
    assert PeftConfig(method=method).share == share
    assert PeftConfig(method=method, budget=0.5).share == 0.5


def test_a_gate_that_starts_after_the_end_is_refused() -> None:
    source = (SourceConfig(images="a", labels="b"),)
    AdaptConfig(classes={0: "a", 1: "b"}, source=source, peft=PeftConfig(start=9), train=TrainConfig(steps=10))
    with pytest.raises(ConfigError, match="start = 10 leaves none of 10 steps"):
        AdaptConfig(classes={0: "a", 1: "b"}, source=source, peft=PeftConfig(start=10), train=TrainConfig(steps=10))
