# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression: of things that overlap too much, keep the one with the best score.

On the use road after the masks of an image have been scored. Goes through the things by descending score, keeps one
and drops every later one whose IoU with it is above the threshold, strictly. Follows torchvision.ops.nms and
batched_nms (torchvision/csrc/ops/cpu/nms_kernel.cpp), including its order: kept indices by descending score, and of
equal scores the earlier index first. Mask NMS is the same with the IoU of masks, taken from their run lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.arrays import AnyArray, BoolArray, FloatArray, IntArray
from segship.errors import InputError
from segship.masks.rle import Runs
from segship.masks.spans import read_spans

# (rows, columns) -> bool matrix: which later things a row drops, or may drop.
_Overlaps = Callable[[IntArray, IntArray], BoolArray]

# Rows of one block of the pair matrix, and the most pairs of one: enough work for one numpy call, and it fits a cache.
_BLOCK_ROWS = 64
_BLOCK_PAIRS = 1_000_000


def box_nms(
    boxes_xyxy: npt.ArrayLike, scores: npt.ArrayLike, iou_threshold: float, *, categories: npt.ArrayLike | None = None
) -> IntArray:
    """Return the indices (kept,) int64 of the boxes that are kept, by descending score, of equals the lower first.

    Parameters
    ----------
    boxes_xyxy
        (n, 4), x0 y0 x1 y1. Areas and IoU are taken in float32 for float32 boxes, as torchvision does it, and
        otherwise in float64, which holds any sum of whole pixels exactly.
    scores
        (n,), finite.
    iou_threshold
        From 0 to 1. A box is dropped if its IoU with a kept one is larger; two boxes without area never are.
    categories
        (n,) whole numbers; a box drops only boxes of its own category. One category for all unless given.

    Raises
    ------
    InputError
        Shapes that do not fit, a number that is not finite, a threshold out of range.

    Examples
    --------
    >>> box_nms([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]], [0.8, 0.9, 0.7], 0.5)
    array([1, 2])
    """
    boxes = _read_boxes(boxes_xyxy)
    order, groups = _read_order(scores, iou_threshold, categories, len(boxes))
    boxes = boxes[order]
    # What has no area divides 0 by 0, and is above no threshold.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

        def overlaps(rows: IntArray, columns: IntArray) -> BoolArray:
            shared = shared_by_boxes(boxes, rows, columns)
            iou = shared / (areas[rows, None] + areas[columns] - shared)
            # The comparison is in the 64 bits of the threshold, as torchvision's is.
            return np.asarray(iou.astype(np.float64) > iou_threshold)

        return order[_suppress(len(order), groups, overlaps)]


def mask_nms(
    runs: Sequence[Runs | Mapping[str, Any]],
    scores: npt.ArrayLike,
    iou_threshold: float,
    *,
    height: int | None = None,
    categories: npt.ArrayLike | None = None,
) -> IntArray:
    """Return the indices (kept,) int64 of the masks that are kept, judged by the IoU of their pixels; see `box_nms`.

    Masks are never unpacked: the boxes and areas tell most pairs apart, and only the others are intersected, from
    their run lengths, exactly.

    Parameters
    ----------
    runs
        Of n masks of one size: arrays (m,) int64 as `segship.masks.rle` gives them, or COCO run-length objects.
    scores, iou_threshold, categories
        As in `box_nms`. Two empty masks are equal, so the later one is dropped (unless the threshold is 1).
    height
        Rows of the masks; speeds the search up and changes no result.

    Examples
    --------
    >>> import numpy as np
    >>> mask_nms([np.array([0, 4, 8]), np.array([0, 3, 9]), np.array([8, 4])], [0.8, 0.9, 0.7], 0.5)
    array([1, 2])
    """
    order, groups = _read_order(scores, iou_threshold, categories, len(runs))
    spans = read_spans([runs[index] for index in order])
    areas = spans.areas()
    # With no height given, the whole mask is taken for one column: boxes that are larger than need be.
    boxes = spans.boxes(max(spans.pixels, 1) if height is None else height)

    def may_overlap(rows: IntArray, columns: IntArray) -> BoolArray:
        most = np.minimum(shared_by_boxes(boxes, rows, columns), np.minimum(areas[rows, None], areas[columns]))
        return _iou_above(most, areas[rows, None] + areas[columns], iou_threshold)

    def overlaps(row: int, columns: IntArray) -> BoolArray:
        shared = spans.intersections(row, spans, columns)
        return _iou_above(shared, areas[row] + areas[columns], iou_threshold)

    return order[_suppress(len(order), groups, may_overlap, overlaps)]


