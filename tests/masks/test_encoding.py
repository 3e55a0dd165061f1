# SPDX-License-Identifier: Apache-2.0
"""Run lengths straight from logits are those of the unpacked mask."""

import numpy as np
import pytest

from segship.masks.rle import mask_to_runs
from segship.masks.upscaling import LogitsPatch, Upscaler, count_above, encode_logits
from tests.masks.test_upscaling import draw, enlarge


def expected_box(mask):
    rows, columns = np.nonzero(mask)
    return (columns.min(), rows.min(), columns.max(), rows.max()) if len(rows) else (0, 0, 0, 0)


def assert_encodes(encoded, mask):
    assert np.array_equal(encoded.runs, mask_to_runs(mask))
    assert encoded.area == mask.sum()
    assert encoded.box_xyxy == expected_box(mask)


@pytest.mark.parametrize("seed", range(6))
def test_runs_area_and_box_are_those_of_the_mask(seed):
    upscaler = Upscaler(64, 256, (171, 256), (300, 450))
    low_res = draw(64, seed)
    mask = enlarge(low_res, 256, (171, 256), (300, 450)) > 0
    assert_encodes(encode_logits(LogitsPatch(low_res), upscaler, corner_xy=(0, 0), image_size_hw=(300, 450)), mask)


@pytest.mark.parametrize("value", [5, -5])
def test_full_and_empty_masks(value):
    upscaler = Upscaler(64, 256, (171, 256), (300, 450))
    cells = LogitsPatch(np.full((64, 64), value, np.float32))
    encoded = encode_logits(cells, upscaler, corner_xy=(0, 0), image_size_hw=(300, 450))
    assert_encodes(encoded, np.full((300, 450), value > 0))


def test_a_crop_lands_at_its_place_in_the_image():
    upscaler = Upscaler(64, 256, (171, 256), (100, 150))
    low_res = draw(64, 1)
    image = np.zeros((300, 450), bool)
    image[40:140, 260:410] = enlarge(low_res, 256, (171, 256), (100, 150)) > 0
    assert_encodes(encode_logits(LogitsPatch(low_res), upscaler, corner_xy=(260, 40), image_size_hw=(300, 450)), image)


def test_counts_are_those_of_the_logits():
    upscaler = Upscaler(64, 256, (171, 256), (300, 450))
    for seed in range(4):
        low_res = draw(64, seed)
        logits = enlarge(low_res, 256, (171, 256), (300, 450))
        assert count_above(LogitsPatch(low_res), upscaler, 1.0) == ((logits > 1).sum(), (logits > -1).sum())


def test_rows_past_32767_columns_are_counted_in_full():
    # The reference sums rows in 16 bits, and wraps here.
    upscaler = Upscaler(64, 256, (1, 256), (70, 40_000))
    core, whole = count_above(LogitsPatch(np.full((64, 64), 5, np.float32)), upscaler, 1.0)
    assert (core, whole) == (70 * 40_000,) * 2
