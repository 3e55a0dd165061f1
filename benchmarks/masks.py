# SPDX-License-Identifier: Apache-2.0
"""Time of the masks library beside pycocotools and segment_anything.utils.amg, on the same masks in the same run.

python -m benchmarks.masks [--masks 64] [--size 1200 1800] [--repeats 9] [--threads 1]

Every row is checked before it is timed: both sides give the same result. Milliseconds are medians for one mask, or
for one call where the row says so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco

from benchmarks.machine import save_result
from segship.masks.nms import box_nms, mask_nms
from segship.masks.polygons import mask_to_polygons, polygons_to_mask
from segship.masks.regions import clean_runs, remove_small_regions
from segship.masks.rle import compress_runs, mask_to_runs, masks_to_runs, runs_to_mask
from segship.masks.scores import mask_ious, stability_score
from segship.masks.spans import masks_to_boxes, merge_runs, runs_to_areas, runs_to_boxes, xyxy_to_xywh
from tests.oracle import reference

Work = Callable[[], Any]
# An area between those of SAM's demonstration (100) and of nothing.
SMALL_AREA = 100


def blob_logits(count: int, size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return logits (count, H, W) float32 of blobs with ragged edges, a few islands and holes; radii 2% to 25%."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = cv2.GaussianBlur(rng.standard_normal(size_hw).astype(np.float32), (0, 0), height / 150)
    grain *= 2 / grain.std()
    logits = np.empty((count, *size_hw), np.float32)
    for one in logits:
        radius = height * np.exp(rng.uniform(np.log(0.02), np.log(0.25)))
        tall = np.exp(rng.uniform(-0.5, 0.5))
        away = np.hypot((x - rng.uniform(0, width)) / tall, (y - rng.uniform(0, height)) * tall)
        one[...] = 10 * (1 - away / radius) + np.roll(grain, rng.integers(0, height, 2), axis=(0, 1))
    return logits


class Table:
    """Rows of milliseconds, printed as they are measured."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.rows: dict[str, dict[str, float]] = {}

    def add(self, name: str, calls: int, **sides: Work) -> None:
        """Measure the sides in turn, so that a busy moment of the machine meets all of them."""
        times: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(self.repeats + 1):
            for side, work in sides.items():
                started = time.perf_counter()
                work()
                # The first round is warm-up.
                if repeat:
                    times[side].append(1e3 * (time.perf_counter() - started) / calls)
        row = {side: round(statistics.median(found), 4) for side, found in times.items()}
        row |= {
            f"times_{side}": round(took / row["segship"], 1)
            for side, took in row.items()
            if not side.startswith("segship")
        }
        self.rows[name] = row
        print(f"{name:34}", "  ".join(f"{side} {number:g}" for side, number in row.items()), flush=True)


def measure_run_lengths(table: Table, masks: np.ndarray) -> None:
    """Encoding, decoding, compression."""
    from segment_anything.utils import amg

    count, size = len(masks), masks.shape[1:]
    tensor = torch.from_numpy(masks)
    runs, rles = masks_to_runs(masks), amg.mask_to_rle_pytorch(tensor)
    assert [one.tolist() for one in runs] == [rle["counts"] for rle in rles]
    table.add(
        "mask to run lengths",
        count,
        segship=lambda: masks_to_runs(masks),
        reference=lambda: amg.mask_to_rle_pytorch(tensor),
    )
    boxes = masks_to_boxes(masks).tolist()
    crops = [(mask[y0:y1, x0:x1].copy(), (x0, y0)) for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True)]

    def encode_crops() -> list[np.ndarray]:
        return [mask_to_runs(crop, corner_xy=corner, size_hw=size) for crop, corner in crops]

    assert all(map(np.array_equal, encode_crops(), runs))
    table.add(
        "crop to run lengths of the image",
        count,
        segship=encode_crops,
        reference=lambda: amg.mask_to_rle_pytorch(tensor),
    )
    texts = [amg.coco_encode_rle(rle)["counts"] for rle in rles]
    packed = [coco.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]
    assert [compress_runs(one) for one in runs] == texts == [one["counts"].decode() for one in packed]
    table.add(
        "mask to COCO string",
        count,
        segship=lambda: [compress_runs(mask_to_runs(mask)) for mask in masks],
        reference=lambda: [amg.coco_encode_rle(rle) for rle in amg.mask_to_rle_pytorch(tensor)],
        pycocotools=lambda: [coco.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks],
    )
    assert all(
        np.array_equal(runs_to_mask(one, size), amg.rle_to_mask(rle)) for one, rle in zip(runs, rles, strict=True)
    )
    table.add(
        "run lengths to mask",
        count,
        segship=lambda: [runs_to_mask(one, size) for one in runs],
        reference=lambda: [amg.rle_to_mask(rle) for rle in rles],
        pycocotools=lambda: [coco.decode({"size": one["size"], "counts": one["counts"]}) for one in packed],
    )


