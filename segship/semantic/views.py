# SPDX-License-Identifier: Apache-2.0
"""Whole images, sliding windows, several scales and mirrored: how logits of a graph become classes of an image.

Follows mmsegmentation's ``EncoderDecoder`` (whole_inference, slide_inference, aug_test): logits are resized bilinearly
to the image before softmax, and the answers of scales and mirrors are means of softmaxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.errors import InputError
from segship.semantic.preprocessing import (
    SemanticPreprocessing,
    Size,
    resize_pixels,
    scaled_size,
    size_in_frame,
    to_tensor,
)

Logits = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(1, 3, H, W) float32 to (1, K, H, W) float32."""

MULTI_SCALE_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The ratios of the published multi-scale scores."""


@dataclass(frozen=True, slots=True)
class SemanticOptions:
    """How an image is looked at.

    Attributes
    ----------
    window
        (height, width) of sliding windows in the resized image, in pixels; None looks at the whole image at once.
    stride
        (rows, columns) from window to window; None is two thirds of the window.
    ratios
        Factors of the test scale; the answers are averaged.
    flip
        Whether each ratio is looked at mirrored too.
    probability
        Whether the answer says how probable each pixel's class is.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    probability: bool = False

    def __post_init__(self) -> None:
        pairs = {"window": self.window, "stride": self.stride}
        for name, pair in pairs.items():
            if pair is not None and (len(pair) != 2 or min(pair) < 1):
                raise InputError(f"{name} is {pair}; give two sizes of at least 1 pixel", code="bad_option")
        if self.stride is not None:
            if self.window is None:
                raise InputError("stride was given without window; give both", code="bad_option")
            if any(step > side for step, side in zip(self.stride, self.window, strict=True)):
                message = (
                    f"stride {self.stride} is longer than window {self.window}, which leaves gaps; make it shorter"
                )
                raise InputError(message, code="bad_option")
        if not self.ratios or not all(0 < ratio <= 8 for ratio in self.ratios):
            raise InputError(f"ratios are {self.ratios}; give at least one, above 0 and up to 8", code="bad_option")

    @property
    def views(self) -> int:
        """How often the image is looked at: ratios, twice if mirrored too."""
        return len(self.ratios) * (2 if self.flip else 1)

    @property
    def steps(self) -> tuple[int, int]:
        """Rows and columns from window to window."""
        if self.stride is not None or self.window is None:
            return self.stride or (0, 0)
        return max(1, self.window[0] * 2 // 3), max(1, self.window[1] * 2 // 3)


def class_probabilities(
    pixels: NDArray[np.uint8], run: Logits, preprocessing: SemanticPreprocessing, options: SemanticOptions
) -> NDArray[np.float32]:
    """Return (K, H, W) float32: the mean of the softmaxes of all ratios and mirrors, in the image frame.

    Parameters
    ----------
    pixels
        (H, W, 3) uint8 RGB.
    run
        The graph, see `Logits`.
    """
    total: NDArray[np.float32] | None = None
    views = list(_views(options))
    for ratio, mirrored in views:
        logits = resized_logits(pixels, run, preprocessing, options, ratio=ratio, mirrored=mirrored)
        softmax_in_place(logits)
        total = logits if total is None else np.add(total, logits, out=total)
    assert total is not None
    total /= np.float32(len(views))
    return total


def resized_logits(
    pixels: NDArray[np.uint8],
    run: Logits,
    preprocessing: SemanticPreprocessing,
    options: SemanticOptions,
    *,
    ratio: float = 1.0,
    mirrored: bool = False,
) -> NDArray[np.float32]:
    """Return the logits (K, H, W) float32 of one view, in the image frame."""
    logits = view_logits(pixels, run, preprocessing, options, ratio=ratio, mirrored=mirrored)
    logits = resize_planes(logits, (pixels.shape[0], pixels.shape[1]))
    if mirrored:
        for plane in logits:
            # Plane by plane, so that no second array of all classes is made.
            plane[...] = plane[:, ::-1].copy()
    return logits


def view_logits(
    pixels: NDArray[np.uint8],
    run: Logits,
    preprocessing: SemanticPreprocessing,
    options: SemanticOptions,
    *,
    ratio: float = 1.0,
    mirrored: bool = False,
) -> NDArray[np.float32]:
    """Return the logits (K, h, w) float32 of one view as the graph saw it: at its size, and mirrored if it was."""
    resized = resize_pixels(pixels, view_size((pixels.shape[0], pixels.shape[1]), preprocessing, options, ratio))
    if mirrored:
        resized = resized[:, ::-1]
    tensor = to_tensor(resized, preprocessing)
    return run(tensor)[0] if options.window is None else _slide(tensor, run, options.window, options.steps)


def view_size(
    size_hw: Size, preprocessing: SemanticPreprocessing, options: SemanticOptions, ratio: float = 1.0
) -> Size:
    """Return (height, width) at which an image is looked at; windows may look at more than the frame of a graph."""
    frame = preprocessing.frame if options.window is None else None
    return size_in_frame(size_hw, scaled_size(size_hw, preprocessing.scale, ratio), frame)


def resize_planes(planes: NDArray[np.float32], size_hw: Size) -> NDArray[np.float32]:
    """Resize (K, h, w) float32 bilinearly, half-pixel centres, without antialiasing; a copy in any case."""
    if planes.shape[1:] == size_hw:
        return planes.copy()
    resized = np.empty((len(planes), *size_hw), np.float32)
    for plane, target in zip(planes, resized, strict=True):
        cv2.resize(plane, size_hw[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def softmax_in_place(planes: NDArray[np.float32]) -> None:
    """Turn logits (K, H, W) into probabilities over K."""
    planes -= planes.max(axis=0)
    np.exp(planes, out=planes)
    planes /= planes.sum(axis=0)


def _views(options: SemanticOptions) -> Iterator[tuple[float, bool]]:
    for ratio in options.ratios:
        yield ratio, False
        if options.flip:
            yield ratio, True


def _slide(
    tensor: NDArray[np.float32], run: Logits, window: tuple[int, int], steps: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the mean of the logits of all windows that cover a place; the last ones are moved back to the edge."""
    height, width = tensor.shape[2:]
    total: NDArray[np.float32] | None = None
    count = np.zeros((height, width), np.float32)
    for top, bottom in _spans(height, window[0], steps[0]):
        for left, right in _spans(width, window[1], steps[1]):
            logits = run(np.ascontiguousarray(tensor[:, :, top:bottom, left:right]))[0]
            if total is None:
                total = np.zeros((len(logits), height, width), np.float32)
            total[:, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert total is not None
    total /= count
    return total


def _spans(side: int, window: int, step: int) -> Iterator[tuple[int, int]]:
    count = max(side - window + step - 1, 0) // step + 1
    for index in range(count):
        end = min(index * step + window, side)
        yield max(end - window, 0), end
