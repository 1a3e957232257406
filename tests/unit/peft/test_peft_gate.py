from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_toys import build, features, probed, randomise, scene

from cegate_geo.errors import ConfigError, InputError
from cegate_geo.peft import KINDS, Gate, GateConfig, ModuleKey, Selection, ToolboxConfig, attach, select

KEYS = [ModuleKey(layer, kind) for layer in range(4) for kind in KINDS]
MEASURING = ["fisher", "fixed", "grad-norm"]


@pytest.fixture
def toolbox(config):
    return attach(build("vit"), config)


def samples_of(vit, step=0):
    return [(scene(vit, 4, 4, batch=1, seed=100 * step + seed), float(seed + 1)) for seed in range(2)]


def loss_of(vit):
    return lambda sample: (probed(vit, sample[0]).mean() - sample[1]).square()


def train(toolbox, gate, steps, *, start=0, weight_decay=0.1, optimizer=None, set_to_none=True):
    """The loop of the docstring; returns the optimiser and the weights of all modules after each step."""
    vit = toolbox.vit
    optimizer = optimizer or torch.optim.AdamW(toolbox.parameters(), lr=1e-2, weight_decay=weight_decay)
    trace = []
    for step in range(start, start + steps):
        if gate.due(step):
            gate.rescore(step, samples_of(vit, step), loss_of(vit))
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = torch.stack([loss_of(vit)(sample) for sample in samples_of(vit, step)]).mean()
        if loss.requires_grad:
            loss.backward()
        gate.mask_gradients()
        optimizer.step()
        trace.append({name: value.clone() for name, value in toolbox.state_dict().items()})
    return optimizer, trace


@given(
    scores=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0]), min_size=1),
    count=st.integers(0, 12),
    data=st.data(),
)
@settings(deadline=None)
def test_select_takes_the_highest_and_breaks_ties_by_key(scores, count, data):
    shuffled = dict(data.draw(st.permutations(list(scores.items()))))
    chosen = select(shuffled, count)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == min(count, len(scores))
    for inside in chosen:
        for outside in scores.keys() - set(chosen):
            assert scores[inside] > scores[outside] or (scores[inside] == scores[outside] and inside < outside)


@pytest.mark.parametrize(("budget", "count"), [(0.25, 2), (0.5, 4), (1.0, 9), (0.01, 1), (0.9, 8)])
@pytest.mark.parametrize("policy", [*MEASURING, "random"])
def test_as_many_modules_are_active_as_the_budget_allows(toolbox, budget, count, policy):
    gate = Gate(toolbox, GateConfig(budget=budget), policy=policy)
    selection = gate.rescore(0, samples_of(toolbox.vit), loss_of(toolbox.vit))
    assert gate.count == count == len(selection.active) == len(set(gate.active))
    assert toolbox.active == gate.active == selection.active == gate.ever_active


@pytest.mark.parametrize("policy", [*MEASURING, "random"])
def test_who_has_no_choice_scores_nothing_and_chooses_once(toolbox, policy):
    gate = Gate(toolbox, GateConfig(budget=1.0, every=2, start=1), policy=policy)
    assert not gate.due(0)
    assert gate.due(1)
    selection = gate.rescore(1, (pytest.fail(f"{n} is touched") for n in range(3)), loss_of(toolbox.vit))
    assert selection.active == toolbox.keys
    assert not selection.scores
    assert not any(gate.due(step) for step in range(2, 9))


def test_the_budget_of_a_quarter_is_18_modules_of_24_layers_and_9_of_12():
    for depth, count in ((24, 18), (12, 9)):
        vit = build("vit", depth=depth, embed_dim=6)
        toolbox = attach(vit, ToolboxConfig(spatial_rank=1, semantic_dim=1, frequency_dim=1))
        assert Gate(toolbox, GateConfig()).count == count


