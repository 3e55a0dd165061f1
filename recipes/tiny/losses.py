# SPDX-License-Identifier: Apache-2.0
"""Losses of promptable training: focal and dice on every pair of mask and target, and the error of predicted IoUs.

Follows the recipe of the SAM paper (arXiv:2304.02643, appendix A). What differs: every mask that a click may mean is a
target at once and each takes the best of the three masks, where the paper draws one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT = 6.0
"""Of plain focal loss with gamma 2, beside dice with weight 1; both then start at about one."""
SPREAD_WEIGHT = 0.03
"""Of the mean over all masks beside the minimum, so that a mask which never wins still learns."""


class PairLosses(NamedTuple):
    """What every mask costs against every target."""

    loss: Tensor
    """(N, masks, targets), with gradient."""
    iou: Tensor
    """(N, masks, targets), IoU of the thresholded mask, without gradient."""


def pair_losses(logits: Tensor, targets: Tensor) -> PairLosses:
    """Compare all masks with all targets.

    Focal loss is linear in the target, as are the sums that dice needs, so that all pairs are two matrix products.

    Parameters
    ----------
    logits
        (N, masks, pixels) float32.
    targets
        (N, targets, pixels) float32, coverage 0 to 1.
    """
    pixels = logits.shape[-1]
    probability = logits.sigmoid()
    missed = (1 - probability).square() * F.softplus(-logits)
    raised = probability.square() * F.softplus(logits)
    across = targets.transpose(1, 2)
    focal = (torch.bmm(missed - raised, across) + raised.sum(-1, keepdim=True)) / pixels
    area = targets.sum(-1).unsqueeze(1)
    dice = 1 - (2 * torch.bmm(probability, across) + 1) / (probability.sum(-1, keepdim=True) + area + 1)
    with torch.no_grad():
        hard = (logits > 0).float()
        shared = torch.bmm(hard, across)
        iou = shared / (hard.sum(-1, keepdim=True) + area - shared).clamp(min=1)
    return PairLosses(FOCAL_WEIGHT * focal + dice, iou)


def ambiguous_loss(pairs: PairLosses, weights: Tensor) -> Tensor:
    """Let each known target take the best of the masks; ``weights`` (N, targets) is 0 where there is none."""
    known = (weights > 0).float()
    count = known.sum(1)
    best = (pairs.loss.min(1).values * known).sum(1) / count
    spread = (pairs.loss.mean(1) * known).sum(1) / count
    return (best + SPREAD_WEIGHT * spread).mean()


def ranking_loss(predicted: Tensor, truth: Tensor, margin: float = 0.02) -> Tensor:
    """Penalise pairs of masks (N, masks) whose predicted IoUs stand in the wrong order, by how much is lost."""
    gain = truth.unsqueeze(2) - truth.unsqueeze(1)
    ahead = predicted.unsqueeze(2) - predicted.unsqueeze(1)
    return (F.relu(margin - ahead) * gain.clamp(min=0)).sum((1, 2)).mean()
