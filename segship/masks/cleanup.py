# SPDX-License-Identifier: Apache-2.0
"""Clean-up of prompted masks: what a small model leaves ragged, and a prompt makes plain.

On the use road between the decoder and the masks at image size, and only where a bundle's manifest turns it on; SAM's
own masks never pass through here. The pieces of a mask are told apart on the decoder's low-resolution grid, where that
costs a tenth of a millisecond however large the image is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


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
    smallest_piece: float = 0.05
    smallest_hole: float = 0.002
    box_margin: float | None = 0.0


def clean_low_res(
    logits: FloatArray, clean_up: MaskCleanUp, *, points_xy: FloatArray, labels: NDArray[np.int64], has_box: bool
) -> FloatArray:
    """Return the logits of one mask with stray pieces dropped and small holes filled.

    A dropped or filled cell keeps its magnitude and changes its sign, so the edges of what stays do not move.

    Parameters
    ----------
    logits
        (h, w) float32, the decoder's grid without the padding.
    clean_up
        What to do.
    points_xy
        (n, 2) float32 x y in cells of the grid; the centre of the first cell is (0.5, 0.5).
    labels
        (n,) 1 foreground, 0 background.
    has_box
        Whether the object has a box; its pieces are then left to the box.
    """
    cells = np.floor(points_xy).astype(int).clip(0, (logits.shape[1] - 1, logits.shape[0] - 1))
    logits = _drop_pieces(logits, clean_up, cells[labels == 1], has_box)
    if clean_up.smallest_hole > 0:
        logits = _fill_holes(logits, clean_up.smallest_hole * logits.size, cells[labels == 0])
    return logits


def _drop_pieces(logits: FloatArray, clean_up: MaskCleanUp, cells: NDArray[np.int_], has_box: bool) -> FloatArray:
    count, pieces, stats, _ = cv2.connectedComponentsWithStats((logits > 0).astype(np.uint8), connectivity=8)
    if count <= 2:
        return logits
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    clicked = np.zeros(count, np.bool_)
    clicked[pieces[cells[:, 1], cells[:, 0]]] = True
    clicked[0] = False
    kept = clicked | (areas >= clean_up.smallest_piece * areas.max())
    if clean_up.keep_clicked_piece and not has_box and clicked.any():
        kept = clicked
    # What is not in the mask is no piece.
    kept[0] = True
    return logits if kept.all() else np.where(kept[pieces], logits, -np.abs(logits))


def _fill_holes(logits: FloatArray, smallest: float, cells: NDArray[np.int_]) -> FloatArray:
    gaps = (logits <= 0).astype(np.uint8)
    count, holes, stats, _ = cv2.connectedComponentsWithStats(gaps, connectivity=4)
    if count < 2:
        return logits
    x, y, width, height, area = stats[1:].T
    inside = (x > 0) & (y > 0) & (x + width < logits.shape[1]) & (y + height < logits.shape[0])
    small = 1 + np.flatnonzero(inside & (area < smallest))
    wanted = {int(holes[y, x]) for x, y in cells}
    filled = np.isin(holes, [number for number in small.tolist() if number not in wanted])
    # A hole's logit may be 0 exactly, and only what is above 0 is set.
    return np.where(filled, np.maximum(np.abs(logits), np.float32(1e-3)), logits)


def clear_outside_box(mask: NDArray[Any], box_xyxy: FloatArray, margin: float) -> None:
    """Clear in place what lies outside a box: False in a mask (H, W), a negative logit in float32 logits.

    A pixel lies inside if its square touches the grown box.
    """
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, top = max(int(np.floor(x0 - dx)), 0), max(int(np.floor(y0 - dy)), 0)
    right, bottom = max(int(np.ceil(x1 + dx)), 0), max(int(np.ceil(y1 + dy)), 0)
    for outside in (mask[:top], mask[bottom:], mask[top:bottom, :left], mask[top:bottom, right:]):
        outside[...] = False if mask.dtype == np.bool_ else -np.abs(outside)