@pytest.mark.parametrize(
    ("gradients", "set_to_none", "inactive"),
    [("mask", True, "bypass"), ("mask", False, "frozen"), ("skip", True, "frozen"), ("skip", False, "bypass")],
)
def test_inactive_modules_stay_bit_for_bit_through_100_steps_of_weight_decay(config, gradients, set_to_none, inactive):
    toolbox = attach(build("vit", depth=2), replace(config, inactive=inactive))
    randomise(toolbox)
    gate = Gate(toolbox, GateConfig(budget=0.5, every=40, inactive=inactive, gradients=gradients))
    before = {name: value.clone() for name, value in toolbox.state_dict().items()}
    _, trace = train(toolbox, gate, 100, set_to_none=set_to_none)
    assert len(gate.history) == 3
    for step, after in enumerate(trace):
        active = gate.history[step // 40].active
        for name, value in after.items():
            moved = not torch.equal(value, before[name])
            assert moved == (ModuleKey.parse(name) in active), (step, name)
        before = after


def test_masked_and_skipped_gradients_train_the_same(config):
    ends = []
    for gradients in ("mask", "skip"):
        toolbox = attach(build("dinov3"), config)
        randomise(toolbox)
        _, trace = train(toolbox, Gate(toolbox, GateConfig(every=3, gradients=gradients)), 8)
        ends.append(trace[-1])
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name])


def test_a_module_that_was_never_chosen_is_still_exactly_nothing(toolbox):
    gate = Gate(toolbox, GateConfig(every=4))
    train(toolbox, gate, 10)
    x = scene(toolbox.vit)
    assert 0 < len(gate.ever_active) < 9
    with_all = features(toolbox.vit, x)
    toolbox.remove(set(toolbox.keys) - set(gate.ever_active))
    assert torch.equal(features(toolbox.vit, x), with_all)


def test_before_the_first_selection_nothing_is_trained(toolbox):
    gate = Gate(toolbox, GateConfig())
    assert gate.active == ()
    loss_of(toolbox.vit)(samples_of(toolbox.vit)[0]).backward()
    toolbox.set_active(gate.active)
    gate.mask_gradients()
    assert all(parameter.grad is None for parameter in toolbox.parameters())


def test_fisher_chooses_the_highest_normalised_scores(toolbox):
    gate = Gate(toolbox, GateConfig(budget=0.5))
    selection = gate.rescore(0, samples_of(toolbox.vit), loss_of(toolbox.vit))
    assert selection.active == select(selection.scores, 4)
    for kind in KINDS:
        raw = {key: score for key, score in selection.raw_scores.items() if key.kind == kind}
        for key, score in raw.items():
            assert selection.scores[key] == pytest.approx(score / sum(raw.values()))


def test_selections_come_every_n_steps_and_only_once_where_fixed(toolbox):
    due = {}
    for policy in ("fisher", "random", "grad-norm", "fixed", "all", "none"):
        gate = Gate(toolbox, GateConfig(every=3), policy=policy)
        due[policy] = []
        for step in range(8):
            if gate.due(step):
                gate.rescore(step, samples_of(toolbox.vit), loss_of(toolbox.vit))
                due[policy].append(step)
    assert due["fisher"] == due["random"] == due["grad-norm"] == [0, 3, 6]
    assert due["fixed"] == [0]
    assert due["all"] == due["none"] == []


def test_all_and_none_need_no_selection(toolbox):
    everything = Gate(toolbox, GateConfig(), policy="all")
    assert everything.active == toolbox.keys == everything.ever_active == toolbox.active
    nothing = Gate(toolbox, GateConfig(), policy="none")
    assert nothing.active == () == nothing.ever_active == toolbox.active


def test_random_depends_on_seed_and_step_alone_and_touches_no_sample(toolbox):
    def choices(seed):
        gate = Gate(toolbox, GateConfig(budget=0.4), policy="random", seed=seed)
        return [gate.rescore(step, iter(lambda: 1 / 0, None), None).active for step in range(0, 600, 20)]

    state = torch.random.get_rng_state()
    first = choices(0)
    torch.rand(1)
    assert choices(0) == first != choices(1)
    torch.random.set_rng_state(state)
    drawn = {key for active in first for key in active}
    assert drawn == set(toolbox.keys)
    assert len(set(first)) > 10


