# SPDX-License-Identifier: Apache-2.0
"""Run lengths of one mask: from pixels and back, as COCO writes them, and what they tell without the pixels.

Run lengths are (n,) int64, column by column, beginning with zeros. COCO's compressed form writes each, from the fourth
on as the difference to the run two before, in groups of five bits, lowest first: bit 5 of a character says that
another group follows, bit 4 of the last group is the sign, and 48 makes it printable. Follows pycocotools
common/maskApi.c; unlike it, reading checks everything before it reserves memory. `read_mask` and `read_number` are the
door of `segship.masks` for what users give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import cv2
import numpy as np
import numpy.typing as npt

from segship.arrays import AnyArray, BoolArray, IntArray
from segship.errors import InputError


def read_mask(mask: npt.ArrayLike, name: str = "mask") -> BoolArray:
    """Return a mask (H, W) as bool; every whole number but 0 is a set pixel.

    Raises
    ------
    InputError
        ``bad_shape`` for another rank, ``bad_array_dtype`` for numbers with a fraction, which may be logits.
    """
    array: AnyArray = np.asarray(mask)
    if array.ndim != 2:
        raise InputError(f"{name} has the shape {array.shape}; accepted is one mask, (H, W)", code="bad_shape")
    if array.dtype.kind not in "biu":
        message = f"{name} has the type {array.dtype}; give bool or whole numbers, such as logits > 0"
        raise InputError(message, code="bad_array_dtype")
    return array if array.dtype == np.bool_ else array != 0


def read_number(value: float, name: str, *, most: float = math.inf) -> float:
    """Return a number from 0 to ``most``; refuses anything else, NaN too."""
    # `not`, since NaN is neither below nor above anything.
    if not 0 <= value <= most or math.isinf(value):
        accepted = "a finite number from 0 up" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise InputError(f"{name} is {value}; accepted is {accepted}", code="bad_option")
    return float(value)


Runs = IntArray

MAX_PIXELS = 400_000_000
"""The largest mask that is read unless a caller says otherwise: as many pixels as the largest image we take."""

_BITS = 5
_CONTINUES = 0x20
_SIGN = 0x10
_FIRST_CHARACTER = 48
# 7 groups are 35 bits: enough for the difference of any two 32-bit runs, which is all that COCO knows.
_MOST_GROUPS = 7
_LARGEST_RUN = 2**32 - 1
# With more than one word in so many changed, transposing the image is quicker than sorting the places.
_DENSE = 16


class Rle(TypedDict):
    """A mask as COCO has it in JSON.

    ``size`` is [height, width]; ``counts`` is the compressed string, or the list of run lengths.
    """

    size: list[int]
    counts: str | list[int]


def encode_rle(mask: BoolArray, *, compressed: bool = True) -> Rle:
    """Return a mask (H, W) bool as run lengths, compressed as COCO does it or as a plain list.

    Examples
    --------
    >>> import numpy as np
    >>> encode_rle(np.array([[False, True], [False, True]]))
    {'size': [2, 2], 'counts': '22'}
    """
    runs = mask_to_runs(mask)
    return Rle(size=list(np.shape(mask)), counts=compress_runs(runs) if compressed else runs.tolist())


def decode_rle(rle: Rle | Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> BoolArray:
    """Return the mask (H, W) bool of a COCO run-length object; takes and refuses what `read_rle` does."""
    runs, size_hw = read_rle(rle, max_pixels=max_pixels)
    return runs_to_mask(runs, size_hw)


def read_rle(rle: Rle | Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> tuple[Runs, tuple[int, int]]:
    """Return the run lengths (n,) int64 of a COCO run-length object, and height and width, without making the mask.

    Parameters
    ----------
    rle
        Holds ``size`` and ``counts``, see `Rle`; ``counts`` may be bytes, as pycocotools gives them.
    max_pixels
        A mask of more is refused before memory is reserved for it.

    Raises
    ------
    InputError
        ``bad_rle``: the runs do not fill the size exactly, one is negative, or they cannot be read at all.

    Examples
    --------
    >>> read_rle({"size": [2, 2], "counts": "22"})
    (array([2, 2]), (2, 2))
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise _bad("it is not a mapping with size and counts", "{'size': [height, width], 'counts': ...}")
    height, width = _read_size(rle["size"], max_pixels)
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        runs = decompress_runs(counts, height * width)
    else:
        runs = _read_counts(counts, height * width)
    _check_runs(runs, (height, width))
    return runs, (height, width)