def measure_shapes(table: Table, masks: np.ndarray) -> None:
    """Areas, boxes, unions, regions."""
    from segment_anything.utils import amg

    count, (height, width) = len(masks), masks.shape[1:]
    tensor, runs = torch.from_numpy(masks), masks_to_runs(masks)
    rles = [{"size": [height, width], "counts": one.tolist()} for one in runs]
    packed = [coco.frPyObjects(rle, height, width) for rle in rles]
    assert runs_to_areas(runs).tolist() == coco.area(packed).tolist() == [amg.area_from_rle(rle) for rle in rles]
    table.add(
        "areas from run lengths",
        count,
        segship=lambda: runs_to_areas(runs),
        reference=lambda: [amg.area_from_rle(rle) for rle in rles],
        pycocotools=lambda: coco.area(packed),
    )
    boxes = masks_to_boxes(masks)
    assert xyxy_to_xywh(boxes).tolist() == coco.toBbox(packed).tolist()
    assert (boxes - [0, 0, 1, 1] == amg.batched_mask_to_box(tensor).numpy()).all()
    table.add(
        "boxes",
        count,
        segship=lambda: runs_to_boxes(runs, height),
        segship_from_pixels=lambda: masks_to_boxes(masks),
        reference=lambda: amg.batched_mask_to_box(tensor),
        pycocotools=lambda: coco.toBbox(packed),
    )
    assert compress_runs(merge_runs(runs)) == coco.merge(packed)["counts"].decode()
    table.add("union of all, one call", 1, segship=lambda: merge_runs(runs), pycocotools=lambda: coco.merge(packed))
    for mode in ("holes", "islands"):
        for mask in masks:
            ours, theirs = (clean(mask, SMALL_AREA, mode) for clean in (remove_small_regions, amg.remove_small_regions))
            assert np.array_equal(ours[0], theirs[0]) and ours[1] == theirs[1]
        table.add(
            f"remove small {mode}",
            count,
            segship=lambda mode=mode: [remove_small_regions(mask, SMALL_AREA, mode) for mask in masks],
            segship_from_runs=lambda mode=mode: [clean_runs(one, (height, width), SMALL_AREA, mode) for one in runs],
            reference=lambda mode=mode: [amg.remove_small_regions(mask, SMALL_AREA, mode) for mask in masks],
        )


def measure_polygons(table: Table, masks: np.ndarray) -> None:
    """Polygons from masks and back."""
    count, size = len(masks), masks.shape[1:]
    polygons = [mask_to_polygons(mask) for mask in masks]
    assert all(
        np.array_equal(polygons_to_mask(one, mask.shape), mask) for one, mask in zip(polygons, masks, strict=True)
    )
    # Not the same result: OpenCV follows the centres of pixels, and what it gives is half a pixel too small.
    table.add(
        "mask to polygons",
        count,
        segship=lambda: [mask_to_polygons(mask) for mask in masks],
        find_contours=lambda: [
            cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE) for mask in masks
        ],
    )
    table.add(
        "polygons to mask",
        count,
        segship=lambda: [polygons_to_mask(one, size) for one in polygons],
    )


def measure_overlaps(table: Table, masks: np.ndarray) -> None:
    """IoU of all pairs, and NMS, on the masks and a shifted copy of each."""
    height, width = masks.shape[1:]
    runs = masks_to_runs(masks) + [mask_to_runs(np.roll(mask, (3, 5), axis=(0, 1))) for mask in masks]
    packed = [coco.frPyObjects({"size": [height, width], "counts": one.tolist()}, height, width) for one in runs]
    scores = np.random.default_rng(0).random(len(runs))
    assert (mask_ious(runs, runs, height=height) == coco.iou(packed, packed, [0] * len(packed))).all()
    table.add(
        f"IoU of {len(runs)} x {len(runs)} masks, one call",
        1,
        segship=lambda: mask_ious(runs, runs, height=height),
        pycocotools=lambda: coco.iou(packed, packed, [0] * len(packed)),
    )

    def coco_nms() -> list[int]:
        ious = coco.iou(packed, packed, [0] * len(packed))
        kept: list[int] = []
        for index in np.argsort(-scores, kind="stable"):
            if not (ious[index, kept] > 0.7).any():
                kept.append(int(index))
        return kept

    assert mask_nms(runs, scores, 0.7, height=height).tolist() == coco_nms()
    table.add(
        f"mask NMS of {len(runs)}, one call",
        1,
        segship=lambda: mask_nms(runs, scores, 0.7, height=height),
        pycocotools=coco_nms,
    )
    boxes = np.tile(runs_to_boxes(runs, height).astype(np.float32), (8, 1))
    boxes += np.random.default_rng(0).integers(-9, 9, boxes.shape)
    many = np.random.default_rng(1).random(len(boxes))
    table.add(f"box NMS of {len(boxes)}, one call", 1, segship=lambda: box_nms(boxes, many, 0.7))


def measure_stability(table: Table, logits: np.ndarray, name: str) -> None:
    """Stability scores."""
    from segment_anything.utils import amg

    tensor = torch.from_numpy(logits)
    expected = amg.calculate_stability_score(tensor, 0.0, 1.0).numpy()
    assert np.allclose(stability_score(logits), expected, rtol=0, atol=1e-6)
    table.add(
        f"stability of {name}",
        len(logits),
        segship=lambda: stability_score(logits),
        reference=lambda: amg.calculate_stability_score(tensor, 0.0, 1.0),
    )


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 1800), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenCV")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    reference()
    table = Table(arguments.repeats)
    logits = blob_logits(arguments.masks, tuple(arguments.size))
    masks = logits > 0
    measure_stability(table, logits[:16], "image-sized logits")
    measure_stability(table, blob_logits(arguments.masks, (256, 256)), "256 x 256 logits")
    del logits
    measure_run_lengths(table, masks)
    measure_shapes(table, masks)
    measure_polygons(table, masks)
    measure_overlaps(table, masks)
    figures = {
        "masks": arguments.masks,
        "size_hw": list(arguments.size),
        "mean_runs": round(statistics.mean(len(one) for one in masks_to_runs(masks))),
        "mean_area": round(float(masks.mean()) * masks[0].size),
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "peers": {name: version(name) for name in ("segment-anything", "pycocotools", "torch")},
        "median_ms": table.rows,
    }
    if not arguments.no_save:
        print(save_result("masks", figures))


if __name__ == "__main__":
    main()