def test_a_random_selection_claims_no_scores(toolbox):
    selection = Gate(toolbox, GateConfig(), policy="random").rescore(5, [], None)
    assert selection.to_json()["scores"] == selection.to_json()["raw"] == {}


def test_a_selection_survives_json(toolbox):
    selection = Gate(toolbox, GateConfig()).rescore(7, samples_of(toolbox.vit), loss_of(toolbox.vit))
    data = json.loads(json.dumps(selection.to_json()))
    assert data["step"] == 7
    assert data["active"] == [str(key) for key in selection.active]
    assert data["raw"].keys() == data["scores"].keys() == {str(key) for key in toolbox.keys}
    assert Selection.from_json(data) == selection


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("fisher", {}),
        ("random", {}),
        ("fixed", {}),
        ("fisher", {"memory": 0.9, "start": 1}),
        ("fisher", {"start": 7}),
        ("fisher", {"until_step": 5, "quota": "type"}),
    ],
)
def test_a_resumed_run_goes_on_as_an_uninterrupted_one(config, policy, options):
    def start():
        toolbox = attach(build("vit"), config)
        return toolbox, Gate(toolbox, GateConfig(every=4, **options), policy=policy, seed=5)

    toolbox, gate = start()
    optimizer, expected = train(toolbox, gate, 10)
    halfway, first = start()
    optimizer, _ = train(halfway, first, 6)
    weights = {name: value.clone() for name, value in halfway.state_dict().items()}
    moments, gate_state = optimizer.state_dict(), json.loads(json.dumps(first.state_dict()))
    resumed, second = start()
    resumed.load_state_dict(weights)
    second.load_state_dict(gate_state)
    fresh = torch.optim.AdamW(resumed.parameters(), lr=1e-2, weight_decay=0.1)
    fresh.load_state_dict(moments)
    assert second.active == first.active
    _, trace = train(resumed, second, 4, start=6, optimizer=fresh)
    assert second.history == gate.history
    assert second.ever_active == gate.ever_active
    assert all(torch.equal(value, expected[-1][name]) for name, value in trace[-1].items())


def test_a_state_of_another_run_is_refused(toolbox, config):
    gate = Gate(toolbox, GateConfig(), policy="random", seed=1)
    gate.rescore(0, [], None)
    with pytest.raises(ConfigError, match="policy='random', seed=1, not policy='fisher', seed=1"):
        Gate(toolbox, GateConfig(), seed=1).load_state_dict(gate.state_dict())
    small = attach(build("vit"), config, keys=[ModuleKey(0, "spatial")])
    other = Gate(small, GateConfig(), policy="random", seed=1)
    with pytest.raises(InputError, match="not in the toolbox"):
        other.load_state_dict({**gate.state_dict(), "active": ["blocks.2.frequency"]})
    assert other.history == ()


def test_an_empty_toolbox_is_never_due():
    gate = Gate(attach(build("vit"), ToolboxConfig(kinds=())), GateConfig(), policy="none")
    assert not gate.due(0)
    assert gate.count == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda toolbox: GateConfig(budget=0), "budget=0"),
        (lambda toolbox: GateConfig(budget=1.1), "budget=1.1"),
        (lambda toolbox: GateConfig(every=0), "every=0"),
        (lambda toolbox: GateConfig(gradients="off"), "gradients='off'"),
        (lambda toolbox: GateConfig(start=-1), "start=-1"),
        (lambda toolbox: GateConfig(until_step=-1), "until_step=-1"),
        (lambda toolbox: GateConfig(memory=1), "memory=1"),
        (lambda toolbox: GateConfig(memory=-0.1), "memory=-0.1"),
        (lambda toolbox: GateConfig(normalise="layer"), "normalise='layer'"),
        (lambda toolbox: GateConfig(quota="block"), "quota='block'"),
        (lambda toolbox: Gate(toolbox, GateConfig(), policy="magic"), "policy='magic'"),
        (lambda toolbox: Gate(toolbox, GateConfig(inactive="bypass")), "inactive='bypass'"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(toolbox, make, words):
    with pytest.raises(ConfigError, match=words):
        make(toolbox)
