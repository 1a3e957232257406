"""Several models as one: their mean, what has to agree, and what they say together."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cegate_geo.domain.contract import StatedContract
from cegate_geo.domain.legend import Legend
from cegate_geo.errors import ContractWarning, InputError, ModelError, ProviderWarning
from cegate_geo.infer.ensemble import Ensemble, load_models, members_of, models_sha256
from cegate_geo.infer.footprint import SMALL_SESSION
from cegate_geo.infer.job import PredictOptions
from cegate_geo.infer.job_key import job_key
from cegate_geo.infer.load import load_predictor
from cegate_geo.infer.predictor import SessionOptions, file_sha256
from cegate_geo.infer.providers import Candidate
from cegate_geo.infer.reader import Scene
from cegate_geo.infer.settle import settle
from tests import foreign_models as foreign
from tests import toy_models as toys

CPU = SessionOptions(provider="cpu", threads=1)


def tiles(count: int = 2, size: int = 64) -> np.ndarray:
    return np.random.default_rng(3).random((count, 3, size, size), np.float32)


def load(*paths: Path, options: SessionOptions = CPU, **more: Any) -> Ensemble:
    model = load_models(paths, options, **more)
    assert isinstance(model, Ensemble)
    return model


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [toys.convolutions(tmp_path / f"{seed}.onnx", seed=seed) for seed in range(3)]


def test_probabilities_are_the_mean_of_those_of_each(three: list[Path]) -> None:
    each = [load_predictor(path, CPU).run(tiles()) for path in three]
    found = load(*three).run(tiles())
    np.testing.assert_allclose(found, np.mean(each, axis=0, dtype=np.float64), atol=1e-6)
    assert found.dtype == np.float32
    assert np.abs(found - each[0]).max() > 0.1, "the models agree: no test"


def test_the_order_of_names_changes_no_bit(three: list[Path]) -> None:
    """Sums of three numbers depend on their order in the last bit."""
    inputs = tiles()
    assert len({load(*order).run(inputs).tobytes() for order in itertools.permutations(three)}) == 1
    assert len({models_sha256(load(*order)) for order in itertools.permutations(three)}) == 1
    assert models_sha256(load(*three)) == " + ".join(sorted(file_sha256(path) for path in three))


def test_views_are_averaged_in_each_model(three: list[Path]) -> None:
    flips = dataclasses.replace(CPU, tta="flips")
    each = [load_predictor(path, flips).run(tiles()) for path in three]
    np.testing.assert_allclose(load(*three, options=flips).run(tiles()), np.mean(each, axis=0), atol=1e-6)


def test_one_model_is_no_ensemble(three: list[Path]) -> None:
    model = load_models(three[:1], CPU)
    assert not isinstance(model, Ensemble)
    assert members_of(model) == (model,)
    assert models_sha256(model) == file_sha256(three[0])


def test_the_first_named_gives_the_colours(tmp_path: Path) -> None:
    names = toys.NAMES[:3]
    paths = [
        toys.identity(tmp_path / "red.onnx", legend=Legend.from_names(names, colors={"building": "#ff0000"})),
        toys.convolutions(tmp_path / "blue.onnx", legend=Legend.from_names(names, colors={"building": "#0000ff"})),
    ]
    for first in (0, 1):
        legend = load(*paths[first:], *paths[:first]).manifest.legend
        assert legend.classes[1].hex == ("#ff0000", "#0000ff")[first]


def test_what_may_differ_is_joined(tmp_path: Path) -> None:
    first = toys.convolutions(tmp_path / "a.onnx", halo=8, gsd_m=0.12, gsd_range_m=(0.1, 0.2), licence="CC0")
    second = toys.convolutions(
        tmp_path / "b.onnx", seed=1, halo=16, gsd_m=0.18, gsd_range_m=(0.11, 0.3), name="other", licence="MIT"
    )
    manifest = load(first, second).manifest
    assert manifest.halo == 16, "each has at least the context that it asks for"
    assert manifest.gsd_range_m == (0.11, 0.2)
    assert manifest.gsd_m == pytest.approx((0.12 * 0.18) ** 0.5)
    assert sorted(manifest.name.split(" + ")) == ["other", "toy"]
    assert sorted(manifest.licence.split("; ")) == ["CC0", "MIT"]
    alike = load(first, toys.convolutions(tmp_path / "c.onnx", seed=2, gsd_m=0.12, gsd_range_m=(0.1, 0.2))).manifest
    assert alike.gsd_m == 0.12, "exactly: no rounding where nothing is averaged"


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "classes": (
        {"legend": Legend.from_names(["other", "building", "road"])},
        r"other, building, road.*other, building, water|other, building, water.*other, building, road",
    ),
    "order": ({"legend": Legend.from_names(["other", "water", "building"])}, "other, water, building"),
    "ids": ({"legend": Legend.from_names({1: "other", 2: "building", 3: "water"})}, "1 other, 2 building, 3 water"),
    "bands": ({"bands": ("nir", "red", "green")}, r"red, green, blue.*nir|nir.*red, green, blue"),
    "dtype": ({"dtype": "uint16", "input_maximum": 255.0}, r"uint8.*uint16|uint16.*uint8"),
    "scaling": ({"input_maximum": 1000.0}, r"255\.0.*1000\.0|1000\.0.*255\.0"),
    "mean": ({"mean": (0.5, 0.5, 0.5)}, r"- \(0\.5, 0\.5, 0\.5\)"),
    "gsd": ({"gsd_m": 0.5, "gsd_range_m": (0.4, 0.6)}, r"0\.13 m.*0\.5 m|0\.5 m.*0\.13 m"),
    "threshold": ({"threshold": 0.7}, r"none.*0\.7|0\.7.*none"),
    "size": ({"size": 48}, r"64 px.*48 px|48 px.*64 px"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_models_that_contradict_each_other_are_refused_by_name_with_both_values(tmp_path: Path, name: str) -> None:
    more, said = DIFFERENT[name]
    first = toys.identity(tmp_path / "first.onnx")
    second = toys.identity(tmp_path / "second.onnx", name="second", **more)
    with pytest.raises(ModelError, match=said) as told:
        load(first, second)
    assert "first.onnx" in told.value.message
    assert "second.onnx" in told.value.message
    assert told.value.hint
    assert told.value.exit_code == 3


def test_weights_that_are_named_twice_are_refused(tmp_path: Path, three: list[Path]) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(three[0].read_bytes())
    for twice in (copy, three[0]):
        with pytest.raises(InputError, match=r"the same model, which would count twice"):
            load(three[0], three[1], twice)


def test_a_graph_that_fixes_its_sides_decides_for_those_that_do_not(tmp_path: Path) -> None:
    fixed = toys.identity(tmp_path / "fixed.onnx", size=64)
    free = toys.convolutions(tmp_path / "free.onnx", size=128)
    for paths in ((fixed, free), (free, fixed)):
        model = load(*paths)
        assert model.tile_shape((40, 500), asked=None) == (64, 64)
        assert model.manifest.tile_size == 64
        with pytest.raises(ModelError, match="64 px only, not 128"):
            model.tile_shape((500, 500), asked=128)
    odd = toys.convolutions(tmp_path / "odd.onnx", size=96, size_multiple=48)
    with pytest.raises(ModelError, match=r"64 px.*multiple of 48 px"):
        load(fixed, odd)
    wide = toys.convolutions(tmp_path / "wide.onnx", size=128, halo=40)
    with pytest.raises(ModelError, match=r"wide\.onnx asks for 40 px of context.*64 px"):
        load(fixed, wide)


def test_a_tile_size_that_is_asked_for_makes_free_graphs_agree(tmp_path: Path) -> None:
    first = toys.convolutions(tmp_path / "a.onnx", size=64, size_multiple=4)
    second = toys.convolutions(tmp_path / "b.onnx", size=96, size_multiple=6, seed=1)
    with pytest.raises(ModelError, match="px") as told:
        load(first, second)
    assert "--tile-size" in told.value.hint
    model = load(first, second, tile_size=72)
    assert model.tile_shape((500, 500), asked=72) == (72, 72)
    assert model.tile_shape((500, 20), asked=72) == (72, 24), "a multiple of both"
    with pytest.raises(ModelError, match="multiple of 12"):
        model.tile_shape((500, 500), asked=64)


def test_sigmoids_are_averaged_but_not_with_models_of_a_channel_each(tmp_path: Path) -> None:
    keys = {"model_type": "Segmentor", "resolution": "13", "class_names": {"0": "building"}}
    factors = (1.0, 4.0, 9.0)
    paths = [
        foreign.first_band(tmp_path / f"{factor}.onnx", factor=factor, offset=-1.0, metadata=keys) for factor in factors
    ]
    logits = StatedContract(output_kind="logits")
    model = load(*paths, stated=logits)
    assert model.rule.is_single
    band = tiles()[:, 0].astype(np.float64)
    expected = np.mean([1 / (1 + np.exp(1 - factor * band)) for factor in factors], axis=0)
    found = model.run(tiles())
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    two = foreign.build(
        tmp_path / "two.onnx",
        [foreign.node("Slice", ["x", "from", "to", "axis"])],
        gives=("n", 2, 64, 64),
        weights={"from": np.array([0]), "to": np.array([2]), "axis": np.array([1])},
        metadata=keys | {"class_names": {"0": "background", "1": "building"}},
    )
    with pytest.raises(ModelError, match=r"one channel.*a channel each|a channel each.*one channel"):
        load(paths[0], two, stated=logits)


def test_a_tile_decides_for_each_model_that_does_not_say_what_it_gives(tmp_path: Path) -> None:
    keys = {"model_type": "Segmentor", "resolution": "13", "class_names": {"0": "a", "1": "b", "2": "c"}}
    first = foreign.bands_as_classes(tmp_path / "p.onnx", metadata=keys)
    ten = {"ten": np.array(10, np.float32)}
    nodes = [foreign.node("Mul", ["x", "ten"])]
    second = foreign.build(tmp_path / "l.onnx", nodes, weights=ten, metadata=keys)
    model = load(first, second)
    assert model.manifest.output == "undecided"
    with pytest.warns(ContractWarning, match="are taken as") as said:
        model = model.decided(tiles(1))
    assert len(said) == 2
    assert model.manifest.output == "probabilities"
    assert sorted(member.manifest.output for member in model.members) == ["logits", "probabilities"]
    values = tiles(1)
    power = np.exp(10 * values.astype(np.float64))
    expected = (values + power / power.sum(axis=1, keepdims=True)) / 2
    np.testing.assert_allclose(model.run(values), expected, atol=1e-6)


def test_batches_that_graphs_fix_are_the_smallest_of_them(tmp_path: Path) -> None:
    four = toys.identity(tmp_path / "four.onnx", batch=4)
    free = toys.convolutions(tmp_path / "free.onnx")
    two = toys.identity(tmp_path / "two.onnx", batch=2, name="two")
    assert load(four, free).batch == 4
    model = load(four, free, two)
    assert model.batch == 2
    assert model.run(tiles(2)).shape == (2, 3, 64, 64)
    assert load(free, toys.convolutions(tmp_path / "more.onnx", seed=5)).batch is None


def test_memory_is_that_of_all_sessions(three: list[Path]) -> None:
    model = load(*three)
    assert model.session_bytes >= 3 * SMALL_SESSION
    calls: list[str] = []

    class Recorder:
        provider, input_type = "cpu", np.dtype(np.float32)

        def __init__(self, name: str) -> None:
            self.name = name

        def call(self, inputs: np.ndarray) -> np.ndarray:
            calls.append(self.name)
            return inputs

    model.footprint.before = 0
    model.footprint.look([Recorder("a"), Recorder("b")], (1, 3, 8, 8))  # type: ignore[list-item]
    assert calls == ["a", "a", "b", "b"], "each, twice"
    assert model.footprint.session is not None
    model.footprint.session = 2**40
    assert model.session_bytes == 2**40
    assert {id(member.footprint) for member in model.members} == {id(model.footprint)}


def test_each_model_is_proven_on_its_own_and_told_apart(three: list[Path]) -> None:
    """One of them is off on its provider and goes back to the CPU; shards of that run are known by both."""
    model = load(*three[:2])
    first, second = model.members
    real = second.session

    class Off:
        get_inputs, get_outputs = real.get_inputs, real.get_outputs

        def run(self, *given: Any) -> Any:
            return [values + np.float32(0.5) for values in real.run(*given)]

    auto = dataclasses.replace(CPU, provider="auto")
    cuda, cpu = Candidate(provider="cuda"), Candidate(provider="cpu")
    off = dataclasses.replace(second, options=auto, session=Off(), reference=real, way=cuda, provider="cuda")
    off = dataclasses.replace(off, others=(cpu,))
    fine = dataclasses.replace(first, reference=None, way=cuda, provider="cuda", reason="as asked")
    mixed = dataclasses.replace(model, members=(fine, off))
    assert not mixed.is_proven
    assert (mixed.provider, mixed.computed_on) == ("cuda", "cuda")
    with pytest.warns(ProviderWarning, match="cuda is not used"):
        proven = mixed.proven(tiles(1))
    assert proven.is_proven
    assert proven.computed_on == "cuda + cpu"
    assert off.path.name in proven.reason
    asked = mixed.preferring("cuda + cpu")
    assert asked.computed_on == "cuda + cpu"
    assert mixed.preferring("cpu + cpu + cpu") is mixed


@pytest.mark.parametrize("which", [0, 1, None])
def test_a_run_s_key_knows_what_each_model_is_told_to_mean(
    three: list[Path], tmp_path: Path, which: int | None
) -> None:
    """The same weights with another contract, or the same contracts joined otherwise, give other shards."""

    def told(model: Any) -> Any:
        manifest = dataclasses.replace(model.manifest, input_maximum=99.0)
        return dataclasses.replace(model, contract=dataclasses.replace(model.contract, manifest=manifest))

    model = load(*three[:2])
    members = [told(member) if number == which else member for number, member in enumerate(model.members)]
    other = told(model) if which is None else dataclasses.replace(model, members=tuple(members))
    scene = Scene(str(toys.write_raster(tmp_path / "scene.tif", toys.noise((90, 80)))), model.manifest)
    run = settle(scene, model, PredictOptions(threads=1))
    keys = [job_key(dataclasses.replace(run, predictor=found), models_sha256(found)) for found in (model, other)]
    scene.close()
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"contract"}
