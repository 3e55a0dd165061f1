# SPDX-License-Identifier: Apache-2.0
"""Boxes against pycocotools and against a loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as oracle

from segship.masks.spans import masks_to_boxes, xyxy_to_xywh

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(np.bool_, size))


@given(masks)
def test_box_equals_that_of_pycocotools(mask: np.ndarray) -> None:
    expected = oracle.toBbox(oracle.encode(np.asfortranarray(mask.view(np.uint8))))
    assert xyxy_to_xywh(masks_to_boxes(mask)).tolist() == expected.tolist()


@given(masks)
def test_box_is_the_smallest_that_holds_all_pixels(mask: np.ndarray) -> None:
    x0, y0, x1, y1 = masks_to_boxes(mask)
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    if mask.any():
        assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))


@given(arrays(np.bool_, (2, 3, 5, 4)))
def test_many_masks_equal_one_at_a_time(masks: np.ndarray) -> None:
    boxes = masks_to_boxes(masks)
    assert boxes.shape == (2, 3, 4) and boxes.dtype == np.int64
    for index in np.ndindex(2, 3):
        assert boxes[index].tolist() == masks_to_boxes(masks[index]).tolist()


def test_empty_mask_has_a_box_of_zeros() -> None:
    assert masks_to_boxes(np.zeros((3, 6, 7), bool)).tolist() == [[0, 0, 0, 0]] * 3


def test_no_masks_and_no_pixels_have_boxes_too() -> None:
    assert masks_to_boxes(np.zeros((0, 6, 7), bool)).shape == (0, 4)
    assert masks_to_boxes(np.zeros((2, 0, 7), bool)).tolist() == [[0, 0, 0, 0]] * 2


def test_full_mask_has_the_box_of_the_image() -> None:
    assert masks_to_boxes(np.ones((6, 7), bool)).tolist() == [0, 0, 7, 6]
