# SPDX-License-Identifier: Apache-2.0
"""Pictures are read back with Pillow."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segship.draw import draw_overlay
from segship.errors import OutputError
from segship.writers import Result
from segship.writers.pictures import OverlayWriter, PngWriter


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_png_masks_are_exactly_the_masks(result: Result) -> None:
    files = PngWriter().write(result)
    assert len(files) == 6
    for entry, index in np.ndindex(2, 3):
        pixels = read(files[f"my photo.object{entry}.mask{index}.png"])
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, result.masks[entry, index] * 255)


def test_overlay_shows_the_best_masks_and_the_prompts_in_rgb(result: Result) -> None:
    masks = np.zeros((2, 3, 370, 530), bool)
    masks[0, 1, :, 400:], masks[1, 0, 260:, :400], masks[:, 2] = True, True, True
    large = replace(
        result,
        pixels=np.full((370, 530, 3), (200, 40, 90), np.uint8),
        prediction=replace(result.prediction, masks=masks, original_size=(370, 530)),
    )
    overlay = read(OverlayWriter().write(large)["my photo.overlay.jpg"])
    expected = draw_overlay(large.pixels, np.stack([masks[0, 1], masks[1, 0]]), objects=large.objects)
    difference = np.abs(overlay.astype(int) - expected)
    # Edges lose by JPEG's coarse colour, areas do not; masks or channels that were mixed up would differ everywhere.
    assert np.median(difference) <= 2 and difference.mean() < 2


def test_of_equal_scores_the_first_mask_is_the_best(result: Result) -> None:
    assert result.best_masks.tolist() == [1, 0]


def test_image_too_large_for_jpeg_is_refused(result: Result, capfd: pytest.CaptureFixture[str]) -> None:
    masks = np.zeros((1, 1, 66_000, 1), bool)
    long = replace(
        result,
        pixels=np.zeros((66_000, 1, 3), np.uint8),
        prediction=replace(result.prediction, masks=masks, iou_predictions=np.ones((1, 1), np.float32)),
        objects=(),
    )
    with pytest.raises(OutputError, match="66000 x 1 pixels cannot be encoded as .jpg") as caught:
        OverlayWriter().write(long)
    assert caught.value.code == "cannot_encode"
    # OpenCV says so on its own, too.
    capfd.readouterr()
