# SPDX-License-Identifier: Apache-2.0
"""Masks made in strips are torch's masks, bit for bit."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from segship.amg.upscaling import Upscaler, Window, bilinear_taps
from segship.transforms import resized_size

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


def thresholded(upscaler, low_res, threshold, window=None):
    mask = np.zeros(upscaler.original_size, bool)
    window = upscaler.window(low_res, threshold) if window is None else window
    for strip in upscaler.strips(low_res, (threshold,), window):
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
def test_single_pixels_equal_torch_bit_for_bit(size, cells, image_size):
    input_size = resized_size(size, image_size)
    upscaler = Upscaler(cells, image_size, input_size, size)
    low_res = draw(cells, 9)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, size[0], 500), rng.integers(0, size[1], 500)
    assert np.array_equal(
        upscaler.exact(low_res, rows, columns), enlarge(low_res, image_size, input_size, size)[rows, columns]
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
        window = upscaler.window(low_res, -1.0)
        inside[window.top : window.bottom, window.left : window.right] = True
        assert not ((enlarge(low_res, 256, (170, 256), (300, 450)) > -1) & ~inside).any()


def test_a_mask_without_a_cell_has_no_window():
    upscaler = Upscaler(64, 256, (170, 256), (300, 450))
    assert upscaler.window(np.full((64, 64), -5, np.float32), 0.0) == Window(0, 0, 0, 0)


def test_cells_in_the_padding_have_no_pixel():
    upscaler = Upscaler(64, 256, (128, 256), (150, 300))
    low_res = np.full((64, 64), -5, np.float32)
    low_res[40:] = 5
    assert upscaler.valid_cells[0] <= 33
    assert not thresholded(upscaler, low_res, 0.0).any()


def test_taps_of_equal_sizes_copy():
    taps = bilinear_taps(10, 10)
    assert np.array_equal(taps.first, np.arange(10)) and not taps.upper.any()
