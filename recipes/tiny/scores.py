# SPDX-License-Identifier: Apache-2.0
"""What the predicted IoUs are worth where ``segship everything`` asks, and the head that makes them fitted to that.

Everything asks a grid of clicks, most of them on no thing's middle, and keeps what scores high. Here the decoder is
asked so on scenes; its masks are compared with all that is known of each scene. The IoU head sees one token of the
decoder, so it is fitted alone, in a minute, to tokens that were taken once; masks stay as they are, bit for bit.

    python -m recipes.tiny.scores WEIGHTS --scenes POOL/validation
    python -m recipes.tiny.scores WEIGHTS --scenes POOL/validation --train POOL/train --out FITTED.safetensors

Printed: the mean IoU of masks by their score, those that touch the frame apart from those that do not; the bias of both
(mean score less mean IoU); how well the score tells masks of a thing (IoU over 0.5) from others (AUC); and the mean IoU
of the mask that is ranked first.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipes.tiny import forward
from recipes.tiny.clicks import append_clicks, error_clicks
from recipes.tiny.samples import (
    CLICKS,
    LEVEL_WEIGHTS,
    Labels,
    SampleBuilder,
    ScenePool,
    Truth,
    candidate_mask,
    connected_pieces,
    crop_scene,
    draw_candidates,
    draw_click,
    find_candidates,
    jitter_colours,
    resized_hw,
    to_frame,
    to_target,
    truth_in_frame,
)
from recipes.tiny.scenes import Scene
from recipes.tiny.train import new_model
from segship.ship.families.sam.model import Sam
from segship.spec import LABEL_FOREGROUND, LABEL_NOT_A_POINT

SIZE = 384
SMALLEST = 0.003
"""Of the picture; what is smaller is nothing that was meant."""
MEANT_SHARE = 0.5
"""Of what a click most likely means in a score, beside the IoU with whatever thing the mask comes nearest to."""
CLICK_WEIGHT = 2.0
"""Of clicks as training puts them, beside those of grids."""
STEPS, BATCH, LEARNING_RATE = 1000, 512, 2e-4
BINS = 10


class Asked(NamedTuple):
    """What the decoder answered to prompts, and what it should have said of its masks."""

    tokens: Tensor
    """(n, C), what the IoU head sees."""
    scores: Tensor
    """(n, 4), what it says."""
    ious: Tensor
    """(n, 4), what it should say."""
    judged: Tensor
    """(n, 4), how much it counts, 0 where it is not known: of clear prompts only mask 0 counts."""
    at_frame: Tensor
    """(n, 4) bool, masks that touch the frame of the picture."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far scores can be trusted, of masks 1 to 3 and of one half of them: at the frame, or in the middle."""

    bias: float
    auc: float
    by_score: tuple[tuple[int, float], ...]
    """How many masks have a score of that tenth, and their mean IoU."""


