# SPDX-License-Identifier: Apache-2.0
"""Boxes around masks, in whole pixels of the image frame.

On the use road between a prediction and its files. A box is half-open: it begins at the first set pixel and ends one
past the last, so that x1 - x0 is a width and a box drawn on the grid lines of the pixels encloses the mask. The
reference (segment_anything/utils/amg.py batched_mask_to_box) ends at the last set pixel itself; COCO's own boxes of
run lengths are like ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.int64]


def masks_to_boxes(masks: NDArray[np.bool_]) -> Boxes:
    """Return the boxes around masks.

    Parameters
    ----------
    masks
        (..., H, W) bool.

    Returns
    -------
    NDArray
        (..., 4) int64, x0 y0 x1 y1 half-open pixels; zeros for a mask without a pixel.

    Examples
    --------
    >>> import numpy as np
    >>> mask = np.zeros((4, 6), bool)
    >>> mask[1:3, 2:5] = True
    >>> masks_to_boxes(mask)
    array([2, 1, 5, 3])
    """
    x0, x1 = _first_and_end(np.asarray(masks.any(axis=-2)))
    y0, y1 = _first_and_end(np.asarray(masks.any(axis=-1)))
    return np.stack([x0, y0, x1, y1], axis=-1)


def xyxy_to_xywh(boxes_xyxy: Boxes) -> Boxes:
    """Return boxes (..., 4) as x0 y0 width height, the form of COCO and of SA-1B records."""
    return np.concatenate([boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]], axis=-1)


def _first_and_end(occupied: NDArray[np.bool_]) -> tuple[Boxes, Boxes]:
    """Return of (..., n) the index of the first True and one past the last; 0 and 0 where there is none."""
    length = occupied.shape[-1]
    if not length:
        nothing = np.zeros(occupied.shape[:-1], np.int64)
        return nothing, nothing
    first = occupied.argmax(axis=-1)
    end = length - occupied[..., ::-1].argmax(axis=-1)
    return first, np.where(occupied.any(axis=-1), end, 0)
