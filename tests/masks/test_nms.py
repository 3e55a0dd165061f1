# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression against a slow obvious one that follows torchvision's rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import InputError
from segship.masks import nms
from segship.masks.nms import box_nms, mask_nms
from segship.masks.rle import encode_rle, masks_to_runs
from segship.masks.scores import mask_iou

thresholds = st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0])


def slow_nms(
    count: int, scores: Any, threshold: float, iou: Callable[[int, int], float], categories: Any = None
) -> list[int]:
    """Keep one after the other, by descending score, what overlaps none of its category that is kept too much."""
    kept: list[int] = []
    for index in sorted(range(count), key=lambda index: (-scores[index], index)):
        rivals = [rival for rival in kept if categories is None or categories[rival] == categories[index]]
        if not any(iou(rival, index) > threshold for rival in rivals):
            kept.append(index)
    return kept


def box_iou(boxes: np.ndarray) -> Callable[[int, int], float]:
    def iou(first: int, second: int) -> float:
        a, b = boxes[first], boxes[second]
        zero = boxes.dtype.type(0)
        shared = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(zero, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        return float(shared / union) if union else float("nan")

    return iou


@st.composite
def boxes_and_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 40))
    corners = draw(arrays(np.int64, (count, 2), elements=st.integers(0, 12)))
    sizes = draw(arrays(np.int64, (count, 2), elements=st.integers(0, 9)))
    # Few scores, so that there are ties.
    scores = draw(arrays(np.float64, count, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75])))
    return (
        np.concatenate([corners, corners + sizes], axis=1),
        scores,
        draw(arrays(np.int64, count, elements=st.integers(0, 2))),
    )


@given(boxes_and_scores(), thresholds, st.booleans(), st.sampled_from([np.int64, np.float32, np.float64]))
def test_boxes_are_kept_as_the_slow_way_keeps_them(case: Any, threshold: float, grouped: bool, dtype: Any) -> None:
    boxes, scores, groups = case
    boxes = boxes.astype(dtype)
    categories = groups if grouped else None
    expected = slow_nms(len(boxes), scores, threshold, box_iou(boxes), categories)
    kept = box_nms(boxes, scores, threshold, categories=categories)
    assert kept.dtype == np.int64 and kept.tolist() == expected


@st.composite
def masks_and_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 12))
    masks = draw(arrays(np.bool_, (count, 5, 6)))
    # Copies, so that some masks overlap much.
    sources = draw(arrays(np.int64, count, elements=st.integers(0, max(count - 1, 0))))
    masks = masks[sources] & ~(draw(arrays(np.float64, (count, 5, 6), elements=st.floats(0, 1))) > 0.9)
    scores = draw(arrays(np.float64, count, elements=st.sampled_from([0.0, 0.5, 0.75])))
    return masks, scores, draw(arrays(np.int64, count, elements=st.integers(0, 1)))


@given(masks_and_scores(), thresholds, st.booleans(), st.sampled_from([None, 5, 1, 30]))
def test_masks_are_kept_as_the_slow_way_keeps_them(case: Any, threshold: float, grouped: bool, height: Any) -> None:
    masks, scores, groups = case
    categories = groups if grouped else None

    def iou(first: int, second: int) -> float:
        return mask_iou(masks[first], masks[second])

    expected = slow_nms(len(masks), scores, threshold, iou, categories)
    kept = mask_nms(masks_to_runs(masks), scores, threshold, height=height, categories=categories)
    assert kept.dtype == np.int64 and kept.tolist() == expected


def test_many_boxes_are_kept_alike_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (400, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 25, (400, 2))], axis=1).astype(np.float32)
    scores = rng.random(400)
    expected = slow_nms(400, scores, 0.5, box_iou(boxes))
    assert 100 < len(expected) < 300
    assert box_nms(boxes, scores, 0.5).tolist() == expected
    # Blocks of one row, as with very many boxes.
    monkeypatch.setattr(nms, "_BLOCK_PAIRS", 1)
    assert box_nms(boxes, scores, 0.5).tolist() == expected


