from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from peft_toys import build, probed, randomise, scene, task_loss
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cegate_geo.errors import CegateError, InputError, SiteError
from cegate_geo.peft import ModuleKey, ToolboxConfig, attach, fisher_scores, gradient_norms, normalise_scores

SEMANTIC = ToolboxConfig(kinds=("semantic",), semantic_dim=2)


@pytest.fixture
def toolbox(config):
    toolbox = attach(build("vit"), config)
    randomise(toolbox)
    return toolbox


def samples_of(vit, count=3):
    return [(scene(vit, 4, 4, batch=1, seed=seed), float(seed + 1)) for seed in range(count)]


def loss_of(vit):
    return lambda sample: (probed(vit, sample[0]).mean() - sample[1]).square()


def test_fisher_equals_the_hand_computed_case():
    """Squared error of a linear model whose weight w is one module's: gradient (a.w - y) a for each sample."""
    toolbox = attach(build("vit"), SEMANTIC)
    key = ModuleKey(1, "semantic")
    w = toolbox.modules[key].down.weight
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=(5, w.numel())).astype(np.float32), rng.normal(size=5).astype(np.float32)

    def loss(index):
        return 0.5 * (torch.from_numpy(a[index]) @ w.flatten() - float(y[index])) ** 2

    residual = a.astype(np.float64) @ w.detach().numpy().astype(np.float64).ravel() - y
    expected = np.mean(residual**2 * (a.astype(np.float64) ** 2).sum(axis=1))
    scores = fisher_scores(toolbox, range(5), loss)
    assert scores[key] == pytest.approx(expected, rel=1e-5)
    assert [scores[other] for other in toolbox.keys if other != key] == [0.0, 0.0]
    norm = (residual[:, None] * a).mean(axis=0)
    assert gradient_norms(toolbox, range(5), loss)[key] == pytest.approx((norm**2).sum(), rel=1e-5)


def test_fisher_equals_per_sample_gradients_by_vmap(toolbox):
    vit = toolbox.vit
    samples = samples_of(vit)
    scores = fisher_scores(toolbox, samples, loss_of(vit))
    names = {name: parameter for name, parameter in vit.named_parameters() if parameter.requires_grad}
    images = torch.stack([image for image, _ in samples])
    targets = torch.tensor([target for _, target in samples])

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = vit

        def forward(self, x):
            return probed(self.vit, x)

    def loss(parameters, image, target):
        out = torch.func.functional_call(Features(), parameters, (image,))
        return (out.mean() - target).square()

    weights = {f"vit.{name}": parameter.detach() for name, parameter in names.items()}
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no batching rule
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, images, targets)
    for key, module in toolbox.modules.items():
        own = {id(parameter) for parameter in module.parameters()}
        parts = [gradients[f"vit.{name}"] for name, parameter in names.items() if id(parameter) in own]
        assert parts
        expected = sum(part.double().square().sum() / len(samples) for part in parts)
        assert scores[key] == pytest.approx(float(expected), rel=1e-3)


def test_fisher_squares_before_the_mean_and_the_control_after():
    toolbox = attach(build("vit"), SEMANTIC)
    weight = toolbox.modules[ModuleKey(0, "semantic")].up.weight
    opposite = [1.0, -1.0]
    assert (
        fisher_scores(toolbox, opposite, lambda sign: sign * weight.sum())[ModuleKey(0, "semantic")] == weight.numel()
    )
    assert gradient_norms(toolbox, opposite, lambda sign: sign * weight.sum())[ModuleKey(0, "semantic")] == 0


def test_fisher_is_the_mean_over_samples_whatever_their_order(toolbox):
    vit = toolbox.vit
    samples = samples_of(vit)
    single = [fisher_scores(toolbox, [sample], loss_of(vit)) for sample in samples]
    together = fisher_scores(toolbox, reversed(samples), loss_of(vit))
    for key, score in together.items():
        assert score == pytest.approx(np.mean([scores[key] for scores in single]), rel=1e-5)


def test_fisher_doubles_when_the_gradient_grows_by_the_root_of_two(toolbox):
    vit = toolbox.vit
    loss = loss_of(vit)
    once = fisher_scores(toolbox, samples_of(vit), loss)
    twice = fisher_scores(toolbox, samples_of(vit), lambda sample: loss(sample) * 2**0.5)
    for key in toolbox.keys:
        assert twice[key] == pytest.approx(2 * once[key], rel=1e-4)


def test_tiny_gradients_do_not_vanish(toolbox):
    vit = toolbox.vit
    loss = loss_of(vit)
    normal = normalise_scores(fisher_scores(toolbox, samples_of(vit), loss))
    tiny = normalise_scores(fisher_scores(toolbox, samples_of(vit), lambda sample: loss(sample) * 1e-23))
    for key in toolbox.keys:
        assert tiny[key] == pytest.approx(normal[key], rel=1e-3)


