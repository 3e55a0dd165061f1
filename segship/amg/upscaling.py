# SPDX-License-Identifier: Apache-2.0
"""Low-resolution logits to masks at image size, without an image-sized float array and equal to the reference's bits.

The reference enlarges logits twice, bilinearly: to the model frame and, its padding cut off, to the image
(segment_anything/modeling/sam.py postprocess_masks). Both steps together are one banded matrix for each axis, so any
part of the result costs two small products. Rounding differs from the reference's; where a logit lies so close to its
threshold that this could matter, that pixel alone is computed anew in exactly the arithmetic of torch's
``interpolate(mode="bilinear", align_corners=False)`` on float32. What comes out is thresholded at once, column by
column, in strips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# Image columns and rows of a tile: large enough for numpy, small enough for the cache.
_TILE_COLUMNS = 128
_TILE_ROWS = 256
# Several times the rounding error of the products, as a part of the largest logit.
_DOUBT = 4e-6


class Window(NamedTuple):
    """A part of the image: half-open rows and columns."""

    top: int
    bottom: int
    left: int
    right: int


class Taps(NamedTuple):
    """One bilinear step along one axis: out[i] = lower[i] * x[first[i]] + upper[i] * x[second[i]]."""

    first: IntArray
    second: IntArray
    lower: FloatArray
    upper: FloatArray

    def at(self, places: IntArray) -> Taps:
        """Return the taps of some outputs."""
        return Taps(self.first[places], self.second[places], self.lower[places], self.upper[places])


class Strip(NamedTuple):
    """Some whole columns of a window: the first column, and for each threshold (columns, rows + 1) bool.

    The last row is False, so that two columns never touch.
    """

    left: int
    masks: list[NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """Both steps along one axis."""

    to_frame: Taps
    to_image: Taps
    matrix: FloatArray
    # First and one past the last low-resolution cell that each image pixel depends on; both never fall.
    begin: IntArray
    end: IntArray

    def reach(self, low: int, high: int) -> tuple[int, int]:
        """Return the half-open range of image pixels that depend on the cells from low up to high."""
        first, last = np.searchsorted(self.end, low, side="right"), np.searchsorted(self.begin, high, side="left")
        return int(first), int(last)


class Upscaler:
    """Enlarges masks of one image or crop.

    Parameters
    ----------
    low_res_size
        Side of the decoder's square masks, in cells.
    image_size
        Side of the square model frame, in pixels.
    input_size, original_size
        (height, width) of the resized image inside the model frame, and of the image.
    """

    def __init__(
        self, low_res_size: int, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
    ) -> None:
        self.original_size = original_size
        to_frame = bilinear_taps(low_res_size, image_size)
        self._y, self._x = (
            _join_steps(low_res_size, to_frame, bilinear_taps(valid, size))
            for valid, size in zip(input_size, original_size, strict=True)
        )
        self.valid_cells = int(self._y.end[-1]), int(self._x.end[-1])
        """Height and width of the part of a low-resolution mask that the image depends on."""
        pixels_per_side = image_size / low_res_size
        self.pixels_per_cell = (
            pixels_per_side * original_size[0] / input_size[0],
            pixels_per_side * original_size[1] / input_size[1],
        )
        """How many image pixels one cell is high and wide."""

    def window(self, low_res: FloatArray, level: float) -> Window:
        """Return the part of the image where logits can be above a level.

        A bilinear value is never above the largest of the values that it is made of.
        """
        occupied = low_res > level - _DOUBT * max(1.0, abs(level))
        rows, columns = np.flatnonzero(occupied.any(axis=1)), np.flatnonzero(occupied.any(axis=0))
        if not len(rows):
            return Window(0, 0, 0, 0)
        top, bottom = self._y.reach(int(rows[0]), int(rows[-1]) + 1)
        left, right = self._x.reach(int(columns[0]), int(columns[-1]) + 1)
        if top >= bottom or left >= right:
            return Window(0, 0, 0, 0)
        return Window(top, bottom, left, right)

    def strips(self, low_res: FloatArray, thresholds: Sequence[float], window: Window) -> Iterator[Strip]:
        """Yield, strip by strip, where the logits in a window are above each threshold.

        Parameters
        ----------
        low_res
            (h, w) float32 logits, finite.
        """
        transposed = np.ascontiguousarray(low_res.T)
        doubt = _DOUBT * max(1.0, float(np.abs(low_res).max()))
        height = window.bottom - window.top
        logits = np.empty((_TILE_COLUMNS, height), np.float32)
        for left in range(window.left, window.right, _TILE_COLUMNS):
            right = min(left + _TILE_COLUMNS, window.right)
            part = logits[: right - left]
            self._fill(part, transposed, left, right, window)
            masks = []
            for threshold in thresholds:
                mask = np.zeros((right - left, height + 1), np.bool_)
                np.greater(part, np.float32(threshold), out=mask[:, :height])
                self._settle(mask, part, low_res, threshold, doubt, (left, window.top))
                masks.append(mask)
            yield Strip(left, masks)

    def exact(self, low_res: FloatArray, rows: IntArray, columns: IntArray) -> FloatArray:
        """Return (n,) float32 logits at some pixels of the image, bit for bit what torch computes there."""
        y, x = self._y.to_image.at(rows), self._x.to_image.at(columns)
        corners = [self._frame(low_res, row, column) for row in (y.first, y.second) for column in (x.first, x.second)]
        return _blend(corners, y, x)

    def _frame(self, low_res: FloatArray, rows: IntArray, columns: IntArray) -> FloatArray:
        y, x = self._y.to_frame.at(rows), self._x.to_frame.at(columns)
        return _blend([low_res[row, column] for row in (y.first, y.second) for column in (x.first, x.second)], y, x)

    def _fill(self, part: FloatArray, transposed: FloatArray, left: int, right: int, window: Window) -> None:
        """Write the logits of some columns (columns, rows); only the cells that they depend on are touched."""
        first, last = int(self._x.begin[left]), int(self._x.end[right - 1])
        across = self._x.matrix[left:right, first:last] @ transposed[first:last]
        for top in range(window.top, window.bottom, _TILE_ROWS):
            bottom = min(top + _TILE_ROWS, window.bottom)
            begin, end = int(self._y.begin[top]), int(self._y.end[bottom - 1])
            tile = across[:, begin:end] @ self._y.matrix[top:bottom, begin:end].T
            part[:, top - window.top : bottom - window.top] = tile

    def _settle(
        self,
        mask: NDArray[np.bool_],
        part: FloatArray,
        low_res: FloatArray,
        threshold: float,
        doubt: float,
        corner: tuple[int, int],
    ) -> None:
        """Decide the pixels whose logit is too close to the threshold for rounded products."""
        near = np.abs(part - np.float32(threshold)) < doubt if threshold else np.abs(part) < doubt
        places = np.flatnonzero(near)
        if not len(places):
            return
        columns, rows = np.divmod(places, part.shape[1])
        left, top = corner
        mask[columns, rows] = self.exact(low_res, rows + top, columns + left) > np.float32(threshold)


def bilinear_taps(old: int, new: int) -> Taps:
    """Return one bilinear step at half-pixel positions, without antialiasing, in torch's float32 arithmetic.

    Follows aten/src/ATen/native/UpSample.h area_pixel_compute_source_index and guard_index_and_lambda; the position is
    one fused multiply-add, as torch's vector code has it.
    """
    scale = np.float64(np.float32(old) / np.float32(new))
    position = np.maximum((scale * (np.arange(new) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    first = np.minimum(position.astype(np.int64), old - 1)
    second = first + (first < old - 1)
    upper = np.clip(position - first.astype(np.float32), np.float32(0), np.float32(1))
    return Taps(first, second, np.float32(1) - upper, upper)


def _blend(corners: Sequence[FloatArray], y: Taps, x: Taps) -> FloatArray:
    """Return the bilinear values of four corners: upper left, upper right, lower left, lower right.

    As torch 2.13 adds them for several channels on one thread: the upper right product is rounded, the others are fused
    into sums. On several threads it takes another order, and the last bit may differ.
    """
    upper_left, upper_right, lower_left, lower_right = corners
    total = upper_right * (y.lower * x.upper)
    for corner, weight in (
        (upper_left, y.lower * x.lower),
        (lower_left, y.upper * x.lower),
        (lower_right, y.upper * x.upper),
    ):
        # 64 bits hold the product of two float32 exactly, so only the sum is rounded.
        total = (corner.astype(np.float64) * weight + total).astype(np.float32)
    return total


def _join_steps(cells: int, to_frame: Taps, to_image: Taps) -> _Axis:
    size = len(to_image.first)
    matrix = np.zeros((size, cells), np.float32)
    rows = np.arange(size)
    for frame_place, weight in ((to_image.first, to_image.lower), (to_image.second, to_image.upper)):
        step = to_frame.at(frame_place)
        np.add.at(matrix, (rows, step.first), weight * step.lower)
        np.add.at(matrix, (rows, step.second), weight * step.upper)
    return _Axis(
        to_frame, to_image, matrix, begin=to_frame.first[to_image.first], end=to_frame.second[to_image.second] + 1
    )
