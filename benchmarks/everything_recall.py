# SPDX-License-Identifier: Apache-2.0
"""How many of the objects of procedural scenes, or of photographs that people segmented, everything mode finds.

An object counts as found if a mask has an IoU of at least 0.75 with what is visible of it. Objects of less than 0.1% of
a scene are left out, and segments of less than 1% or more than 60% of a photograph. The scenes are none that ``tiny``
was trained on. Of several modes, each is compared with the first one's records as well.

python -m benchmarks.everything_recall [--scenes 40 | --photographs DIR] [--model tiny] [--points-per-side 32]
    [--mode fast hierarchical] [--pred-iou-thresh 0.3 0.5] [--stability-score-thresh 0.5 0.7]

DIR has images/NAME.jpg and labels/NAME.png, whose numbers say which segment a pixel belongs to.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import segship
from benchmarks.machine import save_result
from segship.masks.rle import mask_to_runs
from segship.masks.spans import read_spans
from segship.promptable.everything.filters import coverage
from segship.promptable.everything.options import AmgOptions, Mode, thresholds_for
from segship.promptable.everything.records import MaskRecord
from segship.promptable.everything.search import AmgResult, generate

# Far from the seeds of training and validation; see the Makefile.
FIRST_SEED = 5_000_000
SMALLEST_PART = 0.001
SMALL_PART = 0.02
FOUND = 0.75


class Found(NamedTuple):
    """One object: its part of the scene, and the best IoU of a mask with it."""

    part: float
    iou: float


def scenes(count: int, size: int) -> Iterator[tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]]:
    """Yield pictures (S, S, 3) and the visible masks of their objects."""
    from recipes.tiny.scenes import make_scene

    for seed in range(FIRST_SEED, FIRST_SEED + count):
        scene = make_scene(seed, size)
        objects = scene.object_of_leaf[scene.leaves]
        masks = [objects == number for number in np.unique(objects) if number]
        yield scene.image, [mask for mask in masks if mask.mean() >= SMALLEST_PART]


def photographs(folder: Path) -> Iterator[tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]]:
    """Yield pictures (H, W, 3) and the segments that people saw in them."""
    for path in sorted((folder / "images").glob("*.jpg")):
        labels = np.array(Image.open(folder / "labels" / f"{path.stem}.png"))
        masks = [labels == number for number in np.unique(labels)]
        yield np.array(Image.open(path)), [mask for mask in masks if 0.01 <= mask.mean() <= 0.6]


def find(masks: Sequence[NDArray[np.bool_]], records: Sequence[MaskRecord]) -> list[Found]:
    """Return of each object how well the best mask fits it."""
    if not records:
        return [Found(float(mask.mean()), 0.0) for mask in masks]
    found = read_spans([record.runs for record in records])
    truth = read_spans([mask_to_runs(mask) for mask in masks])
    areas, everything = found.areas(), np.arange(len(records))
    fits = []
    for index, (mask, area) in enumerate(zip(masks, truth.areas(), strict=True)):
        shared = truth.intersections(index, found, everything)
        fits.append(Found(float(mask.mean()), float((shared / (area + areas - shared)).max())))
    return fits


def recall(found: Sequence[Found], at_least: float, small: bool | None = None) -> float | None:
    """Return which part of the objects was found, of all or of the small or large ones alone."""
    chosen = [entry for entry in found if small is None or (entry.part < SMALL_PART) == small]
    return round(sum(entry.iou >= at_least for entry in chosen) / len(chosen), 3) if chosen else None


def partners(records: Sequence[MaskRecord], others: Sequence[MaskRecord]) -> list[float]:
    """Return of each record the best IoU of another's."""
    if not records or not others:
        return [0.0] * len(records)
    first, second = (read_spans([record.runs for record in some]) for some in (records, others))
    areas, everything = second.areas(), np.arange(len(others))
    ious = []
    for index, area in enumerate(first.areas()):
        shared = first.intersections(index, second, everything)
        ious.append(float((shared / (area + areas - shared)).max()))
    return ious


Pictures = list[tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]]


def measure(arguments: argparse.Namespace, pictures: Pictures) -> list[dict[str, Any]]:
    """Return a row of figures for each pair of thresholds and each mode."""
    predictor = segship.load(arguments.model)
    own = thresholds_for(predictor, AmgOptions())
    thresholds = arguments.pred_iou_thresh or [own.pred_iou_thresh]
    rows = []
    for stability in arguments.stability_score_thresh or [own.stability_score_thresh]:
        firsts: dict[float, list[list[MaskRecord]]] = {}
        for mode in arguments.mode:
            options = AmgOptions(
                points_per_side=arguments.points_per_side,
                pred_iou_thresh=min(thresholds),
                stability_score_thresh=stability,
                mode=mode,
                # Second answers have scores of another scale, and mode reference none.
                refine=False,
            )
            answers = [generate(predictor, image, options) for image, _ in pictures]
            for threshold in thresholds:
                # Duplicates go by descending predicted IoU, so a higher threshold only cuts the list off earlier.
                kept = [[record for record in found.records if record.predicted_iou > threshold] for found in answers]
                row = {"mode": mode, "pred_iou_thresh": threshold, "stability_score_thresh": stability}
                row |= figures_of(pictures, answers, kept, firsts.setdefault(threshold, kept))
                rows.append(row)
                print(row, flush=True)
    return rows


def figures_of(
    pictures: Pictures, answers: list[AmgResult], kept: list[list[MaskRecord]], first: list[list[MaskRecord]]
) -> dict[str, Any]:
    """Return what was found of all pictures, and how much of the first mode's records are there."""
    found = [fit for (_, masks), records in zip(pictures, kept, strict=True) for fit in find(masks, records)]
    pairs = np.array([iou for some, records in zip(first, kept, strict=True) for iou in partners(some, records)])
    return {
        "objects": len(found),
        "points": round(float(np.mean([answer.points for answer in answers])), 1),
        "recall_at_0.75": recall(found, FOUND),
        "recall_at_0.75_small": recall(found, FOUND, small=True),
        "recall_at_0.75_large": recall(found, FOUND, small=False),
        "recall_at_0.5": recall(found, 0.5),
        "mean_best_iou": round(float(np.mean([fit.iou for fit in found])), 3),
        "masks_per_picture": round(float(np.mean([len(records) for records in kept])), 1),
        "coverage": round(float(np.mean([coverage(records) for records in kept])), 3),
        "first_mode_s_records_at_0.75": round(float((pairs >= FOUND).mean()), 3),
        "first_mode_s_records_at_0.9": round(float((pairs >= 0.9).mean()), 3),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--photographs", type=Path, help="instead of scenes")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--mode", choices=get_args(Mode), nargs="+", default=["fast"])
    parser.add_argument("--pred-iou-thresh", type=float, nargs="+", help="the model's own when left out")
    parser.add_argument("--stability-score-thresh", type=float, nargs="+", help="the model's own when left out")
    arguments = parser.parse_args()
    source = photographs(arguments.photographs) if arguments.photographs else scenes(arguments.scenes, arguments.size)
    pictures = [entry for entry in source if entry[1]]
    what = {} if arguments.photographs else {"scenes": arguments.scenes, "size": arguments.size}
    figures = {**what, "points_per_side": arguments.points_per_side, "rows": measure(arguments, pictures)}
    name = "everything_modes" if len(arguments.mode) > 1 else "everything_recall"
    name = "everything_photographs" if arguments.photographs else name
    print(save_result(f"{name}_{Path(arguments.model).name}", figures))


if __name__ == "__main__":
    main()
