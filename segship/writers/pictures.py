# SPDX-License-Identifier: Apache-2.0
"""Results as pictures: the overlay for people, one PNG a mask for programs."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.draw import draw_overlay
from segship.errors import OutputError
from segship.writers.result import Result

JPEG_QUALITY = 92
# Masks are large flat areas, which the fastest setting already makes small.
PNG_COMPRESSION = 1


class OverlayWriter:
    """A JPEG of the image with the best mask of every object and all prompts drawn on it."""

    extension = "overlay.jpg"

    def write(self, result: Result) -> dict[str, bytes]:
        """Return the files of one result: name to bytes."""
        masks = result.masks
        best = masks[np.arange(len(masks)), result.best_masks]
        overlay = draw_overlay(result.pixels, best, objects=result.objects)
        bgr = cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR)
        return {f"{result.stem}.{self.extension}": _encode_image(".jpg", bgr, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)}


class PngWriter:
    """Every mask as an 8-bit gray PNG of the image's size: 255 in the mask, 0 outside."""

    extension = "png"

    def write(self, result: Result) -> dict[str, bytes]:
        """Return the files of one result: name to bytes."""
        masks = result.masks
        return {
            f"{result.stem}.object{entry}.mask{index}.{self.extension}": _encode_image(
                ".png", _gray(masks[entry, index]), cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION
            )
            for entry, index in np.ndindex(masks.shape[:2])
        }


def _gray(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    gray: NDArray[np.uint8] = mask.astype(np.uint8)
    gray *= 255
    return gray


def _encode_image(extension: str, pixels: NDArray[Any], parameter: int, value: int) -> bytes:
    try:
        done, data = cv2.imencode(extension, pixels, [parameter, value])
    except cv2.error:
        done = False
    if not done:
        height, width = pixels.shape[:2]
        message = f"an image of {height} x {width} pixels cannot be encoded as {extension}; write coco, json or npz"
        raise OutputError(message, code="cannot_encode")
    return data.tobytes()
