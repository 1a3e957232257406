"""The loss of Mask2Former (arXiv 2112.01527), of labels that need not cover a chip.

Each class of a chip is matched with one query, the Hungarian way; of matched queries class and mask are learned, of
all others that they are no object. Masks are compared at random points, most of them where a mask is unsure. Weights,
costs, points and deep supervision are the published ones.

Pixels without a label take no part, where the authors' code and the library's take them for "not of this mask":
- points are drawn in labelled pixels only, for the costs and for the loss, each with the label of its own pixel (the
  authors' interpolate labels, which would mix what is not labelled into its neighbours);
- that a query without a match is no object counts by the share of its mask that lies on labelled pixels: what it sees
  elsewhere may well be there.
On chips that are labelled all over both change nothing but the rounding of labels within half a pixel of an outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from cegate_geo.domain.legend import IGNORE_INDEX
from cegate_geo.train.mask2former import QueryPredictions

CLASS, MASK, DICE = 2.0, 5.0, 5.0
"""Weights of the three losses, and of the three costs of a match."""
NO_OBJECT = 0.1
"""Weight of queries without a match."""
POINTS, REFERENCE = 12_544, 512 * 512
"""Points for each mask of a chip of 512 x 512 pixels and more; smaller chips have fewer in proportion."""
OVERSAMPLE, IMPORTANT = 3, 0.75
"""Points to choose from for each one that is used, and share of those used that are where the mask is least sure."""


class Amounts(NamedTuple):
    """What losses of a batch are divided by; amounts of parts of a batch add up to those of the batch."""

    pixels: float
    """Labelled pixels."""
    masks: float
    """Classes of each chip, summed over the chips."""
    chips: float
    """Chips with any label."""

    @classmethod
    def of(cls, labels: torch.Tensor) -> Amounts:
        """Of labels (N, H, W) as channel indices, 255 for none."""
        counts = [torch.bincount(chip.reshape(-1), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX] for chip in labels]
        table = torch.stack(counts)
        return cls(float(table.sum()), float((table > 0).sum()), float((table.sum(1) > 0).sum()))


def query_loss(
    found: QueryPredictions, labels: torch.Tensor, *, amounts: Amounts | None = None, seeds: Sequence[int] = ()
) -> torch.Tensor:
    """Sum of the losses of all predictions; 0 where a batch has no labels.

    Args:
        found: What the queries say of N chips.
        labels: (N, H, W) channel indices; 255 is left out.
        amounts: Those of the whole batch, where this is a part of one; those of `labels` if None.
        seeds: N seeds of the points; 0, 1, ... if empty.

    Returns:
        A scalar in float32.
    """
    amounts = amounts or Amounts.of(labels)
    queries = found.classes[0].shape[1]
    weight = max(amounts.masks + NO_OBJECT * (queries * amounts.chips - amounts.masks), 1e-6)
    total = torch.zeros((), device=labels.device)
    for n, chip in enumerate(labels):
        truth = _Truth.of(chip, seeds[n] if seeds else n)
        if truth is None:
            # Every parameter has a gradient all the same: processes sum the same ones.
            parts = [*(c[n] for c in found.classes), *(m[n] for m in found.masks)]
            total = total + sum(part.float().sum() * 0 for part in parts)
            continue
        for classes, masks in zip(found.classes, found.masks, strict=True):
            total = total + truth.loss(classes[n].float(), masks[n].float(), weight=weight, masks_total=amounts.masks)
    return total


class _Truth:
    """The labels of one chip, and the points to look at them."""

    def __init__(self, labels: torch.Tensor, places: torch.Tensor, seed: int) -> None:
        self.labels = labels
        self.places = places
        self.present = labels.reshape(-1)[places].unique()
        self.points = max(1, round(POINTS * min(1.0, labels.numel() / REFERENCE)))
        self.generator = torch.Generator(labels.device).manual_seed(seed)

    @classmethod
    def of(cls, labels: torch.Tensor, seed: int) -> _Truth | None:
        """Of a chip (H, W); None if it has no label."""
        places = (labels.reshape(-1) != IGNORE_INDEX).nonzero()[:, 0]
        return cls(labels, places, seed) if len(places) else None

    def loss(self, classes: torch.Tensor, masks: torch.Tensor, *, weight: float, masks_total: float) -> torch.Tensor:
        """Of one prediction: classes (Q, K + 1) and masks (Q, h, w), divided by the amounts of the batch."""
        queries, truths = self.match(classes.detach(), masks.detach())
        wanted = torch.full((len(classes),), classes.shape[1] - 1, device=classes.device)
        wanted[queries] = self.present[truths]
        importance = NO_OBJECT * self.seen(masks.detach())
        importance[queries] = 1.0
        by_class = (importance * F.cross_entropy(classes, wanted, reduction="none")).sum() / weight
        logits, targets = self.look(masks[queries], self.present[truths])
        by_mask = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
        return CLASS * by_class + (MASK * by_mask + DICE * dice(logits, targets).sum()) / masks_total

    @torch.no_grad()
    def match(self, classes: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and the entries of `present` that they are matched with, of the least sum of costs."""
        from scipy.optimize import linear_sum_assignment

        spots, found = self.draw(self.points)
        logits = sample(masks[None], spots[None])[0]
        targets = (found == self.present[:, None]).to(logits.dtype)
        table = costs(classes.softmax(1)[:, self.present], logits, targets)
        pairs = linear_sum_assignment(table.nan_to_num(1e10, 1e10, -1e10).cpu().numpy())
        queries, truths = (torch.from_numpy(side).to(masks.device) for side in pairs)
        return queries, truths

    def look(self, masks: torch.Tensor, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of masks (M, h, w) and whether the channels (M,) are there, both (M, points), mostly where unsure."""
        important = int(IMPORTANT * self.points)
        with torch.no_grad():
            spots, found = self.draw(len(masks), OVERSAMPLE * self.points)
            unsure = sample(masks[:, None], spots)[:, 0].abs().topk(important, largest=False).indices
            more, found_more = self.draw(len(masks), self.points - important)
            spots = torch.cat([spots.gather(1, unsure[..., None].expand(-1, -1, 2)), more], 1)
            targets = torch.cat([found.gather(1, unsure), found_more], 1) == channels[:, None]
        logits = sample(masks[:, None], spots)[:, 0]
        return logits, targets.to(logits.dtype)

    def draw(self, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random spots (*shape, 2) in labelled pixels, as x and y from 0 to 1, and their labels (*shape)."""
        device = self.labels.device
        index = torch.randint(len(self.places), shape, generator=self.generator, device=device)
        places = self.places[index]
        height, width = self.labels.shape
        within = torch.rand((*shape, 2), generator=self.generator, device=device)
        corners = torch.stack([places % width, places // width], -1)
        scale = torch.tensor([width, height], device=device)
        return (corners + within) / scale, self.labels.reshape(-1)[places]

    def seen(self, masks: torch.Tensor) -> torch.Tensor:
        """Share (Q,) of each mask (Q, h, w) that lies on labelled pixels; 1 on a chip that is labelled all over."""
        if len(self.places) == self.labels.numel():
            return torch.ones(len(masks), device=masks.device)
        cover = F.adaptive_avg_pool2d((self.labels != IGNORE_INDEX)[None].float(), (masks.shape[1], masks.shape[2]))
        soft = masks.sigmoid()
        return (soft * cover).sum((1, 2)) / soft.sum((1, 2)).clamp_min(1e-12)


def sample(masks: torch.Tensor, spots: torch.Tensor) -> torch.Tensor:
    """Values of masks (N, C, h, w) at spots (N, P, 2), x and y from 0 to 1, interpolated: (N, C, P)."""
    return F.grid_sample(masks, 2 * spots[:, :, None] - 1, mode="bilinear", align_corners=False)[..., 0]


def costs(probabilities: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What it costs to match each of Q queries with each of M masks.

    Args:
        probabilities: (Q, M), of the class of each mask.
        logits: (Q, P) of the queries' masks at P points.
        targets: (M, P), 1 where a mask is and 0 elsewhere.

    Returns:
        (Q, M).
    """
    soft = logits.sigmoid()
    by_mask = (F.softplus(logits).sum(1, keepdim=True) - logits @ targets.T) / logits.shape[1]
    by_dice = 1 - (2 * soft @ targets.T + 1) / (soft.sum(1, keepdim=True) + targets.sum(1) + 1)
    return MASK * by_mask + DICE * by_dice - CLASS * probabilities


def dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dice loss of logits and targets (M, P), one number for each row."""
    soft = logits.sigmoid()
    return 1 - (2 * (soft * targets).sum(1) + 1) / (soft.sum(1) + targets.sum(1) + 1)
