# SPDX-License-Identifier: Apache-2.0
"""Areas, boxes, intersections and unions from run lengths, against pycocotools and against pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as oracle

from segship.errors import InputError
from segship.masks.rle import decode_rle, encode_rle, mask_to_runs, masks_to_runs, runs_to_mask
from segship.masks.spans import (
    masks_to_boxes,
    merge_runs,
    read_spans,
    runs_to_areas,
    runs_to_boxes,
    spans_to_runs,
    xyxy_to_xywh,
)

stacks = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size))


def oracle_encode(masks: np.ndarray) -> list[dict[str, Any]]:
    return [oracle.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]


@given(stacks)
def test_areas_equal_those_of_pycocotools(masks: np.ndarray) -> None:
    runs = masks_to_runs(masks)
    expected = oracle.area(oracle_encode(masks)).tolist()
    assert runs_to_areas(runs).tolist() == read_spans(runs).areas().tolist() == expected


@given(stacks)
def test_boxes_equal_those_of_pycocotools_and_of_the_pixels(masks: np.ndarray) -> None:
    boxes = runs_to_boxes(masks_to_runs(masks), masks.shape[1])
    assert xyxy_to_xywh(boxes).tolist() == oracle.toBbox(oracle_encode(masks)).tolist()
    assert boxes.tolist() == masks_to_boxes(masks).tolist()


@given(stacks, st.booleans())
def test_union_and_intersection_equal_those_of_pycocotools(masks: np.ndarray, intersect: bool) -> None:
    merged = merge_runs(masks_to_runs(masks), intersect=intersect)
    assert np.array_equal(merged, mask_to_runs(masks.all(axis=0) if intersect else masks.any(axis=0)))
    expected = oracle.merge(oracle_encode(masks), int(intersect))
    assert np.array_equal(runs_to_mask(merged, masks.shape[1:]), decode_rle(expected))


@given(stacks)
def test_intersections_equal_those_of_pixels(masks: np.ndarray) -> None:
    spans = read_spans(masks_to_runs(masks))
    everyone = np.arange(len(masks))
    for index in everyone:
        shared = spans.intersections(index, spans, everyone)
        assert shared.dtype == np.int64
        assert shared.tolist() == [np.count_nonzero(masks[index] & mask) for mask in masks]


@given(stacks)
def test_run_length_objects_stand_for_their_runs(masks: np.ndarray) -> None:
    plain, objects = masks_to_runs(masks), [encode_rle(mask) for mask in masks]
    assert runs_to_boxes(objects, masks.shape[1]).tolist() == runs_to_boxes(plain, masks.shape[1]).tolist()
    assert np.array_equal(merge_runs(objects), merge_runs(plain))


def test_runs_of_no_length_in_the_middle_count_for_nothing() -> None:
    runs = np.array([1, 2, 0, 1, 1, 0, 1])
    assert runs_to_areas([runs]).tolist() == [3]
    assert runs_to_boxes([runs], 3).tolist() == [[0, 0, 2, 3]]
    assert merge_runs([runs]).tolist() == [1, 3, 2]


def test_no_masks_have_no_areas_and_no_boxes() -> None:
    assert runs_to_areas([]).shape == (0,) and runs_to_boxes([], 5).shape == (0, 4)


def test_masks_without_pixels_have_boxes_of_zeros() -> None:
    assert runs_to_boxes([np.array([0])], 0).tolist() == [[0, 0, 0, 0]]
    assert merge_runs([np.array([0])]).tolist() == [0]


def test_sums_past_32_bits_do_not_wrap() -> None:
    half = 3_000_000_000
    runs = [np.array([0, half, half]), np.array([1, 2 * half - 1])]
    assert runs_to_areas(runs).tolist() == read_spans(runs).areas().tolist() == [half, 2 * half - 1]
    assert read_spans(runs).intersections(0, read_spans(runs), np.array([1])).tolist() == [half - 1]
    assert merge_runs(runs).tolist() == [0, 2 * half]


def test_spans_that_cover_a_place_often_enough_are_kept() -> None:
    starts, ends = np.array([4, 0, 2]), np.array([6, 3, 6])
    assert spans_to_runs(starts, ends, 8).tolist() == [0, 6, 2]
    assert spans_to_runs(starts, ends, 8, at_least=2).tolist() == [2, 1, 1, 2, 2]
    assert spans_to_runs(starts, ends, 8, at_least=3).tolist() == [8]


@pytest.mark.parametrize("bad", [np.array([-1, 7]), np.array([1.0, 5.0]), np.array([2, 4], np.uint64)])
def test_what_are_no_run_lengths_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="whole numbers .int64. from 0 up") as caught:
        read_spans([np.array([6]), bad])
    assert caught.value.code == "bad_rle"


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="have 6 and 8 pixels; give masks of one size"):
        merge_runs([np.array([6]), np.array([8])])


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(InputError, match="give at least one"):
        merge_runs([])


@pytest.mark.parametrize("height", [0, -2, 4])
def test_height_that_does_not_divide_the_pixels_is_refused(height: int) -> None:
    with pytest.raises(InputError, match=f"height is {height}, and the masks have 6 pixels"):
        runs_to_boxes([np.array([0, 6])], height)
