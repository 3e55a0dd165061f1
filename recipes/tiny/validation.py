# SPDX-License-Identifier: Apache-2.0
"""Mean IoU by clicks and by box on held-out procedural scenes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.tiny import forward
from recipes.tiny.clicks import append_clicks, error_clicks
from recipes.tiny.samples import BOXES, CLICKS, Sample, SampleBuilder, ScenePool
from segship.ship.families.sam.model import Sam

VALIDATION_SEED = 99


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean IoUs over held-out prompts.

    Attributes
    ----------
    oracle, top, single
        One click: the best of the three masks, the one that the model ranks first, and mask 0.
    two_clicks, three_clicks
        The ranked-first mask after one and two corrective clicks, with the previous mask as input.
    box
        A box, tight or with jitter, as in training.
    """

    oracle: float
    top: float
    single: float
    two_clicks: float
    three_clicks: float
    box: float

    def line(self) -> str:
        """Return the scores on one line."""
        return " ".join(f"{name} {value:.4f}" for name, value in asdict(self).items())


def validation_samples(pool: ScenePool, image_size: int, count: int) -> list[Sample]:
    """Build the same samples for the same pool, size and count."""
    rng, builder = np.random.default_rng(VALIDATION_SEED), SampleBuilder(image_size, anywhere=0)
    built = (builder.build(rng, pool.scene(index)) for index in range(min(count, len(pool))))
    return [sample for sample in built if sample is not None]


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return the IoU over the last two axes of thresholded logits and coverage 0 to 1."""
    a, b = logits > 0, target > 0.5
    return (a & b).sum((-2, -1)) / (a | b).sum((-2, -1)).clamp(min=1)


@torch.no_grad()
def validate(sam: Sam, samples: list[Sample], device: torch.device) -> Scores:
    """Measure a model; it is put into evaluation mode and left there."""
    sam.eval()
    rows = [_one(sam, sample, device) for sample in samples]
    return Scores(*torch.cat(rows, 1).mean(1).tolist())


def _one(sam: Sam, sample: Sample, device: torch.device) -> Tensor:
    """Return (6, CLICKS) IoUs of one picture."""
    images, coords, labels = (torch.from_numpy(part).to(device).unsqueeze(0) for part in sample[:3])
    targets = torch.from_numpy(sample.targets[:, 0]).to(device).float() / 4
    with forward.autocast(device):
        image = forward.encode(sam, images)
        logits, predicted = forward.decode(sam, image, coords, labels)
    logits, predicted = logits[0].float(), predicted[0].float()
    clicked, wanted = logits[:CLICKS], targets[:CLICKS]
    scores = mask_iou(clicked, wanted.unsqueeze(1))
    best = 1 + predicted[:CLICKS, 1:].argmax(1)
    rows = [scores[:, 1:].max(1).values, scores[torch.arange(CLICKS), best], scores[:, 0]]
    mask, places, kinds = clicked[torch.arange(CLICKS), best], coords[0, :CLICKS], labels[0, :CLICKS]
    for _ in range(2):
        places, kinds = append_clicks(places, kinds, error_clicks(mask, wanted, 1, centred=True), 1)
        with forward.autocast(device):
            refined, _ = forward.decode(sam, image, places[None], kinds[None], mask[None])
        mask = refined[0, :, 0].float()
        rows.append(mask_iou(mask, wanted))
    boxed = mask_iou(logits[-BOXES:, 0], targets[-BOXES:])
    rows.append(boxed.mean().expand(CLICKS))
    return torch.stack(rows)
