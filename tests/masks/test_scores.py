# SPDX-License-Identifier: Apache-2.0
"""Scores against sets of pixels and against the reference's formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as oracle

from segship.errors import InputError
from segship.masks.rle import encode_rle, masks_to_runs
from segship.masks.scores import mask_iou, mask_ious, stability_score
from tests.oracle import reference

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


stacks = st.integers(0, 4).flatmap(lambda count: arrays(np.bool_, (count, 4, 5)))


@given(stacks, stacks, st.sampled_from([None, 4, 1]))
def test_ious_of_many_are_those_of_each_two(first: np.ndarray, second: np.ndarray, height: int | None) -> None:
    ious = mask_ious(masks_to_runs(first), masks_to_runs(second), height=height)
    assert ious.shape == (len(first), len(second)) and ious.dtype == np.float64
    assert ious.tolist() == [[mask_iou(one, other) for other in second] for one in first]


def test_ious_are_those_of_pycocotools() -> None:
    stack = np.random.default_rng(0).random((9, 40, 50)) < np.linspace(0.1, 1, 9)[:, None, None]
    rles = [encode_rle(mask) for mask in stack]
    expected = oracle.iou(rles[:4], rles, [0] * len(rles))
    assert mask_ious(rles[:4], rles).tolist() == expected.tolist()


def test_masks_of_two_sizes_have_no_iou() -> None:
    with pytest.raises(InputError, match="6 and 8 pixels; give masks of one size"):
        mask_ious([np.array([6])], [np.array([8])])


def test_areas_past_32_bits_have_the_right_iou() -> None:
    assert mask_ious([np.array([0, 6_000_000_000])], [np.array([0, 3_000_000_000, 3_000_000_000])]).tolist() == [[0.5]]


def test_stability_is_that_of_the_reference() -> None:
    reference()
    import torch
    from segment_anything.utils.amg import calculate_stability_score

    logits = np.random.default_rng(0).normal(0, 3, (6, 50, 60)).astype(np.float32)
    for threshold, offset in ((0.0, 1.0), (0.5, 0.3)):
        expected = calculate_stability_score(torch.from_numpy(logits), threshold, offset).numpy()
        scores = stability_score(logits, mask_threshold=threshold, offset=offset)
        assert np.allclose(scores, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 0, 0)])
def test_stability_of_nothing_is_nothing(shape: tuple[int, ...]) -> None:
    assert stability_score(np.zeros(shape, np.float32)).tolist() == [0.0] * shape[0]


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
