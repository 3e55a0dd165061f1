# SPDX-License-Identifier: Apache-2.0
"""Which masks stay: crop edges as the reference has them, and estimates made on low-resolution logits.

The estimates serve mode ``fast``: a stability score and a box of every mask without a pixel of the image. Crop edges
follow segment_anything/utils/amg.py is_box_near_crop_edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segship.arrays import AnyArray, BoolArray, FloatArray, IntArray, Size
from segship.masks.nms import box_nms, mask_nms
from segship.masks.regions import clean_runs
from segship.masks.rle import paint_runs, runs_to_area, runs_to_box
from segship.masks.spans import merge_runs, spans_to_runs
from segship.masks.upscaling import LogitsPatch, Upscaler, count_above
from segship.promptable.everything.grids import Crop
from segship.promptable.everything.options import Nms
from segship.promptable.everything.records import MaskRecord

EDGE_TOLERANCE = 20.0
"""A box this near to a crop's edge, in pixels, is taken for a part of something that the crop cuts off."""


def near_crop_edge(boxes_xyxy: IntArray, crop: Crop, image_size_hw: Size) -> BoolArray:
    """Return (n,) bool: boxes (n, 4) of the crop's frame that end at an edge of the crop that is not the image's."""
    left, top, _, _ = crop.box_xyxy
    height, width = image_size_hw
    boxes = boxes_xyxy + np.array([left, top, left, top])
    at_crop = np.abs(boxes - np.array(crop.box_xyxy)) <= EDGE_TOLERANCE
    at_image = np.abs(boxes - np.array([0, 0, width, height])) <= EDGE_TOLERANCE
    return np.asarray((at_crop & ~at_image).any(axis=1))


def stability(core: int, whole: int) -> float:
    """Return the stability score of two counts of pixels as float32 arithmetic has it; 0 for an empty mask."""
    return float(np.float32(core) / np.float32(whole)) if whole else 0.0


def estimate_stability(
    low_res: FloatArray, upscaler: Upscaler, *, offset: float, threshold: float
) -> NDArray[np.float64]:
    """Return (n,) stability scores counted on the cells of low-resolution logits (n, h, w), the valid part.

    Counting cells instead of pixels errs by some of the cells of the outline. Where that error could put a score on
    the other side of the threshold, the mask is measured at image size.
    """
    cells = low_res.reshape(len(low_res), -1)
    core = np.count_nonzero(cells > np.float32(offset), axis=1)
    whole = np.count_nonzero(cells > np.float32(-offset), axis=1)
    scores: NDArray[np.float64] = core / np.maximum(whole, 1)
    # An outline of about 3.5 sqrt(area) cells, each off by a third of a cell at random, and room for ragged outlines.
    error = 2.0 * np.maximum(whole, 1.0) ** -0.75 + 0.002
    doubtful = (np.abs(scores - threshold) <= error) if threshold > 0 else np.zeros(len(cells), np.bool_)
    for index in np.flatnonzero(doubtful):
        scores[index] = stability(*count_above(LogitsPatch(low_res[index]), upscaler, offset))
    return scores


def estimate_boxes(low_res: FloatArray, upscaler: Upscaler) -> IntArray:
    """Return (n, 4) int64 boxes of low-resolution logits (n, h, w), in pixels of the crop, ends inclusive.

    An edge lies where the largest logit of a column or row crosses 0, found between cells by a straight line.
    """
    height, width = upscaler.original_size
    # Image pixels for one cell; the last valid cell may lie partly in the padding.
    scale_y, scale_x = upscaler.pixels_per_cell
    left, right = _crossings(low_res.max(axis=1), scale_x, width)
    top, bottom = _crossings(low_res.max(axis=2), scale_y, height)
    return np.stack([left, top, right, bottom], axis=1)


