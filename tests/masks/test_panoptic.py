# SPDX-License-Identifier: Apache-2.0
"""Masks and class maps merged into one picture, against the published procedure done slowly, and its rules by hand."""

import numpy as np
import pytest

from segship.datasets.known import CITYSCAPES, thing_classes
from segship.errors import InputError
from segship.masks.panoptic import LabelledMask, PanopticOptions, Segment, merge_panoptic
from segship.masks.rle import mask_to_runs

SIZE = (40, 60)
THINGS = thing_classes(CITYSCAPES)
IS_THING = np.array([name in THINGS for name in CITYSCAPES.classes])
ROAD, SIDEWALK, SKY, PERSON, CAR = 0, 1, 10, 11, 13
ALL = PanopticOptions(stuff_area=0)


def box(y0, y1, x0, x1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def labelled(mask, category, score, purity=1.0):
    return LabelledMask(mask_to_runs(mask), category, score, purity)


@pytest.fixture
def street():
    array = np.full(SIZE, SKY, np.uint8)
    array[20:] = ROAD
    array[15:30, 10:30] = CAR
    return array


def merge_slowly(masks, class_map, least_stuff):
    """As panopticapi's script does it, with whole arrays: things by score, then stuff."""
    ids, segments, used = np.zeros(SIZE, int), [], np.zeros(SIZE, bool)
    order = sorted(range(len(masks)), key=lambda index: (-masks[index][2], -masks[index][0].sum()))
    for index in order:
        mask, category, _, purity = masks[index]
        if CITYSCAPES.classes[category] not in THINGS or purity < 0.5 or not mask.any():
            continue
        if (mask & used).sum() / mask.sum() > 0.5 or not (mask & ~used).any():
            continue
        segments.append((category, index))
        ids[mask & ~used] = len(segments)
        used |= mask
    classes = class_map.copy()
    for index in reversed(order):
        mask, category, _, purity = masks[index]
        if CITYSCAPES.classes[category] not in THINGS and purity >= 0.5:
            classes[mask] = category
    for category, name in enumerate(CITYSCAPES.classes):
        left = (classes == category) & (ids == 0)
        if name not in THINGS and left.any() and left.sum() >= least_stuff:
            segments.append((category, None))
            ids[left] = len(segments)
    return ids, segments


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("least_stuff", [0, 60])
def test_random_masks_are_merged_as_the_published_script_does(seed, least_stuff):
    rng = np.random.default_rng(seed)
    class_map = rng.choice([ROAD, SIDEWALK, SKY, PERSON, CAR], (8, 12)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    masks = []
    for _ in range(14):
        y, x = rng.integers(0, 30), rng.integers(0, 50)
        mask = box(y, y + rng.integers(2, 20), x, x + rng.integers(2, 30))
        # Scores in tenths, so that some are equal.
        masks.append((mask, int(rng.choice([ROAD, SIDEWALK, PERSON, CAR])), round(rng.random(), 1), rng.random()))
    options = PanopticOptions(stuff_area=least_stuff)
    ids, segments = merge_panoptic([labelled(*mask) for mask in masks], class_map, IS_THING, options)
    expected_ids, expected = merge_slowly(masks, class_map, least_stuff)
    assert np.array_equal(ids, expected_ids)
    assert [tuple(segment) for segment in segments] == expected


def test_a_part_of_higher_score_is_cut_out_and_one_of_lower_score_is_left_out(street):
    car, wheel = box(15, 30, 10, 30), box(26, 30, 12, 16)
    ids, segments = merge_panoptic([labelled(car, CAR, 0.9), labelled(wheel, CAR, 0.95)], street, IS_THING, ALL)
    assert segments[:2] == [Segment(CAR, 1), Segment(CAR, 0)]
    assert (ids[wheel] == 1).all() and (ids[car & ~wheel] == 2).all()
    ids, segments = merge_panoptic([labelled(car, CAR, 0.95), labelled(wheel, CAR, 0.9)], street, IS_THING, ALL)
    assert [segment.mask for segment in segments] == [0, None, None] and (ids[car] == 1).all()


def test_stuff_is_one_segment_a_class_with_the_outlines_of_its_masks(street):
    # The map's road begins at row 20; a mask of road knows better, up to row 18 and over the car.
    road = box(18, 40, 0, 60)
    ids, segments = merge_panoptic([labelled(road, ROAD, 0.8)], street, IS_THING, ALL)
    assert segments == [Segment(ROAD, None), Segment(SKY, None)]
    assert np.array_equal(ids == 1, road)


def test_things_of_the_class_map_without_a_mask_are_nothing(street):
    ids, segments = merge_panoptic([], street, IS_THING, ALL)
    assert segments == [Segment(ROAD, None), Segment(SKY, None)]
    assert np.array_equal(ids == 0, street == CAR)


def test_masks_that_are_mostly_something_else_take_no_part(street):
    mixed = labelled(box(0, 40, 0, 60), CAR, 0.99, purity=0.4)
    _, segments = merge_panoptic([mixed], street, IS_THING, ALL)
    assert all(segment.mask is None for segment in segments)
    _, segments = merge_panoptic([mixed], street, IS_THING, PanopticOptions(least_purity=0.4, stuff_area=0))
    assert segments == [Segment(CAR, 0)]


def test_masks_without_a_class_take_no_part(street):
    _, segments = merge_panoptic([labelled(box(0, 9, 0, 9), 19, 0.9)], street, IS_THING, ALL)
    assert all(segment.mask is None for segment in segments)


def test_little_stuff_is_left_out_by_the_published_limit_or_its_part_of_a_small_image(street):
    array = street.copy()
    array[0, :31] = SIDEWALK
    # 40 x 60 pixels: 4,096 of 640 x 480 are 32 of them.
    _, segments = merge_panoptic([], array, IS_THING, PanopticOptions())
    assert SIDEWALK not in [segment.category for segment in segments]
    array[0, 31] = SIDEWALK
    _, segments = merge_panoptic([], array, IS_THING, PanopticOptions())
    assert SIDEWALK in [segment.category for segment in segments]
    large = np.full((700, 700), ROAD, np.uint8)
    large[:64, :64] = SKY
    assert len(merge_panoptic([], large, IS_THING, PanopticOptions())[1]) == 2
    large[0, 0] = ROAD
    assert len(merge_panoptic([], large, IS_THING, PanopticOptions())[1]) == 1


@pytest.mark.parametrize("given", [{"least_purity": 1.1}, {"most_hidden": -0.1}, {"stuff_area": -1}])
def test_options_that_make_no_sense_are_refused(given):
    with pytest.raises(InputError) as caught:
        PanopticOptions(**given)
    assert caught.value.code == "bad_option"
