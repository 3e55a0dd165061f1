# SPDX-License-Identifier: Apache-2.0
"""Which thresholds suit ``tiny`` where everything is asked, chosen on scenes or photographs that were kept apart.

    python -m recipes.tiny.everything WEIGHTS --scenes POOL/validation
    python -m recipes.tiny.everything WEIGHTS --photographs FOLDER

A folder of photographs is one that `recipes.tiny.surfaces` writes with ``--outlined``. The decoder answers a grid once
for each picture; every setting is then tried on the same answers, at the decoder's resolution: the least score, the
least stability, the IoU of masks above which the lower score goes, how much of the smaller of two masks may lie in the
other, and the least share of the picture. Printed for each: the share of objects that a mask finds (IoU at least 0.5,
and 0.75), the masks a picture, and the share of masks that find an object. The choice finds as much as any setting
whose masks are few and useful enough, by the fewest masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from recipes.tiny import forward
from recipes.tiny.evaluation import read_photographs
from recipes.tiny.samples import OBJECT, ScenePool, crop_scene, resized_hw, to_frame, truth_in_frame
from recipes.tiny.scenes import Scene
from recipes.tiny.scores import decode, grid_prompts, ious, known_things, read_weights
from segship.ship.families.sam.model import Sam

SMALLEST, LARGEST = 0.01, 0.6
"""Of the picture: objects that are looked for."""
LEAST_SCORE = 0.15
STABILITY_OFFSET = 1.0
PORTION = 64
SCORES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
STABILITIES = (0.0, 0.1, 0.2, 0.3, 0.4)
OVERLAPS = (0.6, 0.7, 0.75)
INSIDES = (1.0, 0.9)
LEAST_SHARES = (0.0, 0.01)
ENOUGH = 0.02
"""So much less found is as good, by fewer masks."""

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]


class Answers(NamedTuple):
    """The masks of one picture that are not hopeless."""

    scores: Floats
    """(n,)"""
    stabilities: Floats
    """(n,)"""
    overlaps: Floats
    """(n, n) IoUs of masks."""
    insides: Floats
    """(n, n) how much of the smaller of two masks lies in the other."""
    shares: Floats
    """(n,) of the picture."""
    objects: Floats
    """(n, t) IoUs with the objects that are looked for."""


class Setting(NamedTuple):
    """What decides which masks stay."""

    score: float
    stability: float
    overlap: float
    inside: float = 1.0
    share: float = 0.0


class Figures(NamedTuple):
    """What a setting finds; the means are over pictures."""

    found: float
    found_75: float
    masks: float
    useful: float


def objects_of(scene: Scene, rng: np.random.Generator, size: int) -> tuple[Pixels, Masks]:
    """Return a crop of a scene and its objects (t, S/4, S/4)."""
    picture, full = crop_scene(rng, scene)
    levels, things = known_things(truth_in_frame(full, size), size)
    return picture, things[levels == OBJECT]


def read_outlined(folder: Path, size: int) -> Iterator[tuple[Pixels, Masks]]:
    """Yield photographs and what is outlined in them, (t, S/4, S/4)."""
    for picture, regions in read_photographs(folder):
        height, width = (-(-extent // 4) for extent in resized_hw(picture.shape[:2], size))
        things = np.zeros((len(regions), size // 4, size // 4), np.bool_)
        for thing, region in zip(things, regions, strict=True):
            share = cv2.resize(region.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
            thing[:height, :width] = share > 0.5
        yield picture, things


@torch.no_grad()
def ask(sam: Sam, picture: Pixels, things: Masks, side: int) -> Answers:
    """Ask a picture everything."""
    size = sam.config.image_size
    height, width = resized_hw(picture.shape[:2], size)
    rows, columns = -(-height // 4), -(-width // 4)
    share = things.sum((1, 2)) / (rows * columns)
    wanted = torch.from_numpy(things[(share >= SMALLEST) & (share <= LARGEST), :rows, :columns])
    image = forward.encode(sam, torch.from_numpy(to_frame(picture, size))[None])
    places = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) / side * (width, height)
    masks, scores, stabilities = [], [], []
    for begin in range(0, len(places), PORTION):
        _, logits, guess = decode(sam, image, *grid_prompts(places[begin : begin + PORTION]))
        logits = logits[:, 1:, :rows, :columns].flatten(0, 1)
        core, whole = ((logits > offset).sum((1, 2)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
        hopeful = (guess[:, 1:].flatten() > LEAST_SCORE) & (logits > 0).any(2).any(1)
        masks.append((logits > 0)[hopeful])
        scores.append(guess[:, 1:].flatten()[hopeful])
        stabilities.append((core / whole.clamp(min=1))[hopeful])
    found = torch.cat(masks)
    overlaps, objects = (ious(found[:, None], others)[:, 0].numpy() for others in (found, wanted))
    areas = found.flatten(1).sum(1).numpy().astype(np.float32)
    # Of the IoU and both areas: what two masks share.
    shared = overlaps / (1 + overlaps) * (areas[:, None] + areas)
    insides = shared / np.minimum(areas[:, None], areas)
    shares = areas / (rows * columns)
    return Answers(torch.cat(scores).numpy(), torch.cat(stabilities).numpy(), overlaps, insides, shares, objects)


def keep(answers: Answers, setting: Setting) -> NDArray[np.intp]:
    """Return the masks that stay, the best first."""
    passed = np.flatnonzero(
        (answers.scores > setting.score)
        & (answers.stabilities >= setting.stability)
        & (answers.shares >= setting.share)
    )
    alive, kept = np.zeros(len(answers.scores), np.bool_), []
    alive[passed] = True
    for index in passed[np.argsort(-answers.scores[passed], kind="stable")]:
        if alive[index]:
            kept.append(index)
            alive &= answers.overlaps[index] <= setting.overlap
            if setting.inside < 1:
                alive &= answers.insides[index] <= setting.inside
    return np.array(kept, np.intp)


def measure(pictures: list[Answers], setting: Setting) -> Figures:
    """Count what a setting finds in all pictures."""
    best, counts, useful = [], [], []
    for answers in pictures:
        kept = answers.objects[keep(answers, setting)]
        counts.append(len(kept))
        best.append(kept.max(0, initial=0))
        if kept.size:
            useful.append(float((kept.max(1) >= 0.5).mean()))
    all_best = np.concatenate(best)
    return Figures(
        float((all_best >= 0.5).mean()),
        float((all_best >= 0.75).mean()),
        float(np.mean(counts)),
        float(np.mean(useful)) if useful else 0.0,
    )


def main() -> None:
    """Read the command line, try every setting and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", type=Path, help="a pool that was kept apart")
    source.add_argument("--photographs", type=Path, help="a folder of photographs with labels")
    parser.add_argument("--count", type=int, default=40, help="of the pool's scenes")
    parser.add_argument("--side", type=int, default=24, help="points along a side of the grid")
    parser.add_argument("--masks", type=float, default=60, help="the most masks a picture of a choice")
    parser.add_argument("--useful", type=float, default=0.2, help="the least share of useful masks of a choice")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sam, rng = read_weights(arguments.weights), np.random.default_rng(17)
    size = sam.config.image_size
    if arguments.scenes:
        pool = ScenePool(arguments.scenes)
        found = (objects_of(pool.scene(index), rng, size) for index in range(min(arguments.count, len(pool))))
    else:
        found = read_outlined(arguments.photographs, size)
    pictures = [ask(sam, picture, things, arguments.side) for picture, things in found]
    settings = [Setting(*values) for values in product(SCORES, STABILITIES, OVERLAPS, INSIDES, LEAST_SHARES)]
    table = {setting: measure(pictures, setting) for setting in settings}
    for setting, figures in table.items():
        print(_line(setting, figures))
    allowed = {
        setting: figures
        for setting, figures in table.items()
        if figures.masks <= arguments.masks and figures.useful >= arguments.useful
    }
    if not allowed:
        raise SystemExit("no setting is useful enough; lower --useful, or raise --masks")
    most = max(figures.found for figures in allowed.values())
    as_good = [setting for setting in allowed if allowed[setting].found >= most - ENOUGH]
    chosen = min(as_good, key=lambda setting: allowed[setting].masks)
    print("chosen: " + _line(chosen, table[chosen]))


def _line(setting: Setting, figures: Figures) -> str:
    which = "score {:.2f} stability {:.2f} overlap {:.1f} inside {:.2f} share {:.3f}: ".format(*setting)
    return which + "found {:.3f} (0.75: {:.3f}) by {:.1f} masks, useful {:.3f}".format(*figures)


if __name__ == "__main__":
    main()
