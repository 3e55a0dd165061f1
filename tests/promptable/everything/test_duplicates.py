# SPDX-License-Identifier: Apache-2.0
"""Of several records of one thing one stays."""

import numpy as np
import pytest

from segship.promptable.everything.filters import crop_score, keep_best
from tests.promptable.everything.test_cleaning import box_of
from tests.promptable.everything.test_records import make_record


def square(x, y, side, **changes):
    mask = np.zeros((50, 60), bool)
    mask[y : y + side, x : x + side] = True
    return make_record(mask, bbox=box_of(mask), **changes)


@pytest.mark.parametrize("nms", ["box", "mask"])
def test_the_better_of_two_stays_and_equal_ones_keep_their_order(nms):
    records = [square(5, 5, 20), square(6, 5, 20), square(40, 30, 10), square(40, 30, 10)]
    assert keep_best(records, [0.5, 0.9, 0.7, 0.7], 0.6, nms=nms) == [1, 2]
    assert keep_best([], [], 0.6, nms=nms) == []


def test_an_outline_and_what_lies_inside_are_duplicates_by_their_boxes_alone():
    frame = np.zeros((50, 60), bool)
    frame[10:40, 10:40] = True
    frame[12:38, 12:38] = False
    records = [make_record(frame, bbox=box_of(frame)), square(11, 11, 28)]
    assert keep_best(records, [0.9, 0.8], 0.7, nms="box") == [0]
    assert keep_best(records, [0.9, 0.8], 0.7, nms="mask") == [0, 1]


def test_masks_of_smaller_crops_win():
    small, large = (square(5, 5, 20, crop_box=(0, 0, side, side)) for side in (30, 50))
    assert crop_score(small) > crop_score(large)
