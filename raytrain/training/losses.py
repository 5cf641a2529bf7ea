"""The loss: a weighed sum of terms over the valid pixels of the whole global batch.

Shape letters: B images of this rank, H rows, W columns, N pixels of an image. Computed in float32. Must not know nets
or ranks: what is counted over all ranks is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from raytrain.config import LossWeights
from raytrain.imagery.rasters import LABEL_CLOUD, LABEL_IGNORE

JACCARD_EPS = 1e-5
FOCAL_EPS = 1e-5


@dataclass(frozen=True)
class Totals:
    """What the means of the loss divide by, counted over the global batch; at least 1 each."""

    images: Tensor
    pixels: Tensor


def count_valid(labels_BHW: Tensor) -> Tensor:
    """Return `[images that have a valid pixel, valid pixels]` of this rank, `[2] float64`, to be added up."""
    valid_BHW = labels_BHW != LABEL_IGNORE
    return torch.stack([valid_BHW.flatten(1).any(1).sum(), valid_BHW.sum()]).double()


def totals(counts: Tensor) -> Totals:
    """Return the divisors from the counts of the global batch, `[2]`."""
    images, pixels = counts.clamp_min(1).float()
    return Totals(images, pixels)


def segmentation_loss(logits_BHW: Tensor, labels_BHW: Tensor, weights: LossWeights, divisors: Totals) -> Tensor:
    """Return this rank's part of the loss, a scalar; the parts of all ranks add up to the loss of the global batch.

    Jaccard, Dice and the Lovasz hinge are taken per image and averaged over the images that have a valid pixel; focal
    and binary cross-entropy are averaged over the valid pixels. Label 255 is ignored. A term of weight 0 is not
    computed. Source of Jaccard and focal: the published recipe of the 3rd place of "On Cloud N".
    """
    batch = _Batch(logits_BHW.float(), (labels_BHW == LABEL_CLOUD).float(), (labels_BHW != LABEL_IGNORE).float())
    loss = batch.logits_BHW.new_zeros(())
    for name, term in TERMS.items():
        weight: float = getattr(weights, name)
        if weight:
            divisor = divisors.images if term in PER_IMAGE else divisors.pixels
            loss = loss + weight * term(batch) / divisor
    return loss


class _Batch:
    """The images of this rank as the terms see them: logits, targets (0, 1) and valid pixels (0, 1), all float32."""

    def __init__(self, logits_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> None:
        self.logits_BHW = logits_BHW
        self.target_BHW = target_BHW
        self.valid_BHW = valid_BHW

    @cached_property
    def probability_BHW(self) -> Tensor:
        return torch.sigmoid(self.logits_BHW)

    @cached_property
    def any_valid_B(self) -> Tensor:
        """1 for an image with a valid pixel, else 0."""
        return self.valid_BHW.flatten(1).amax(1)

    @cached_property
    def overlap(self) -> tuple[Tensor, Tensor]:
        """Sums over the valid pixels of an image: probability times target, and probability plus target; `[B]` each."""
        p_BN = (self.probability_BHW * self.valid_BHW).flatten(1)
        t_BN = (self.target_BHW * self.valid_BHW).flatten(1)
        return (p_BN * t_BN).sum(1), p_BN.sum(1) + t_BN.sum(1)


def _jaccard(batch: _Batch) -> Tensor:
    both_B, sum_B = batch.overlap
    loss_B = 1 - (both_B + JACCARD_EPS) / (sum_B - both_B + JACCARD_EPS)
    return (loss_B * batch.any_valid_B).sum()


def _dice(batch: _Batch) -> Tensor:
    """Return the soft Dice loss (Milletari and others 2016, without squares), smoothed like the Jaccard loss."""
    both_B, sum_B = batch.overlap
    loss_B = 1 - (2 * both_B + JACCARD_EPS) / (sum_B + JACCARD_EPS)
    return (loss_B * batch.any_valid_B).sum()


def _focal(batch: _Batch) -> Tensor:
    """Return the focal loss (Lin and others 2017) with gamma 2 and no class weights."""
    p_BHW = batch.probability_BHW.clamp(FOCAL_EPS, 1 - FOCAL_EPS)
    t_BHW = batch.target_BHW.clamp(FOCAL_EPS, 1 - FOCAL_EPS)
    q_BHW = p_BHW * t_BHW + (1 - p_BHW) * (1 - t_BHW)
    return -((1 - q_BHW).square() * q_BHW.log() * batch.valid_BHW).sum()


def _bce(batch: _Batch) -> Tensor:
    loss_BHW = binary_cross_entropy_with_logits(batch.logits_BHW, batch.target_BHW, reduction="none")
    return (loss_BHW * batch.valid_BHW).sum()


def _lovasz(batch: _Batch) -> Tensor:
    """Return the Lovasz hinge of the Jaccard loss (Berman, Triki and Blaschko 2018, algorithm 1).

    Invalid pixels get no error, so that they are sorted behind all valid ones and change no intersection or union.
    """
    sign_BN = (2 * batch.target_BHW - 1).flatten(1)
    valid_BN = batch.valid_BHW.flatten(1)
    error_BN = torch.where(valid_BN > 0, 1 - batch.logits_BHW.flatten(1) * sign_BN, -torch.inf)
    error_BN, order_BN = error_BN.sort(dim=1, descending=True)
    # Counts in float64: above 2^24 pixels float32 has no whole numbers; the difference of neighbours is what counts.
    truth_BN = (batch.target_BHW * batch.valid_BHW).flatten(1).gather(1, order_BN).double()
    other_BN = valid_BN.gather(1, order_BN).double() - truth_BN
    cloud_B1 = truth_BN.sum(1, keepdim=True)
    jaccard_BN = 1 - (cloud_B1 - truth_BN.cumsum(1)) / (cloud_B1 + other_BN.cumsum(1)).clamp_min(1)
    gradient_BN = jaccard_BN.diff(dim=1, prepend=torch.zeros_like(cloud_B1)).float()
    hinge_BN = error_BN.clamp_min(0)  # -inf of an invalid pixel becomes 0
    return (hinge_BN * gradient_BN).sum()


TERMS: dict[str, Callable[[_Batch], Tensor]] = {
    "jaccard": _jaccard,
    "focal": _focal,
    "dice": _dice,
    "bce": _bce,
    "lovasz": _lovasz,
}
"""The terms by the names of their weights; each returns the sum over images or pixels."""
PER_IMAGE = (_jaccard, _dice, _lovasz)
"""The terms that are averaged over images; the others over pixels."""