def _crossings(profile: FloatArray, scale: float, size: int) -> tuple[IntArray, IntArray]:
    """Return of profiles (n, cells) the first and last pixel above 0; zeros where there is none."""
    above = profile > 0
    some = above.any(axis=1)
    last_cell = profile.shape[1] - 1
    first, last = above.argmax(axis=1), last_cell - above[:, ::-1].argmax(axis=1)
    rows = np.arange(len(profile))
    before, after = profile[rows, np.maximum(first - 1, 0)], profile[rows, np.minimum(last + 1, last_cell)]
    begin = first - np.where(first > 0, _part(profile[rows, first], before), first + 1)
    end = last + np.where(last < last_cell, _part(profile[rows, last], after), 1)
    # The centre of cell i lies at pixel (i + 0.5) * scale - 0.5.
    low = np.ceil((begin + 0.5) * scale - 0.5).clip(0, size - 1).astype(np.int64)
    high = np.floor((end + 0.5) * scale - 0.5).clip(0, size - 1).astype(np.int64)
    return np.where(some, low, 0), np.where(some, np.maximum(high, low), 0)


def _part(inside: FloatArray, outside: FloatArray) -> FloatArray:
    """Return how far towards the outside, in cells, the line from above 0 to not above 0 crosses it."""
    return np.asarray(inside / np.maximum(inside - outside, np.float32(1e-12)), np.float32)


def keep_best(records: Sequence[MaskRecord], scores: Sequence[float], threshold: float, *, nms: Nms) -> list[int]:
    """Return the indices of the records that stay, by descending score, the earlier of equal ones first.

    Of two records whose boxes or masks have an IoU above the threshold, the one with the lower score goes.
    """
    if not records:
        return []
    ranks = np.array(scores, np.float32)
    if nms == "mask":
        runs = [record.runs for record in records]
        return [int(index) for index in mask_nms(runs, ranks, threshold, height=records[0].size[0])]
    corners = np.array([record.bbox for record in records], np.float32)
    corners[:, 2:] += corners[:, :2]
    return [int(index) for index in box_nms(corners, ranks, threshold)]


def crop_score(record: MaskRecord) -> float:
    """Return the score of a record among those of other crops: masks of smaller crops are seen larger, and win."""
    _, _, width, height = record.crop_box
    return float(np.float32(1) / np.float32(width * height))


def clean_small_regions(
    records: Sequence[MaskRecord], min_area: float, nms_thresh: float, *, nms: Nms = "box"
) -> list[MaskRecord]:
    """Return the records cleaned: those that stayed as they were first, then the changed ones, no two duplicates.

    Holes and islands of fewer than ``min_area`` pixels go; of a mask that is all small islands, the largest stays.
    """
    cleaned = [_clean(record, min_area) for record in records]
    scores = [float(after is before) for before, after in zip(records, cleaned, strict=True)]
    return [cleaned[index] for index in keep_best(cleaned, scores, nms_thresh, nms=nms)]


def _clean(record: MaskRecord, min_area: float) -> MaskRecord:
    """Return the record itself if there is nothing to clean."""
    filled, has_filled = clean_runs(record.runs, record.size, min_area, "holes")
    kept, has_dropped = clean_runs(filled, record.size, min_area, "islands")
    if not has_filled and not has_dropped:
        return record
    return _with_runs(record, kept)


def _with_runs(record: MaskRecord, runs: IntArray) -> MaskRecord:
    x0, y0, x1, y1 = runs_to_box(runs, record.size)
    # The reference's boxes end at the last pixel itself.
    return replace(record, runs=runs, area=runs_to_area(runs), bbox=(x0, y0, x1 - x0 - 1, y1 - y0 - 1))


def coverage(records: Sequence[MaskRecord]) -> float:
    """Return which part of the image lies in at least one mask, 0 to 1."""
    if not records:
        return 0.0
    height, width = records[0].size
    return int(merge_runs([record.runs for record in records])[1::2].sum()) / (height * width)


def label_map(records: Sequence[MaskRecord], size_hw: Size) -> NDArray[np.uint16] | NDArray[np.uint32]:
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


def partition_records(records: Sequence[MaskRecord], size_hw: Size) -> list[MaskRecord]:
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
            cut.append(_with_runs(record, spans_to_runs(starts[chosen], ends[chosen], len(flat))))
    return cut


def _paint(records: Sequence[MaskRecord], size_hw: Size) -> AnyArray:
    """Return the label map column by column, (H * W,)."""
    height, width = size_hw
    flat = np.zeros(height * width, np.uint16 if len(records) < 2**16 else np.uint32)
    # The largest first, so that smaller ones lie on top; of equal ones the earlier last.
    areas = np.array([record.area for record in records], np.int64)
    for index in np.lexsort((-np.arange(len(records)), -areas)).tolist():
        paint_runs(flat, records[index].runs, index + 1)
    return flat
