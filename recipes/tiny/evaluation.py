# SPDX-License-Identifier: Apache-2.0
"""Mean IoU of a bundle by clicks and by box, as it ships: through `segship.load`, at image size, clean-up included.

    python -m recipes.tiny.evaluation --bundle tiny --scenes POOL/validation --limit 150
    python -m recipes.tiny.evaluation --bundle tiny --photographs FOLDER

A folder of photographs holds images/NAME.jpg and labels/NAME.png (16-bit, one number a segment, 0 what is none). Of
scenes, objects are asked for. Every thing between 1% and 60% of the picture is: its click is the place farthest from
its border; each corrective click stands deepest in what is wrong. ``--box-jitter`` moves the sides of boxes as people
do, ``--clean-up`` and ``--edges`` compare settings of the clean-up, and of how masks follow the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import segship
from recipes.tiny.samples import ScenePool
from segship.masks.cleanup import MaskCleanUp
from segship.masks.edges import MaskEdges
from segship.masks.scores import mask_iou

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
SMALLEST, LARGEST = 0.01, 0.6
SIZES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.6)
# Keeps the clicked piece, drops small pieces, fills small holes, clears outside the box: one at a time.
CLEAN_UPS: dict[str, MaskCleanUp | None] = {
    "as decoded": None,
    "clicked piece": MaskCleanUp(True, 0.0, 0.0, None),
    "pieces to 5%": MaskCleanUp(False, 0.05, 0.0, None),
    "pieces to 20%": MaskCleanUp(False, 0.2, 0.0, None),
    "holes to 0.2%": MaskCleanUp(False, 0.0, 0.002, None),
    "holes to 0.5%": MaskCleanUp(False, 0.0, 0.005, None),
    "box + 0%": MaskCleanUp(False, 0.0, 0.0, 0.0),
    "box + 3%": MaskCleanUp(False, 0.0, 0.0, 0.03),
    "box + 10%": MaskCleanUp(False, 0.0, 0.0, 0.1),
}
EDGES: dict[str, MaskEdges | None] = {
    "off": None,
    "radius 2": MaskEdges(radius=2),
    "radius 3": MaskEdges(),
    "radius 4": MaskEdges(radius=4),
    "eps 1e-3": MaskEdges(eps=1e-3),
    "eps 1e-5": MaskEdges(eps=1e-5),
}


@dataclass(frozen=True, slots=True)
class Scores:
    """IoUs of one thing, or their means.

    ``oracle`` is the best of the three masks of one click, ``top`` the one that the model ranks first, ``single``
    mask 0; ``two_clicks`` and ``three_clicks`` add corrective clicks.
    """

    share: float
    oracle: float
    top: float
    single: float
    two_clicks: float
    three_clicks: float
    box: float


def read_photographs(folder: Path) -> Iterator[tuple[Pixels, list[Mask]]]:
    """Yield pictures (H, W, 3) and their segments."""
    for path in sorted((folder / "images").glob("*.jpg")):
        with Image.open(folder / "labels" / f"{path.stem}.png") as image:
            labels = np.asarray(image)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        yield pixels, [labels == value for value in np.unique(labels[labels > 0])]


def read_scenes(folder: Path) -> Iterator[tuple[Pixels, list[Mask]]]:
    """Yield scenes and their objects."""
    pool = ScenePool(folder)
    for index in range(len(pool)):
        scene = pool.scene(index)
        objects = scene.object_of_leaf[scene.leaves]
        yield scene.image, [objects == value for value in np.unique(objects) if value]


def deepest(region: Mask) -> tuple[int, int]:
    """Return x and y of the pixel farthest from a region's border."""
    depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


