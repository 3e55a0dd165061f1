# SPDX-License-Identifier: Apache-2.0
"""Clean-up of prompted masks: what a small model leaves ragged, and a prompt makes plain.

On the use road between the decoder and the masks at image size, and only where a bundle's manifest turns it on; SAM's
own masks never pass through here. The pieces of a mask are told apart on the decoder's low-resolution grid, where that
costs a tenth of a millisecond however large the image is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.arrays import AnyArray, BoolArray, FloatArray, IntArray
from segship.masks.upscaling import Window
from segship.spec import Part

# Labels of so many cells take about a millisecond.
_MOST_LABELLED = 2**18
# Eight set pixels.
_FULL = 0x0101010101010101


@dataclass(frozen=True, slots=True)
class MaskCleanUp:
    """What is done to masks.

    Attributes
    ----------
    keep_clicked_piece
        Drop every piece that no foreground point lies in, if an object has foreground points and no box. A mask that
        none of them lies in keeps its pieces.
    smallest_piece
        Drop pieces of less than this part of the largest one's area, unless a foreground point lies in them.
    smallest_hole
        Fill holes of less than this part of the image's area, unless a background point lies in them.
    box_margin
        Clear what lies outside an object's box, grown on each side by this part of the box's width or height; None
        clears nothing.
    """

    keep_clicked_piece: bool = True
    smallest_piece: Part = 0.05
    smallest_hole: Part = 0.002
    box_margin: Part | None = 0.0


def clean_low_res(
    logits: FloatArray, clean_up: MaskCleanUp, *, points_xy: FloatArray, labels: IntArray, has_box: bool
) -> FloatArray:
    """Return the logits of one mask with stray pieces dropped and small holes filled.

    A dropped or filled cell keeps its magnitude and changes its sign, so the edges of what stays do not move. Logits
    are (h, w) float32, the decoder's grid without the padding; points (n, 2) float32 x y in its cells, the centre of
    the first being (0.5, 0.5); labels (n,) 1 foreground, 0 background. The pieces of an object that has a box are left
    to the box.
    """
    cells = np.floor(points_xy).astype(int).clip(0, (logits.shape[1] - 1, logits.shape[0] - 1))
    stray = _stray_pieces(logits > 0, clean_up, cells[labels == 1], has_box)
    if stray is not None:
        logits = np.where(stray, -np.abs(logits), logits)
    holes = _small_holes(logits <= 0, clean_up.smallest_hole * logits.size, cells[labels == 0])
    # A hole's logit may be 0 exactly, and only what is above 0 is set.
    return logits if holes is None else np.where(holes, np.maximum(np.abs(logits), np.float32(1e-3)), logits)


def clean_mask(
    mask: BoolArray, clean_up: MaskCleanUp, *, points_xy: FloatArray, labels: IntArray, has_box: bool, area: int
) -> None:
    """Drop stray pieces and fill small holes of a part of a mask (h, w) bool in place.

    As `clean_low_res` does, at the size of a picture of ``area`` pixels. Large masks are labelled in blocks of 2, 4
    or 8 pixels a side, so that time stays bounded: what is nearer than a block belongs together, and stays.
    """
    side = next((side for side in (1, 2, 4) if mask.size <= _MOST_LABELLED * side**2), 8)
    height, width = (-(-length // side) for length in mask.shape)
    whole = np.zeros((height * side, width * side), np.bool_)
    whole[: mask.shape[0], : mask.shape[1]] = mask
    # The rows of a block are a number each, so that eight pixels are looked at in one.
    blocks = whole.view(f"u{side}").reshape(height, side, width)
    cells = np.floor(points_xy / side).astype(int)
    is_here = ((cells >= 0) & (cells < (width, height))).all(axis=1)
    cells, labels = cells[is_here], labels[is_here]
    stray = _stray_pieces(np.bitwise_or.reduce(blocks, axis=1) != 0, clean_up, cells[labels == 1], has_box)
    if stray is not None:
        blocks.transpose(0, 2, 1)[stray] = 0
    full = blocks.dtype.type(_FULL >> 8 * (8 - side))
    outside = np.bitwise_and.reduce(blocks, axis=1) != full
    holes = _small_holes(outside, clean_up.smallest_hole * area / side**2, cells[labels == 0])
    if holes is not None:
        blocks.transpose(0, 2, 1)[holes] = full
    mask[...] = whole[: mask.shape[0], : mask.shape[1]]


def _stray_pieces(
    inside: BoolArray, clean_up: MaskCleanUp, clicked_cells: NDArray[np.int_], has_box: bool
) -> BoolArray | None:
    """Return the cells (h, w) of the pieces that go; None if none does."""
    count, pieces = _label(inside, 8)
    if count <= 2:
        return None
    clicked = np.zeros(count, np.bool_)
    clicked[pieces[clicked_cells[:, 1], clicked_cells[:, 0]]] = True
    clicked[0] = False
    if clean_up.keep_clicked_piece and not has_box and clicked.any():
        is_stray = ~clicked
    else:
        areas = np.bincount(pieces.ravel(), minlength=count)
        areas[0] = 0
        is_stray = ~clicked & (areas < clean_up.smallest_piece * areas.max())
    # What is not in the mask is no piece.
    is_stray[0] = False
    return is_stray.take(pieces) if is_stray.any() else None


def _small_holes(outside: BoolArray, smallest: float, meant_cells: NDArray[np.int_]) -> BoolArray | None:
    """Return the cells (h, w) of the holes that are filled; None if none is."""
    if smallest <= 0:
        return None
    count, holes = _label(outside, 4)
    if count < 2:
        return None
    is_small = np.bincount(holes.ravel(), minlength=count) < smallest
    # What touches the edge is no hole, and what a background point lies in is meant.
    for side in (holes[0], holes[-1], holes[:, 0], holes[:, -1], holes[meant_cells[:, 1], meant_cells[:, 0]]):
        is_small[side] = False
    # The label 0 stands for the mask itself.
    is_small[0] = False
    return is_small.take(holes) if is_small.any() else None


def _label(inside: BoolArray, connectivity: int) -> tuple[int, AnyArray]:
    """Return how many labels there are, and the label of each cell: 0 outside, 1 and on in the connected pieces."""
    # OpenCV reads past what has no cells, as the part of a mask that lies beside a picture of a pixel or two.
    if not inside.size:
        return 1, np.zeros(inside.shape, np.uint16)
    # Without OpenCV's own statistics, which take many times as long as the labels; and in 16 bits while they suffice,
    # which is quicker still: there can be no more labels than every second cell and the outside.
    kind = cv2.CV_16U if inside.size < 2**17 else cv2.CV_32S
    return cv2.connectedComponentsWithAlgorithm(inside.view(np.uint8), connectivity, kind, cv2.CCL_SPAGHETTI)


def box_window(box_xyxy: FloatArray, margin: float, size_hw: tuple[int, int]) -> Window:
    """Return the part of an image (height, width) inside a box, grown on each side by this part of its sides.

    A pixel lies inside if its square touches the grown box.
    """
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    height, width = size_hw
    top, left = min(max(int(np.floor(y0 - dy)), 0), height), min(max(int(np.floor(x0 - dx)), 0), width)
    bottom, right = min(max(int(np.ceil(y1 + dy)), top), height), min(max(int(np.ceil(x1 + dx)), left), width)
    return Window(top, bottom, left, right)


def clear_outside_box(logits: FloatArray, window: Window) -> None:
    """Make logits (H, W) float32 negative in place wherever they lie outside a window."""
    top, bottom, left, right = window
    for outside in (logits[:top], logits[bottom:], logits[top:bottom, :left], logits[top:bottom, right:]):
        outside[...] = -np.abs(outside)
