# SPDX-License-Identifier: Apache-2.0
"""Training samples from scenes: a cropped picture in the model frame, prompts, and the masks that answer them.

The frame is exactly the one that ships: the longer side resized to the image size, normalised, zero-padded at the right
and bottom. Truth is kept at the resolution of the decoder's masks, as coverage 0 to 4 of 2x2 finer cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.tiny.scenes import Scene
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD
from segship.spec import (
    LABEL_BACKGROUND,
    LABEL_BOX_BOTTOM_RIGHT,
    LABEL_BOX_TOP_LEFT,
    LABEL_EMPTY,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
)

CLICKS, TWO_CLICKS, BOXES = 3, 1, 4
PROMPTS = CLICKS + TWO_CLICKS + BOXES
PLACES = 3
LEVELS = 3
LEAF, OBJECT, GROUP = range(3)
# How often each level is asked for, and how it counts in the expected IoU that ranks the three masks.
LEVEL_WEIGHTS = np.array([0.25, 0.55, 0.2])
ASPECTS = ((3 / 2, 0.36), (4 / 3, 0.26), (1.0, 0.14), (16 / 9, 0.1))
MIN_AREA, MAX_AREA = 0.005, 0.75
CENTRED = 0.75
"""How often a click stands at the place farthest from its mask's border, where people click."""
ANYWHERE = 0.1
"""How often a training click falls anywhere in the picture, as those of a grid do, on whatever is there."""

Labels = NDArray[np.uint8]


class Sample(NamedTuple):
    """One picture with its prompts; arrays of a batch have one axis more."""

    image: NDArray[np.float32]
    """(3, S, S), normalised and padded."""
    coords: NDArray[np.float32]
    """(PROMPTS, PLACES, 2), x y in the model frame: clicks, then two clicks, then boxes."""
    labels: NDArray[np.float32]
    """(PROMPTS, PLACES), as the mask decoder's graph takes them."""
    targets: NDArray[np.uint8]
    """(PROMPTS, LEVELS, S/4, S/4), coverage 0 to 4; target 0 is the one that the prompt was made from."""
    weights: NDArray[np.float32]
    """(PROMPTS, LEVELS), the share of each known target, 0 for none; a prompt's shares sum to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Labels of a cropped scene on a grid of half the model frame: leaf, object and group maps of (h, w)."""

    maps: tuple[Labels, Labels, Labels]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the grid."""
        height, width = self.maps[0].shape
        return height, width


def crop_scene(rng: np.random.Generator, scene: Scene) -> tuple[Labels, Truth]:
    """Cut a scene to a photograph's aspect ratio; returns the picture and its full-resolution truth."""
    size = len(scene.image)
    ratios, shares = zip(*ASPECTS, strict=True)
    draw = rng.random()
    ratio = float(np.exp(rng.uniform(0, np.log(16 / 9))))
    for candidate, edge in zip(ratios, np.cumsum(shares), strict=True):
        if draw < edge:
            ratio = candidate
            break
    long = size if rng.random() < 0.4 else int(size * rng.uniform(0.6, 1))
    short = max(16, round(long / ratio))
    height, width = (short, long) if rng.random() < 0.62 else (long, short)
    y, x = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
    window = (slice(y, y + height), slice(x, x + width))
    image, leaves = scene.image[window], scene.leaves[window]
    if rng.random() < 0.5:
        image, leaves = image[:, ::-1], leaves[:, ::-1]
    if rng.random() < 0.08:
        image, leaves = image[::-1], leaves[::-1]
    return np.ascontiguousarray(image), Truth((leaves, scene.object_of_leaf[leaves], scene.group_of_leaf[leaves]))


def to_frame(image: Labels, image_size: int) -> NDArray[np.float32]:
    """Put an (H, W, 3) uint8 picture into the model frame, (3, S, S) float32."""
    height, width = resized_hw(image.shape[:2], image_size)
    flag = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=flag).astype(np.float32)
    frame = np.zeros((3, image_size, image_size), np.float32)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (resized - mean) / std
    frame[:, :height, :width] = normalised.transpose(2, 0, 1)
    return frame


