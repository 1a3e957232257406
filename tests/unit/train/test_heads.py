"""What heads normalise by; and the head of two branches: each learns from its own loss, and their averages are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from cegate_geo.peft import ToolboxConfig, attach, fisher_scores
from cegate_geo.train.backbone import BackboneSpec
from cegate_geo.train.ema import Ema
from cegate_geo.train.heads import HEADS
from cegate_geo.train.norms import Norm
from cegate_geo.train.segmenter import Segmenter
from cegate_geo.train.state import load_state, save_state
from cegate_geo.train.steps import segmentation_loss, training_loss

SIDE = 96


def toy(head: str, norm: Norm = "batch") -> Segmenter:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=0, img_size=SIDE, dynamic_img_size=True
    )
    return Segmenter(vit, BackboneSpec(architecture="toy"), head=head, head_dim=16, classes=3, norm=norm)


@pytest.fixture
def model() -> Segmenter:
    return toy("dpt-unet")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    return images, torch.randint(0, 3, (2, SIDE, SIDE), generator=generator)


def statistics(model: Segmenter) -> list[torch.Tensor]:
    return [b for b in model.head.buffers() if b.is_floating_point()]


@pytest.mark.parametrize("head", HEADS)
def test_groups_look_at_an_image_alone_and_batches_at_all(head: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, other = batch[0][:1], batch[0][1:] * 0.1
    for norm in ("group", "batch"):
        model = toy(head, norm).train()
        with torch.no_grad():
            alone, together = model(image), model(torch.cat([image, other]))[:1]
        assert torch.allclose(alone, together, atol=1e-5) == (norm == "group")
        assert bool(statistics(model)) == (norm == "batch")


def test_both_norms_start_from_the_same_weights() -> None:
    groups, batches = (dict(toy("dpt-unet", norm).named_parameters()) for norm in ("group", "batch"))
    assert groups.keys() == batches.keys()
    assert all(torch.equal(value, batches[name]) for name, value in groups.items())


def test_the_answer_is_the_mean_of_the_branches(model: Segmenter, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model.eval()
    with torch.no_grad():
        first, second = model.branches(batch[0])
        assert first.shape == second.shape == (2, 3, SIDE, SIDE)
        assert (first - second).abs().max() > 0.01
        torch.testing.assert_close(model(batch[0]), (first + second) / 2)


@pytest.mark.parametrize("part", ["unet", "detail"])
def test_a_branch_learns_from_its_own_loss_alone(
    model: Segmenter, batch: tuple[torch.Tensor, torch.Tensor], part: str
) -> None:
    images, labels = batch
    parameters = list(getattr(model.head, part).parameters())
    together = torch.autograd.grad(training_loss(model.branches(images), labels), parameters)
    own = model.branches(images)[0 if part == "detail" else 1]
    alone = torch.autograd.grad(segmentation_loss(own, labels), parameters)
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected / 2)


def test_statistics_are_averaged_with_the_weights(
    model: Segmenter, batch: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    tensors = [*model.head.parameters(), *statistics(model)]
    ema = Ema(tensors, decay=0.5)
    seen = [[b.clone() for b in statistics(model)]]
    model.train()
    for step in range(3):
        model.branches(batch[0] + step)
        ema.update(100)
        seen.append([b.clone() for b in statistics(model)])
    expected = seen[0]
    for now in seen[1:]:
        expected = [(a + b) / 2 for a, b in zip(expected, now, strict=True)]
    with ema.swapped():
        for found, wanted in zip(statistics(model), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    for found, last in zip(statistics(model), seen[-1], strict=True):
        assert torch.equal(found, last)

    optimizer = torch.optim.AdamW(model.head.parameters())
    save_state(tmp_path, step=3, modules={"head": model.head, "ema": ema}, optimizer=optimizer)
    for tensor in (*tensors, *ema.shadow):
        tensor.data.zero_()
    load_state(tmp_path, modules={"head": model.head, "ema": ema}, optimizer=optimizer)
    with ema.swapped():
        for found, wanted in zip(statistics(model), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_scoring_leaves_the_statistics_alone(model: Segmenter, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    toolbox = attach(model.backbone, ToolboxConfig(kinds=("semantic",), semantic_dim=4))
    model.train()
    before = [b.clone() for b in statistics(model)]
    scores = fisher_scores(
        toolbox,
        [(batch[0][:1], batch[1][:1])],
        lambda sample: training_loss(model.branches(sample[0]), sample[1]),
        model=model,
    )
    assert max(scores.values()) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))
