# SPDX-License-Identifier: Apache-2.0
"""Masks made in strips are torch's masks, bit for bit."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from segship.masks.upscaling import NOTHING, LogitsPatch, Upscaler, Window, bilinear_taps, crop_patch, upscaler
from segship.promptable.transforms import resized_size

# Height and width of the image; cells and side of the model frame.
SIZES = [
    ((300, 450), 64, 256),
    ((451, 333), 80, 320),
    ((1200, 1800), 256, 1024),
    ((64, 64), 64, 256),
    ((9, 700), 64, 256),
    ((257, 40), 128, 512),
    ((1, 1), 64, 256),
    ((3, 2), 64, 256),
    ((1, 90), 64, 256),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On several threads torch adds in another order, and the last bit may differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(cells, seed):
    """Return logits like a decoder's: a blob with a soft, ragged edge."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:cells, :cells] / cells
    blob = 20 * (rng.uniform(0.05, 0.4) - np.hypot(x - rng.uniform(), y - rng.uniform()))
    noise = cv2.resize(rng.normal(size=(16, 16)), (cells, cells), interpolation=cv2.INTER_CUBIC)
    return (blob + noise).astype(np.float32)


def enlarge(low_res, image_size, input_size, size):
    """Return logits at image size as the reference's postprocess_masks computes them, for three masks a point."""
    tensor = torch.from_numpy(np.stack([low_res] * 3))[None]
    frame = interpolate(tensor, (image_size, image_size), mode="bilinear", align_corners=False)
    valid = frame[..., : input_size[0], : input_size[1]]
    return interpolate(valid, size, mode="bilinear", align_corners=False)[0, 0].numpy()


def painted(upscaler, cells):
    mask = np.zeros(upscaler.original_size, bool)
    upscaler.paint(cells, upscaler.window(cells), mask)
    return mask


def thresholded(upscaler, low_res, threshold, window=None):
    mask = np.zeros(upscaler.original_size, bool)
    cells = LogitsPatch(low_res)
    window = upscaler.window(cells, threshold) if window is None else window
    for strip in upscaler.strips(cells, (threshold,), window):
        columns = strip.masks[0][:, :-1].T
        mask[window.top : window.bottom, strip.left : strip.left + columns.shape[1]] = columns
    return mask


@pytest.mark.parametrize(("size", "cells", "image_size"), SIZES)
def test_masks_equal_torch_at_every_threshold(size, cells, image_size):
    input_size = resized_size(size, image_size)
    upscaler = Upscaler(cells, image_size, input_size, size)
    for seed in range(4):
        low_res = draw(cells, seed)
        expected = enlarge(low_res, image_size, input_size, size)
        for threshold in (0.0, 1.0, -1.0, 0.37):
            assert np.array_equal(thresholded(upscaler, low_res, threshold), expected > np.float32(threshold))


@pytest.mark.parametrize(("size", "cells", "image_size"), SIZES)
def test_painted_crops_and_enlarged_logits_equal_torch(size, cells, image_size):
    input_size = resized_size(size, image_size)
    upscaler = Upscaler(cells, image_size, input_size, size)
    for seed in range(4):
        low_res = draw(cells, seed)
        expected = enlarge(low_res, image_size, input_size, size)
        whole = upscaler.valid(low_res)
        assert np.array_equal(painted(upscaler, whole), expected > 0)
        assert np.array_equal(painted(upscaler, crop_patch(whole)), expected > 0)
        logits = upscaler.enlarge(whole)
        assert np.array_equal(logits > 0, expected > 0)
        assert np.abs(logits - expected).max() <= 2e-6 * np.abs(low_res).max()


# Sizes odd, tall, wide, smaller than the frame, and far larger than it; logits that are near the threshold everywhere,
# on it, flat, rough, or of a size at which float32 holds no fraction.
FRAMES = [(16, 64), (24, 96), (64, 256)]
KINDS = ("rough", "near", "steps", "exact zeros", "flat", "huge", "tiny", "edges")


