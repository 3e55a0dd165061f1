# SPDX-License-Identifier: Apache-2.0
"""Small regions are cleaned as the reference cleans them, although only the neighbourhood of a mask is looked at."""

import cv2
import numpy as np
import pytest

from segship.promptable.everything.filters import clean_small_regions
from tests.oracle import reference
from tests.promptable.everything.test_records import make_record


def ragged(seed, size=(60, 90)):
    """Return a mask with holes and islands, which may touch the edges of the image."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=size), (0, 0), rng.uniform(1, 4))
    mask = noise > np.quantile(noise, rng.uniform(0.3, 0.95))
    if seed % 3:
        top, left = rng.integers(0, 40), rng.integers(0, 60)
        window = np.zeros(size, bool)
        window[top : top + 25, left : left + 40] = True
        mask &= window
    return mask


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return (columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)) if len(rows) else (0, 0, 0, 0)


def expected(mask, area):
    reference()
    from segment_anything.utils.amg import remove_small_regions

    filled, _ = remove_small_regions(mask, area, "holes")
    return remove_small_regions(filled, area, "islands")[0]


@pytest.mark.parametrize("area", [1, 7, 40, 300, 3000])
@pytest.mark.parametrize("seed", range(12))
def test_a_mask_is_cleaned_as_in_the_reference(seed, area):
    mask = ragged(seed)
    (cleaned,) = clean_small_regions([make_record(mask, bbox=box_of(mask))], area, 0.7)
    wanted = expected(mask, area)
    assert np.array_equal(cleaned.mask, wanted)
    assert cleaned.area == wanted.sum() and cleaned.bbox == box_of(wanted)


def test_unchanged_masks_come_first_and_win():
    whole = np.zeros((40, 40), bool)
    whole[5:30, 5:30] = True
    holed = whole.copy()
    holed[10, 10] = False
    elsewhere = np.zeros((40, 40), bool)
    elsewhere[32:39, 32:39] = True
    elsewhere[35, 35] = False
    records = [make_record(mask, bbox=box_of(mask)) for mask in (holed, elsewhere, whole)]
    cleaned = clean_small_regions(records, 5, 0.7)
    assert cleaned[0] is records[2]
    assert len(cleaned) == 2 and cleaned[1].area == 49


def test_empty_masks_stay_and_nothing_gives_nothing():
    empty = make_record(np.zeros((5, 5), bool), bbox=(0, 0, 0, 0))
    assert clean_small_regions([empty], 10, 0.7)[0] is empty
    assert clean_small_regions([], 10, 0.7) == []
