"""Scores from one pass over several samples are those of one sample after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft_toys import build, probed, randomise, scene
from torch import Tensor, nn

from cegate_geo.errors import CegateError, InputError, SiteError
from cegate_geo.peft import ModuleKey, Toolbox, ToolboxConfig, attach, fisher_scores, gradient_norms

FAMILIES = ("vit", "vit-nobias-nocls", "dinov2-registers", "dinov3", "eva-split", "eva-bias-in-call")


def make(family: str, config: ToolboxConfig) -> Toolbox:
    toolbox = attach(build(family), config)
    randomise(toolbox)
    return toolbox


def images(vit: nn.Module, count: int = 3) -> list[Tensor]:
    """Samples whose gradients differ by orders of magnitude: what is taken for another one's shows."""
    return [scene(vit, 4, 4, batch=1, seed=seed) * (1 + 2 * seed) for seed in range(count)]


def losses_of(vit: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: (probed(vit, x).mean(dim=1) - 1).square()


def loss_of(vit: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: losses_of(vit)(x).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", [fisher_scores, gradient_norms])
def test_scores_of_samples_together_are_those_of_each_alone(family, score, config):
    toolbox = make(family, config)
    vit = toolbox.vit
    single = images(vit)
    calls = []
    vit.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    expected = score(toolbox, single, loss_of(vit))
    assert len(calls) == 3
    for batches in ([torch.cat(single)], [torch.cat(single[:2]), single[2]]):
        calls.clear()
        found = score(toolbox, batches, losses_of(vit))
        assert len(calls) == len(batches)
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=2e-4), key


def test_a_scalar_counts_also_where_it_is_all_that_has_a_gradient():
    """With alpha = 0 nothing of a frequency module but alpha moves the loss."""
    toolbox = make("vit", ToolboxConfig(kinds=("frequency",), frequency_dim=4, frequency_cutoff=0.9))
    vit, key = toolbox.vit, ModuleKey(2, "frequency")
    with torch.no_grad():
        toolbox.modules[key].alpha.zero_()
    expected = 0.0
    for image in images(vit):
        (gradient,) = torch.autograd.grad(loss_of(vit)(image), toolbox.modules[key].alpha)
        expected += float(gradient) ** 2 / 3
    assert expected > 0
    assert fisher_scores(toolbox, [torch.cat(images(vit))], losses_of(vit))[key] == pytest.approx(expected, rel=1e-4)


def test_scores_together_in_bfloat16_are_near_those_of_each_alone(config):
    toolbox = make("vit", config)
    vit = toolbox.vit

    def in_bfloat16(x):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = vit.forward_features(x)
        return (tokens.float() @ torch.linspace(-1, 2, 48).cos()).mean(dim=1).square()

    single = images(vit)
    expected = fisher_scores(toolbox, single, lambda x: in_bfloat16(x).sum())
    found = fisher_scores(toolbox, [torch.cat(single)], in_bfloat16)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=5e-2), key


def test_watching_leaves_no_trace(config):
    toolbox = make("vit", config)
    vit = toolbox.vit

    def traces():
        return [
            (name, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(module.__dict__))
            for name, module in vit.named_modules()
        ]

    before = traces()
    fisher_scores(toolbox, [torch.cat(images(vit))], losses_of(vit))
    assert traces() == before

    class AccidentError(Exception):
        pass

    def fail(*_):
        raise AccidentError

    handle = toolbox.modules[ModuleKey(1, "frequency")].router.register_forward_hook(fail)  # while alpha is spread
    with pytest.raises(AccidentError):
        fisher_scores(toolbox, [torch.cat(images(vit))], losses_of(vit))
    handle.remove()
    assert traces() == before


def test_samples_together_are_refused_where_they_can_not_be_told_apart(config):
    toolbox = make("vit", config)
    vit = toolbox.vit
    batch = torch.cat(images(vit))
    with pytest.raises(InputError, match=r"blocks\.0\.spatial was called with 6 rows for 3 samples"):
        fisher_scores(toolbox, [batch], lambda x: losses_of(vit)(torch.cat([x, x]))[:3])
    with pytest.raises(InputError, match=r"sample 0 has shape \(3, 17\)"):
        fisher_scores(toolbox, [batch], lambda x: probed(vit, x))
    weighted = [(batch, torch.ones(3)), (batch, torch.tensor([1.0, float("nan"), 1.0]))]
    with pytest.raises(CegateError, match=r"blocks\.0\.spatial for sample 4 is not finite"):
        fisher_scores(toolbox, weighted, lambda sample: losses_of(vit)(sample[0]) * sample[1])
    only = toolbox.modules[ModuleKey(0, "semantic")]
    with pytest.raises(SiteError, match="kind frequency, spatial"):
        fisher_scores(toolbox, [batch], lambda x: only.up(only.down(torch.ones(3, 2, 48))).sum(dim=(1, 2)))


def test_rivals_are_scored_one_sample_at_a_time():
    toolbox = make("vit", ToolboxConfig(kinds=("rein", "prompt"), rein_tokens=4, rein_rank=2, prompt_tokens=2))
    vit = toolbox.vit
    assert all(score > 0 for score in fisher_scores(toolbox, images(vit), loss_of(vit)).values())
    with pytest.raises(InputError, match=r"kind prompt, rein can't be scored on 3 samples together"):
        fisher_scores(toolbox, [torch.cat(images(vit))], losses_of(vit))
