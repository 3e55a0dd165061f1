# SPDX-License-Identifier: Apache-2.0
"""What run lengths tell of a mask without its pixels: area, box, the part inside the box.

On the use road between masks and files. Run lengths are those of `segship.masks.rle`: column by column, beginning
with zeros. A picture with hundreds of masks is held as run lengths, and whoever needs pixels takes one crop at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.masks.rle import Runs


def runs_to_area(runs: Runs) -> int:
    """Return the number of set pixels of run lengths (n,)."""
    return int(runs[1::2].sum())


def runs_to_box(runs: Runs, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box around the set pixels: x0 y0 x1 y1 half-open; zeros for a mask without a pixel.

    Equal to `segship.masks.boxes.masks_to_boxes` of the mask.

    Examples
    --------
    >>> import numpy as np
    >>> runs_to_box(np.array([9, 2, 2, 2, 9]), (4, 6))
    (2, 1, 4, 3)
    """
    starts, ends = runs_to_spans(runs)
    if not len(starts):
        return (0, 0, 0, 0)
    height = size_hw[0]
    x0, x1 = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    # A span that goes over the foot of a column touches the last row, and the first row of the next column.
    if (starts // height != (ends - 1) // height).any():
        return (x0, 0, x1, height)
    return (x0, int((starts % height).min()), x1, int(((ends - 1) % height).max()) + 1)


def runs_to_crop(runs: Runs, size_hw: tuple[int, int]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the part of a mask inside its box, and the x0 y0 of the box.

    Returns
    -------
    tuple
        (h, w) bool, and the place of its upper left pixel in the image. The rest of the mask is empty. (0, 0) bool
        for a mask without a pixel.
    """
    x0, y0, x1, y1 = runs_to_box(runs, size_hw)
    if x0 == x1:
        return np.zeros((0, 0), np.bool_), (0, 0)
    height = size_hw[0]
    starts, ends = runs_to_spans(runs)
    # Only the columns of the box are laid out, so the cost follows the mask and not the image.
    edges = np.stack([starts, ends], axis=1).ravel() - x0 * height
    lengths = np.diff(np.concatenate(([0], edges, [(x1 - x0) * height])))
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(x1 - x0, height)
    # OpenCV transposes by tiles, five times as fast as a strided copy.
    return np.asarray(cv2.transpose(columns[:, y0:y1].view(np.uint8))).view(np.bool_), (x0, y0)


def runs_to_spans(runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return begin and end (k,) int64 of every stretch of set pixels, counted column by column; ends are half-open."""
    edges = np.cumsum(runs, dtype=np.int64)
    ends = edges[1::2]
    starts = edges[: 2 * len(ends) : 2]
    is_some = ends > starts
    return starts[is_some], ends[is_some]


def paint_order(masks: Sequence[Runs]) -> list[int]:
    """Return the order in which masks are painted over one another: large first, of equal areas the earlier first."""
    areas = [runs_to_area(runs) for runs in masks]
    # sorted is stable.
    return sorted(range(len(areas)), key=lambda index: -areas[index])


def paint_runs(canvas: NDArray[Any], runs: Runs, value: int) -> None:
    """Set the pixels of a mask to a value, in place.

    Parameters
    ----------
    canvas
        (W, H), contiguous: the image column by column, as run lengths count it.
    """
    assert canvas.flags.c_contiguous, "the canvas is not contiguous, so a copy would be painted"
    flat = canvas.reshape(-1)
    for start, end in zip(*(side.tolist() for side in runs_to_spans(runs)), strict=True):
        flat[start:end] = value
