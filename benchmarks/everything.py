# SPDX-License-Identifier: Apache-2.0
"""Everything outside the networks, against the reference's same steps on the same logits; and peak memory at 12 MP.

Encoder and decoder answer from memory on both sides, so what is timed is upscaling, filters, boxes, run lengths and the
removal of duplicates. The reference gets our box NMS, since a Python loop in torchvision's place would be unfair to it.

python -m benchmarks.everything [--points-per-side 32] [--repeats 3] [--model tiny] [--skip speed|memory]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

import segship
from benchmarks.machine import save_result
from segship.masks.nms import box_nms
from segship.masks.spans import read_spans
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate

SIZE_HW = (1200, 1800)
TWELVE_MEGAPIXELS = (3000, 4000)
IMAGE_SIZE = 1024
# About a third of all masks pass, and about 400 stay.
PRED_IOU_THRESH = 0.935
WORLD = {"objects": 1100, "radii": (0.012, 0.1), "sharpness": (300, 3000), "image_size": IMAGE_SIZE, "seed": 1}


class Replay:
    """A world whose answers have been drawn before the clock runs, and a clock of the time spent giving them."""

    def __init__(self, points_per_side: int) -> None:
        from segship.promptable.everything.grids import point_grid
        from segship.promptable.transforms import resized_size
        from tests.promptable.everything.world import World

        self.world = World(SIZE_HW, **WORLD)  # type: ignore[arg-type]
        self.seconds = 0.0
        frame = resized_size(SIZE_HW, IMAGE_SIZE)
        points = point_grid(points_per_side) * np.array(frame[::-1])
        self.ious, self.masks = self.world.answer(0, points)
        self.points = {tuple(np.round(point, 1).tolist()): row for row, point in enumerate(points)}
        self.world.answer = self.answer  # type: ignore[method-assign]

    def answer(self, crop: int, coords: Any) -> tuple[Any, Any]:
        """Return what was drawn for the points."""
        started = time.perf_counter()
        rows = [self.points[tuple(np.round(np.asarray(point, np.float64), 1).tolist())] for point in coords]
        # Rows of a batch follow one another, so nothing is copied.
        part = slice(rows[0], rows[-1] + 1)
        self.seconds += time.perf_counter() - started
        return self.ious[part], self.masks[part]


def time_ours(replay: Replay, options: AmgOptions, repeats: int) -> tuple[float, list[segship.MaskRecord]]:
    """Return the median seconds of a call without its networks, after one call that is not counted, and the records."""
    predictor, times = replay.world.predictor(), []
    encode = time_of(lambda: predictor.encode(replay.world.image))
    for _ in range(repeats + 1):
        replay.seconds, started = 0.0, time.perf_counter()
        result = generate(predictor, replay.world.image, options)
        times.append(time.perf_counter() - started - replay.seconds - encode)
    return statistics.median(times[1:]), list(result.records)


def time_of(work: Any) -> float:
    """Return the seconds of a second call."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_reference(replay: Replay, points_per_side: int) -> tuple[float, list[dict[str, Any]]]:
    """Return the seconds of one call of the reference without its networks, and its records."""
    # Not at the top: the processes whose memory is measured must not hold torch.
    import torch

    from tests.promptable.everything.world import reference_generator

    generator = reference_generator(
        replay.world, points_per_side=points_per_side, pred_iou_thresh=PRED_IOU_THRESH, output_mode="uncompressed_rle"
    )
    namespace = sys.modules["segment_anything.automatic_mask_generator"]
    vars(namespace)["batched_nms"] = lambda boxes, scores, idxs, iou_threshold: torch.from_numpy(
        box_nms(boxes.numpy(), scores.numpy(), iou_threshold)
    )
    encode = time_of(lambda: generator.predictor.set_image(replay.world.image))
    replay.seconds, started = 0.0, time.perf_counter()
    records = generator.generate(replay.world.image)
    return time.perf_counter() - started - replay.seconds - encode, records


