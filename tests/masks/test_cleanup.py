# SPDX-License-Identifier: Apache-2.0
"""Clean-up keeps what was asked for, drops what was not, and moves no edge of what stays."""

import numpy as np
import pytest

from segship.masks.cleanup import MaskCleanUp, box_window, clean_low_res, clean_mask, clear_outside_box

SIDE = 40


def logits_of(mask):
    return np.where(mask, 3.0, -2.0).astype(np.float32)


def clean(mask, *, points=(), labels=(), has_box=False, clean_up=None):
    cleaned = clean_low_res(
        logits_of(mask),
        clean_up or MaskCleanUp(),
        points_xy=np.array(points, np.float32).reshape(-1, 2),
        labels=np.array(labels, np.int64),
        has_box=has_box,
    )
    return cleaned > 0


@pytest.fixture
def two_pieces():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:15, 5:15] = True
    mask[20:35, 20:35] = True
    return mask


def test_only_the_clicked_piece_stays(two_pieces):
    kept = clean(two_pieces, points=[(10, 10)], labels=[1])
    assert kept[5:15, 5:15].all() and kept.sum() == 100


def test_every_clicked_piece_stays(two_pieces):
    assert (clean(two_pieces, points=[(10, 10), (30, 30)], labels=[1, 1]) == two_pieces).all()


@pytest.mark.parametrize(
    ("points", "labels", "has_box"),
    [
        ([(1, 1)], [1], False),  # the click lies in no piece
        ([(10, 10)], [0], False),  # a background point keeps nothing
        ([(10, 10)], [1], True),  # a box says which pieces are meant
        ([], [], False),
    ],
)
def test_pieces_stay_where_no_click_decides(two_pieces, points, labels, has_box):
    assert (clean(two_pieces, points=points, labels=labels, has_box=has_box) == two_pieces).all()


def test_specks_go_wherever_they_are_and_clicked_ones_stay(two_pieces):
    speck = two_pieces.copy()
    speck[2:4, 30:32] = True
    assert (clean(speck, has_box=True) == two_pieces).all()
    assert (clean(speck, points=[(31, 3)], labels=[1], has_box=True) == speck).all()


def test_pieces_that_touch_at_a_corner_are_one():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:10, 5:10] = mask[10:15, 10:15] = True
    assert (clean(mask, points=[(6, 6)], labels=[1]) == mask).all()


def test_small_holes_are_filled_and_large_ones_stay():
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:35, 5:35] = True
    mask[8:9, 8:10] = False
    mask[20:28, 20:28] = False
    filled = clean(mask)
    assert filled[8:9, 8:10].all() and not filled[20:28, 20:28].any()


def test_a_background_point_keeps_its_hole():
    mask = np.ones((SIDE, SIDE), bool)
    mask[8:9, 8:10] = False
    assert not clean(mask, points=[(8.5, 8.5)], labels=[0])[8:9, 8:10].any()


def test_a_gap_at_the_border_is_no_hole():
    mask = np.ones((SIDE, SIDE), bool)
    mask[0, 3] = False
    assert not clean(mask)[0, 3]


def test_a_hole_of_exact_zeros_is_filled():
    logits = np.full((SIDE, SIDE), 2, np.float32)
    logits[5, 5] = 0
    none = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    assert (clean_low_res(logits, MaskCleanUp(), points_xy=none[0], labels=none[1], has_box=False) > 0).all()


def test_dropped_pieces_move_no_edge(two_pieces):
    rng = np.random.default_rng(0)
    logits = logits_of(two_pieces) * rng.uniform(0.5, 2, two_pieces.shape).astype(np.float32)
    cleaned = clean_low_res(
        logits, MaskCleanUp(), points_xy=np.array([[10, 10]], np.float32), labels=np.array([1]), has_box=False
    )
    np.testing.assert_array_equal(cleaned[:18], logits[:18])
    np.testing.assert_array_equal(np.abs(cleaned), np.abs(logits))


def test_nothing_is_done_when_all_is_off(two_pieces):
    off = MaskCleanUp(keep_clicked_piece=False, smallest_piece=0, smallest_hole=0, box_margin=None)
    two_pieces[8, 8] = False
    assert (clean(two_pieces, points=[(10, 10)], labels=[1], clean_up=off) == two_pieces).all()


@pytest.mark.parametrize(("margin", "expected"), [(0.0, (5, 16, 10, 30)), (0.1, (3, 17, 8, 32))])
def test_a_box_is_grown_to_the_pixels_that_it_touches(margin, expected):
    assert box_window(np.array([10.2, 5, 30, 15.5], np.float32), margin, (30, 50)) == expected


def test_logits_outside_the_box_are_negated():
    logits = np.random.default_rng(1).normal(size=(20, 20)).astype(np.float32)
    cleared = logits.copy()
    clear_outside_box(cleared, box_window(np.array([5, 5, 15, 15], np.float32), 0.0, (20, 20)))
    np.testing.assert_array_equal(cleared[5:15, 5:15], logits[5:15, 5:15])
    assert not (cleared[:5] > 0).any() and not (cleared[:, 15:] > 0).any()
    np.testing.assert_array_equal(np.abs(cleared), np.abs(logits))


def test_a_box_beyond_the_image_is_the_image():
    assert box_window(np.array([-5, -5, 30, 30], np.float32), 0.0, (10, 10)) == (0, 10, 0, 10)


def test_a_box_beside_the_image_is_empty():
    top, bottom, left, right = box_window(np.array([40, 5, 60, 15], np.float32), 0.0, (20, 30))
    assert bottom - top == 10 and left == right == 30


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_a_part_without_a_pixel_is_left_as_it_is(shape):
    mask, none = np.zeros(shape, np.bool_), np.zeros((0, 2), np.float32)
    clean_mask(mask, MaskCleanUp(), points_xy=none, labels=np.zeros(0, np.int64), has_box=False, area=1)
    assert mask.shape == shape
