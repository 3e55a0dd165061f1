# SPDX-License-Identifier: Apache-2.0
"""Whole, sliding and multi-scale inference against the published procedure, written with torch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segship.errors import ImageError, InputError
from segship.semantic.preprocessing import (
    SCALE_LIMITS,
    ScaleLimits,
    SemanticPreprocessing,
    resize_pixels,
    scaled_size,
    to_tensor,
)
from segship.semantic.views import MULTI_SCALE_RATIOS, SemanticOptions, class_probabilities, softmax_in_place

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SMALL = SemanticPreprocessing(ScaleLimits(60, 40), MEAN, STD)
CONVOLUTION = torch.nn.Conv2d(3, 5, 5, padding=2)


@torch.inference_mode()
def run(tensor):
    """A network whose answer depends on neighbours, as real ones do."""
    return CONVOLUTION(torch.from_numpy(tensor)).numpy()


@torch.inference_mode()
def published_probabilities(pixels, size_hw, mirrored, window=None, stride=None):
    """One view: mmsegmentation's steps on tensors."""
    resized = torch.from_numpy(resize_pixels(pixels, size_hw).astype(np.float32))
    image = ((resized - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    image = image.flip(3) if mirrored else image
    if window is None:
        logits = CONVOLUTION(image)
    else:
        height, width = image.shape[2:]
        logits, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
        rows = max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1
        columns = max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1
        for row in range(rows):
            for column in range(columns):
                bottom, right = min(row * stride[0] + window[0], height), min(column * stride[1] + window[1], width)
                place = (slice(max(bottom - window[0], 0), bottom), slice(max(right - window[1], 0), right))
                logits[:, :, *place] += CONVOLUTION(image[:, :, *place])
                count[place] += 1
        assert count.min() > 0
        logits = logits / count
    logits = F.interpolate(logits, pixels.shape[:2], mode="bilinear", align_corners=False)
    probabilities = logits.softmax(1)
    return (probabilities.flip(3) if mirrored else probabilities)[0].numpy()


def picture(height=55, width=83, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_whole_image_equals_the_published_steps():
    pixels = picture()
    expected = published_probabilities(pixels, (40, 60), mirrored=False)
    np.testing.assert_allclose(class_probabilities(pixels, run, SMALL, SemanticOptions()), expected, atol=2e-5)


@pytest.mark.parametrize(("window", "stride"), [((16, 20), (10, 13)), ((16, 20), (16, 20)), ((100, 20), (7, 7))])
def test_sliding_windows_equal_the_published_steps(window, stride):
    pixels = picture()
    expected = published_probabilities(pixels, (40, 60), False, window, stride)
    options = SemanticOptions(window=window, stride=stride)
    np.testing.assert_allclose(class_probabilities(pixels, run, SMALL, options), expected, atol=2e-5)


def test_multi_scale_and_mirrors_are_the_mean_of_softmaxes():
    pixels = picture()
    expected = np.zeros((5, *pixels.shape[:2]), np.float32)
    for ratio in MULTI_SCALE_RATIOS:
        size = scaled_size(pixels.shape[:2], ScaleLimits(int(60 * ratio), int(40 * ratio)))
        for mirrored in (False, True):
            expected += published_probabilities(pixels, size, mirrored) / (2 * len(MULTI_SCALE_RATIOS))
    options = SemanticOptions(ratios=MULTI_SCALE_RATIOS, flip=True)
    answer = class_probabilities(pixels, run, SMALL, options)
    np.testing.assert_allclose(answer, expected, atol=3e-5)
    np.testing.assert_allclose(answer.sum(0), 1, atol=1e-5)


def test_softmax_stands_large_logits():
    planes = np.array([[[1e4]], [[1e4 - 1]]], np.float32)
    softmax_in_place(planes)
    np.testing.assert_allclose(planes[:, 0, 0], torch.tensor([1.0, 0.0]).softmax(0), atol=1e-6)


@pytest.mark.parametrize(
    ("size_hw", "data_set", "expected"),
    [
        ((1024, 2048), "cityscapes", (1024, 2048)),
        ((512, 683), "ade20k", (512, 683)),
        ((300, 400), "ade20k", (512, 683)),
        ((200, 2000), "ade20k", (205, 2048)),
        ((640, 480), "cocostuff", (683, 512)),
    ],
)
def test_images_keep_their_ratio_within_both_limits(size_hw, data_set, expected):
    assert scaled_size(size_hw, SCALE_LIMITS[data_set]) == expected


def test_an_image_that_would_come_to_nothing_is_refused():
    with pytest.raises(ImageError) as caught:
        scaled_size((1, 10_000), SCALE_LIMITS["ade20k"])
    assert caught.value.code == "aspect_ratio"


def test_the_tensor_is_normalised_and_not_padded():
    pixels = picture(3, 4)
    expected = ((pixels.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None]
    tensor = to_tensor(pixels, SMALL)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"window": (0, 3)},
        {"stride": (3, 3)},
        {"window": (4, 4), "stride": (5, 4)},
        {"ratios": ()},
        {"ratios": (0.0,)},
        {"ratios": (9.0,)},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError) as caught:
        SemanticOptions(**options)
    assert caught.value.code == "bad_option"
