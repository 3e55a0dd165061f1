# SPDX-License-Identifier: Apache-2.0
"""Run lengths against the masks that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from segship.masks.rle import mask_to_runs, paint_order, paint_runs, runs_to_area, runs_to_box, runs_to_crop
from segship.masks.spans import masks_to_boxes


def random_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 9, 2)) < share for share in (0, 0.03, 0.3, 0.9, 1) for _ in range(80)]
    return [*masks, np.zeros((3, 0), bool), np.zeros((0, 0), bool)]


def test_area_box_and_crop_are_those_of_the_mask() -> None:
    for mask in random_masks():
        runs = mask_to_runs(mask)
        box = runs_to_box(runs, mask.shape)
        assert runs_to_area(runs) == mask.sum()
        assert box == tuple(masks_to_boxes(mask))
        crop, corner = runs_to_crop(runs, mask.shape)
        assert corner == box[:2] and crop.dtype == np.bool_ and crop.flags.c_contiguous
        assert np.array_equal(crop, mask[box[1] : box[3], box[0] : box[2]])


def test_large_masks_are_painted_first_and_equal_ones_in_their_order() -> None:
    masks = [np.array([10 - area, area]) for area in (3, 5, 3, 0, 9)]
    assert paint_order(masks) == [4, 1, 0, 2, 3] and paint_order([]) == []


def test_painting_sets_the_pixels_of_the_mask_alone() -> None:
    for mask in random_masks()[:-2]:
        canvas = np.full(mask.shape[::-1], 3, np.uint16)
        paint_runs(canvas, mask_to_runs(mask), 9)
        assert np.array_equal(canvas.T, np.where(mask, 9, 3))


def test_runs_without_length_in_the_middle_change_nothing() -> None:
    plain, odd = np.array([2, 3, 1]), np.array([2, 1, 0, 2, 0, 0, 1])
    assert runs_to_box(odd, (2, 3)) == runs_to_box(plain, (2, 3)) == (1, 0, 3, 2)
    assert np.array_equal(runs_to_crop(odd, (2, 3))[0], runs_to_crop(plain, (2, 3))[0])


def test_sums_are_of_64_bits() -> None:
    side = 200_000
    runs = np.array([10, side * side - 10])
    assert runs_to_area(runs) == side * side - 10 and runs_to_box(runs, (side, side)) == (0, 0, side, side)


def test_painting_a_copy_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="not contiguous"):
        paint_runs(np.zeros((4, 6), np.uint8).T, np.array([0, 24]), 1)
