# SPDX-License-Identifier: Apache-2.0
"""Whole images, sliding windows, several scales and mirrored: how logits of a graph become classes of an image.

Follows mmsegmentation's ``EncoderDecoder`` (whole_inference, slide_inference, aug_test): logits are resized bilinearly
to the image before softmax, and the answers of scales and mirrors are means of softmaxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from segship.arrays import AnyArray, FloatArray, Pixels, Size
from segship.errors import InputError
from segship.options import check_types
from segship.semantic.preprocessing import SemanticPreprocessing, resize_pixels, scaled_size, size_in_frame, to_tensor

Run = Callable[[FloatArray], AnyArray]
"""A graph: (B, 3, H, W) float32 to logits (B, K, H, W) float32 or class maps (B, H, W) uint8."""

MULTI_SCALE_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""The ratios of the published multi-scale scores."""


@dataclass(frozen=True, slots=True)
class SemanticOptions:
    """The views of an image that a model gets.

    Attributes
    ----------
    window
        Height and width of sliding windows in the resized image, in pixels; the whole image at once when left out.
    stride
        Rows and columns from window to window; two thirds of the window when left out.
    ratios
        Factors of the test scale; answers are averaged.
    flip
        A mirrored view of each ratio too.
    probability
        Whether the answer says how probable each pixel's class is.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    probability: bool = False

    def __post_init__(self) -> None:
        check_types(self)
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
        """How many views there are: one a ratio, two with mirrors."""
        return len(self.ratios) * (2 if self.flip else 1)

    @property
    def steps(self) -> tuple[int, int]:
        """Rows and columns from window to window."""
        if self.stride is not None or self.window is None:
            return self.stride or (0, 0)
        return max(1, self.window[0] * 2 // 3), max(1, self.window[1] * 2 // 3)


class View(NamedTuple):
    """One view of an image."""

    ratio: float = 1.0
    """Factor of the test scale."""
    mirrored: bool = False
    """Whether left and right are changed over."""


def list_views(options: SemanticOptions) -> list[View]:
    """Return the views of an image; the whole image once is the simplest list."""
    return [View(ratio, mirrored) for ratio in options.ratios for mirrored in (False, True)[: 1 + options.flip]]


def class_probabilities(
    pixels: Pixels, run: Run, preprocessing: SemanticPreprocessing, options: SemanticOptions
) -> FloatArray:
    """Return (K, H, W) float32: the mean of the softmaxes of all views of an image (H, W, 3), in the image frame."""
    total: FloatArray | None = None
    views = list_views(options)
    for view in views:
        logits = resized_logits(pixels, run, preprocessing, options, view)
        softmax_in_place(logits)
        total = logits if total is None else np.add(total, logits, out=total)
    assert total is not None
    total /= np.float32(len(views))
    return total


def resized_logits(
    pixels: Pixels, run: Run, preprocessing: SemanticPreprocessing, options: SemanticOptions, view: View
) -> FloatArray:
    """Return the logits (K, H, W) float32 of one view, in the image frame."""
    logits = view_answers([pixels], run, preprocessing, options, view)[0]
    logits = resize_planes(logits, (pixels.shape[0], pixels.shape[1]))
    if view.mirrored:
        for plane in logits:
            # Plane by plane, so that no second array of all classes is made.
            plane[...] = plane[:, ::-1].copy()
    return logits


def view_answers(
    images: Sequence[Pixels], run: Run, preprocessing: SemanticPreprocessing, options: SemanticOptions, view: View
) -> AnyArray:
    """Return what a graph answers to one view of images (H, W, 3) that have one `view_size`.

    As the graph saw them: at that size, and mirrored if the view is.
    """
    tensors = []
    for pixels in images:
        size_hw = (pixels.shape[0], pixels.shape[1])
        resized = resize_pixels(pixels, view_size(size_hw, preprocessing, options, view.ratio))
        tensors.append(to_tensor(resized[:, ::-1] if view.mirrored else resized, preprocessing))
    batch = np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
    return run(batch) if options.window is None else _slide(batch, run, options.window, options.steps)


def view_size(
    size_hw: Size, preprocessing: SemanticPreprocessing, options: SemanticOptions, ratio: float = 1.0
) -> Size:
    """Return (height, width) of an image in a view; windows may slide over more than the frame of a graph."""
    frame = preprocessing.frame if options.window is None else None
    return size_in_frame(size_hw, scaled_size(size_hw, preprocessing.scale, ratio), frame)


def resize_planes(planes: FloatArray, size_hw: Size) -> FloatArray:
    """Resize (K, h, w) float32 bilinearly, half-pixel centres, without antialiasing; a copy in any case."""
    if planes.shape[1:] == size_hw:
        return planes.copy()
    resized = np.empty((len(planes), *size_hw), np.float32)
    for plane, target in zip(planes, resized, strict=True):
        cv2.resize(plane, size_hw[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
    return resized


def softmax_in_place(planes: FloatArray) -> None:
    """Turn logits (K, H, W) into probabilities over K."""
    planes -= planes.max(axis=0)
    np.exp(planes, out=planes)
    planes /= planes.sum(axis=0)


def _slide(batch: FloatArray, run: Run, window: Size, steps: Size) -> FloatArray:
    """Return the mean of the logits of all windows that cover a place; the last ones are moved back to the edge."""
    height, width = batch.shape[2:]
    total: FloatArray | None = None
    count = np.zeros((height, width), np.float32)
    for top, bottom in _spans(height, window[0], steps[0]):
        for left, right in _spans(width, window[1], steps[1]):
            logits = run(np.ascontiguousarray(batch[:, :, top:bottom, left:right]))
            if total is None:
                total = np.zeros((*logits.shape[:2], height, width), np.float32)
            total[..., top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert total is not None
    total /= count
    return total


def _spans(side: int, window: int, step: int) -> Iterator[tuple[int, int]]:
    count = max(side - window + step - 1, 0) // step + 1
    for index in range(count):
        end = min(index * step + window, side)
        yield max(end - window, 0), end
