# SPDX-License-Identifier: Apache-2.0
"""How well the outlines of two masks agree, where IoU says only how well their areas do.

On the use road where results are judged: an exported graph against its model, a fast mode against an exact one.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.errors import InputError
from segship.masks.boxes import masks_to_boxes
from segship.masks.inputs import read_mask, read_number

# Pixels up to which growing a boundary is quicker than measuring the distance from everywhere.
_SMALL_REACH = 10


def mask_boundary(mask: npt.ArrayLike) -> NDArray[np.bool_]:
    """Return the pixels (H, W) bool of a mask that have a side in common with a pixel outside, or outside the image."""
    pixels = read_mask(mask)
    inner = np.pad(pixels, 1)
    return np.asarray(pixels & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]))


def boundary_f_score(first: npt.ArrayLike, second: npt.ArrayLike, *, tolerance_px: float = 2.0) -> float:
    """Return the boundary F score of two masks, from 0 to 1.

    The harmonic mean of the part of the first boundary that lies within a distance of the second, and of the part of
    the second that lies within it of the first. Follows the measure F of Perazzi et al., A Benchmark Dataset and
    Evaluation Methodology for Video Object Segmentation (CVPR 2016), with Euclidean distances between pixel centres;
    unlike there, the edge of the image is an outline of a mask that reaches it.

    Parameters
    ----------
    first, second
        (H, W) bool, of one size; the order does not matter.
    tolerance_px
        Distance in pixels up to which two boundary pixels agree.

    Returns
    -------
    float
        1 for two empty masks, 0 if only one is empty.

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
        raise InputError(f"The masks have the shapes {one.shape} and {other.shape}; give one size.", code="bad_shape")
    reach = read_number(tolerance_px, "tolerance_px")
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    # No distance that counts leads out of the box around both.
    x0, y0, x1, y1 = masks_to_boxes(one | other).tolist()
    boundaries = [mask_boundary(mask[y0:y1, x0:x1]) for mask in (one, other)]
    parts = [_part_within(a, b, reach) for a, b in (boundaries, boundaries[::-1])]
    return 2 * parts[0] * parts[1] / sum(parts) if any(parts) else 0.0


def _part_within(boundary: NDArray[np.bool_], other: NDArray[np.bool_], reach: float) -> float:
    if reach <= _SMALL_REACH:
        near = cv2.dilate(other.view(np.uint8), _disk(reach)).view(np.bool_)
    else:
        # Squares of distances between pixels are whole numbers, which float32 roots have only almost.
        distance = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near = np.rint(np.square(distance, dtype=np.float64)) <= reach * reach
    return float(np.count_nonzero(boundary & near) / np.count_nonzero(boundary))


def _disk(reach: float) -> NDArray[np.uint8]:
    offsets = np.arange(-int(reach), int(reach) + 1)
    return (offsets**2 + offsets[:, None] ** 2 <= reach * reach).astype(np.uint8)