def mask_to_runs(
    mask: BoolArray, *, corner_xy: tuple[int, int] = (0, 0), size_hw: tuple[int, int] | None = None
) -> Runs:
    """Return the run lengths (n,) int64 of a mask (h, w) bool, column by column, beginning with zeros.

    With a corner and a size, of an image of that height and width in which the mask's first pixel lies at that corner.

    Examples
    --------
    >>> import numpy as np
    >>> mask_to_runs(np.ones((1, 2), bool), corner_xy=(1, 0), size_hw=(2, 3))
    array([2, 1, 1, 1, 1])
    """
    mask = read_mask(mask)
    rows, columns = mask.shape
    height, width = (rows, columns) if size_hw is None else size_hw
    left, top = corner_xy
    assert 0 <= left <= width - columns and 0 <= top <= height - rows, f"{mask.shape} at {corner_xy} of {size_hw}"
    if not mask.size:
        # For an image without pixels, this is what pycocotools writes.
        return np.array([height * width], np.int64)
    x, y = _find_changes(mask, rows == height)
    edges = (x + left) * height + (y + top)
    if rows == height and mask[-1, -1]:
        edges = np.append(edges, (left + columns) * height)
    # Behind the last pixel of the image nothing changes.
    return np.asarray(np.diff(edges[edges < height * width], prepend=0, append=height * width))


def masks_to_runs(masks: BoolArray) -> list[Runs]:
    """Return the run lengths, each (n,) int64, of masks (k, H, W) bool; see `mask_to_runs`."""
    return [mask_to_runs(mask) for mask in masks]


