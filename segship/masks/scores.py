# SPDX-License-Identifier: Apache-2.0
"""Numbers that say how good or how alike masks are.

Used on the use road to judge predictions and on the ship road to compare a graph with its model. Pixels are counted
in 64 bits; the reference counts rows in 16 and images in 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.errors import InputError
from segship.masks.rle import Runs
from segship.masks.spans import read_spans


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return intersection over union of two masks (H, W) bool, from 0 to 1; two empty masks are equal, so 1."""
    assert first.shape == second.shape, f"masks of different shapes: {first.shape} and {second.shape}"
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


def mask_ious(
    first: Sequence[Runs | Mapping[str, Any]], second: Sequence[Runs | Mapping[str, Any]], *, height: int | None = None
) -> NDArray[np.float64]:
    """Return intersection over union of every mask of the one list with every mask of the other.

    Parameters
    ----------
    first, second
        Of n and of m masks, all of one size: run lengths (k,) int64 as `segship.masks.rle.mask_to_runs` gives them, or
        COCO run-length objects.
    height
        Rows of the masks; speeds the work up and changes no result.

    Returns
    -------
    NDArray
        (n, m) float64 from 0 to 1, exact, from the run lengths alone; 1 for two empty masks (pycocotools has 0).

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
        message = f"The masks have {one.pixels} and {other.pixels} pixels; give masks of one size."
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


def stability_score(
    logits: NDArray[np.float32], *, mask_threshold: float = 0.0, offset: float = 1.0
) -> NDArray[np.float64]:
    """Return how little masks change when their threshold moves.

    Follows segment_anything/utils/amg.py calculate_stability_score: the IoU between the masks at
    ``mask_threshold + offset`` and at ``mask_threshold - offset``, of which one contains the other.

    Parameters
    ----------
    logits
        (..., H, W) float32.

    Returns
    -------
    NDArray
        (...,) float64 from 0 to 1; 0 for a mask that is empty even at the lower threshold, where the reference
        divides by zero.
    """
    scores = np.zeros(logits.shape[:-2], np.float64)
    # One mask at a time: counting along axes would first make eight bytes of every pixel.
    for index in np.ndindex(scores.shape):
        core = np.count_nonzero(logits[index] > mask_threshold + offset)
        whole = np.count_nonzero(logits[index] > mask_threshold - offset)
        scores[index] = core / whole if whole else 0.0
    return scores