def resized_hw(size_hw: tuple[int, ...], image_size: int) -> tuple[int, int]:
    """Return height and width after the longer side became ``image_size``; rounding follows SAM's transforms."""
    scale = image_size / max(size_hw)
    return int(size_hw[0] * scale + 0.5), int(size_hw[1] * scale + 0.5)


def truth_in_frame(truth: Truth, image_size: int) -> Truth:
    """Sample the labels at the centres of 2x2 blocks of the model frame, without the padding."""
    height, width = truth.size_hw
    new_height, new_width = resized_hw((height, width), image_size)
    rows = ((np.arange((new_height + 1) // 2) * 2 + 1) * height / new_height).astype(int).clip(0, height - 1)
    columns = ((np.arange((new_width + 1) // 2) * 2 + 1) * width / new_width).astype(int).clip(0, width - 1)
    leaf, obj, group = (labels[rows[:, None], columns] for labels in truth.maps)
    return Truth((leaf, obj, group))


def jitter_colours(rng: np.random.Generator, image: Labels) -> Labels:
    """Change brightness, contrast, tint and now and then the order of the channels."""
    if rng.random() < 0.6:
        contrast, shift = np.exp(rng.normal(0, 0.2)), rng.normal(0, 18) + rng.normal(0, 6, 3)
        table = (np.arange(256)[:, None] - 128) * contrast + 128 + shift
        table = np.clip(table, 0, 255).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, table[None].copy()), np.uint8)
    if rng.random() < 0.25:
        image = np.ascontiguousarray(image[..., rng.permutation(3)])
    return image


class Candidate(NamedTuple):
    """Something in the picture that may be asked for."""

    level: int
    value: int
    share: float
    """Of the picture's area."""


def connected_pieces(mask: Labels) -> list[Labels]:
    """Return the connected pieces of a mask, 0 or 1 each."""
    count, pieces = cv2.connectedComponents(mask, connectivity=4)
    return [np.asarray(pieces == number, np.uint8) for number in range(1, count)]


def find_candidates(truth: Truth) -> list[Candidate]:
    """List every leaf, object and group that is neither a speck nor nearly the whole picture."""
    found = []
    for level, labels in enumerate(truth.maps):
        shares = np.bincount(labels.ravel(), minlength=256) / labels.size
        values = np.nonzero((shares > MIN_AREA) & (shares < MAX_AREA))[0]
        found += [Candidate(level, int(value), float(shares[value])) for value in values if value]
    return found


def draw_candidates(rng: np.random.Generator, candidates: list[Candidate], count: int) -> list[Candidate]:
    """Draw what to ask for, with repetition: by level, and larger things somewhat more often."""
    levels = np.array([candidate.level for candidate in candidates])
    chance = LEVEL_WEIGHTS[levels] * np.array([candidate.share for candidate in candidates]) ** 0.4
    if rng.random() < 0.5:
        chance = chance / np.bincount(levels, minlength=3)[levels]
    chosen = rng.choice(len(candidates), count, p=chance / chance.sum())
    return [candidates[i] for i in chosen]


def candidate_mask(rng: np.random.Generator, truth: Truth, candidate: Candidate) -> Labels:
    """Return a candidate's mask, 0 or 1: the largest connected piece of a leaf, all or the largest of the others."""
    mask: Labels = np.asarray(truth.maps[candidate.level] == candidate.value, np.uint8)
    if candidate.level == LEAF or rng.random() < 0.5:
        count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        if count > 2:
            mask = np.asarray(pieces == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()), np.uint8)
    return mask


def candidate_at(rng: np.random.Generator, truth: Truth, at: tuple[int, int]) -> tuple[int, Labels] | None:
    """Return the level and the mask, 0 or 1, of something at a cell (y, x); None where there are only specks."""
    options: list[tuple[int, Labels]] = []
    for level, labels in enumerate(truth.maps):
        mask = np.asarray(labels == labels[at], np.uint8) * np.uint8(labels[at] > 0)
        if level == LEAF:
            _, pieces = cv2.connectedComponents(mask, connectivity=4)
            mask = mask * np.asarray(pieces == pieces[at], np.uint8)
        if mask.mean() > MIN_AREA:
            options.append((level, mask))
    if not options:
        return None
    chance = LEVEL_WEIGHTS[[level for level, _ in options]]
    return options[int(rng.choice(len(options), p=chance / chance.sum()))]


def draw_click(rng: np.random.Generator, mask: Labels) -> tuple[int, int]:
    """Draw a cell (y, x) of a mask: the farthest from its border in most cases, else anywhere well inside."""
    distance = cv2.distanceTransform(cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)[
        1:-1, 1:-1
    ]
    if rng.random() < CENTRED:
        flat = int(distance.argmax())
    else:
        inside = np.flatnonzero(distance > rng.uniform(0, 0.7) * distance.max())
        flat = int(inside[rng.integers(len(inside))])
    y, x = divmod(flat, mask.shape[1])
    return y, x


def known_masks(
    truth: Truth, mask: Labels, level: int, at: tuple[int, int]
) -> tuple[list[Labels], NDArray[np.float64]]:
    """Return up to three different masks that a click may mean, the asked one first, and their shares."""
    leaf, obj, group = truth.maps
    value = leaf[at]
    _, pieces = cv2.connectedComponents((leaf == value).astype(np.uint8), connectivity=4)
    options: list[tuple[int, Labels]] = [(level, mask), (OBJECT, (obj == obj[at]).astype(np.uint8))]
    options.append((LEAF, (pieces == pieces[at]).astype(np.uint8)))
    if group[at]:
        options.append((GROUP, (group == group[at]).astype(np.uint8)))
    masks: list[Labels] = []
    shares: list[float] = []
    for its_level, option in options:
        if option.sum() < 0.003 * option.size:
            continue
        overlaps = [float((option & kept).sum() / (option | kept).sum()) for kept in masks]
        if overlaps and max(overlaps) > 0.9:
            # The same mask on two levels: a click means it more often.
            same = int(np.argmax(overlaps))
            shares[same] = max(shares[same], LEVEL_WEIGHTS[its_level])
        elif len(masks) < LEVELS:
            masks.append(option)
            shares.append(LEVEL_WEIGHTS[its_level])
    return masks, np.array(shares) / sum(shares)


def draw_box(rng: np.random.Generator, mask: Labels) -> NDArray[np.float64]:
    """Return the box of a mask, (4,) xyxy in cells: tight in half of the cases, else with jitter."""
    x, y, width, height = cv2.boundingRect(mask)
    box = np.array([x, y, x + width, y + height], np.float64)
    if rng.random() < 0.5:
        box += np.clip(rng.normal(0, 0.05, 4), -0.12, 0.12) * (width, height, width, height)
    return box.clip(0, (mask.shape[1], mask.shape[0]) * 2)


def to_target(mask: Labels, image_size: int) -> NDArray[np.uint8]:
    """Return (S/4, S/4) coverage 0 to 4 of a mask on the grid of half the model frame."""
    side = image_size // 4
    padded = np.zeros((2 * side, 2 * side), np.uint8)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(side, 2, side, 2).sum((1, 3)), np.uint8)


class SampleBuilder:
    """Builds samples of one image size from scenes.

    Parameters
    ----------
    image_size
        Side of the model frame.
    anywhere
        How often a click falls anywhere, 0 to 1.
    """

    def __init__(self, image_size: int, anywhere: float = ANYWHERE) -> None:
        self.image_size, self.anywhere = image_size, anywhere

    def build(self, rng: np.random.Generator, scene: Scene) -> Sample | None:
        """Build one sample, or None when nothing in the crop can be asked for."""
        image, full = crop_scene(rng, scene)
        truth = truth_in_frame(full, self.image_size)
        candidates = find_candidates(truth)
        if not candidates:
            return None
        side = self.image_size // 4
        sample = Sample(
            to_frame(jitter_colours(rng, image), self.image_size),
            np.zeros((PROMPTS, PLACES, 2), np.float32),
            np.full((PROMPTS, PLACES), LABEL_EMPTY, np.float32),
            np.zeros((PROMPTS, LEVELS, side, side), np.uint8),
            np.zeros((PROMPTS, LEVELS), np.float32),
        )
        for index, candidate in enumerate(draw_candidates(rng, candidates, PROMPTS)):
            if index < CLICKS and self.anywhere and rng.random() < self.anywhere:
                height, width = truth.size_hw
                at = int(rng.integers(height)), int(rng.integers(width))
                if (found := candidate_at(rng, truth, at)) is not None:
                    self._click(rng, sample, index, truth, found[1], found[0], at)
                    continue
            mask = candidate_mask(rng, truth, candidate)
            if index < CLICKS:
                self._click(rng, sample, index, truth, mask, candidate.level, draw_click(rng, mask))
            elif index < CLICKS + TWO_CLICKS:
                self._two_clicks(rng, sample, index, mask)
            else:
                self._box(rng, sample, index, mask)
        return sample

    def _place(self, rng: np.random.Generator, cell: tuple[int, int]) -> tuple[float, float]:
        """Return x y in the model frame, anywhere in the cell; the prompt encoder adds half a pixel."""
        y, x = cell
        dx, dy = rng.uniform(0, 2, 2)
        return 2 * x + dx - 0.5, 2 * y + dy - 0.5

    def _click(
        self,
        rng: np.random.Generator,
        sample: Sample,
        index: int,
        truth: Truth,
        mask: Labels,
        level: int,
        at: tuple[int, int],
    ) -> None:
        sample.coords[index, 0] = self._place(rng, at)
        sample.labels[index, :2] = LABEL_FOREGROUND, LABEL_NOT_A_POINT
        masks, shares = known_masks(truth, mask, level, at)
        for slot, (option, share) in enumerate(zip(masks, shares, strict=True)):
            sample.targets[index, slot] = to_target(option, self.image_size)
            sample.weights[index, slot] = share

    def _two_clicks(self, rng: np.random.Generator, sample: Sample, index: int, mask: Labels) -> None:
        sample.coords[index, 0] = self._place(rng, draw_click(rng, mask))
        sample.labels[index] = LABEL_FOREGROUND, LABEL_NOT_A_POINT, LABEL_EMPTY
        inside = rng.random() < 0.4
        reach = int(rng.integers(5, 40))
        region = mask if inside else cv2.dilate(mask, np.ones((reach, reach), np.uint8)) - mask
        cells = np.flatnonzero(region)
        if len(cells):
            y, x = divmod(int(cells[rng.integers(len(cells))]), mask.shape[1])
            sample.coords[index, 1] = self._place(rng, (y, x))
            second = LABEL_FOREGROUND if inside else LABEL_BACKGROUND
            sample.labels[index] = LABEL_FOREGROUND, second, LABEL_NOT_A_POINT
        self._single(sample, index, mask)

    def _box(self, rng: np.random.Generator, sample: Sample, index: int, mask: Labels) -> None:
        sample.coords[index, :2] = draw_box(rng, mask).reshape(2, 2) * 2
        sample.labels[index, :2] = LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT
        self._single(sample, index, mask)

    def _single(self, sample: Sample, index: int, mask: Labels) -> None:
        sample.targets[index, 0] = to_target(mask, self.image_size)
        sample.weights[index, 0] = 1


class ScenePool:
    """The scenes of a folder of shards, read from disk as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[tuple[NDArray[np.uint8], ...]] = []
        self._stems: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that were written since."""
        for path in sorted(self.folder.glob("*_tables.npy")):
            stem = path.name.removesuffix("_tables.npy")
            if stem not in self._stems:
                names = ("image", "leaves", "tables")
                arrays = (np.load(self.folder / f"{stem}_{name}.npy", mmap_mode="r") for name in names)
                self._shards.append(tuple(arrays))
                self._stems.append(stem)
        if not self._shards:
            raise SystemExit(f"no scenes in {self.folder}; write some with `python -m recipes.tiny.scenes`")

    def __len__(self) -> int:
        return sum(len(shard[0]) for shard in self._shards)

    def scene(self, index: int) -> Scene:
        """Return a scene by its place in the pool."""
        for image, leaves, tables in self._shards:
            if index < len(image):
                return Scene(np.asarray(image[index]), np.asarray(leaves[index]), tables[index, 0], tables[index, 1])
            index -= len(image)
        raise IndexError(index)


def stream_samples(pool: ScenePool, builder: SampleBuilder, rng: np.random.Generator) -> Iterator[Sample]:
    """Yield samples of random scenes without end."""
    count = 0
    while True:
        if count % 2000 == 0:
            pool.refresh()
        count += 1
        sample = builder.build(rng, pool.scene(int(rng.integers(len(pool)))))
        if sample is not None:
            yield sample
