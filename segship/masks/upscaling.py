# SPDX-License-Identifier: Apache-2.0
"""Low-resolution logits to pixels of the image: only where a mask can be, and equal to the reference's bits.

On the use road behind the decoder, for prompted masks and for everything alike. The reference enlarges logits twice,
bilinearly: to the model frame and, its padding cut off, to the image (segment_anything/modeling/sam.py
postprocess_masks). Each step is a product with a banded matrix for each axis, and two banded matrices are one:

    image = Y2 (Y1 L X1') X2' = (Y2 Y1) L (X2 X1)' = Y L X'

A pixel depends on at most three neighbouring cells along an axis, so a tile of some pixels needs a small dense block
of Y or X. A bilinear value is never above the largest of those that it is made of, so only pixels near a cell above
the threshold are looked at. Rounding differs from the reference's; where a logit lies so close to its threshold that
this could matter, that pixel alone is computed anew in exactly the arithmetic of torch's
``interpolate(mode="bilinear", align_corners=False)`` on float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from segship.arrays import BoolArray, FloatArray, IntArray, Points

# Pixels of a block: four cells or so at the usual sizes, so that few of a block's weights are zero. So many blocks are
# multiplied in one call, and so many pixels across: the logits of a call stay in the second- or third-level cache.
_TILE = 28
_BLOCKS = 8
_ACROSS = 4096
# A strip of columns holds about so many pixels: few enough for the cache, enough to make numpy's calls worth while.
_STRIP_PIXELS = 2**19
# Several times the rounding error of the products, as a part of the largest logit.
_DOUBT = 4e-6
MARGIN = 2
"""A pixel that depends on a cell depends on no other that is further from it than this."""


class LogitsPatch(NamedTuple):
    """A part of a low-resolution mask."""

    logits: FloatArray
    """(h, w) float32, finite."""
    top: int = 0
    """Row of the whole mask that the first row is."""
    left: int = 0
    """Column of the whole mask that the first column is."""


class Window(NamedTuple):
    """A part of the image: half-open rows and columns."""

    top: int
    bottom: int
    left: int
    right: int


NOTHING = Window(0, 0, 0, 0)


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
    masks: list[BoolArray]


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """Both steps along one axis, as one banded matrix cut into blocks of ``_TILE`` pixels.

    Pixel ``_TILE * b + i`` of the image is the sum over j of ``weights[b, i, j]`` times cell ``cells[b, j]``.
    """

    to_frame: Taps
    to_image: Taps
    weights: FloatArray
    cells: IntArray
    # First and one past the last low-resolution cell that each image pixel depends on; both never fall.
    begin: IntArray
    end: IntArray

    def reach(self, low: int, high: int) -> tuple[int, int]:
        """Return the half-open range of image pixels that depend on the cells from low up to high."""
        first, last = np.searchsorted(self.end, low, side="right"), np.searchsorted(self.begin, high, side="left")
        return int(first), int(last)


class Upscaler:
    """Enlarges masks of one image or crop; `upscaler` keeps those that were made last.

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

    @property
    def everything(self) -> Window:
        """The whole image."""
        return Window(0, self.original_size[0], 0, self.original_size[1])

    def valid(self, low_res: FloatArray) -> LogitsPatch:
        """Return the part of a whole low-resolution mask that the image depends on, not copied."""
        height, width = self.valid_cells
        return LogitsPatch(low_res[:height, :width])

    def cells_at(self, points_xy: Points) -> tuple[IntArray, IntArray]:
        """Return rows and columns (...) of the cells at points (..., 2), pixels of the image, or nearest to them."""
        height, width = self.valid_cells
        cells = (points_xy / np.array(self.pixels_per_cell[::-1])).astype(np.int64)
        return cells[..., 1].clip(0, height - 1), cells[..., 0].clip(0, width - 1)

    def window(self, patch: LogitsPatch, level: float = 0.0) -> Window:
        """Return the part of the image where logits can be above a level."""
        bounds = _occupied(patch.logits, level)
        if bounds is None:
            return NOTHING
        top, bottom = self._y.reach(patch.top + bounds.top, patch.top + bounds.bottom)
        left, right = self._x.reach(patch.left + bounds.left, patch.left + bounds.right)
        return Window(top, bottom, left, right) if top < bottom and left < right else NOTHING

    def strips(self, patch: LogitsPatch, thresholds: Sequence[float], window: Window) -> Iterator[Strip]:
        """Yield, some columns at a time, where the logits in a window are above each threshold."""
        turned = LogitsPatch(patch.logits.T, patch.left, patch.top)
        height = window.bottom - window.top
        columns = max(_TILE, _STRIP_PIXELS // (height + 1) // _TILE * _TILE)
        for left in range(window.left, window.right, columns):
            right = min(left + columns, window.right)
            masks = [np.empty((right - left, height + 1), np.bool_) for _ in thresholds]
            bodies = [mask[:, :height] for mask in masks]
            doubtful = _compare(
                self._x, self._y, turned, (left, right), (window.top, window.bottom), thresholds, bodies
            )
            for mask, threshold, (x, y) in zip(masks, thresholds, doubtful, strict=True):
                if len(x):
                    mask[x, y] = self.exact(patch, y + window.top, x + left) > np.float32(threshold)
                mask[:, height] = False
            yield Strip(left, masks)

    def paint(self, patch: LogitsPatch, window: Window, mask: BoolArray) -> None:
        """Set the pixels of a window of a mask (H, W) bool: True where a logit is above 0."""
        body = mask[window.top : window.bottom, window.left : window.right]
        rows, columns = (window.top, window.bottom), (window.left, window.right)
        (y, x), *_ = _compare(self._y, self._x, patch, rows, columns, (0.0,), [body])
        if len(y):
            body[y, x] = self.exact(patch, y + window.top, x + window.left) > 0

    def enlarge(self, patch: LogitsPatch) -> FloatArray:
        """Return the logits (H, W) float32 of the whole image; each is above 0 exactly where the reference's is."""
        height, width = self.original_size
        logits = np.empty((height, width), np.float32)
        for rows, columns, tile in _tiles(self._y, self._x, patch, (0, height), (0, width)):
            logits[rows, columns] = tile
        y, x = np.nonzero(np.abs(logits) <= _doubt(patch.logits))
        if len(y):
            logits[y, x] = self.exact(patch, y, x)
        return logits

    def reach(self, patch: LogitsPatch) -> Window:
        """Return the part of the image that depends on the cells of a patch."""
        height, width = patch.logits.shape
        return Window(*self._y.reach(patch.top, patch.top + height), *self._x.reach(patch.left, patch.left + width))

    def spread(self, cells: BoolArray, patch: LogitsPatch, window: Window) -> BoolArray:
        """Return a window (rows, columns) of the image: of each pixel a cell (h, w) of a patch that it depends on."""
        rows = self._y.begin[window.top : window.bottom] - patch.top
        columns = self._x.begin[window.left : window.right] - patch.left
        height, width = cells.shape
        return cells.take(columns.clip(0, width - 1), axis=1).take(rows.clip(0, height - 1), axis=0)

    def blocks(
        self, planes: FloatArray, patch: LogitsPatch, wanted: BoolArray
    ) -> Iterator[tuple[slice, slice, FloatArray]]:
        """Yield planes (n, h, w) that lie where a patch does, enlarged where a pixel depends on a wanted cell (h, w).

        These are rows and columns of the image, and values (n, rows, columns). Wanted cells lie at least two from a
        side of the patch that is none of the image's.
        """
        count, height, width = planes.shape
        window = self.reach(patch)
        across = _multiply_across(self._x, planes.reshape(-1, width), patch.left, window.left, window.right)
        across = across.reshape(count, height, -1)
        for first in range(window.top // _TILE * _TILE, window.bottom, _TILE):
            begin, end = max(first, window.top), min(first + _TILE, window.bottom)
            cells = (self._y.cells[first // _TILE] - patch.top).clip(0, height - 1)
            weights = self._y.weights[first // _TILE, begin - first : end - first]
            band = across[:, cells]
            edges = np.flatnonzero(np.diff(wanted[cells].any(axis=0), prepend=False, append=False))
            for low, high in edges.reshape(-1, 2) + patch.left:
                left, right = self._x.reach(low, high)
                values = weights @ band[:, :, left - window.left : right - window.left]
                yield slice(begin, end), slice(left, right), values

    def exact(self, patch: LogitsPatch, rows: IntArray, columns: IntArray) -> FloatArray:
        """Return (n,) float32 logits at some pixels of the image, bit for bit what torch computes there."""
        y, x = self._y.to_image.at(rows), self._x.to_image.at(columns)
        corners = [self._frame(patch, row, column) for row in (y.first, y.second) for column in (x.first, x.second)]
        return _blend(corners, y, x)

    def _frame(self, patch: LogitsPatch, rows: IntArray, columns: IntArray) -> FloatArray:
        y, x = self._y.to_frame.at(rows), self._x.to_frame.at(columns)
        return _blend(
            [
                patch.logits[row - patch.top, column - patch.left]
                for row in (y.first, y.second)
                for column in (x.first, x.second)
            ],
            y,
            x,
        )


@lru_cache(maxsize=16)
def upscaler(
    low_res_size: int, image_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> Upscaler:
    """Return an `Upscaler`, which holds no image: pictures of one size share it, and so do threads."""
    return Upscaler(low_res_size, image_size, input_size, original_size)


def crop_patch(patch: LogitsPatch, margin: int = MARGIN) -> LogitsPatch:
    """Return a copy of the cells that pixels with a logit above 0 can depend on; none if no cell is above 0.

    With a larger ``margin`` more cells around those above 0 are kept.
    """
    bounds = _occupied(patch.logits, 0.0)
    if bounds is None:
        return LogitsPatch(np.zeros((0, 0), np.float32))
    top, left = max(bounds.top - margin, 0), max(bounds.left - margin, 0)
    part = patch.logits[top : bounds.bottom + margin, left : bounds.right + margin]
    return LogitsPatch(part.copy(), patch.top + top, patch.left + left)


def _occupied(logits: FloatArray, level: float) -> Window | None:
    """Return the rows and columns around the cells that can put a pixel above a level."""
    # A sum of numbers that are not above 0 is not above 0, however it is rounded.
    slack = _DOUBT * max(1.0, abs(level)) if level else 0.0
    above = logits > np.float32(level - slack)
    rows = np.flatnonzero(above.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(above.any(axis=0))
    return Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def _compare(
    outer: _Axis,
    inner: _Axis,
    patch: LogitsPatch,
    outer_range: tuple[int, int],
    inner_range: tuple[int, int],
    thresholds: Sequence[float],
    masks: Sequence[BoolArray],
) -> list[tuple[IntArray, IntArray]]:
    """Fill masks (outer, inner), one a threshold, where logits are above it; return the places left in doubt.

    ``patch`` is turned so that its rows lie along the outer axis. A place is in doubt if its logit is near the
    threshold: above it less the doubt, and not above it plus the doubt.
    """
    doubt = _doubt(patch.logits)
    bounds = [(np.float32(threshold - doubt), np.float32(threshold + doubt)) for threshold in thresholds]
    found: list[list[IntArray]] = [[] for _ in thresholds]
    width = inner_range[1] - inner_range[0]
    # Whole words, so that eight pixels are compared at a time.
    above, maybe = (np.zeros(_BLOCKS * _TILE * min(width, _ACROSS) + 8, np.bool_) for _ in range(2))
    for rows, columns, logits in _tiles(outer, inner, patch, outer_range, inner_range):
        flat = logits.reshape(-1)
        size = -(-len(flat) // 8) * 8
        above[len(flat) : size] = maybe[len(flat) : size] = False
        for mask, (low, high), places in zip(masks, bounds, found, strict=True):
            np.greater(flat, high, out=above[: len(flat)])
            np.greater(flat, low, out=maybe[: len(flat)])
            mask[rows, columns] = above[: len(flat)].reshape(logits.shape)
            words = np.flatnonzero(above[:size].view(np.uint64) != maybe[:size].view(np.uint64))
            if len(words):
                near = (8 * words[:, None] + np.arange(8)).ravel()
                row, column = np.divmod(near[above[near] != maybe[near]], logits.shape[1])
                places.append((row + rows.start) * width + column + columns.start)
    return [np.divmod(np.concatenate([np.zeros(0, np.int64), *places]), max(width, 1)) for places in found]


def _tiles(
    outer: _Axis, inner: _Axis, patch: LogitsPatch, outer_range: tuple[int, int], inner_range: tuple[int, int]
) -> Iterator[tuple[slice, slice, FloatArray]]:
    """Yield enlarged logits tile by tile: rows and columns of the tile in the ranges, and its logits (rows, columns).

    The next tile lies in the same memory.
    """
    begin, end = outer_range
    for left in range(*inner_range, _ACROSS):
        right = min(left + _ACROSS, inner_range[1])
        across = _multiply_across(inner, patch.logits, patch.left, left, right)
        logits = np.empty((_BLOCKS, _TILE, right - left), np.float32)
        columns = slice(left - inner_range[0], right - inner_range[0])
        for first in range(begin // _TILE, -(-end // _TILE), _BLOCKS):
            weights = outer.weights[first : first + _BLOCKS]
            # What lies outside the given cells has no weight in the pixels that are asked for; any cell will do.
            rows = (outer.cells[first : first + _BLOCKS] - patch.top).clip(0, len(across) - 1)
            np.matmul(weights, across[rows], out=logits[: len(weights)])
            top, bottom = max(begin, first * _TILE), min(end, (first + len(weights)) * _TILE)
            tile = logits.reshape(-1, right - left)[top - first * _TILE : bottom - first * _TILE]
            yield slice(top - begin, bottom - begin), columns, tile


def _multiply_across(axis: _Axis, logits: FloatArray, first: int, begin: int, end: int) -> FloatArray:
    """Return (rows, end - begin): logits (rows, cells), whose first column is cell ``first``, enlarged along rows."""
    across = np.empty((len(logits), end - begin), np.float32)
    last = first + logits.shape[1]
    for block in range(begin // _TILE, -(-end // _TILE)):
        base, cell = block * _TILE, int(axis.cells[block, 0])
        start, stop = max(begin, base), min(end, base + _TILE)
        left, right = max(cell, first), min(cell + axis.weights.shape[2], last)
        weights = axis.weights[block, start - base : stop - base, left - cell : right - cell]
        np.matmul(logits[:, left - first : right - first], weights.T, out=across[:, start - begin : stop - begin])
    return across


def _doubt(logits: FloatArray) -> float:
    if not logits.size:
        return _DOUBT
    return _DOUBT * max(1.0, float(logits.max()), -float(logits.min()))


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
    begin, end = to_frame.first[to_image.first], to_frame.second[to_image.second] + 1
    starts = np.arange(0, size, _TILE)
    spans = end[np.minimum(starts + _TILE, size) - 1] - begin[starts]
    width = int(spans.max())
    # All blocks are equally wide, so the last ones begin a little early.
    firsts = np.minimum(begin[starts], cells - width)
    weights = np.zeros((len(starts), _TILE, width), np.float32)
    block, row = np.divmod(np.arange(size), _TILE)
    for frame_place, weight in ((to_image.first, to_image.lower), (to_image.second, to_image.upper)):
        step = to_frame.at(frame_place)
        np.add.at(weights, (block, row, step.first - firsts[block]), weight * step.lower)
        np.add.at(weights, (block, row, step.second - firsts[block]), weight * step.upper)
    return _Axis(to_frame, to_image, weights, firsts[:, None] + np.arange(width), begin, end)


# Column, first row and length of spans of set pixels, in column-major order.
_Spans = tuple[IntArray, IntArray, IntArray]


class EncodedMask(NamedTuple):
    """A mask of the image."""

    runs: IntArray
    """(n,) int64 run lengths, column by column, beginning with zeros."""
    area: int
    """Set pixels."""
    box_xyxy: tuple[int, int, int, int]
    """First and last set column and row of the image, as the reference's boxes are; zeros without a pixel."""


def count_above(patch: LogitsPatch, upscaler: Upscaler, offset: float) -> tuple[int, int]:
    """Return how many pixels have a logit above ``offset``, and how many above ``-offset``."""
    core = whole = 0
    for strip in upscaler.strips(patch, (offset, -offset), upscaler.window(patch, -offset)):
        core += int(np.count_nonzero(strip.masks[0]))
        whole += int(np.count_nonzero(strip.masks[1]))
    return core, whole


def encode_logits(
    patch: LogitsPatch,
    upscaler: Upscaler,
    *,
    corner_xy: tuple[int, int],
    image_size_hw: tuple[int, int],
    window: Window | None = None,
) -> EncodedMask:
    """Return the mask of low-resolution logits, those above 0, in the image, where their crop begins at a corner.

    Outside ``window``, a part of the crop, nothing is set; it is found from the logits when left out.
    """
    left, top = corner_xy
    if window is None:
        window = upscaler.window(patch)
    pieces = []
    for strip in upscaler.strips(patch, (0.0,), window):
        columns, rows, lengths = _find_spans(strip.masks[0])
        pieces.append((columns + strip.left + left, rows + window.top + top, lengths))
    return _encode(pieces, image_size_hw)


def encode_mask(mask: BoolArray, *, corner_xy: tuple[int, int], image_size_hw: tuple[int, int]) -> EncodedMask:
    """Return a mask (h, w) bool of a crop in the image, where the crop begins at a corner."""
    columns, rows, lengths = _find_spans(np.pad(mask.T, ((0, 0), (0, 1))))
    return _encode([(columns + corner_xy[0], rows + corner_xy[1], lengths)], image_size_hw)


def _find_spans(mask: BoolArray) -> _Spans:
    """Return the spans of (columns, rows + 1) bool whose last row is False, so that no span goes past its column."""
    flat = mask.reshape(-1)
    if not flat.size:
        return (np.zeros(0, np.int64),) * 3
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate(([0], edges))
    starts, ends = edges[0::2], edges[1::2]
    columns, rows = np.divmod(starts, mask.shape[1])
    return columns, rows, ends - starts


def _encode(pieces: Iterable[_Spans], image_size_hw: tuple[int, int]) -> EncodedMask:
    height, width = image_size_hw
    pieces = [piece for piece in pieces if len(piece[0])]
    if not pieces:
        return EncodedMask(np.array([height * width], np.int64), 0, (0, 0, 0, 0))
    columns, rows, lengths = (np.concatenate(part) for part in zip(*pieces, strict=True))
    box = int(columns[0]), int(rows.min()), int(columns[-1]), int((rows + lengths).max()) - 1
    starts = columns * height + rows
    return EncodedMask(_join(starts, starts + lengths, height * width), int(lengths.sum()), box)


def _join(starts: IntArray, ends: IntArray, pixels: int) -> IntArray:
    """Return the run lengths of spans in order; two that touch become one."""
    apart = starts[1:] != ends[:-1]
    edges = np.empty(2 * np.count_nonzero(apart) + 4, np.int64)
    edges[0], edges[-1] = 0, pixels
    edges[1:-1:2] = starts[np.concatenate(([True], apart))]
    edges[2:-1:2] = ends[np.concatenate((apart, [True]))]
    runs = np.diff(edges)
    # A mask that has the last pixel has no run of zeros after it.
    return runs if runs[-1] else runs[:-1]
