# SPDX-License-Identifier: Apache-2.0
"""Small holes and islands of a mask, and what to do about them.

On the use road after a mask has been predicted and before its run lengths are taken for good. Work is done in the
window around the mask, so its cost follows the mask and not the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.arrays import BoolArray, IntArray, Size
from segship.errors import InputError
from segship.masks.rle import Runs, mask_to_runs, read_mask, read_number, runs_to_box, runs_to_crop
from segship.masks.spans import masks_to_boxes

# Up to so many regions, comparing all pixels with each is quicker than looking each pixel up: eight are done at a time.
_FEW = 8


def remove_small_regions(
    mask: npt.ArrayLike, area_threshold: float, mode: Literal["holes", "islands"]
) -> tuple[BoolArray, bool]:
    """Return a mask (H, W) bool with its small holes filled, or without its small islands, and whether it had any.

    Follows segment_anything/utils/amg.py remove_small_regions, pixel for pixel: regions are 8-connected, a hole is
    any region outside the mask (one that reaches the edge of the image, too), and of a mask of small islands only,
    the largest stays. Regions of fewer pixels than the threshold are small. Without any, the mask is the one given.

    Examples
    --------
    >>> import numpy as np
    >>> remove_small_regions(np.array([[1, 0, 1, 1], [0, 0, 1, 1]]), 2, "islands")[0].astype(int)
    array([[0, 0, 1, 1],
           [0, 0, 1, 1]])
    """
    pixels = read_mask(mask)
    _check_options(area_threshold, mode)
    if not pixels.size:
        return pixels, False
    window = _window(masks_to_boxes(pixels).tolist(), pixels.shape)
    cleaned = _clean(pixels[window], window, pixels.shape, area_threshold, mode)
    if cleaned is None:
        return pixels, False
    changed = pixels.copy()
    changed[window] = cleaned.inside
    for part in cleaned.filled:
        changed[part] = True
    return changed, True


def clean_runs(
    runs: Runs, size_hw: Size, area_threshold: float, mode: Literal["holes", "islands"]
) -> tuple[Runs, bool]:
    """Return what `remove_small_regions` does to a mask of that height and width, from its run lengths to new ones.

    Examples
    --------
    >>> import numpy as np
    >>> clean_runs(np.array([0, 1, 3, 4]), (2, 4), 2, "islands")
    (array([4, 4]), True)
    """
    _check_options(area_threshold, mode)
    height, width = size_hw
    if not height * width:
        return runs, False
    window = _window(runs_to_box(runs, size_hw), size_hw)
    rows, columns = window
    pixels = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    crop, (x0, y0) = runs_to_crop(runs, size_hw)
    top, left = y0 - rows.start, x0 - columns.start
    pixels[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    cleaned = _clean(pixels, window, size_hw, area_threshold, mode)
    if cleaned is None:
        return runs, False
    if not cleaned.filled:
        return mask_to_runs(cleaned.inside, corner_xy=(columns.start, rows.start), size_hw=size_hw), True
    # Only where the background itself is small, so the mask is about as large as the image.
    whole = np.zeros(size_hw, np.bool_)
    whole[window] = cleaned.inside
    for part in cleaned.filled:
        whole[part] = True
    return mask_to_runs(whole), True


class _Cleaned(NamedTuple):
    inside: BoolArray
    """The mask in the window."""
    filled: list[tuple[slice, slice]]
    """The parts of the image outside the window that were a small hole, or a piece of one."""


def _check_options(area_threshold: float, mode: str) -> None:
    read_number(area_threshold, "area_threshold")
    if mode not in ("holes", "islands"):
        raise InputError(f"mode is {mode!r}; accepted are 'holes' and 'islands'", code="bad_option")


def _clean(
    pixels: BoolArray, window: tuple[slice, slice], size_hw: tuple[int, ...], area_threshold: float, mode: str
) -> _Cleaned | None:
    """Return the mask in its window without small regions, or None if there is none."""
    labels, areas = _label(~pixels if mode == "holes" else pixels)
    outside = _outside(window, size_hw) if mode == "holes" else []
    for (rows, columns), corner in outside:
        areas[labels[corner]] += (rows.stop - rows.start) * (columns.stop - columns.start)
    is_small = areas < area_threshold
    # The label 0 stands for what is no region.
    is_small[0] = False
    if not is_small.any():
        return None
    if mode == "islands" and is_small[1:].all():
        is_small[1 + areas[1:].argmax()] = False
    filled = [part for part, corner in outside if is_small[labels[corner]]]
    return _Cleaned(pixels ^ _choose(labels, is_small), filled)


def _window(box_xyxy: Sequence[int], size_hw: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns around a mask, with a margin of one pixel where the image has one.

    It begins at even places: OpenCV labels blocks of 2 x 2 pixels in turn, and of equally large regions the one with
    the lower label counts as the largest, which must not depend on the window.
    """
    x0, y0, x1, y1 = box_xyxy
    height, width = size_hw
    top, left = (max(0, first - 1) // 2 * 2 for first in (y0, x0))
    return slice(top, min(height, y1 + 1)), slice(left, min(width, x1 + 1))


def _outside(
    window: tuple[slice, slice], size_hw: tuple[int, ...]
) -> list[tuple[tuple[slice, slice], tuple[int, int]]]:
    """Return the parts of an image outside a window, each with a pixel of the window that it is connected to.

    The margin of the window is empty, so all of a part belongs to the region of its corner of the window.
    """
    rows, columns = window
    everything = slice(0, size_hw[1])
    parts = [
        ((slice(0, rows.start), everything), (0, 0)),
        ((slice(rows.stop, size_hw[0]), everything), (-1, 0)),
        ((rows, slice(0, columns.start)), (0, 0)),
        ((rows, slice(columns.stop, size_hw[1])), (0, -1)),
    ]
    return [
        (part, corner) for part, corner in parts if all(side == everything or side.start < side.stop for side in part)
    ]


def _label(pixels: BoolArray) -> tuple[NDArray[np.int32], IntArray]:
    """Return labels (h, w) of pieces, connected by sides or corners, and areas, that of what is no piece first."""
    # Without OpenCV's own statistics: they take ten times as long as the labels, for centroids that nobody asked for.
    count, numbers = cv2.connectedComponents(np.ascontiguousarray(pixels).view(np.uint8), connectivity=8)
    labels = np.asarray(numbers, np.int32)
    if count <= _FEW:
        return labels, np.array([np.count_nonzero(labels == label) for label in range(count)], np.int64)
    return labels, np.bincount(labels.ravel(), minlength=count)


def _choose(labels: NDArray[np.int32], is_chosen: BoolArray) -> BoolArray:
    """Return the pixels (h, w) whose labels are chosen."""
    chosen = np.flatnonzero(is_chosen)
    if len(chosen) > _FEW:
        return is_chosen.take(labels)
    pixels = np.zeros(labels.shape, np.bool_)
    for label in chosen:
        pixels |= labels == label
    return pixels
