# SPDX-License-Identifier: Apache-2.0
"""Scores against sets of pixels and against the reference's formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.masks.scores import mask_iou, stability_score

small_masks = arrays(np.bool_, (4, 5))


@given(small_masks, small_masks)
def test_iou_equals_that_of_sets(first: np.ndarray, second: np.ndarray) -> None:
    a, b = set(np.flatnonzero(first).tolist()), set(np.flatnonzero(second).tolist())
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert mask_iou(first, second) == pytest.approx(expected)


def test_two_empty_masks_are_equal() -> None:
    assert mask_iou(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 1.0


def test_masks_of_different_shapes_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match=r"\(3, 3\) and \(1, 3\)"):
        mask_iou(np.zeros((3, 3), bool), np.zeros((1, 3), bool))


@given(arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-3, 3, width=32)), st.sampled_from([0.0, 0.5, 1.0]))
def test_stability_is_the_iou_of_both_thresholds(logits: np.ndarray, offset: float) -> None:
    scores = stability_score(logits, mask_threshold=0.25, offset=offset)
    assert scores.shape == (2, 3) and scores.dtype == np.float64
    for index in np.ndindex(2, 3):
        core, whole = logits[index] > 0.25 + offset, logits[index] > 0.25 - offset
        assert scores[index] == pytest.approx(mask_iou(core, whole) if whole.any() else 0.0)


def test_stability_of_an_empty_mask_is_zero() -> None:
    assert stability_score(np.full((1, 4, 4), -5, np.float32)).tolist() == [0.0]


def test_stability_of_one_mask_is_a_number() -> None:
    assert float(stability_score(np.full((4, 4), 5, np.float32))) == 1.0


def test_rows_longer_than_16_bits_are_counted() -> None:
    assert stability_score(np.full((2, 40_000), 5, np.float32)) == 1.0