class Examiner:
    """Asks one predictor for things that are known."""

    def __init__(self, predictor: segship.Predictor, box_jitter: float, rng: np.random.Generator) -> None:
        self.predictor, self.box_jitter, self.rng = predictor, box_jitter, rng

    def examine(self, embedding: segship.ImageEmbedding, mask: Mask) -> Scores:
        """Ask for one thing by clicks and by its box."""
        x, y = deepest(mask)
        points, labels = [[x + 0.5, y + 0.5]], [1]
        first = self.predictor.decode(embedding, segship.Prompts(points=points, labels=labels))
        single = self._one(embedding, points=points, labels=labels)
        ious = [mask_iou(candidate, mask) for candidate in first.masks[0]]
        best = int(first.iou_predictions[0].argmax())
        refined = []
        latest, logits = first.masks[0, best], first.low_res_masks[0, best]
        for _ in range(2):
            wrong = latest != mask
            if wrong.any():
                x, y = deepest(np.asarray(wrong, np.bool_))
                points, labels = [*points, [x + 0.5, y + 0.5]], [*labels, int(mask[y, x])]
            prediction = self._one(embedding, points=points, labels=labels, mask_input=logits)
            latest, logits = prediction.masks[0, 0], prediction.low_res_masks[0, 0]
            refined.append(mask_iou(latest, mask))
        boxed = self._one(embedding, boxes=self._box(mask))
        scores = (mask_iou(prediction.masks[0, 0], mask) for prediction in (single, boxed))
        return Scores(float(mask.mean()), max(ious), ious[best], next(scores), *refined, next(scores))

    def _one(self, embedding: segship.ImageEmbedding, **prompts: Any) -> segship.MaskPrediction:
        return self.predictor.decode(embedding, segship.Prompts(**prompts), multimask_output=False)

    def _box(self, mask: Mask) -> NDArray[np.float64]:
        ys, xs = np.nonzero(mask)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float64)
        sides = np.tile(box[2:] - box[:2], 2)
        box += self.rng.normal(0, 1, 4) * self.box_jitter * sides
        # Jitter must not turn a thin box inside out.
        box[2:] = np.maximum(box[2:], box[:2] + 2)
        height, width = mask.shape
        return box.clip(0, (width, height) * 2)


def mean_line(name: str, rows: list[Scores]) -> str:
    """Return the means on one line."""
    means = {key: np.mean([asdict(row)[key] for row in rows]) for key in asdict(rows[0]) if key != "share"}
    return f"{name:>14} {len(rows):5d}  " + "  ".join(f"{key} {value:.4f}" for key, value in means.items())


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="tiny")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", type=Path)
    source.add_argument("--photographs", type=Path)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--box-jitter", type=float, default=0.0, help="deviation of each side, in parts of the box")
    compared = parser.add_mutually_exclusive_group()
    compared.add_argument("--clean-up", action="store_true", help="compare settings of the clean-up")
    compared.add_argument("--edges", action="store_true", help="compare settings of how masks follow the picture")
    options = parser.parse_args()
    predictor = segship.load(options.bundle)
    settings: dict[str, dict[str, Any]] = {"as shipped": {}}
    if options.clean_up:
        settings = {name: {"mask_clean_up": entry} for name, entry in CLEAN_UPS.items()}
    if options.edges:
        settings = {name: {"mask_edges": entry} for name, entry in EDGES.items()}
    rows: dict[str, list[Scores]] = {name: [] for name in settings}
    shipped = predictor.manifest
    pictures = read_scenes(options.scenes) if options.scenes else read_photographs(options.photographs)
    for number, (pixels, masks) in enumerate(pictures):
        if number == options.limit:
            break
        embedding = predictor.encode(pixels)
        wanted = [mask for mask in masks if SMALLEST <= mask.mean() <= LARGEST]
        for name, setting in settings.items():
            predictor.manifest = replace(shipped, **setting)
            examiner = Examiner(predictor, options.box_jitter, np.random.default_rng(number))
            rows[name] += [examiner.examine(embedding, mask) for mask in wanted]
    for name in settings:
        print(mean_line(name, rows[name]))
    for low, high in zip(SIZES, SIZES[1:], strict=False):
        of_size = [row for row in rows["as shipped"] if low <= row.share < high] if "as shipped" in rows else []
        if of_size:
            print(mean_line(f"{low:.0%} to {high:.0%}", of_size))


if __name__ == "__main__":
    main()
