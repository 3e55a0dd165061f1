# SPDX-License-Identifier: Apache-2.0
"""From pixels to the tensor of a semantic graph: the test pipeline of mmsegmentation, without padding.

The longer side becomes at most the long side of the test scale, the shorter one at most its short side, the ratio is
kept; resized by OpenCV's bilinear interpolation, which does not antialias; then mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from segship.arrays import FloatArray, Pixels, Size
from segship.errors import ImageError
from segship.spec import Positive, Side


@dataclass(frozen=True, slots=True)
class ScaleLimits:
    """How large an image is made: its longer and its shorter side reach at most these, in pixels."""

    long_side: Side
    short_side: Side


SCALE_LIMITS: dict[str, ScaleLimits] = {
    "cityscapes": ScaleLimits(2048, 1024),
    "ade20k": ScaleLimits(2048, 512),
    "cocostuff": ScaleLimits(2048, 512),
}
"""By data set; SeMask-L was tested at (2560, 640) on the latter two."""


@dataclass(frozen=True, slots=True)
class SemanticPreprocessing:
    """What a semantic model wants done to its images; a manifest says it in these words, for readers in any language.

    Attributes
    ----------
    scale
        How large they are made.
    pixel_mean, pixel_std
        Mean and deviation per channel, RGB, on the scale 0 to 255.
    frame
        (height, width) of a graph that takes no other size, which is then filled with zeros to the right and below;
        None for one that takes any.
    color_order, resize, size_rounding, padding
        How it is done.
    """

    scale: ScaleLimits
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[Positive, Positive, Positive]
    frame: tuple[Side, Side] | None = None
    color_order: Literal["RGB"] = "RGB"
    resize: Literal["opencv_bilinear_keep_ratio"] = "opencv_bilinear_keep_ratio"
    size_rounding: Literal["floor(side * scale + 0.5)"] = "floor(side * scale + 0.5)"
    padding: Literal["to_frame_right_bottom_zero_after_normalize"] = "to_frame_right_bottom_zero_after_normalize"


def scaled_size(size_hw: Size, scale: ScaleLimits, ratio: float = 1.0) -> Size:
    """Return (height, width) of an image at a test scale times a ratio.

    As mmcv's ``rescale_size`` has it: one factor for both sides, rounded half up. The ratio multiplies the scale first,
    rounded down.

    Raises
    ------
    ImageError
        ``aspect_ratio`` if the shorter side would come to nothing.
    """
    long_side, short_side = int(scale.long_side * ratio), int(scale.short_side * ratio)
    return _sides(size_hw, min(long_side / max(size_hw), short_side / min(size_hw)))


def size_in_frame(size_hw: Size, scaled_hw: Size, frame: Size | None) -> Size:
    """Return the size of an image as a graph sees it: as the scale has it, or smaller if it must fit into a frame.

    ``size_hw`` is of the image itself, whose ratio is kept, ``scaled_hw`` what `scaled_size` says, and ``frame``
    (height, width) of a graph of one size; None for any. Errors are those of `scaled_size`.
    """
    if frame is None or (scaled_hw[0] <= frame[0] and scaled_hw[1] <= frame[1]):
        return scaled_hw
    # One factor for both sides, so that nothing is squeezed.
    factor = min(side / own for side, own in zip(frame, size_hw, strict=True))
    return _sides(size_hw, factor)


def resize_pixels(pixels: Pixels, size_hw: Size) -> Pixels:
    """Resize (H, W, 3) uint8 by OpenCV's bilinear interpolation; an image of that size already stays as it is."""
    if pixels.shape[:2] == size_hw:
        return pixels
    return np.asarray(cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def to_tensor(pixels: Pixels, preprocessing: SemanticPreprocessing) -> FloatArray:
    """Normalise (H, W, 3) uint8 RGB to (1, 3, H, W) float32."""
    tensor = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for channel, (mean, std) in enumerate(zip(preprocessing.pixel_mean, preprocessing.pixel_std, strict=True)):
        # 256 values a channel: a table is exact and faster than arithmetic.
        table = (np.arange(256, dtype=np.float32) - np.float32(mean)) * np.float32(1 / np.float64(std))
        tensor[0, channel] = table[pixels[..., channel]]
    return tensor


def _sides(size_hw: Size, factor: float) -> Size:
    height, width = size_hw
    resized = int(height * factor + 0.5), int(width * factor + 0.5)
    if min(resized) < 1:
        message = f"an image of {width} x {height} pixels shrinks to {resized[1]} x {resized[0]}; cut it up"
        raise ImageError(message, code="aspect_ratio")
    return resized