def worst_case(kind, cells, rng):
    """Return logits (cells, cells) whose enlarged values are hard to tell from 0."""
    if kind == "rough":
        return rng.standard_normal((cells, cells)) * 10
    if kind == "near":
        return rng.choice([-1, 1], (cells, cells)) * (1 + rng.standard_normal((cells, cells)) * 1e-6)
    if kind == "steps":
        return np.where(rng.random((cells, cells)) < 0.5, 4.0, -4.0)
    if kind == "exact zeros":
        return rng.choice([-2.0, 0.0, 2.0], (cells, cells))
    if kind == "flat":
        return np.full((cells, cells), rng.choice([-1e-7, 0.0, 1e-7, 3.0]))
    if kind == "huge":
        return rng.standard_normal((cells, cells)) * 1e6
    if kind == "tiny":
        return rng.standard_normal((cells, cells)) * 1e-6
    mask = np.full((cells, cells), -3.0)
    mask[0, :], mask[:, -1], mask[cells // 2, cells // 2] = 3.0, 2.0, 1.0
    return mask


@settings(database=None, deadline=None, max_examples=60)
@given(
    st.sampled_from(FRAMES),
    st.sampled_from(KINDS),
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(0, 2**32 - 1),
)
def test_any_mask_of_any_size_equals_torch(frame, kind, height, width, seed):
    cells, image_size = frame
    if max(height, width) > image_size * min(height, width):
        return
    low_res = worst_case(kind, cells, np.random.default_rng(seed)).astype(np.float32)
    input_size = resized_size((height, width), image_size)
    enlarging = Upscaler(cells, image_size, input_size, (height, width))
    expected = enlarge(low_res, image_size, input_size, (height, width)) > 0
    crop = crop_patch(enlarging.valid(low_res))
    assert np.array_equal(painted(enlarging, crop), expected)
    assert np.array_equal(thresholded(enlarging, low_res, 0.0), expected)
    assert np.array_equal(enlarging.enlarge(LogitsPatch(low_res)) > 0, expected)


def test_pieces_of_a_window_join_without_a_seam():
    upscaler = Upscaler(64, 256, (171, 256), (300, 450))
    low_res = worst_case("rough", 64, np.random.default_rng(0)).astype(np.float32)
    mask = np.zeros((300, 450), bool)
    for top, bottom in ((0, 1), (1, 29), (29, 100), (100, 300)):
        for left, right in ((0, 31), (31, 200), (200, 450)):
            upscaler.paint(LogitsPatch(low_res), Window(top, bottom, left, right), mask)
    assert np.array_equal(mask, enlarge(low_res, 256, (171, 256), (300, 450)) > 0)


def test_more_pixels_across_than_one_tile_holds():
    size, input_size = (20, 5000), resized_size((20, 5000), 256)
    low_res = worst_case("rough", 64, np.random.default_rng(1)).astype(np.float32)
    upscaler = Upscaler(64, 256, input_size, size)
    expected = enlarge(low_res, 256, input_size, size) > 0
    assert np.array_equal(painted(upscaler, upscaler.valid(low_res)), expected)
    assert np.array_equal(thresholded(upscaler, low_res, 0.0), expected)


def test_a_crop_keeps_its_place_and_what_its_pixels_depend_on():
    low_res = np.full((16, 16), -1, np.float32)
    low_res[4:6, 9] = 1
    crop = crop_patch(LogitsPatch(low_res, top=3, left=5))
    assert (crop.top, crop.left) == (5, 12)
    assert np.array_equal(crop.logits, low_res[2:8, 7:12]) and crop.logits.base is None


def test_upscalers_of_one_size_are_made_once():
    assert upscaler(64, 256, (171, 256), (300, 450)) is upscaler(64, 256, (171, 256), (300, 450))


@pytest.mark.parametrize(("size", "cells", "image_size"), SIZES)
def test_single_pixels_equal_torch_bit_for_bit(size, cells, image_size):
    input_size = resized_size(size, image_size)
    upscaler = Upscaler(cells, image_size, input_size, size)
    low_res = draw(cells, 9)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, size[0], 500), rng.integers(0, size[1], 500)
    assert np.array_equal(
        upscaler.exact(LogitsPatch(low_res), rows, columns),
        enlarge(low_res, image_size, input_size, size)[rows, columns],
    )


def test_flat_logits_on_the_threshold_itself_are_decided_exactly():
    upscaler = Upscaler(64, 256, (170, 256), (300, 450))
    for value in (0.0, 1.0, -1.0):
        low_res = np.full((64, 64), value, np.float32)
        expected = enlarge(low_res, 256, (170, 256), (300, 450))
        for threshold in (0.0, 1.0, -1.0):
            everything = Window(0, 300, 0, 450)
            assert np.array_equal(thresholded(upscaler, low_res, threshold, everything), expected > threshold)


def test_window_holds_every_pixel_above_the_level():
    upscaler = Upscaler(64, 256, (170, 256), (300, 450))
    for seed in range(8):
        low_res = draw(64, seed)
        inside = np.zeros((300, 450), bool)
        window = upscaler.window(LogitsPatch(low_res), -1.0)
        inside[window.top : window.bottom, window.left : window.right] = True
        assert not ((enlarge(low_res, 256, (170, 256), (300, 450)) > -1) & ~inside).any()


def test_a_mask_without_a_cell_has_no_window():
    upscaler = Upscaler(64, 256, (170, 256), (300, 450))
    assert upscaler.window(LogitsPatch(np.full((64, 64), -5, np.float32))) == NOTHING
    assert upscaler.window(LogitsPatch(np.zeros((64, 64), np.float32))) == NOTHING
    assert crop_patch(LogitsPatch(np.zeros((64, 64), np.float32))).logits.size == 0


def test_cells_in_the_padding_have_no_pixel():
    upscaler = Upscaler(64, 256, (128, 256), (150, 300))
    low_res = np.full((64, 64), -5, np.float32)
    low_res[40:] = 5
    assert upscaler.valid_cells[0] <= 33
    assert not thresholded(upscaler, low_res, 0.0).any()


def test_taps_of_equal_sizes_copy():
    taps = bilinear_taps(10, 10)
    assert np.array_equal(taps.first, np.arange(10)) and not taps.upper.any()
