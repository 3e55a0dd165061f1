# SPDX-License-Identifier: Apache-2.0
"""Masks that do not overlap, as records and as one label map, and how much of an image masks cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.masks.runs import runs_to_box, runs_to_spans
from segship.masks.spans import merge_runs
from segship.records import MaskRecord


def coverage(records: Sequence[MaskRecord]) -> float:
    """Return which part of the image lies in at least one mask, 0 to 1."""
    if not records:
        return 0.0
    height, width = records[0].size
    return int(merge_runs([record.runs for record in records])[1::2].sum()) / (height * width)


def label_map(records: Sequence[MaskRecord], size_hw: tuple[int, int]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Return one number for each pixel: 0 where there is no mask, else 1 + the index of the smallest mask there.

    Parameters
    ----------
    records
        Masks that may overlap; of equally large ones the earlier wins.
    size_hw
        Height and width of the image, in pixels.

    Returns
    -------
    NDArray
        (H, W) uint16, or uint32 for more than 65,535 masks.
    """
    height, width = size_hw
    return _paint(records, size_hw).reshape(width, height).T


def partition_records(records: Sequence[MaskRecord], size_hw: tuple[int, int]) -> list[MaskRecord]:
    """Return the records cut so that no two overlap: every pixel goes to the smallest mask that has it.

    Their order stays; a record that is left without a pixel goes. Scores and points stay as they are.
    """
    if not records:
        return []
    flat = _paint(records, size_hw)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], changes))
    ends = np.concatenate((changes, [len(flat)]))
    labels = flat[starts]
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(1, len(records) + 2))
    cut = []
    for record, begin, end in zip(records, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        chosen = order[begin:end]
        if len(chosen):
            cut.append(_with_spans(record, starts[chosen], ends[chosen], len(flat)))
    return cut


def _paint(records: Sequence[MaskRecord], size_hw: tuple[int, int]) -> NDArray[Any]:
    """Return the label map column by column, (H * W,)."""
    height, width = size_hw
    flat = np.zeros(height * width, np.uint16 if len(records) < 2**16 else np.uint32)
    # The largest first, so that smaller ones lie on top; of equal ones the earlier last.
    areas = np.array([record.area for record in records], np.int64)
    for index in np.lexsort((-np.arange(len(records)), -areas)).tolist():
        for start, end in zip(*(side.tolist() for side in runs_to_spans(records[index].runs)), strict=True):
            flat[start:end] = index + 1
    return flat


def _with_spans(record: MaskRecord, starts: NDArray[np.int64], ends: NDArray[np.int64], pixels: int) -> MaskRecord:
    edges = np.concatenate(([0], np.stack([starts, ends], axis=1).ravel(), [pixels]))
    runs = np.diff(edges)
    runs = runs if runs[-1] else runs[:-1]
    x0, y0, x1, y1 = runs_to_box(runs, record.size)
    # The reference's boxes end at the last pixel itself.
    return replace(record, runs=runs, area=int((ends - starts).sum()), bbox=(x0, y0, x1 - x0 - 1, y1 - y0 - 1))