def shared_by_boxes(boxes: AnyArray, rows: IntArray, columns: IntArray) -> AnyArray:
    """Return the area (rows, columns) that boxes have in common."""
    x0, y0, x1, y1 = boxes.T
    wide = np.minimum(x1[rows, None], x1[columns]) - np.maximum(x0[rows, None], x0[columns])
    high = np.minimum(y1[rows, None], y1[columns]) - np.maximum(y0[rows, None], y0[columns])
    return np.asarray(np.maximum(wide, 0) * np.maximum(high, 0))


def _iou_above(shared: IntArray, both: IntArray, threshold: float) -> BoolArray:
    """Return whether IoU is above; two empty masks have 1."""
    union = both - shared
    return np.asarray(np.where(union > 0, shared / np.maximum(union, 1), 1.0) > threshold)


def _suppress(
    count: int,
    groups: IntArray | None,
    overlaps: _Overlaps,
    exact: Callable[[int, IntArray], BoolArray] | None = None,
) -> IntArray:
    """Return the places that are kept of ``count`` things in order; ``exact`` decides where ``overlaps`` only may."""
    is_alive = np.ones(count, np.bool_)
    kept: list[int] = []
    start = 0
    while start < count:
        columns = start + np.flatnonzero(is_alive[start:])
        rows = columns[: max(1, min(_BLOCK_ROWS, _BLOCK_PAIRS // max(1, len(columns))))]
        if not len(rows):
            break
        matrix = overlaps(rows, columns)
        if groups is not None:
            matrix &= groups[rows, None] == groups[columns]
        for place, row in enumerate(rows.tolist()):
            if not is_alive[row]:
                continue
            kept.append(row)
            # The columns begin with the rows; those up to this one are decided.
            later = columns[place + 1 :][matrix[place, place + 1 :]]
            later = later[is_alive[later]]
            is_alive[later if exact is None or not len(later) else later[exact(row, later)]] = False
        start = int(rows[-1]) + 1
    return np.array(kept, np.int64)


def _read_boxes(boxes_xyxy: npt.ArrayLike) -> FloatArray | NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iuf":
        found = f"boxes_xyxy is an array of {boxes.dtype} with the shape {boxes.shape}"
        raise InputError(f"{found}; accepted are numbers (n, 4), x0 y0 x1 y1", code="bad_shape")
    if not np.isfinite(boxes).all():
        raise InputError("boxes_xyxy has a number that is NaN or infinite; give finite numbers", code="non_finite")
    return boxes if boxes.dtype == np.float32 else boxes.astype(np.float64)


def _read_order(
    scores: npt.ArrayLike, iou_threshold: float, categories: npt.ArrayLike | None, count: int
) -> tuple[IntArray, IntArray | None]:
    """Return the indices by descending score, and the categories in that order."""
    numbers = np.asarray(scores, np.float64)
    if numbers.shape != (count,):
        found = f"scores has the shape {numbers.shape} for {count} boxes or masks"
        raise InputError(f"{found}; give one score for each", code="length_mismatch")
    if not np.isfinite(numbers).all():
        raise InputError("scores has a number that is NaN or infinite; give finite numbers", code="non_finite")
    if not 0 <= iou_threshold <= 1:
        raise InputError(f"iou_threshold is {iou_threshold}; accepted is a number from 0 to 1", code="bad_option")
    order = np.argsort(-numbers, kind="stable")
    if categories is None:
        return order, None
    groups = np.asarray(categories)
    if groups.shape != (count,):
        found = f"categories has the shape {groups.shape} for {count} boxes or masks"
        raise InputError(f"{found}; give one category for each", code="length_mismatch")
    return order, groups[order]
