# SPDX-License-Identifier: Apache-2.0
"""Every pixel belongs to one mask at most, and coverage says how many belong to any."""

import numpy as np

from segship.promptable.everything.filters import coverage, label_map, partition_records
from tests.promptable.everything.test_cleaning import box_of, ragged
from tests.promptable.everything.test_records import make_record


def random_records(count=12):
    masks = [ragged(seed) for seed in range(count)]
    return masks, [make_record(mask, bbox=box_of(mask)) for mask in masks]


def test_every_pixel_goes_to_the_smallest_mask_that_has_it():
    masks, records = random_records()
    labels = label_map(records, (60, 90))
    areas = [mask.sum() for mask in masks]
    for row, column in np.ndindex(60, 90):
        owners = [index for index, mask in enumerate(masks) if mask[row, column]]
        smallest = min(owners, key=lambda index: (areas[index], index), default=-1)
        assert labels[row, column] == smallest + 1


def test_parts_do_not_overlap_and_cover_what_the_masks_cover():
    masks, records = random_records()
    parts = partition_records(records, (60, 90))
    total = np.zeros((60, 90), int)
    for part in parts:
        total += part.mask
        assert part.area == part.mask.sum() > 0 and part.bbox == box_of(part.mask)
    assert total.max() == 1
    assert np.array_equal(total > 0, np.any(masks, axis=0))
    assert coverage(parts) == coverage(records) == np.any(masks, axis=0).mean()


def test_of_equal_masks_the_earlier_stays():
    mask = ragged(1)
    parts = partition_records([make_record(mask, predicted_iou=score) for score in (0.9, 0.8)], mask.shape)
    assert [part.predicted_iou for part in parts] == [0.9]


def test_nothing_covers_nothing():
    assert coverage([]) == 0 and partition_records([], (5, 7)) == []
    assert label_map([], (5, 7)).shape == (5, 7)


def test_a_full_mask_covers_everything():
    (part,) = partition_records([make_record(np.ones((5, 7), bool))], (5, 7))
    assert coverage([part]) == 1 and part.bbox == (0, 0, 6, 4)