class Segmenter(nn.Module):
    """A ViT with a decoder that has all that scoring could disturb."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit
        self.head = nn.Sequential(nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Conv1d(48, 2, 1))

    def forward(self, x):
        return self.head(self.vit.forward_features(x).transpose(1, 2))


@pytest.mark.parametrize("inactive", ["frozen", "bypass"])
def test_scoring_leaves_everything_as_it_was(inactive):
    vit = build("dinov2", drop_path_rate=0.3)
    toolbox = attach(vit, ToolboxConfig(spatial_rank=2, semantic_dim=2, frequency_dim=2, inactive=inactive))
    randomise(toolbox)
    model = Segmenter(vit).train()
    vit.blocks[1].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(scene(vit)).square().mean().backward()
    optimizer.step()
    toolbox.set_active([ModuleKey(0, "semantic")], gradients="skip")

    def snapshot():
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return (
            [p.detach().clone() for p in model.parameters()],
            [b.clone() for b in model.buffers()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            [value.clone() for value in moments],
            [torch.random.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))],
            [p.requires_grad for p in model.parameters()],
            [m.training for m in model.modules()],
            [m.is_bypassed for m in toolbox.modules.values()],
            random.getstate(),
        )

    def noisy(x):
        assert not model.training
        noise = torch.rand(1) + float(np.random.random()) + random.random()
        return (model(x) * noise).square().mean()

    before = snapshot()
    fisher_scores(toolbox, [scene(vit, batch=1)] * 2, noisy, model=model)
    with pytest.raises(ZeroDivisionError):
        fisher_scores(toolbox, [scene(vit, batch=1)], lambda x: noisy(x) / (1 // 0), model=model)
    for was, now in zip(before, snapshot(), strict=True):
        if isinstance(was, list):
            for a, b in zip(was, now, strict=True):
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        else:
            assert was == now


def test_a_loss_that_draws_at_random_does_not_make_scores_flicker(toolbox):
    vit = toolbox.vit

    def loss(sample):
        return (probed(vit, sample[0]).mean() * torch.rand(1) * random.random() * np.random.random()).square()

    first = fisher_scores(toolbox, samples_of(vit), loss)
    torch.rand(7), random.random(), np.random.random()
    assert fisher_scores(toolbox, samples_of(vit), loss) == first
    assert fisher_scores(toolbox, samples_of(vit), loss, seed=1) != first


def test_samples_are_drawn_from_the_callers_own_random_stream(toolbox):
    vit = toolbox.vit
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    drawn = []

    def stream():
        for _ in range(3):
            drawn.append(torch.rand(1))
            yield scene(vit, batch=1)

    fisher_scores(toolbox, stream(), lambda x: task_loss(vit, x))
    assert torch.equal(torch.cat(drawn), expected)


def test_bypassed_modules_take_part_while_scoring():
    vit = build("vit")
    toolbox = attach(vit, ToolboxConfig(spatial_rank=2, semantic_dim=2, frequency_dim=2, inactive="bypass"))
    toolbox.set_active(())
    scores = fisher_scores(toolbox, samples_of(vit), loss_of(vit))
    assert all(score > 0 for score in scores.values())
    assert all(module.is_bypassed for module in toolbox.modules.values())


def test_normalised_scores_of_each_type_sum_to_one(toolbox):
    scores = normalise_scores(fisher_scores(toolbox, samples_of(toolbox.vit), loss_of(toolbox.vit)))
    for kind in ("spatial", "semantic", "frequency"):
        assert sum(score for key, score in scores.items() if key.kind == kind) == pytest.approx(1)
    assert tuple(scores) == toolbox.keys


def test_normalising_is_blind_to_the_scale_of_a_type():
    raw = {ModuleKey(0, "spatial"): 1e-13, ModuleKey(1, "spatial"): 3e-13, ModuleKey(0, "semantic"): 0.5}
    assert normalise_scores(raw) == pytest.approx(
        {ModuleKey(0, "spatial"): 0.25, ModuleKey(1, "spatial"): 0.75, ModuleKey(0, "semantic"): 1.0}
    )
    assert normalise_scores({ModuleKey(0, "semantic"): 0.0}) == {ModuleKey(0, "semantic"): 0.0}


def test_scoring_that_means_nothing_is_refused(toolbox):
    vit = toolbox.vit
    samples = samples_of(vit, 1)
    with pytest.raises(InputError, match="no sample"):
        fisher_scores(toolbox, [], loss_of(vit))
    with pytest.raises(InputError, match=r"shape \(1, 17, 48\)"):
        fisher_scores(toolbox, samples, lambda sample: vit.forward_features(sample[0]))
    with pytest.raises(InputError, match="requires_grad=False"):
        fisher_scores(toolbox, samples, lambda sample: torch.tensor(1.0))
    with pytest.raises(CegateError, match=r"blocks\.0\.spatial for sample 0 is not finite"):
        fisher_scores(toolbox, samples, lambda sample: loss_of(vit)(sample) * float("nan"))
    with pytest.raises(SiteError, match="kind frequency, spatial"):
        fisher_scores(toolbox, samples, lambda sample: toolbox.modules[ModuleKey(0, "semantic")].up.bias.sum())
    with pytest.raises(InputError, match="empty"):
        fisher_scores(attach(build("vit"), ToolboxConfig(kinds=())), samples, loss_of(vit))
