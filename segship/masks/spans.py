# SPDX-License-Identifier: Apache-2.0
"""Spans of masks and the boxes around them, in whole pixels of the image frame.

On the use road between a prediction and its files. A box is half-open: it begins at the first set pixel and ends one
past the last, so that x1 - x0 is a width and a box drawn on the grid lines of the pixels encloses the mask. The
reference (segment_anything/utils/amg.py batched_mask_to_box) ends at the last set pixel itself; COCO's own boxes of
run lengths are like ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segship.arrays import BoolArray, IntArray
from segship.errors import InputError
from segship.masks.rle import Runs, read_rle


def masks_to_boxes(masks: BoolArray) -> IntArray:
    """Return the boxes (..., 4) int64 x0 y0 x1 y1 around masks (..., H, W) bool; zeros for a mask without a pixel.

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


def xyxy_to_xywh(boxes_xyxy: IntArray) -> IntArray:
    """Return boxes (..., 4) as x0 y0 width height, the form of COCO and of SA-1B records."""
    return np.concatenate([boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]], axis=-1)


def _first_and_end(occupied: BoolArray) -> tuple[IntArray, IntArray]:
    """Return of (..., n) the index of the first True and one past the last; 0 and 0 where there is none."""
    length = occupied.shape[-1]
    if not length:
        nothing = np.zeros(occupied.shape[:-1], np.int64)
        return nothing, nothing
    first = occupied.argmax(axis=-1)
    end = length - occupied[..., ::-1].argmax(axis=-1)
    return first, np.where(occupied.any(axis=-1), end, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """The set pixels of k masks of one size.

    Parameters
    ----------
    starts, ends
        (n,) int64, places in the column order of a mask, of all masks in turn; ascending inside a mask, none empty.
    offsets
        (k + 1,) int64: mask i has the spans from ``offsets[i]`` to before ``offsets[i + 1]``.
    pixels
        Pixels of a whole mask.
    """

    starts: IntArray
    ends: IntArray
    offsets: IntArray
    pixels: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def areas(self) -> IntArray:
        """Return the set pixels (k,) int64 of every mask."""
        return _sums_between(self.ends - self.starts, self.offsets)

    def boxes(self, height: int) -> IntArray:
        """Return the boxes (k, 4) int64 x0 y0 x1 y1, half-open; zeros for a mask without a pixel."""
        boxes = np.zeros((len(self), 4), np.int64)
        has_pixels = self.offsets[1:] > self.offsets[:-1]
        if not has_pixels.any():
            return boxes
        if height < 1 or self.pixels % height:
            message = f"height is {height}, and the masks have {self.pixels} pixels; give the rows of the masks"
            raise InputError(message, code="bad_shape")
        first, last = self.starts, self.ends - 1
        x0, x1 = first // height, last // height
        # A span that goes on into another column covers the foot of the one and the head of the other.
        is_one_column = x0 == x1
        y0 = np.where(is_one_column, first - x0 * height, 0)
        y1 = np.where(is_one_column, last - x1 * height, height - 1)
        begins = self.offsets[:-1][has_pixels]
        boxes[has_pixels, 0] = x0[begins]
        boxes[has_pixels, 1] = np.minimum.reduceat(y0, begins)
        boxes[has_pixels, 2] = x1[self.offsets[1:][has_pixels] - 1] + 1
        boxes[has_pixels, 3] = np.maximum.reduceat(y1, begins) + 1
        return boxes

    def intersections(self, index: int, others: Spans, chosen: IntArray) -> IntArray:
        """Return how many pixels (m,) int64 mask ``index`` shares with the masks ``chosen`` (m,) of ``others``."""
        mine = slice(self.offsets[index], self.offsets[index + 1])
        starts, ends = self.starts[mine], self.ends[mine]
        if not len(starts) or not len(chosen):
            return np.zeros(len(chosen), np.int64)
        lengths = others.offsets[chosen + 1] - others.offsets[chosen]
        bounds = np.cumsum(np.concatenate(([0], lengths)))
        places = np.arange(bounds[-1]) + np.repeat(others.offsets[chosen] - bounds[:-1], lengths)
        before = np.cumsum(np.concatenate(([0], ends - starts)))
        # One in front, so that every place has a last span that begins before it.
        ends = np.concatenate(([0], ends))
        shared = _set_before(others.ends[places], starts, ends, before)
        shared -= _set_before(others.starts[places], starts, ends, before)
        return _sums_between(shared, bounds)


def _sums_between(values: IntArray, bounds: IntArray) -> IntArray:
    sums = np.cumsum(np.concatenate(([0], values)))
    return np.asarray(sums[bounds[1:]] - sums[bounds[:-1]])


def _set_before(places: IntArray, starts: IntArray, ends: IntArray, before: IntArray) -> IntArray:
    """Return how many set pixels of one mask lie before each place of the column order."""
    spans = np.searchsorted(starts, places)
    return np.asarray(before[spans] - np.maximum(ends[spans] - places, 0))


def read_spans(runs: Sequence[Runs | Mapping[str, Any]]) -> Spans:
    """Return the spans of k masks of one size, each given as run lengths (n,) int64 or as a COCO run-length object."""
    arrays = [read_rle(one)[0] if isinstance(one, Mapping) else one for one in runs]
    lengths = np.fromiter((len(one) for one in arrays), np.int64, len(arrays))
    bounds = np.cumsum(np.concatenate(([0], lengths)))
    flat = np.concatenate([np.zeros(0, np.int64), *arrays])
    if flat.dtype != np.int64 or (flat < 0).any():
        message = "run lengths are whole numbers (int64) from 0 up; segship.masks.rle.read_rle checks those of a file"
        raise InputError(message, code="bad_rle")
    ends = np.cumsum(flat)
    totals = np.diff(np.concatenate(([0], ends))[bounds])
    if len(totals) and (totals != totals[0]).any():
        message = f"masks of one call have {totals.min()} and {totals.max()} pixels; give masks of one size"
        raise InputError(message, code="bad_shape")
    pixels = int(totals[0]) if len(totals) else 0
    # Every second run of a mask is set. A file may have runs of no length in the middle.
    is_set = ((np.arange(len(flat)) ^ np.repeat(bounds[:-1], lengths)) & 1 == 1) & (flat > 0)
    ends -= np.repeat(np.arange(len(arrays), dtype=np.int64) * pixels, lengths)
    offsets = np.concatenate(([0], np.cumsum(is_set)))[bounds]
    return Spans(ends[is_set] - flat[is_set], ends[is_set], offsets, pixels)


def runs_to_areas(runs: Sequence[Runs]) -> IntArray:
    """Return the set pixels (k,) int64 of k masks given as run lengths.

    Examples
    --------
    >>> import numpy as np
    >>> runs_to_areas([np.array([2, 3, 1]), np.array([6])])
    array([3, 0])
    """
    return np.fromiter((one[1::2].sum(dtype=np.int64) for one in runs), np.int64, len(runs))


def runs_to_boxes(runs: Sequence[Runs | Mapping[str, Any]], height: int) -> IntArray:
    """Return the boxes (k, 4) int64 x0 y0 x1 y1 around k masks of ``height`` rows, given as `read_spans` takes them.

    Examples
    --------
    >>> import numpy as np
    >>> runs_to_boxes([np.array([2, 1, 1, 2])], 2)
    array([[1, 0, 3, 2]])
    """
    return read_spans(runs).boxes(height)


def merge_runs(runs: Sequence[Runs | Mapping[str, Any]], *, intersect: bool = False) -> Runs:
    """Return the run lengths of the union of at least one mask, or of the intersection; `read_spans` says of what.

    Examples
    --------
    >>> import numpy as np
    >>> merge_runs([np.array([1, 2, 3]), np.array([2, 2, 2])])
    array([1, 3, 2])
    """
    if not len(runs):
        raise InputError("there are no masks to merge, so their size is unknown; give at least one", code="bad_shape")
    spans = read_spans(runs)
    return spans_to_runs(spans.starts, spans.ends, spans.pixels, at_least=len(spans) if intersect else 1)


def spans_to_runs(starts: IntArray, ends: IntArray, pixels: int, *, at_least: int = 1) -> Runs:
    """Return the run lengths of the places that ``at_least`` so many spans cover; spans in any order."""
    places = np.concatenate([starts, ends])
    steps = np.repeat(np.array([1, -1]), [len(starts), len(ends)])
    order = np.argsort(places, kind="stable")
    places, steps = places[order], steps[order]
    # What begins and ends at one place is one change: look at the count behind the last of them.
    is_last = np.diff(places, append=-1) != 0
    places, covered = places[is_last], np.cumsum(steps)[is_last] >= at_least
    places = places[np.diff(covered.astype(np.int8), prepend=0) != 0]
    return np.asarray(np.diff(places[places < pixels], prepend=0, append=pixels))