def test_iou_equal_to_the_threshold_keeps_both() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 7]]
    assert box_nms(boxes, [0.9, 0.8], 0.7).tolist() == [0, 1]
    assert box_nms(boxes, [0.9, 0.8], 0.6999).tolist() == [0]
    assert box_nms(np.array(boxes, np.float32), [0.9, 0.8], 0.7).tolist() == [0, 1]


def test_equal_scores_keep_the_first() -> None:
    assert box_nms([[0, 0, 9, 9]] * 3, [0.5, 0.5, 0.5], 0.5).tolist() == [0]
    assert mask_nms([np.array([0, 6])] * 3, [0.5, 0.5, 0.5], 0.5).tolist() == [0]


def test_dropped_box_drops_no_other() -> None:
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]
    assert box_nms(boxes, [0.9, 0.8, 0.7], 0.3).tolist() == [0, 2]


def test_boxes_without_area_are_kept_and_empty_masks_are_equal() -> None:
    assert box_nms(np.zeros((2, 4)), [0.5, 0.9], 0.5).tolist() == [1, 0]
    assert mask_nms([np.array([6]), np.array([6])], [0.5, 0.9], 0.5).tolist() == [1]


def test_float32_boxes_are_judged_in_float32() -> None:
    boxes = np.array([[0, 0, 1, 16_777_215], [0, 0, 1, 11_184_811]], np.float64)
    exact, rounded = 11_184_811 / 16_777_215, float(np.float32(11_184_811) / np.float32(16_777_215))
    assert exact != rounded
    between = (exact + rounded) / 2
    assert box_nms(boxes, [0.9, 0.8], between).tolist() == ([0] if exact > between else [0, 1])
    assert box_nms(boxes.astype(np.float32), [0.9, 0.8], between).tolist() == ([0] if rounded > between else [0, 1])


def test_huge_boxes_raise_no_warning() -> None:
    boxes = np.array([[-3e38, -3e38, 3e38, 3e38]] * 2, np.float32)
    assert box_nms(boxes, [0.5, 0.9], 0.5).tolist() == [1, 0]


def test_nothing_in_is_nothing_out() -> None:
    for empty in (np.zeros((0, 4)), []):
        kept = box_nms(empty, [], 0.5)
        assert kept.shape == (0,) and kept.dtype == np.int64
    assert mask_nms([], [], 0.5).shape == (0,)


def test_masks_may_be_run_length_objects() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :, :2] = masks[1, :, :3] = True
    assert mask_nms([encode_rle(mask) for mask in masks], [0.1, 0.2], 0.5).tolist() == [1]


def test_masks_are_told_apart_where_their_boxes_are_not() -> None:
    diagonal = np.eye(8, dtype=bool)
    runs = masks_to_runs(np.stack([diagonal, diagonal[::-1]]))
    assert mask_nms(runs, [0.9, 0.8], 0.7, height=8).tolist() == [0, 1]
    assert box_nms([[0, 0, 8, 8]] * 2, [0.9, 0.8], 0.7).tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (([[0, 0, 1]], [0.5], 0.5), "bad_shape", r"\(1, 3\); accepted are numbers \(n, 4\)"),
        (([["a", "b", "c", "d"]], [0.5], 0.5), "bad_shape", "boxes_xyxy is an array of <U1"),
        (([[0, 0, 1, np.nan]], [0.5], 0.5), "non_finite", "boxes_xyxy has a number that is NaN"),
        (([[0, 0, 1, 1]], [0.5, 0.5], 0.5), "length_mismatch", r"scores has the shape \(2,\) for 1 boxes"),
        (([[0, 0, 1, 1]], [np.nan], 0.5), "non_finite", "scores has a number that is NaN"),
        (([[0, 0, 1, 1]], [0.5], 1.5), "bad_option", "iou_threshold is 1.5; accepted is a number from 0 to 1"),
        (([[0, 0, 1, 1]], [0.5], np.nan), "bad_option", "iou_threshold is nan"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: Any, code: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        box_nms(*arguments)
    assert caught.value.code == code


def test_categories_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"categories has the shape \(2,\) for 1 boxes or masks"):
        mask_nms([np.array([6])], [0.5], 0.5, categories=[1, 2])
