# SPDX-License-Identifier: Apache-2.0
"""Which masks stay: crop edges as the reference has them, and estimates made on low-resolution logits.

The estimates serve mode ``fast``: a stability score and a box of every mask without a pixel of the image. Crop edges
follow segment_anything/utils/amg.py is_box_near_crop_edge.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segship.amg.grids import Crop
from segship.masks.encoding import count_above
from segship.masks.upscaling import Cells, FloatArray, Upscaler

Boxes = NDArray[np.int64]
Flags = NDArray[np.bool_]

EDGE_TOLERANCE = 20.0
"""A box this near to a crop's edge, in pixels, is taken for a part of something that the crop cuts off."""


def near_crop_edge(boxes_xyxy: Boxes, crop: Crop, image_size_hw: tuple[int, int]) -> Flags:
    """Return (n,) bool: boxes (n, 4) of the crop's frame that end at an edge of the crop that is not the image's."""
    left, top, _, _ = crop.box_xyxy
    height, width = image_size_hw
    boxes = boxes_xyxy + np.array([left, top, left, top])
    at_crop = np.abs(boxes - np.array(crop.box_xyxy)) <= EDGE_TOLERANCE
    at_image = np.abs(boxes - np.array([0, 0, width, height])) <= EDGE_TOLERANCE
    return np.asarray((at_crop & ~at_image).any(axis=1))


def stability(core: int, whole: int) -> float:
    """Return the stability score of two counts of pixels as float32 arithmetic has it; 0 for an empty mask."""
    return float(np.float32(core) / np.float32(whole)) if whole else 0.0


def estimate_stability(
    low_res: FloatArray, upscaler: Upscaler, *, offset: float, threshold: float
) -> NDArray[np.float64]:
    """Return (n,) stability scores counted on the cells of low-resolution logits (n, h, w), the valid part.

    Counting cells instead of pixels errs by some of the cells of the outline. Where that error could put a score on
    the other side of the threshold, the mask is measured at image size.
    """
    cells = low_res.reshape(len(low_res), -1)
    core = np.count_nonzero(cells > np.float32(offset), axis=1)
    whole = np.count_nonzero(cells > np.float32(-offset), axis=1)
    scores: NDArray[np.float64] = core / np.maximum(whole, 1)
    # An outline of about 3.5 sqrt(area) cells, each off by a third of a cell at random, and room for ragged outlines.
    error = 2.0 * np.maximum(whole, 1.0) ** -0.75 + 0.002
    doubtful = (np.abs(scores - threshold) <= error) if threshold > 0 else np.zeros(len(cells), np.bool_)
    for index in np.flatnonzero(doubtful):
        scores[index] = stability(*count_above(Cells(low_res[index]), upscaler, offset))
    return scores


def estimate_boxes(low_res: FloatArray, upscaler: Upscaler) -> Boxes:
    """Return (n, 4) int64 boxes of low-resolution logits (n, h, w), in pixels of the crop, ends inclusive.

    An edge lies where the largest logit of a column or row crosses 0, found between cells by a straight line.
    """
    height, width = upscaler.original_size
    # Image pixels for one cell; the last valid cell may lie partly in the padding.
    scale_y, scale_x = upscaler.pixels_per_cell
    left, right = _crossings(low_res.max(axis=1), scale_x, width)
    top, bottom = _crossings(low_res.max(axis=2), scale_y, height)
    return np.stack([left, top, right, bottom], axis=1)


def _crossings(profile: FloatArray, scale: float, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return of profiles (n, cells) the first and last pixel above 0; zeros where there is none."""
    above = profile > 0
    some = above.any(axis=1)
    last_cell = profile.shape[1] - 1
    first, last = above.argmax(axis=1), last_cell - above[:, ::-1].argmax(axis=1)
    rows = np.arange(len(profile))
    before, after = profile[rows, np.maximum(first - 1, 0)], profile[rows, np.minimum(last + 1, last_cell)]
    begin = first - np.where(first > 0, _part(profile[rows, first], before), first + 1)
    end = last + np.where(last < last_cell, _part(profile[rows, last], after), 1)
    # The centre of cell i lies at pixel (i + 0.5) * scale - 0.5.
    low = np.ceil((begin + 0.5) * scale - 0.5).clip(0, size - 1).astype(np.int64)
    high = np.floor((end + 0.5) * scale - 0.5).clip(0, size - 1).astype(np.int64)
    return np.where(some, low, 0), np.where(some, np.maximum(high, low), 0)


def _part(inside: FloatArray, outside: FloatArray) -> FloatArray:
    """Return how far towards the outside, in cells, the line from above 0 to not above 0 crosses it."""
    return np.asarray(inside / np.maximum(inside - outside, np.float32(1e-12)), np.float32)
