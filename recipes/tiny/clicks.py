# SPDX-License-Identifier: Apache-2.0
"""Prompts that follow from a predicted mask: where it is wrong, as a person would click next, and its box.

Batched, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from segship.spec import LABEL_BOX_BOTTOM_RIGHT, LABEL_BOX_TOP_LEFT, LABEL_EMPTY

CELL = 4
"""Model-frame pixels across one cell of a low-resolution mask."""


def error_clicks(
    logits: Tensor, target: Tensor, count: int, *, centred: bool = False, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw clicks from the error region of each mask.

    Parameters
    ----------
    logits, target
        (N, h, w) mask logits and coverage 0 to 1.
    count
        Clicks for each mask.
    centred
        Take the place deepest inside the errors, in place of a random one that prefers the depth.

    Returns
    -------
    tuple of Tensor
        (N, count, 2) x y in the model frame, and (N, count) labels: 1 on a missed place, 0 on a false one. A mask
        without error gets points of its target.
    """
    inside = target > 0.5
    wrong = ((logits > 0) != inside).float()
    depth = wrong
    for kernel in (3, 5, 9):
        # Products of ever wider means grow with the distance to the region's border.
        depth = depth * F.avg_pool2d(wrong.unsqueeze(1), kernel, 1, kernel // 2).squeeze(1)
    chance = depth.flatten(1) ** 2
    fallback = inside.flatten(1).float() + 1e-6
    chance = torch.where(chance.sum(1, keepdim=True) > 1e-9, chance, fallback)
    if centred:
        cells = chance.topk(1, 1).indices.expand(-1, count)
    else:
        cells = torch.multinomial(chance, count, replacement=True, generator=generator)
    width = logits.shape[-1]
    places = torch.stack([cells % width, cells // width], -1).float()
    within = torch.full_like(places, 0.5) if centred else torch.rand(places.shape, generator=generator).to(places)
    return (places + within) * CELL - 0.5, inside.flatten(1).gather(1, cells).float()


def append_clicks(coords: Tensor, labels: Tensor, clicks: tuple[Tensor, Tensor], used: int) -> tuple[Tensor, Tensor]:
    """Add clicks (N, count, ...) to prompts (N, places, ...); only the first ``used`` are not empty."""
    new_coords, new_labels = clicks
    kept = torch.arange(new_labels.shape[1], device=labels.device) < used
    new_labels = torch.where(kept, new_labels, torch.full_like(new_labels, LABEL_EMPTY))
    return torch.cat([coords, new_coords], 1), torch.cat([labels, new_labels], 1)


def box_prompts(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates (n, 2, 2) and labels (n, 2) of the boxes of masks (n, h, w) that are not empty."""
    corners = []
    for across in (masks.any(1), masks.any(2)):
        cells = torch.arange(across.shape[1], device=masks.device)
        low = torch.where(across, cells, across.shape[1]).amin(1)
        corners.append(torch.stack([low, torch.where(across, cells, -1).amax(1) + 1], 1))
    # The prompt encoder adds half a pixel of the model frame.
    coords = torch.stack(corners, 2) * float(CELL) - 0.5
    labels = torch.tensor([LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT], dtype=coords.dtype, device=masks.device)
    return coords, labels.expand(len(masks), 2)