def measure_speed(points_per_side: int, repeats: int) -> dict[str, Any]:
    """Time both modes and the reference."""
    replay = Replay(points_per_side)
    figures: dict[str, Any] = {"image": f"{SIZE_HW[1]} x {SIZE_HW[0]}", "points": points_per_side**2}
    reference_seconds, expected = time_reference(replay, points_per_side)
    figures["reference_s"] = round(reference_seconds, 3)
    figures["masks"] = len(expected)
    for mode in ("reference", "fast"):
        options = AmgOptions(points_per_side=points_per_side, pred_iou_thresh=PRED_IOU_THRESH, mode=mode)
        seconds, records = time_ours(replay, options, repeats)
        figures[f"{mode}_mode_s"] = round(seconds, 3)
        figures[f"{mode}_mode_times_faster"] = round(reference_seconds / seconds, 1)
        figures[f"{mode}_mode_masks"] = len(records)
        same = [
            record.uncompressed_rle == entry["segmentation"] for record, entry in zip(records, expected, strict=False)
        ]
        if mode == "reference":
            figures["reference_mode_equal_masks"] = sum(same)
        figures[f"{mode}_mode_agreement"] = round(agreement(expected, records), 4)
    return figures


def agreement(expected: list[dict[str, Any]], records: list[segship.MaskRecord]) -> float:
    """Return which part of all masks of both sides has a partner with an IoU of at least 0.95, one to one."""
    first = read_spans([np.array(entry["segmentation"]["counts"]) for entry in expected])
    second = read_spans([record.runs for record in records])
    areas = second.areas()
    taken: set[int] = set()
    for index, area in enumerate(first.areas()):
        shared = first.intersections(index, second, np.arange(len(records)))
        iou = shared / np.maximum(area + areas - shared, 1)
        iou[list(taken)] = 0
        if len(iou) and iou.max() >= 0.95:
            taken.add(int(iou.argmax()))
    return 2 * len(taken) / max(1, len(expected) + len(records))


def measure_memory(model: str) -> dict[str, Any]:
    """Return the peak resident megabytes of fresh processes: model loaded and one image encoded, and everything."""
    figures: dict[str, Any] = {"image": "4000 x 3000", "points": 1024, "model": model}
    for what in ("encode", "fast", "reference"):
        command = [sys.executable, "-m", "benchmarks.everything", "--child", what, "--model", model]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        figures[f"{what}_peak_mb"], figures[f"{what}_masks"] = float(answer[0]), int(answer[1])
        figures[f"{what}_predicted_mb_besides_the_model"] = float(answer[2])
    return figures


def run_child(what: str, model: str) -> None:
    """Do one thing and print the peak of this process, in MB, the masks found and the predicted memory, in MB."""
    predictor = segship.load(model)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(blocks.repeat(100, 0).repeat(100, 1))
    assert pixels.shape[:2] == TWELVE_MEGAPIXELS
    masks, predicted = 0, 0
    if what == "encode":
        predictor.encode(pixels)
    else:
        # Thresholds that let a third of all masks through, whatever the model's scale.
        ious = probe(predictor, pixels)
        options = AmgOptions(
            mode=what,  # type: ignore[arg-type]
            pred_iou_thresh=float(np.clip(np.quantile(ious, 0.67), 0, 1)),
            stability_score_thresh=0.0,
        )
        result = generate(predictor, pixels, options)
        masks, predicted = len(result.records), result.cost.peak_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(round(peak, 1), masks, round(predicted / 1e6, 1))


def probe(predictor: segship.Predictor, pixels: Any) -> Any:
    """Return predicted IoUs at some points."""
    embedding = predictor.encode(pixels)
    points = np.random.default_rng(1).uniform(0, 1, (16, 1, 2)) * np.array(pixels.shape[1::-1])
    ious = [predictor.decode_low_res(embedding, segship.Prompts(points=part))[0] for part in np.split(points, 4)]
    return np.concatenate(ious)[:, 1:]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--skip", choices=("speed", "memory"), default="")
    parser.add_argument("--child", choices=("encode", "fast", "reference"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child, arguments.model)
        return
    figures: dict[str, Any] = {}
    # Memory first: a child's peak begins at that of the process that starts it.
    if arguments.skip != "memory":
        figures["memory"] = measure_memory(arguments.model)
    if arguments.skip != "speed":
        figures["speed"] = measure_speed(arguments.points_per_side, arguments.repeats)
    print(figures)
    print(save_result("everything", figures))


if __name__ == "__main__":
    main()
