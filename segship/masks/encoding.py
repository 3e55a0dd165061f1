# SPDX-License-Identifier: Apache-2.0
"""Masks of logits as run lengths of the image, encoded strip by strip: no mask is ever unpacked at image size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segship.masks.upscaling import Cells, Upscaler, Window

IntArray = NDArray[np.int64]
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


def count_above(cells: Cells, upscaler: Upscaler, offset: float) -> tuple[int, int]:
    """Return how many pixels have a logit above ``offset``, and how many above ``-offset``."""
    core = whole = 0
    for strip in upscaler.strips(cells, (offset, -offset), upscaler.window(cells, -offset)):
        core += int(np.count_nonzero(strip.masks[0]))
        whole += int(np.count_nonzero(strip.masks[1]))
    return core, whole


def encode_logits(
    cells: Cells,
    upscaler: Upscaler,
    *,
    corner_xy: tuple[int, int],
    image_size_hw: tuple[int, int],
    window: Window | None = None,
) -> EncodedMask:
    """Return the mask of low-resolution logits, those above 0, in the image.

    Parameters
    ----------
    corner_xy
        Where the crop that the logits belong to begins in the image.
    image_size_hw
        Height and width of the image.
    window
        The part of the crop outside which nothing is set; found from the logits when left out.
    """
    left, top = corner_xy
    if window is None:
        window = upscaler.window(cells)
    pieces = []
    for strip in upscaler.strips(cells, (0.0,), window):
        columns, rows, lengths = _find_spans(strip.masks[0])
        pieces.append((columns + strip.left + left, rows + window.top + top, lengths))
    return _encode(pieces, image_size_hw)


def _find_spans(mask: NDArray[np.bool_]) -> _Spans:
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
