"""The loss: soft Jaccard per image plus focal, weighed, over the valid pixels of the whole global batch.

Shape letters: B images of this rank, H rows, W columns. Computed in float32. Must not know nets or ranks: what is
counted over all ranks is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raytrain.config import LossWeights
from raytrain.imagery.rasters import LABEL_IGNORE

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

    Jaccard is taken per image and averaged over the images that have a valid pixel; focal is averaged over the valid
    pixels. Label 255 is ignored. Source: the published recipe of the 3rd place of "On Cloud N".
    """
    logits_BHW = logits_BHW.float()
    valid_BHW = (labels_BHW != LABEL_IGNORE).float()
    target_BHW = (labels_BHW == 1).float()
    probability_BHW = torch.sigmoid(logits_BHW)
    loss = logits_BHW.new_zeros(())
    if weights.jaccard:
        loss = loss + weights.jaccard * _jaccard_sum(probability_BHW, target_BHW, valid_BHW) / divisors.images
    if weights.focal:
        loss = loss + weights.focal * _focal_sum(probability_BHW, target_BHW, valid_BHW) / divisors.pixels
    return loss


def _jaccard_sum(probability_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    p_BN = (probability_BHW * valid_BHW).flatten(1)
    t_BN = (target_BHW * valid_BHW).flatten(1)
    intersection_B = (p_BN * t_BN).sum(1)
    union_B = p_BN.sum(1) + t_BN.sum(1) - intersection_B
    loss_B = 1 - (intersection_B + JACCARD_EPS) / (union_B + JACCARD_EPS)
    return (loss_B * valid_BHW.flatten(1).amax(1)).sum()


def _focal_sum(probability_BHW: Tensor, target_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    p_BHW = probability_BHW.clamp(FOCAL_EPS, 1 - FOCAL_EPS)
    t_BHW = target_BHW.clamp(FOCAL_EPS, 1 - FOCAL_EPS)
    q_BHW = p_BHW * t_BHW + (1 - p_BHW) * (1 - t_BHW)
    return -((1 - q_BHW).square() * q_BHW.log() * valid_BHW).sum()
