"""Laws of masked image modelling: what is hidden stays hidden, and each patch is compared with itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from torch.nn import functional as F

from cegate_geo.errors import ConfigError
from cegate_geo.train.mim import (
    MaskedAutoencoder,
    encode_visible,
    fix_positions,
    patchify,
    reconstruction_loss,
    sincos_positions,
    unpatchify,
)

SIDE, PATCH = 64, 16
TOKENS = (SIDE // PATCH) ** 2


def encoder(**kwargs: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=SIDE, dynamic_img_size=True, depth=2, **kwargs
    ).eval()


def images(count: int = 2, side: int = SIDE, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def orders(count: int = 2, tokens: int = TOKENS, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(tokens, generator=generator) for _ in range(count)])


def test_patchify_lists_patches_row_by_row_and_has_an_inverse() -> None:
    batch = torch.randn(2, 3, 32, 48)
    patches = patchify(batch, PATCH)
    assert patches.shape == (2, 6, 3 * PATCH * PATCH)
    for n in range(6):
        row, col = divmod(n, 3)
        cut = batch[1, :, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
        assert torch.equal(patches[1, n].view(3, 16, 16), cut)
    assert torch.equal(unpatchify(patches, PATCH, (32, 48)), batch)


def test_with_all_patches_shown_the_encoder_says_what_timm_says() -> None:
    vit = encoder()
    order = torch.arange(TOKENS).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(encode_visible(vit, images(), order), vit.forward_features(images()))


def test_the_order_of_shown_patches_does_not_matter_to_each() -> None:
    vit, order = encoder(), orders()
    with torch.no_grad():
        tokens = encode_visible(vit, images(), order)
        expected = vit.forward_features(images())
    torch.testing.assert_close(tokens[:, 0], expected[:, 0])
    for n in range(2):
        torch.testing.assert_close(tokens[n, 1:], expected[n, 1:][order[n]])


def test_hidden_patches_are_never_seen() -> None:
    model, order = MaskedAutoencoder(encoder()).eval(), orders()
    visible = 5
    patches = patchify(images(), PATCH)
    junk = patches.clone()
    for n in range(2):
        junk[n, order[n, visible:]] = 100.0
    seen = patches.clone()
    seen[0, order[0, 0]] += 1.0
    with torch.no_grad():
        said = model(images(), order, visible)
        same = model(unpatchify(junk, PATCH, (SIDE, SIDE)), order, visible)
        other = model(unpatchify(seen, PATCH, (SIDE, SIDE)), order, visible)
    assert said.shape == (2, TOKENS - visible, 3 * PATCH * PATCH)
    torch.testing.assert_close(said, same)
    assert (said[0] - other[0]).abs().max() > 1e-4
    torch.testing.assert_close(said[1], other[1])


def test_a_prediction_belongs_to_its_place_whatever_the_order() -> None:
    model, order, visible = MaskedAutoencoder(encoder()).eval(), orders(), 6
    shuffled = order.clone()
    for n in range(2):
        shuffled[n, visible:] = order[n, visible:].flip(0)
        shuffled[n, :visible] = order[n, :visible].roll(2)
    with torch.no_grad():
        said = model(images(), order, visible)
        again = model(images(), shuffled, visible)
    torch.testing.assert_close(again, said.flip(1), atol=1e-5, rtol=1e-4)
    assert (said[0, 0] - said[0, 1]).abs().max() > 1e-4  # the mask token alone tells no place


def test_the_loss_is_zero_for_the_truth_only() -> None:
    batch, order, visible = images() * 3 + 7, orders(), 4
    patches = patchify(batch, PATCH)
    rows = []
    for n in range(2):
        hidden = patches[n, order[n, visible:]]
        rows.append(torch.stack([(p - p.mean()) / (p.var() + 1e-6).sqrt() for p in hidden]))
    truth = torch.stack(rows)
    assert float(reconstruction_loss(truth, batch, order, visible)) == pytest.approx(0, abs=1e-9)
    assert float(reconstruction_loss(truth + 0.5, batch, order, visible)) == pytest.approx(2 * 0.25 + 0.5, rel=1e-4)
    assert float(reconstruction_loss(truth.flip(1), batch, order, visible)) > 1


def test_a_patch_without_contrast_gives_a_finite_loss_and_gradient() -> None:
    predicted = torch.zeros(1, TOKENS - 4, 768, requires_grad=True)
    loss = reconstruction_loss(predicted, torch.full((1, 3, SIDE, SIDE), 0.5), orders(1), 4)
    loss.backward()
    assert torch.isfinite(loss)
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


def test_gradients_reach_everything_but_the_positions() -> None:
    vit = encoder()
    fix_positions(vit)
    model = MaskedAutoencoder(vit).train()
    order = orders()
    reconstruction_loss(model(images(), order, 5), images(), order, 5).backward()
    assert vit.pos_embed.grad is None
    assert {n for n, p in model.named_parameters() if p.grad is None} == {"encoder.pos_embed"}


def test_positions_are_fixed_alike_in_both_axes_and_survive_another_size() -> None:
    vit = encoder()
    fix_positions(vit)
    assert not vit.pos_embed.requires_grad
    assert torch.equal(vit.pos_embed[0, 0], torch.zeros(192))
    grid = vit.pos_embed[0, 1:].view(4, 4, 192)
    near = [F.cosine_similarity(a, b, dim=0) for a, b in pairwise(grid[0])]
    far = F.cosine_similarity(grid[0, 0], grid[3, 3], dim=0)
    assert min(near) > far
    assert len({tuple(p.tolist()) for p in grid.view(-1, 192)}) == TOKENS
    torch.testing.assert_close(sincos_positions((4, 4), 192), vit.pos_embed[0, 1:])
    model = MaskedAutoencoder(vit).eval()
    with torch.no_grad():
        assert model(images(1, 96), orders(1, 36), 9).shape == (1, 27, 768)


def test_a_model_with_register_tokens_keeps_them_out_of_the_masking() -> None:
    vit = encoder(reg_tokens=4)
    fix_positions(vit)
    order = torch.arange(TOKENS).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(encode_visible(vit, images(), order), vit.forward_features(images()))
        assert MaskedAutoencoder(vit).eval()(images(), orders(), 5).shape == (2, TOKENS - 5, 768)


def test_a_model_without_additive_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="position"):
        MaskedAutoencoder(timm.create_model("vit_tiny_patch16_dinov3_qkvb", pretrained=False, num_classes=0, depth=1))
