# SPDX-License-Identifier: Apache-2.0
"""Masks that are made when asked for are the masks of the reference path, whoever asks first."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segship.masks.lazy import ArrayMasks, LazyMasks
from segship.masks.rle import mask_to_runs
from segship.masks.spans import masks_to_boxes
from segship.masks.upscaling import LogitsPatch, Window, crop_patch, upscaler
from segship.promptable.transforms import resized_size, upscale_mask
from tests.masks.test_upscaling import draw, worst_case

CELLS, SIDE, SIZE = 64, 256, (301, 450)
INPUT = resized_size(SIZE, SIDE)


def low_res_masks():
    """Return (2, 3, 64, 64) logits: blobs, noise, one full and one empty mask."""
    rng = np.random.default_rng(0)
    masks = [draw(CELLS, 1), draw(CELLS, 2), worst_case("rough", CELLS, rng)]
    masks += [worst_case("near", CELLS, rng), np.full((CELLS, CELLS), 2.0), np.full((CELLS, CELLS), -2.0)]
    return np.stack(masks).astype(np.float32).reshape(2, 3, CELLS, CELLS)


def hold(low_res, limits=None):
    enlarging = upscaler(CELLS, SIDE, INPUT, SIZE)
    cells = [[crop_patch(enlarging.valid(mask)) for mask in entry] for entry in low_res]
    return LazyMasks(cells, enlarging, limits or [enlarging.everything] * len(low_res))


def reference(low_res):
    flat = low_res.reshape(-1, CELLS, CELLS)
    masks = [upscale_mask(mask, image_size=SIDE, input_size=INPUT, original_size=SIZE) > 0 for mask in flat]
    return np.stack(masks).reshape(*low_res.shape[:2], *SIZE)


def test_pixels_are_those_of_the_reference_path():
    low_res = low_res_masks()
    masks = hold(low_res)
    assert masks.shape == (2, 3)
    assert masks.pixels.dtype == np.bool_ and masks.pixels.shape == (2, 3, *SIZE)
    assert np.array_equal(masks.pixels, reference(low_res))
    assert masks.pixels is masks.pixels


def test_one_mask_alone_is_the_same():
    low_res = low_res_masks()
    masks, expected = hold(low_res), reference(low_res)
    for entry, index in np.ndindex(masks.shape):
        assert np.array_equal(masks.mask(entry, index), expected[entry, index])
    assert masks._pixels is None


@pytest.mark.parametrize("first", ["runs", "pixels"])
def test_runs_areas_and_boxes_are_those_of_the_pixels(first):
    low_res = low_res_masks()
    masks, expected = hold(low_res), reference(low_res)
    if first == "pixels":
        assert masks.pixels.any()
    for kind in (masks, ArrayMasks(expected), ArrayMasks(np.where(expected, 1.5, -0.5).astype(np.float32))):
        for entry, index in np.ndindex(masks.shape):
            mask = expected[entry, index]
            assert np.array_equal(kind.runs(entry, index), mask_to_runs(mask))
            assert kind.area(entry, index) == mask.sum()
            assert kind.box(entry, index) == tuple(masks_to_boxes(mask).tolist())
            assert np.array_equal(kind.mask(entry, index), mask)


def test_nothing_is_set_outside_the_limits():
    low_res = low_res_masks()
    limits = [Window(40, 200, 100, 333), Window(290, 301, 0, 0)]
    masks, expected = hold(low_res, limits), reference(low_res)
    inside = np.zeros_like(expected)
    inside[0, :, 40:200, 100:333] = True
    for entry, index in np.ndindex(masks.shape):
        assert np.array_equal(masks.runs(entry, index), mask_to_runs(expected[entry, index] & inside[entry, index]))
    assert np.array_equal(masks.pixels, expected & inside)


def test_what_is_changed_in_the_pixels_is_what_is_written():
    masks = hold(low_res_masks())
    masks.pixels[0, 0, :50] = False
    assert np.array_equal(masks.runs(0, 0), mask_to_runs(masks.pixels[0, 0]))
    assert np.array_equal(masks.take(np.array([0, 1])).pixels[:, 0], masks.pixels[[0, 1], [0, 1]])


def test_later_changes_of_the_logits_change_no_mask():
    low_res = low_res_masks()
    masks, expected = hold(low_res), reference(low_res)
    low_res[:] = 7
    assert np.array_equal(masks.pixels, expected)


def test_chosen_masks_are_held_like_all():
    low_res = low_res_masks()
    chosen = hold(low_res).take(np.array([2, 0]))
    assert chosen.shape == (2, 1)
    assert np.array_equal(chosen.pixels[:, 0], reference(low_res)[[0, 1], [2, 0]])


def test_threads_get_one_array():
    masks = hold(low_res_masks())
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: masks.pixels, range(8)))
    assert all(array is arrays[0] for array in arrays)


def test_no_object_is_no_mask():
    masks = LazyMasks([], upscaler(CELLS, SIDE, INPUT, SIZE), [])
    assert masks.pixels.shape == (0, 0, *SIZE)


def test_empty_crop_holds_no_cell():
    assert crop_patch(LogitsPatch(np.full((4, 4), -1, np.float32))).logits.shape == (0, 0)
