# SPDX-License-Identifier: Apache-2.0
"""Numbers that say how good or how alike masks are.

Used on the use road to judge predictions and on the ship road to compare a graph with its model. Pixels are counted
in 64 bits; the reference counts rows in 16 and images in 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.arrays import BoolArray, FloatArray, Pixels
from segship.errors import InputError
from segship.masks.rle import Runs, read_mask, read_number
from segship.masks.spans import masks_to_boxes, read_spans


def mask_iou(first: BoolArray, second: BoolArray) -> float:
    """Return intersection over union of two masks (H, W) bool, from 0 to 1; two empty masks are equal, so 1."""
    assert first.shape == second.shape, f"masks of different shapes: {first.shape} and {second.shape}"
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def mask_ious(
    first: Sequence[Runs | Mapping[str, Any]], second: Sequence[Runs | Mapping[str, Any]], *, height: int | None = None
) -> NDArray[np.float64]:
    """Return intersection over union (n, m) float64 of n masks with m others, exact, from the run lengths alone.

    Masks are given as `segship.masks.spans.read_spans` takes them; two empty ones have 1 (in pycocotools 0). Their
    ``height`` speeds the work up and changes no result.

    Examples
    --------
    >>> import numpy as np
    >>> mask_ious([np.array([0, 4, 8])], [np.array([0, 3, 9]), np.array([3, 3, 6])])
    array([[0.75      , 0.16666667]])
    """
    if len(first) > len(second):
        return mask_ious(second, first, height=height).T
    one, other = read_spans(first), read_spans(second)
    if len(one) and len(other) and one.pixels != other.pixels:
        message = f"the masks have {one.pixels} and {other.pixels} pixels; give masks of one size"
        raise InputError(message, code="bad_shape")
    # With no height given, the whole mask is taken for one column: boxes that are larger than need be.
    rows = max(one.pixels, 1) if height is None else height
    boxes, other_boxes = one.boxes(rows), other.boxes(rows)
    shared = np.zeros((len(one), len(other)), np.int64)
    for index, box in enumerate(boxes):
        may_meet = (other_boxes[:, :2] < box[2:]).all(axis=1) & (box[:2] < other_boxes[:, 2:]).all(axis=1)
        chosen = np.flatnonzero(may_meet)
        shared[index, chosen] = one.intersections(index, other, chosen)
    union = one.areas()[:, None] + other.areas() - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def stability_score(logits: FloatArray, *, mask_threshold: float = 0.0, offset: float = 1.0) -> NDArray[np.float64]:
    """Return how little masks change when their threshold moves: of logits (..., H, W) float32 scores (...,) float64.

    Follows segment_anything/utils/amg.py calculate_stability_score: the IoU between the masks at
    ``mask_threshold + offset`` and at ``mask_threshold - offset``, of which one contains the other. A mask that is
    empty even at the lower threshold has 0, where the reference divides by zero.
    """
    scores = np.zeros(logits.shape[:-2], np.float64)
    # One mask at a time: counting along axes would first make eight bytes of every pixel.
    for index in np.ndindex(scores.shape):
        core = np.count_nonzero(logits[index] > mask_threshold + offset)
        whole = np.count_nonzero(logits[index] > mask_threshold - offset)
        scores[index] = core / whole if whole else 0.0
    return scores


# Pixels up to which growing a boundary is quicker than measuring the distance from everywhere.
_SMALL_REACH = 10


def mask_boundary(mask: npt.ArrayLike) -> BoolArray:
    """Return the pixels (H, W) bool of a mask that have a side in common with a pixel outside, or outside the image."""
    pixels = read_mask(mask)
    inner = np.pad(pixels, 1)
    return np.asarray(pixels & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]))


def boundary_f_score(first: npt.ArrayLike, second: npt.ArrayLike, *, tolerance_px: float = 2.0) -> float:
    """Return the boundary F score of two masks (H, W) of one size: 1 for two empty ones, 0 if only one is empty.

    The harmonic mean of the part of the first boundary that lies within a distance of the second, and of the part of
    the second that lies within it of the first. Follows the measure F of Perazzi et al., A Benchmark Dataset and
    Evaluation Methodology for Video Object Segmentation (CVPR 2016), with Euclidean distances between pixel centres;
    unlike there, the edge of the image is an outline of a mask that reaches it.

    Examples
    --------
    >>> import numpy as np
    >>> mask = np.zeros((8, 8), bool)
    >>> mask[2:5, 2:5] = True
    >>> boundary_f_score(mask, np.roll(mask, 1, axis=1), tolerance_px=1)
    1.0
    """
    one, other = read_mask(first, "first"), read_mask(second, "second")
    if one.shape != other.shape:
        raise InputError(f"the masks have the shapes {one.shape} and {other.shape}; give one size", code="bad_shape")
    reach = read_number(tolerance_px, "tolerance_px")
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    # No distance that counts leads out of the box around both.
    x0, y0, x1, y1 = masks_to_boxes(one | other).tolist()
    boundaries = [mask_boundary(mask[y0:y1, x0:x1]) for mask in (one, other)]
    parts = [_part_within(a, b, reach) for a, b in (boundaries, boundaries[::-1])]
    return 2 * parts[0] * parts[1] / sum(parts) if any(parts) else 0.0


def _part_within(boundary: BoolArray, other: BoolArray, reach: float) -> float:
    if reach <= _SMALL_REACH:
        near = cv2.dilate(other.view(np.uint8), _disk(reach)).view(np.bool_)
    else:
        # Squares of distances between pixels are whole numbers, which float32 roots have only almost.
        distance = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near = np.rint(np.square(distance, dtype=np.float64)) <= reach * reach
    return float(np.count_nonzero(boundary & near) / np.count_nonzero(boundary))


def _disk(reach: float) -> Pixels:
    offsets = np.arange(-int(reach), int(reach) + 1)
    return (offsets**2 + offsets[:, None] ** 2 <= reach * reach).astype(np.uint8)