def known_things(truth: Truth, image_size: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the levels (t,) and the masks (t, S/4, S/4) of every piece of a leaf, object and group but specks."""
    levels, masks = [], []
    for level, labels in enumerate(truth.maps):
        for value in np.unique(labels[labels > 0]):
            mask: Labels = np.asarray(labels == value, np.uint8)
            for piece in connected_pieces(mask) if level == 0 else [mask]:
                if piece.mean() > SMALLEST:
                    levels.append(level)
                    masks.append(to_target(piece, image_size) > 2)
    side = image_size // 4
    return np.array(levels, np.intp), np.array(masks, np.bool_).reshape(-1, side, side)


@torch.no_grad()
def ask_grid(sam: Sam, scene: Scene, rng: np.random.Generator, side: int, clicks: int = 0) -> Asked | None:
    """Ask a crop of a scene at a grid of side x side clicks, each moved within its cell.

    ``clicks`` more are put on things as training puts them, and judged by those things alone.
    """
    picture, full = crop_scene(rng, scene)
    size = sam.config.image_size
    truth = truth_in_frame(full, size)
    levels, things = known_things(truth, size)
    candidates = find_candidates(truth)
    if not candidates or not len(levels):
        return None
    height, width = resized_hw(picture.shape[:2], size)
    # Cells of the padding are no part of the picture.
    window = (..., slice(-(-height // 4)), slice(-(-width // 4)))
    image = forward.encode(sam, torch.from_numpy(to_frame(jitter_colours(rng, picture), size))[None])
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    places = (cells + rng.uniform(0, 1, cells.shape)) / side * (width, height)
    tokens, logits, scores = decode(sam, image, *grid_prompts(places))
    masks = logits[window] > 0
    overlaps = ious(masks, torch.from_numpy(things[window]))
    x, y = (places / 4).astype(int).T
    wanted = _worth(overlaps, torch.from_numpy(things[:, y, x].T), torch.from_numpy(levels))
    found = [Asked(tokens, scores, wanted, torch.ones_like(scores), _touches(masks))]
    if clicks:
        asked = [candidate_mask(rng, truth, one) for one in draw_candidates(rng, candidates, clicks)]
        at = np.array([draw_click(rng, mask) for mask in asked], np.float64)[:, ::-1] * 2 + 1
        tokens, logits, scores = decode(sam, image, *grid_prompts(at))
        masks, targets = logits[window] > 0, np.array([to_target(mask, size) > 2 for mask in asked])
        meant = ious(masks, torch.from_numpy(targets[window])).diagonal(dim1=0, dim2=2).T
        found.append(Asked(tokens, scores, meant, torch.full_like(scores, CLICK_WEIGHT), _touches(masks)))
    return Asked(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _worth(overlaps: Tensor, under: Tensor, levels: Tensor) -> Tensor:
    """Return what masks (P, 4) of grid clicks are worth, by their IoUs (P, 4, t) and the things under clicks (P, t)."""
    meant, shares = torch.zeros(overlaps.shape[:2]), torch.zeros(len(overlaps), 1)
    for level, weight in enumerate(LEVEL_WEIGHTS):
        here = under & (levels == level)
        meant += weight * (overlaps * here[:, None]).amax(2)
        shares += weight * here.any(1, keepdim=True)
    nearest = overlaps.amax(2)
    # Where a click means nothing, its masks are as good as what they happen to be.
    meant = torch.where(shares > 0, meant / shares.clamp(min=1e-6), nearest)
    return MEANT_SHARE * meant + (1 - MEANT_SHARE) * nearest


def _touches(masks: Tensor) -> Tensor:
    """Return which bool masks (P, 4, h, w) touch the frame."""
    return masks[..., 0, :].any(2) | masks[..., -1, :].any(2) | masks[..., 0].any(2) | masks[..., -1].any(2)


def grid_prompts(places: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Return coordinates (1, n, 2, 2) and labels (1, n, 2) of single clicks (n, 2), x y in the model frame."""
    coords = torch.zeros(1, len(places), 2, 2)
    # The prompt encoder adds half a pixel.
    coords[0, :, 0] = torch.from_numpy(places - 0.5)
    return coords, torch.tensor([LABEL_FOREGROUND, LABEL_NOT_A_POINT]).float().expand(1, len(places), 2)


def decode(
    sam: Sam, image: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the IoU head's tokens (P, C), the logits (P, 4, h, w) and the scores (P, 4) of one image."""
    tokens, attended = forward.attend(sam, image, coords, labels, mask_input)
    logits = forward.paint(sam, tokens, attended)[0]
    return tokens[0, :, 0], logits, sam.mask_decoder.iou_prediction_head(tokens[0, :, 0])


def ious(masks: Tensor, things: Tensor) -> Tensor:
    """Return (P, 4, t) IoUs of bool masks (P, 4, h, w) and things (t, h, w)."""
    flat, across = masks.flatten(2).float(), things.flatten(1).float()
    shared = flat @ across.T
    return shared / (flat.sum(2, keepdim=True) + across.sum(1) - shared).clamp(min=1)


@torch.no_grad()
def ask_prompts(sam: Sam, scene: Scene, rng: np.random.Generator, builder: SampleBuilder) -> Asked | None:
    """Ask the prompts of a training sample, and each again with a corrective click: the head keeps knowing them."""
    sample = builder.build(rng, scene)
    if sample is None:
        return None
    images, coords, labels = (torch.from_numpy(part)[None] for part in sample[:3])
    targets = torch.from_numpy(sample.targets[:, 0]).float() / 4
    image = forward.encode(sam, images)
    tokens, logits, scores = decode(sam, image, coords, labels)
    clicks = error_clicks(logits[:, 0], targets, 1)
    places, kinds = append_clicks(coords[0], labels[0], clicks, 1)
    again = decode(sam, image, places[None], kinds[None], logits[None, :, 0])
    reached = [ious(part > 0, targets > 0.5).diagonal(dim1=0, dim2=2).T for part in (logits, again[1])]
    judged = torch.zeros(2, *scores.shape)
    judged[..., 0] = 1
    judged[0, :CLICKS] = 1
    at_frame = torch.zeros(2 * len(scores), scores.shape[1], dtype=torch.bool)
    return Asked(
        torch.cat([tokens, again[0]]), torch.cat([scores, again[2]]), torch.cat(reached), judged.flatten(0, 1), at_frame
    )


def ask_scenes(sam: Sam, pool: ScenePool, count: int, side: int, *, prompts: bool, seed: int = 0) -> Asked:
    """Ask the first scenes of a pool by grids, and with ``prompts`` as often again as training asks."""
    rng, builder, found = np.random.default_rng([seed, 31]), SampleBuilder(sam.config.image_size), []
    for index in range(min(count, len(pool))):
        scene = pool.scene(index)
        found.append(ask_grid(sam, scene, rng, side, side * side if prompts else 0))
        if prompts:
            found.append(ask_prompts(sam, scene, rng, builder))
        if index % 50 == 49:
            print(f"{index + 1} scenes", flush=True)
    return Asked(*(torch.cat(parts) for parts in zip(*filter(None, found), strict=True)))


def reliability(asked: Asked, at_frame: bool) -> Reliability:
    """Compare scores with IoUs, of the masks 1 to 3 that touch the frame or of those that do not."""
    chosen = (asked.at_frame[:, 1:] == at_frame) & (asked.judged[:, 1:] > 0)
    scores, ious = asked.scores[:, 1:][chosen].numpy(), asked.ious[:, 1:][chosen].numpy()
    bins = (scores * BINS).astype(int).clip(0, BINS - 1)
    by_score = tuple(
        (int((bins == i).sum()), float(ious[bins == i].mean()) if (bins == i).any() else 0.0) for i in range(BINS)
    )
    return Reliability(float((scores - ious).mean()), auc(scores, ious > 0.5), by_score)


def auc(scores: NDArray[np.float32], things: NDArray[np.bool_]) -> float:
    """Return how often a mask of a thing has a higher score than another mask."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    count = int(things.sum())
    return float((ranks[things].sum() - count * (count - 1) / 2) / max(count * (len(things) - count), 1))


def ranked_first(asked: Asked) -> float:
    """Return the mean of what the mask that is ranked first is worth."""
    clicked = asked.judged[:, 1] > 0
    best = 1 + asked.scores[clicked, 1:].argmax(1, keepdim=True)
    return float(asked.ious[clicked].gather(1, best).mean())


def fit_head(
    head: nn.Module, asked: Asked, *, steps: int = STEPS, learning_rate: float = LEARNING_RATE, seed: int = 0
) -> None:
    """Fit the IoU head to what its scores should have been."""
    generator = torch.Generator().manual_seed(seed)
    head.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(asked.tokens), (BATCH,), generator=generator)
        scores, ious, judged = head(asked.tokens[rows]), asked.ious[rows], asked.judged[rows]
        loss = ((scores - ious).square() * judged).sum() / judged.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    head.requires_grad_(False)


def read_weights(path: Path, image_size: int = SIZE) -> Sam:
    """Build ``tiny`` with the weights of a file."""
    sam = new_model(image_size).eval().requires_grad_(False)
    dtypes = {name: tensor.dtype for name, tensor in sam.state_dict().items()}
    sam.load_state_dict({name: tensor.to(dtypes[name]) for name, tensor in load_file(str(path)).items()})
    return sam


def report(asked: Asked) -> str:
    """Return what is known of the scores in lines."""
    halves = {"middle": reliability(asked, False), "frame": reliability(asked, True)}
    lines = [f"ranked first {ranked_first(asked):.4f}"]
    lines += [f"{name}: bias {half.bias:+.3f}, AUC {half.auc:.3f}" for name, half in halves.items()]
    for i in range(BINS):
        cells = [f"{name} {half.by_score[i][1]:.3f} ({half.by_score[i][0]} masks)" for name, half in halves.items()]
        lines.append(f"score {i / BINS:.1f} to {(i + 1) / BINS:.1f}: " + ", ".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Read the command line; measure, and fit if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scenes", type=Path, required=True, help="a pool that was kept apart")
    parser.add_argument("--count", type=int, default=40, help="of its scenes")
    parser.add_argument("--train", type=Path, help="a pool to fit the head on")
    parser.add_argument("--train-count", type=int, default=250)
    parser.add_argument("--side", type=int, default=12, help="clicks along a side of the grid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.train is None) != (arguments.out is None):
        parser.error("--train and --out belong together; give both to fit the head, or neither to measure")
    torch.set_num_threads(arguments.threads)
    sam = read_weights(arguments.weights)
    held_out = ask_scenes(sam, ScenePool(arguments.scenes), arguments.count, arguments.side, prompts=False)
    print(report(held_out), flush=True)
    if arguments.out is None:
        return
    asked = ask_scenes(sam, ScenePool(arguments.train), arguments.train_count, arguments.side, prompts=True)
    head = sam.mask_decoder.iou_prediction_head
    fit_head(head, asked)
    print("fitted:\n" + report(held_out._replace(scores=head(held_out.tokens).detach())))
    save_file({name: tensor.contiguous() for name, tensor in sam.state_dict().items()}, str(arguments.out))


if __name__ == "__main__":
    main()
