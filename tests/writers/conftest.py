# SPDX-License-Identifier: Apache-2.0
"""One result with everything in it: two objects, three masks each, one of them empty; and records of all kinds."""

from __future__ import annotations

import numpy as np
import pytest

from segship.masks.lazy import ArrayMasks
from segship.masks.rle import mask_to_runs
from segship.masks.spans import masks_to_boxes
from segship.promptable.everything.records import ImageRecords, MaskRecord
from segship.promptable.prediction import MaskPrediction
from segship.promptable.prompts import ObjectPrompt
from segship.writers import Result


@pytest.fixture
def result() -> Result:
    rng = np.random.default_rng(0)
    masks = rng.random((2, 3, 37, 53)) < 0.3
    masks[1, 2] = False
    prediction = MaskPrediction(
        held=ArrayMasks(masks),
        iou_predictions=np.array([[0.5, 0.9, 0.7], [0.8, 0.1, 0.8]], np.float32),
        low_res_masks=rng.normal(size=(2, 3, 16, 16)).astype(np.float32),
        original_size=(37, 53),
        notes=("box_clipped",),
    )
    objects = (
        ObjectPrompt(
            np.array([[10.1, 20], [30, 5]], np.float32), np.array([1, 0]), np.array([0, 0, 53, 37], np.float32)
        ),
        ObjectPrompt(np.array([[40, 30]], np.float32), np.array([1]), None, np.zeros((1, 16, 16), np.float32)),
    )
    pixels = rng.integers(0, 256, (37, 53, 3), np.uint8)
    return Result("my photo", "dir/my photo.jpg", pixels, prediction, objects, ("trailing_data",))


def record_of(mask: np.ndarray, predicted_iou: float, point_xy: tuple[float, float]) -> MaskRecord:
    """A record with the numbers that the reference would give it."""
    x0, y0, x1, y1 = (int(side) for side in masks_to_boxes(mask))
    height, width = mask.shape
    return MaskRecord(
        runs=mask_to_runs(mask),
        size=(height, width),
        area=int(mask.sum()),
        bbox=(float(x0), float(y0), float(max(x1 - 1 - x0, 0)), float(max(y1 - 1 - y0, 0))),
        predicted_iou=predicted_iou,
        point_coords=(point_xy,),
        stability_score=predicted_iou / 2,
        crop_box=(0, 0, width, height),
    )


@pytest.fixture
def record_masks() -> np.ndarray:
    """A ring around a disc that lies on both, two parts, one pixel in a corner, noise, and one with no pixel."""
    y, x = np.mgrid[:60, :80]
    from_middle = np.hypot(y - 30.5, x - 40.5)
    masks = np.zeros((6, 60, 80), bool)
    masks[0] = (from_middle < 25) & (from_middle > 10)
    masks[1] = from_middle < 14
    masks[2] = (y < 12) & (x < 9) | (y > 50) & (x > 60)
    masks[3, 59, 79] = True
    masks[4] = np.random.default_rng(1).random((60, 80)) < 0.4
    return masks


@pytest.fixture
def records(record_masks: np.ndarray) -> ImageRecords:
    """Everything in one image."""
    rng = np.random.default_rng(2)
    entries = [
        # Scores of a model are float32, which in double precision have many digits.
        record_of(mask, float(np.float32(0.95 - 0.07 * index)), (10.5 + index, 20.25))
        for index, mask in enumerate(record_masks)
    ]
    pixels = rng.integers(0, 256, (60, 80, 3), np.uint8)
    return ImageRecords("my photo", "dir/my photo.jpg", pixels, tuple(entries), ("deadline_reached",))


@pytest.fixture
def no_records() -> ImageRecords:
    """An image in which nothing was found."""
    return ImageRecords("my photo", "my photo.jpg", np.zeros((60, 80, 3), np.uint8), ())