def _find_changes(mask: BoolArray, is_whole_column: bool) -> tuple[Runs, Runs]:
    """Return x and y of the pixels that differ from the one before in the column order, in that order.

    Nothing is set around the window, so the pixel below its last row is one that may differ; in a window as high as
    the image, the pixel before the first row is the last one of the column before.
    """
    rows, columns = mask.shape
    height = rows if is_whole_column else rows + 1
    # Whole words, so that eight pixels are skipped at a time where nothing changes.
    flat = np.zeros(-(-height * columns // 8) * 8, np.bool_)
    flips = flat[: height * columns].reshape(height, columns)
    np.logical_xor(mask[1:], mask[:-1], out=flips[1:rows])
    flips[0] = mask[0]
    if is_whole_column:
        flips[0, 1:] ^= mask[-1, :-1]
    else:
        flips[rows] = mask[-1]
    # Compared first: numpy looks for what is set in bool much faster than in words.
    words = np.flatnonzero(flat.view(np.uint64) != 0)
    if 8 * len(words) > len(flat) // _DENSE:
        places = np.flatnonzero(cv2.transpose(flips.view(np.uint8)))
        x, y = np.divmod(places, height)
        return x, y
    bits = np.flatnonzero(flat.reshape(-1, 8)[words])
    y, x = np.divmod(words[bits >> 3] * 8 + (bits & 7), columns)
    order = np.argsort(x * height + y)
    return x[order], y[order]


def runs_to_mask(runs: Runs, size_hw: tuple[int, int]) -> BoolArray:
    """Return the mask (H, W) bool of run lengths; refuses runs that do not fill ``size_hw`` exactly."""
    _check_runs(runs, size_hw)
    height, width = size_hw
    if not height * width:
        return np.zeros(size_hw, np.bool_)
    columns = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
    # OpenCV transposes by tiles, ten times as fast as a strided copy.
    return np.asarray(cv2.transpose(columns.view(np.uint8))).view(np.bool_)


def compress_runs(runs: Runs) -> str:
    """Return run lengths (n,) as COCO's string, byte for byte what pycocotools writes."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    groups = np.zeros((len(values), _MOST_GROUPS), np.uint8)
    is_used = np.zeros(groups.shape, np.bool_)
    rows = np.arange(len(values))
    for column in range(_MOST_GROUPS):
        group = values & 0x1F
        values = values >> _BITS
        # An arithmetic shift ends in -1 for a negative number and in 0 for any other.
        continues = values != np.where(group & _SIGN, -1, 0)
        groups[rows, column] = group + _CONTINUES * continues + _FIRST_CHARACTER
        is_used[rows, column] = True
        rows, values = rows[continues], values[continues]
        if not len(rows):
            break
    assert not len(rows), f"a run is longer than COCO can write: {runs.max()}"
    return groups[is_used].tobytes().decode("ascii")


def decompress_runs(text: str | bytes, pixels: int) -> Runs:
    """Return the run lengths (n,) int64 of COCO's string for a mask of ``pixels`` pixels.

    Whether they fill the mask is left to `runs_to_mask`; here only the string is checked.
    """
    # Every run takes at least one character, and no mask needs more runs than it has pixels, plus the first.
    _check_length(len(text), (pixels + 1) * _MOST_GROUPS, "characters")
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise _bad("counts has characters outside ASCII", "COCO's characters, from '0' to 'o'") from error
    groups = np.frombuffer(raw, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if ((groups < 0) | (groups > 0x3F)).any():
        raise _bad("counts has a character outside the alphabet", "COCO's characters, from '0' to 'o'")
    ends = np.flatnonzero(groups < _CONTINUES)
    if not len(groups) or ends[-1:].tolist() != [len(groups) - 1]:
        raise _bad("counts is empty or stops in the middle of a run", "a whole string")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MOST_GROUPS:
        raise _bad(f"a run is written with {lengths.max()} characters", f"at most {_MOST_GROUPS}")
    _check_length(len(starts), pixels + 1, "runs")
    return _undo_differences(_join_groups(groups, starts, lengths), pixels)


def _join_groups(groups: Runs, starts: Runs, lengths: Runs) -> Runs:
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 0x1F) << (_BITS * places), starts)
    is_negative = groups[starts + lengths - 1] & _SIGN
    return np.where(is_negative, values - (1 << (_BITS * lengths)), values)


def _undo_differences(values: Runs, pixels: int) -> Runs:
    # No difference of two runs of this mask is larger; with this known, the sums below stay inside 64 bits.
    if (np.abs(values) > pixels).any():
        raise _bad("a run is longer than the mask", f"at most {pixels} pixels")
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    # The third run is the first that could have a difference and has none: the first run is no part of this chain.
    runs[2::2] = np.cumsum(values[2::2])
    return runs


def _read_size(size: object, max_pixels: int) -> tuple[int, int]:
    sides = size.tolist() if isinstance(size, np.ndarray) else size
    # type(), since True is an int.
    if not isinstance(sides, list | tuple) or [type(side) for side in sides] != [int, int] or min(sides) < 0:
        raise _bad(f"size is {_shorten(size)}", "[height, width], two whole numbers from 0 up")
    height, width = int(sides[0]), int(sides[1])
    if height * width > max_pixels or max(height, width) > _LARGEST_RUN:
        raise _bad(f"size is {height} x {width}", f"at most {max_pixels} pixels")
    return height, width


def _read_counts(counts: object, pixels: int) -> Runs:
    accepted = "a string, or a list of whole numbers"
    # An array of no dimension has no length.
    if not isinstance(counts, Sequence | np.ndarray) or (isinstance(counts, np.ndarray) and not counts.ndim):
        raise _bad(f"counts is {_shorten(counts)}, one {type(counts).__name__}", accepted)
    _check_length(len(counts), pixels + 1, "runs")
    try:
        array = np.asarray(counts)
    except ValueError as error:
        raise _bad("counts is a ragged list", accepted) from error
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise _bad(f"counts is an array of {array.dtype} with the shape {array.shape}", accepted)
    if (array > _LARGEST_RUN).any():
        raise _bad(f"a run has the length {array.max()}", f"at most {pixels}")
    return array.astype(np.int64)


def _check_runs(runs: Runs, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    pixels = height * width
    if runs.ndim != 1:
        raise _bad(f"the runs have the shape {runs.shape}", "(n,)")
    if (runs < 0).any():
        raise _bad(f"a run has the length {runs.min()}", "lengths from 0 up")
    # Each run is looked at before the sum, so that the sum cannot overflow.
    if (runs > pixels).any():
        raise _bad(f"a run has the length {runs.max()}", f"at most {pixels}, the pixels of {height} x {width}")
    total = int(runs.sum())
    if total != pixels:
        raise _bad(f"the runs sum to {total}", f"exactly {pixels}, the pixels of {height} x {width}")


def _check_length(found: int, accepted: int, what: str) -> None:
    if found > accepted:
        raise _bad(f"counts has {found} {what}", f"at most {accepted} for this size")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _bad(found: str, accepted: str) -> InputError:
    message = f"a run-length mask cannot be read: {found}; accepted is {accepted}; check the program that wrote it"
    return InputError(message, code="bad_rle")


def runs_to_area(runs: Runs) -> int:
    """Return the number of set pixels of run lengths (n,)."""
    return int(runs[1::2].sum())


def runs_to_box(runs: Runs, size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box around the set pixels: x0 y0 x1 y1 half-open; zeros for a mask without a pixel.

    Equal to `segship.masks.spans.masks_to_boxes` of the mask.

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


def runs_to_crop(runs: Runs, size_hw: tuple[int, int]) -> tuple[BoolArray, tuple[int, int]]:
    """Return the part (h, w) bool of a mask inside its box, and the x0 y0 of the box; (0, 0) bool without a pixel."""
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


def runs_to_spans(runs: Runs) -> tuple[IntArray, IntArray]:
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


def paint_runs(canvas: AnyArray, runs: Runs, value: int) -> None:
    """Set the pixels of a mask to a value, in place, in a contiguous canvas (W, H): the image column by column."""
    assert canvas.flags.c_contiguous, "the canvas is not contiguous, so a copy would be painted"
    flat = canvas.reshape(-1)
    for start, end in zip(*(side.tolist() for side in runs_to_spans(runs)), strict=True):
        flat[start:end] = value
