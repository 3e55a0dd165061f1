# SPDX-License-Identifier: Apache-2.0
"""Which settings suit ``tiny`` where everything is asked, chosen on scenes, photographs or both, kept apart.

    python -m recipes.tiny.everything WEIGHTS --scenes POOL/validation --photographs FOLDER

A folder of photographs is one that `recipes.tiny.surfaces` writes with ``--outlined``. The decoder answers a grid once
for each picture, and once more the box of each mask that any setting keeps, with the mask itself; every setting is then
tried on the same answers, at the decoder's resolution: the least score, the least stability, the IoU of masks above
which the lower score goes, and the least score of the second answer, or none. Printed for each: the
share of objects that a mask finds (IoU at least 0.5, and 0.75), the masks a picture, and the share of masks that find
an object. The choice finds as much, in the mean of both shares, as any setting whose masks are few and useful enough on
either, by the fewest masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.tiny import forward
from recipes.tiny.clicks import box_prompts
from recipes.tiny.evaluation import read_photographs
from recipes.tiny.samples import OBJECT, ScenePool, crop_scene, resized_hw, to_frame, truth_in_frame
from recipes.tiny.scenes import Scene
from recipes.tiny.scores import decode, grid_prompts, ious, known_things, read_weights
from segship.ship.families.sam.model import Sam

SMALLEST, LARGEST = 0.01, 0.6
"""Of the picture: objects that are looked for."""
STABILITY_OFFSET = 1.0
PORTION = 64
SCORES = (0.3, 0.35, 0.4, 0.45)
STABILITIES = (0.1, 0.2, 0.3)
OVERLAPS = (0.6, 0.7, 0.75)
REFINED = (None, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
ENOUGH = 0.02
"""So much less found is as good, by fewer masks."""

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Masks = NDArray[np.bool_]


class Answers(NamedTuple):
    """Masks of one picture."""

    scores: Floats
    """(n,)"""
    stabilities: Floats
    """(n,)"""
    overlaps: Floats
    """(n, n) IoUs of masks."""
    objects: Floats
    """(n, t) IoUs with the objects that are looked for."""

    def at(self, places: NDArray[np.intp]) -> Answers:
        """Return those of some masks."""
        return Answers(
            self.scores[places], self.stabilities[places], self.overlaps[np.ix_(places, places)], self.objects[places]
        )


class Pair(NamedTuple):
    """Masks of one picture, and what the decoder answers to the box of each with the mask itself."""

    first: Answers
    second: Answers
    tokens: Tensor
    """(n, C), what the IoU head sees of second answers."""


class Setting(NamedTuple):
    """What decides which masks stay; ``refined`` is the least score of a second answer, None for first answers."""

    score: float
    stability: float
    overlap: float
    refined: float | None = None


class Figures(NamedTuple):
    """What a setting finds; the means are over pictures."""

    found: float
    found_75: float
    masks: float
    useful: float


EVERY_SETTING = tuple(Setting(*values) for values in product(SCORES, STABILITIES, OVERLAPS, REFINED))


def objects_of(scene: Scene, rng: np.random.Generator, size: int) -> tuple[Pixels, Masks]:
    """Return a crop of a scene and those of its objects (t, S/4, S/4) that are looked for."""
    picture, full = crop_scene(rng, scene)
    levels, things = known_things(truth_in_frame(full, size), size)
    return picture, _looked_for(picture, things[levels == OBJECT], size)


def read_outlined(folder: Path, size: int) -> Iterator[tuple[Pixels, Masks]]:
    """Yield photographs and what is outlined in them, (t, S/4, S/4)."""
    for picture, regions in read_photographs(folder):
        height, width = (-(-extent // 4) for extent in resized_hw(picture.shape[:2], size))
        things = np.zeros((len(regions), size // 4, size // 4), np.bool_)
        for thing, region in zip(things, regions, strict=True):
            share = cv2.resize(region.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
            thing[:height, :width] = share > 0.5
        yield picture, _looked_for(picture, things, size)


def _looked_for(picture: Pixels, things: Masks, size: int) -> Masks:
    height, width = resized_hw(picture.shape[:2], size)
    share = things.sum((1, 2)) / (-(-height // 4) * -(-width // 4))
    return things[(share >= SMALLEST) & (share <= LARGEST)]


@torch.no_grad()
def ask(sam: Sam, picture: Pixels, things: Masks, side: int, settings: Sequence[Setting] = EVERY_SETTING) -> Pair:
    """Ask a picture everything, and each mask that one of the settings may keep once more."""
    size = sam.config.image_size
    height, width = resized_hw(picture.shape[:2], size)
    rows, columns = -(-height // 4), -(-width // 4)
    wanted = torch.from_numpy(things[:, :rows, :columns])
    image = forward.encode(sam, torch.from_numpy(to_frame(picture, size))[None])
    places = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) / side * (width, height)

    def judged(logits: Tensor, scores: Tensor) -> Answers:
        part = logits[:, :rows, :columns]
        core, whole = ((part > offset).sum((1, 2)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
        overlaps, objects = (ious((part > 0)[:, None], others)[:, 0].numpy() for others in (part > 0, wanted))
        return Answers(scores.numpy(), (core / whole.clamp(min=1)).numpy(), overlaps, objects)

    found, guesses, least = [], [], min(setting.score for setting in settings)
    for begin in range(0, len(places), PORTION):
        _, logits, guess = decode(sam, image, *grid_prompts(places[begin : begin + PORTION]))
        logits, guess = logits[:, 1:].flatten(0, 1), guess[:, 1:].flatten()
        hopeful = (guess > least) & (logits[:, :rows, :columns] > 0).flatten(1).any(1)
        found.append(logits[hopeful])
        guesses.append(guess[hopeful])
    logits, everything = torch.cat(found), judged(torch.cat(found), torch.cat(guesses))
    # What no setting keeps need not be asked about: a higher score keeps a part of what a lower one does.
    cuts = {(setting.stability, setting.overlap) for setting in settings}
    kept = (keep(everything, 0, *cut) for cut in cuts)
    chosen = np.unique(np.concatenate([np.zeros(0, np.intp), *kept]))
    tokens, masks, scores = [image.new_zeros(0, image.shape[-1])], [logits[:0]], [logits.new_zeros(0)]
    for part in logits[chosen].split(PORTION) if len(chosen) else ():
        coords, labels = box_prompts(part[:, :rows, :columns] > 0)
        seen, answers, guess = decode(sam, image, coords[None], labels[None], part[None])
        tokens.append(seen)
        masks.append(answers[:, 0])
        scores.append(guess[:, 0])
    return Pair(everything.at(chosen), judged(torch.cat(masks), torch.cat(scores)), torch.cat(tokens))


def keep(
    answers: Answers, score: float, stability: float, overlap: float, among: Masks | None = None
) -> NDArray[np.intp]:
    """Return the masks that stay, the best first, of all or of those in ``among`` (n,)."""
    alive = (answers.scores > score) & (answers.stabilities >= stability)
    if among is not None:
        alive &= among
    kept = []
    for index in np.argsort(-answers.scores, kind="stable"):
        if alive[index]:
            kept.append(index)
            alive &= answers.overlaps[index] <= overlap
    return np.array(kept, np.intp)


def stay(pair: Pair, setting: Setting) -> Floats:
    """Return the IoUs (n, t) with the objects of the masks that a setting keeps."""
    score, stability, overlap, refined = setting
    kept = keep(pair.first, score, stability, overlap)
    if refined is None:
        return pair.first.objects[kept]
    among = np.zeros(len(pair.first.scores), np.bool_)
    among[kept] = True
    return pair.second.objects[keep(pair.second, refined, stability, overlap, among)]


def measure(pictures: list[Pair], setting: Setting) -> Figures:
    """Count what a setting finds in all pictures."""
    best, counts, useful = [], [], []
    for pair in pictures:
        kept = stay(pair, setting)
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
    parser.add_argument("--scenes", type=Path, help="a pool that was kept apart")
    parser.add_argument("--photographs", type=Path, help="a folder of photographs with labels")
    parser.add_argument("--count", type=int, default=40, help="of the pool's scenes")
    parser.add_argument("--side", type=int, default=24, help="points along a side of the grid")
    parser.add_argument("--masks", type=float, default=60, help="the most masks a picture of a choice")
    parser.add_argument("--useful", type=float, default=0.25, help="the least share of useful masks of a choice")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sam, rng = read_weights(arguments.weights), np.random.default_rng(17)
    size = sam.config.image_size
    pictures: dict[str, Iterator[tuple[Pixels, Masks]]] = {}
    if arguments.scenes:
        pool = ScenePool(arguments.scenes)
        indices = range(min(arguments.count, len(pool)))
        pictures["scenes"] = (objects_of(pool.scene(index), rng, size) for index in indices)
    if arguments.photographs:
        pictures["photographs"] = read_outlined(arguments.photographs, size)
    if not pictures:
        parser.error("there is nothing to choose by; give --scenes, --photographs or both")
    asked = {name: [ask(sam, *pair, arguments.side) for pair in pairs] for name, pairs in pictures.items()}
    table = {setting: {name: measure(pairs, setting) for name, pairs in asked.items()} for setting in EVERY_SETTING}
    for setting in EVERY_SETTING:
        print(_line(setting, table[setting]))
    allowed = {
        setting: Figures(*np.mean(list(found.values()), 0))
        for setting, found in table.items()
        if all(one.masks <= arguments.masks and one.useful >= arguments.useful for one in found.values())
    }
    if not allowed:
        raise SystemExit("no setting is useful enough; lower --useful, or raise --masks")
    # Found at all and found exactly count alike.
    found = {setting: (figures.found + figures.found_75) / 2 for setting, figures in allowed.items()}
    as_good = [setting for setting in allowed if found[setting] >= max(found.values()) - ENOUGH]
    chosen = min(as_good, key=lambda setting: allowed[setting].masks)
    print("chosen: " + _line(chosen, table[chosen]))


def _line(setting: Setting, found: dict[str, Figures]) -> str:
    refined = "" if setting.refined is None else f" refined {setting.refined:.2f}"
    which = "score {:.2f} stability {:.2f} overlap {:.2f}".format(*setting[:3])
    figures = (
        f"{name} " + "found {:.3f} (0.75: {:.3f}) by {:.1f} masks, useful {:.3f}".format(*one)
        for name, one in found.items()
    )
    return f"{which}{refined}: {'; '.join(figures)}"


if __name__ == "__main__":
    main()
