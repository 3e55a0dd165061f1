# SPDX-License-Identifier: Apache-2.0
"""Crop edges are the reference's; estimates on low-resolution logits come close, and never decide a close call."""

import numpy as np
import pytest
import torch

from segship.masks.upscaling import LogitsPatch, Upscaler, count_above, encode_logits
from segship.promptable.everything.filters import estimate_boxes, estimate_stability, near_crop_edge, stability
from segship.promptable.everything.grids import crop_boxes
from tests.masks.test_upscaling import draw
from tests.oracle import reference

SIZE = (300, 450)


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler(128, 512, (341, 512), SIZE)


@pytest.fixture(scope="module")
def logits(upscaler):
    height, width = upscaler.valid_cells
    return np.stack([3 * draw(128, seed)[:height, :width] for seed in range(60)])


def test_crop_edges_are_the_reference_s():
    reference()
    from segment_anything.utils.amg import is_box_near_crop_edge

    rng = np.random.default_rng(0)
    for crop in crop_boxes(SIZE, 2, 512 / 1500):
        height, width = crop.size_hw
        corners = rng.integers(0, (width, height, width, height), (300, 4))
        boxes = np.concatenate(
            [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
        )
        expected = is_box_near_crop_edge(torch.from_numpy(boxes), list(crop.box_xyxy), [0, 0, SIZE[1], SIZE[0]])
        assert np.array_equal(near_crop_edge(boxes, crop, SIZE), expected.numpy())


def test_twenty_pixels_are_near_and_twenty_one_are_not():
    whole, crop, *_ = crop_boxes((300, 450), 1, 0.5)
    x1 = crop.box_xyxy[2]
    boxes = np.array([[60, 60, x1 - 20, 90], [60, 60, x1 - 21, 90], [0, 0, 90, 90]])
    assert near_crop_edge(boxes, crop, SIZE).tolist() == [True, False, False]
    assert not near_crop_edge(np.array([[0, 0, 449, 299]]), whole, SIZE).any()


def test_estimated_boxes_are_within_a_pixel(upscaler, logits):
    estimated = estimate_boxes(logits, upscaler)
    exact = np.array(
        [encode_logits(LogitsPatch(entry), upscaler, corner_xy=(0, 0), image_size_hw=SIZE).box_xyxy for entry in logits]
    )
    some = (logits > 0).any(axis=(1, 2))
    off = np.abs(estimated - exact)[some]
    # A single cell that is barely above 0 may have no pixel above 0; all else is close.
    assert (off <= 1).mean() >= 0.97 and np.median(off) == 0


def test_a_box_of_nothing_is_zeros(upscaler):
    empty = np.full((1, *upscaler.valid_cells), -3, np.float32)
    assert estimate_boxes(empty, upscaler).tolist() == [[0, 0, 0, 0]]
    assert estimate_boxes(-empty, upscaler).tolist() == [[0, 0, 449, 299]]


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.9])
def test_estimated_stability_falls_on_the_right_side(upscaler, logits, threshold):
    exact = np.array([stability(*count_above(LogitsPatch(entry), upscaler, 1.0)) for entry in logits])
    estimated = estimate_stability(logits, upscaler, offset=1.0, threshold=threshold)
    assert ((estimated >= threshold) == (exact >= threshold)).mean() >= 0.98


def test_an_empty_mask_is_not_stable(upscaler):
    empty = np.full((1, *upscaler.valid_cells), -3, np.float32)
    assert estimate_stability(empty, upscaler, offset=1.0, threshold=0.9).tolist() == [0]
    assert stability(0, 0) == 0
