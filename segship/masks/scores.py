# SPDX-License-Identifier: Apache-2.0
"""Numbers that say how good or how alike masks are.

Used on the use road to judge predictions and on the ship road to compare a graph with its model. Pixels are counted
in 64 bits; the reference counts rows in 16 and images in 32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return intersection over union of two masks (H, W) bool, from 0 to 1; two empty masks are equal, so 1."""
    assert first.shape == second.shape, f"masks of different shapes: {first.shape} and {second.shape}"
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 1.0


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
    core = np.count_nonzero(logits > mask_threshold + offset, axis=(-2, -1))
    whole = np.count_nonzero(logits > mask_threshold - offset, axis=(-2, -1))
    return np.asarray(core / np.maximum(whole, 1), np.float64)
