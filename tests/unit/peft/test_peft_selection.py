"""The ways in which a gate may choose otherwise than the paper's: each by a case computed by hand, or a law."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_toys import build, probed, randomise, scene

from cegate_geo.errors import InputError
from cegate_geo.peft import (
    KINDS,
    Gate,
    GateConfig,
    ModuleKey,
    attach,
    blend,
    gate,
    normalise_scores,
    select,
    select_by_type,
)

SPATIAL, SEMANTIC, FREQUENCY = ([ModuleKey(layer, kind) for layer in range(4)] for kind in KINDS)
KEYS = [*SPATIAL, *SEMANTIC, *FREQUENCY]


@pytest.fixture
def toolbox(config):
    toolbox = attach(build("vit"), config)
    randomise(toolbox)
    return toolbox


@pytest.fixture
def script(monkeypatch):
    """Scores that the gate is to measure, one after the other: {module: score}, all others 0."""

    def play(*measured):
        played = iter(measured)

        def measure(toolbox, *_, **__):
            return dict.fromkeys(toolbox.keys, 0.0) | next(played)

        monkeypatch.setattr(gate, "fisher_scores", measure)

    return play


def rescore(chooser, step=0):
    vit = chooser.toolbox.vit
    samples = [scene(vit, 4, 4, batch=1, seed=seed) for seed in range(2)]
    return chooser.rescore(step, samples, lambda x: (probed(vit, x).mean() - 1).square())


def test_normalised_scores_equal_those_computed_by_hand():
    raw = {SPATIAL[0]: 2.0, SPATIAL[1]: 6.0, SEMANTIC[0]: 1.0, SEMANTIC[1]: 1.0, FREQUENCY[0]: 0.0}
    sizes = {SPATIAL[0]: 4, SPATIAL[1]: 4, SEMANTIC[0]: 2, SEMANTIC[1]: 2, FREQUENCY[0]: 10}
    assert list(normalise_scores(raw).values()) == [0.25, 0.75, 0.5, 0.5, 0.0]
    assert normalise_scores(raw, "type", sizes=sizes) == normalise_scores(raw)
    assert list(normalise_scores(raw, "size", sizes=sizes).values()) == [0.5, 1.5, 0.5, 0.5, 0.0]
    assert normalise_scores(raw, "none", sizes=sizes) == raw
    with pytest.raises(InputError, match=r"sizes of blocks\.1\.spatial, blocks\.0\.semantic"):
        normalise_scores(raw, "size", sizes={**sizes, SPATIAL[1]: 0, SEMANTIC[0]: 0})
    with pytest.raises(InputError, match="are not known"):
        normalise_scores(raw, "size")


def test_a_gate_divides_by_what_it_is_told(toolbox):
    by_size = rescore(Gate(toolbox, GateConfig(budget=0.5, normalise="size")))
    plain = rescore(Gate(toolbox, GateConfig(budget=0.5, normalise="none")))
    assert plain.scores == plain.raw_scores == by_size.raw_scores
    # 48 channels: LoRA of rank 4 on q and v; an adapter of 5 channels with biases
    sizes = {"spatial": 2 * 2 * 4 * 48, "semantic": 48 * 5 + 5 + 5 * 48 + 48}
    for key in toolbox.keys:
        if key.kind in sizes:
            assert by_size.scores[key] == pytest.approx(by_size.raw_scores[key] / sizes[key.kind], rel=1e-12)
    assert plain.active == select(plain.raw_scores, 4)
    assert by_size.active == select(by_size.scores, 4)


@pytest.mark.parametrize(
    ("count", "active"),
    [
        (0, []),
        (1, [SPATIAL[1]]),
        (3, [SPATIAL[1], SEMANTIC[0], FREQUENCY[0]]),
        (4, [SPATIAL[1], SPATIAL[2], SEMANTIC[0], FREQUENCY[0]]),  # 0.8 beside 0.1 and 0.3
        (5, [SPATIAL[1], SPATIAL[2], SEMANTIC[0], FREQUENCY[0], FREQUENCY[3]]),
        (7, [SPATIAL[0], SPATIAL[1], SPATIAL[2], SEMANTIC[0], SEMANTIC[2], FREQUENCY[0], FREQUENCY[3]]),
        (9, [*SPATIAL, SEMANTIC[0], SEMANTIC[2], FREQUENCY[0], FREQUENCY[3]]),
    ],
)
def test_the_budget_split_over_types_equals_the_one_computed_by_hand(count, active):
    scores = dict(zip(SPATIAL, (0.7, 0.9, 0.8, 0.6), strict=True))
    scores |= {SEMANTIC[0]: 0.5, SEMANTIC[2]: 0.1, FREQUENCY[3]: 0.3, FREQUENCY[0]: 0.4}
    assert list(select_by_type(scores, count)) == sorted(active)


@given(
    scores=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0]), min_size=1),
    count=st.integers(0, 12),
    data=st.data(),
)
@settings(deadline=None)
def test_each_type_gets_as_many_places_as_any_other_or_all_that_it_can_fill(scores, count, data):
    chosen = select_by_type(dict(data.draw(st.permutations(list(scores.items())))), count)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == min(count, len(scores))
    places, there = Counter(key.kind for key in chosen), Counter(key.kind for key in scores)
    for kind in there:
        own = {key: score for key, score in scores.items() if key.kind == kind}
        assert tuple(key for key in chosen if key.kind == kind) == select(own, places[kind])
        assert places[kind] == there[kind] or places[kind] >= max(places.values(), default=0) - 1


def test_a_quota_of_types_holds_for_scores_and_for_lots(toolbox, script):
    script({ModuleKey(layer, "spatial"): 5.0 - layer for layer in range(3)} | {ModuleKey(2, "frequency"): 1.0})
    uneven = Gate(toolbox, GateConfig(budget=0.34, normalise="none"))
    assert [str(key) for key in rescore(uneven).active] == [f"blocks.{layer}.spatial" for layer in range(3)]
    script({ModuleKey(layer, "spatial"): 5.0 - layer for layer in range(3)} | {ModuleKey(2, "frequency"): 1.0})
    even = Gate(toolbox, GateConfig(budget=0.34, normalise="none", quota="type"))
    assert [str(key) for key in rescore(even).active] == ["blocks.0.spatial", "blocks.0.semantic", "blocks.2.frequency"]
    drawn = Gate(toolbox, GateConfig(budget=0.34, quota="type"), policy="random")
    choices = [drawn.rescore(step, [], None).active for step in range(30)]
    assert all(Counter(key.kind for key in active) == dict.fromkeys(KINDS, 1) for active in choices)
    assert {key for active in choices for key in active} == set(toolbox.keys)
    assert len(set(choices)) > 10


def test_a_memory_equals_the_exponential_mean_computed_by_hand(toolbox, script):
    a, b = ModuleKey(0, "spatial"), ModuleKey(2, "semantic")
    measured = {a: 8.0, b: 4.0}, {b: 16.0}, {b: 16.0}
    script(*measured)
    chooser = Gate(toolbox, GateConfig(budget=0.1, normalise="none", memory=0.75))
    made = [rescore(chooser, step) for step in (0, 100, 200)]
    assert [selection.active for selection in made] == [(a,), (b,), (b,)]
    assert [(s.scores[a], s.scores[b]) for s in made] == [(8.0, 4.0), (6.0, 7.0), (4.5, 9.25)]
    assert [(s.raw_scores[a], s.raw_scores[b]) for s in made] == [(8.0, 4.0), (0.0, 16.0), (0.0, 16.0)]
    script(*measured)
    slower = Gate(toolbox, GateConfig(budget=0.1, normalise="none", memory=0.875))
    assert [rescore(slower, step).active for step in (0, 100, 200)] == [(a,), (a,), (b,)]
    script(*measured)
    newest = Gate(toolbox, GateConfig(budget=0.1, normalise="none"))
    assert [rescore(newest, step).scores[a] for step in (0, 100, 200)] == [8.0, 0.0, 0.0]


def test_a_memory_of_normalised_scores_sums_to_one_in_each_type(toolbox):
    chooser = Gate(toolbox, GateConfig(memory=0.7))
    for step in range(3):
        randomise(toolbox)
        with torch.no_grad():
            for parameter in toolbox.parameters():
                parameter.mul_(1 + step)
        scores = rescore(chooser, step).scores
        for kind in KINDS:
            assert sum(score for key, score in scores.items() if key.kind == kind) == pytest.approx(1)
    first, _, last = chooser.history
    assert last.scores != first.scores
    assert last.scores != normalise_scores(last.raw_scores)


def test_a_memory_lies_in_the_history_to_the_bit(toolbox, script):
    measured = [{key: (n + 1) / (7 * place + 3) for place, key in enumerate(toolbox.keys)} for n in range(4)]
    script(*measured)
    whole = Gate(toolbox, GateConfig(memory=0.9))
    for step in range(4):
        rescore(whole, step)
    script(*measured)
    first, second = (Gate(toolbox, GateConfig(memory=0.9)) for _ in range(2))
    for step in range(2):
        rescore(first, step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(2, 4):
        rescore(second, step)
    assert second.history == whole.history


def test_nothing_is_blended_where_nothing_is_remembered():
    new = {SPATIAL[0]: 0.1, SEMANTIC[1]: 0.3}
    assert blend({}, new, 0.9) == blend({SPATIAL[0]: 9.0, SEMANTIC[1]: 9.0}, new, 0.0) == new


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [0, 3, 6, 9]),
        ({"start": 2}, [2, 5, 8]),
        ({"start": 3}, [3, 6, 9]),
        ({"until_step": 6}, [0, 3]),
        ({"until_step": 7}, [0, 3, 6]),
        ({"start": 2, "until_step": 6}, [2, 5]),
        ({"start": 4, "until_step": 0}, [4]),
        ({"until_step": 0}, [0]),
    ],
)
def test_selections_come_from_the_start_to_the_end_of_choosing(toolbox, options, steps):
    due = {}
    for policy in ("fisher", "random", "fixed", "all", "none"):
        chooser = Gate(toolbox, GateConfig(every=3, **options), policy=policy)
        due[policy] = []
        for step in range(10):
            if chooser.due(step):
                rescore(chooser, step)
                due[policy].append(step)
    assert due["fisher"] == due["random"] == steps
    assert due["fixed"] == steps[:1]
    assert due["all"] == due["none"] == []


@pytest.mark.parametrize("gradients", ["mask", "skip"])
def test_before_the_start_no_module_is_trained_and_afterwards_the_chosen_are(toolbox, gradients):
    vit = toolbox.vit
    decoder = torch.nn.Linear(48, 1)
    chooser = Gate(toolbox, GateConfig(start=3, gradients=gradients))
    optimizer = torch.optim.AdamW([*toolbox.parameters(), *decoder.parameters()], lr=1e-2, weight_decay=0.1)
    for step in range(5):
        before = {name: value.clone() for name, value in toolbox.state_dict().items()}
        weight = decoder.weight.detach().clone()
        if chooser.due(step):
            rescore(chooser, step)
        assert (toolbox.active == chooser.active == ()) == (step < 3)
        optimizer.zero_grad()
        tokens = vit.forward_features(scene(vit, 4, 4, seed=step))
        assert tokens.requires_grad == (step >= 3 or gradients == "mask")
        decoder(tokens).square().mean().backward()
        chooser.mask_gradients()
        optimizer.step()
        moved = {ModuleKey.parse(k) for k, v in toolbox.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == set(chooser.active)
        assert not torch.equal(decoder.weight, weight)
    assert [selection.step for selection in chooser.history] == [3]
