# SPDX-License-Identifier: Apache-2.0
"""From logits to the class of every pixel, plane by plane, so that no array of all classes has the size of the image.

On the use road between a graph and a class map. The class is the first of the largest logits, as argmax has it; softmax
keeps the order, so it is computed only where a probability is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from segship.arrays import FloatArray, Pixels, Size


class Argmax(NamedTuple):
    """The class of every pixel."""

    classes: Pixels
    """(H, W) uint8."""
    probability: FloatArray | None
    """(H, W) float32, that of the class; None if it was not asked for."""


def argmax_logits(logits: FloatArray, size_hw: Size, *, probability: bool = False) -> Argmax:
    """Resize logits (K, h, w), up to 256 planes, bilinearly; return the class of each pixel, its softmax if wanted.

    Examples
    --------
    >>> import numpy as np
    >>> planes = np.array([[[0.0, 2.0]], [[1.0, 1.0]]], np.float32)
    >>> argmax_logits(planes, (1, 2)).classes.tolist()
    [[1, 0]]
    """
    assert 1 <= len(logits) <= 256, f"{len(logits)} planes do not fit into numbers of 8 bits"
    best = _resized(logits[0], size_hw, np.empty(size_hw, np.float32)).copy()
    classes, larger = np.zeros(size_hw, np.uint8), np.empty(size_hw, np.uint8)
    buffer = np.empty(size_hw, np.float32)
    for number, plane in enumerate(logits[1:], start=1):
        resized = _resized(plane, size_hw, buffer)
        # 255 where it is larger; of equal ones the first stays. A number is above all before it, so the larger of two
        # numbers is the later, which takes no branch a pixel.
        cv2.compare(resized, best, cv2.CMP_GT, dst=larger)
        np.bitwise_and(larger, np.uint8(number), out=larger)
        np.maximum(classes, larger, out=classes)
        np.maximum(best, resized, out=best)
    if not probability:
        return Argmax(classes, None)
    total = np.zeros(size_hw, np.float32)
    for plane in logits:
        # The logits themselves must not change: what is resized to its own size is not copied.
        total += np.exp(_resized(plane, size_hw, buffer) - best)
    return Argmax(classes, np.divide(np.float32(1), total, out=total))


def argmax_probabilities(probabilities: FloatArray, *, probability: bool = False) -> Argmax:
    """Return the class of each pixel from means of softmaxes (K, H, W) float32, and their value if it is wanted."""
    classes = argmax_logits(probabilities, (probabilities.shape[1], probabilities.shape[2])).classes
    return Argmax(classes, probabilities.max(axis=0) if probability else None)


def resize_classes(classes: Pixels, size_hw: Size) -> Pixels:
    """Resize a class map (h, w) uint8 to the nearest pixel, half-pixel centres: as torch's ``nearest-exact`` does.

    Examples
    --------
    >>> import numpy as np
    >>> resize_classes(np.array([[1, 2, 3]], np.uint8), (1, 6)).tolist()
    [[1, 1, 2, 2, 3, 3]]
    """
    if classes.shape == size_hw:
        return classes
    # In whole numbers: the centre of a pixel may lie exactly between two, where OpenCV's rounding differs.
    rows, columns = (
        (2 * np.arange(side) + 1) * own // (2 * side) for side, own in zip(size_hw, classes.shape, strict=True)
    )
    return np.asarray(classes.take(rows, axis=0).take(columns, axis=1), np.uint8)


def _resized(plane: FloatArray, size_hw: Size, buffer: FloatArray) -> FloatArray:
    """Return a plane at a size: itself if it has it, else written into the buffer."""
    if plane.shape == size_hw:
        return plane
    return np.asarray(cv2.resize(plane, size_hw[::-1], dst=buffer, interpolation=cv2.INTER_LINEAR), np.float32)
