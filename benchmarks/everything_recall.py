# SPDX-License-Identifier: Apache-2.0
"""How many of the objects of procedural scenes everything mode finds, at several thresholds.

An object counts as found if a mask has an IoU of at least 0.75 with what is visible of it. Objects of less than 0.1% of
the scene are left out. The scenes are none that ``tiny`` was trained on.

python -m benchmarks.everything_recall [--scenes 40] [--model tiny] [--points-per-side 32] [--mode fast]
    [--pred-iou-thresh 0.3 0.5] [--stability-score-thresh 0.5 0.7]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import segship
from benchmarks.machine import save_result
from segship.masks.rle import mask_to_runs
from segship.masks.spans import read_spans
from segship.promptable.everything.filters import coverage
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import MaskRecord
from segship.promptable.everything.search import generate_masks

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


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row of figures for each pair of thresholds."""
    predictor = segship.load(arguments.model)
    pictures = [entry for entry in scenes(arguments.scenes, arguments.size) if entry[1]]
    rows = []
    for stability in arguments.stability_score_thresh:
        options = AmgOptions(
            points_per_side=arguments.points_per_side,
            pred_iou_thresh=min(arguments.pred_iou_thresh),
            stability_score_thresh=stability,
            mode=arguments.mode,
        )
        answers = [generate_masks(predictor, image, options) for image, _ in pictures]
        for threshold in arguments.pred_iou_thresh:
            # Duplicates go by descending predicted IoU, so a higher threshold only cuts the list off earlier.
            kept = [[record for record in records if record.predicted_iou > threshold] for records in answers]
            found = [fit for (_, masks), records in zip(pictures, kept, strict=True) for fit in find(masks, records)]
            rows.append(
                {
                    "pred_iou_thresh": threshold,
                    "stability_score_thresh": stability,
                    "objects": len(found),
                    "recall_at_0.75": recall(found, FOUND),
                    "recall_at_0.75_small": recall(found, FOUND, small=True),
                    "recall_at_0.75_large": recall(found, FOUND, small=False),
                    "recall_at_0.5": recall(found, 0.5),
                    "mean_best_iou": round(float(np.mean([fit.iou for fit in found])), 3),
                    "masks_per_scene": round(float(np.mean([len(records) for records in kept])), 1),
                    "coverage": round(float(np.mean([coverage(records) for records in kept])), 3),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--mode", choices=("fast", "reference"), default="fast")
    parser.add_argument("--pred-iou-thresh", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--stability-score-thresh", type=float, nargs="+", default=[0.0, 0.4, 0.6, 0.8])
    arguments = parser.parse_args()
    figures = {
        "scenes": arguments.scenes,
        "size": arguments.size,
        "points_per_side": arguments.points_per_side,
        "rows": measure(arguments),
    }
    print(save_result(f"everything_recall_{Path(arguments.model).name}", figures))


if __name__ == "__main__":
    main()
