# SPDX-License-Identifier: Apache-2.0
"""Masks whose border the picture decides: the color guided filter on the decoder's cells, evaluated at image size.

On the use road between cleaned logits and masks at image size, where a manifest or a caller asks for it. In every
window of cells, squashed logits are explained as a linear function of color (K. He, J. Sun, X. Tang, "Guided Image
Filtering", ECCV 2010 and TPAMI 2013); the mean of the functions of all windows over a cell, enlarged as logits are, is
then asked for the color of each pixel. So coefficients cost the same for every picture (as in their "Fast Guided
Filter", 2015), and the borders are the picture's own. Only in a band around the border of the low-resolution mask:
beyond it, cells keep their side whatever their color.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Interval
from PIL import Image

from segship.arrays import AnyArray, BoolArray, FloatArray, IntArray, Pixels, Size
from segship.masks.cleanup import MaskCleanUp, clean_mask
from segship.masks.upscaling import LogitsPatch, Upscaler
from segship.spec import Positive

LONGEST_SIDE = 2048
"""Larger pictures are reduced to it for this, and held so; a border is then as exact as that."""


@dataclass(frozen=True, slots=True)
class MaskEdges:
    """How far masks follow the picture.

    Attributes
    ----------
    radius
        Of the windows, and of the band, in cells of the decoder's masks: what the decoder cannot tell apart. One cell
        of a model whose masks have n cells a side is the n-th part of a picture's longer side.
    eps
        Variance of color, on the scale 0 to 1, below which a window counts as flat.
    """

    radius: Annotated[int, Interval(ge=1, le=64)] = 3
    eps: Positive = 1e-4

    @property
    def margin(self) -> int:
        """How many cells around a mask its edges depend on: the band, its windows, and theirs."""
        return 3 * self.radius + 2


@dataclass(frozen=True, slots=True, eq=False)
class _Colors:
    """Of each cell (h, w): color (3, h, w), its mean in the window, and the inverse of its covariance (3, 3, h, w)."""

    color: FloatArray
    mean: FloatArray
    inverse: FloatArray


class EdgeGuide:
    """A picture as the guide of masks' edges; what the filter needs of it is made at the first mask, and kept.

    ``picture`` is (H, W, 3) uint8 RGB, or an RGB picture of Pillow's that nobody else changes. Threads may share it.
    """

    def __init__(self, picture: Pixels | Image.Image) -> None:
        height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        self.size_hw: Size = max(1, round(height * scale)), max(1, round(width * scale))
        self._held: Pixels | Image.Image = picture
        if scale < 1:
            small = cv2.resize(self.pixels, self.size_hw[::-1], interpolation=cv2.INTER_AREA)
            self._held = np.asarray(small, np.uint8)
        elif isinstance(picture, np.ndarray):
            # The caller may write into it.
            self._held = picture.copy()
        self._colors: dict[tuple[MaskEdges, Size, tuple[float, float]], _Colors] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return EdgeGuide, (self.pixels,)

    @property
    def pixels(self) -> Pixels:
        """(h, w, 3) uint8 RGB, the longer side at most `LONGEST_SIDE`."""
        held = self._held
        if isinstance(held, Image.Image):
            # Two threads may both do this once, with the same result.
            self._held = held = np.array(held)
        return held

    def colors(self, edges: MaskEdges, upscaler: Upscaler) -> _Colors:
        """Return what the filter needs of the picture, in the cells of an upscaler to its size."""
        key = edges, upscaler.valid_cells, upscaler.pixels_per_cell
        found = self._colors.get(key)
        if found is None:
            found = self._colors[key] = _colors(self.pixels, edges, upscaler)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class EdgePainter:
    """Makes masks of one object follow the picture, and cleans them as the low-resolution masks were.

    ``upscaler`` is to the guide's size; points (n, 2) are x y in the guide's pixels, ``labels`` theirs.
    """

    guide: EdgeGuide
    edges: MaskEdges
    upscaler: Upscaler
    clean_up: MaskCleanUp | None
    points_xy: FloatArray
    labels: IntArray
    has_box: bool

    def mask(self, patch: LogitsPatch, size_hw: Size) -> BoolArray:
        """Return the mask (H, W) bool of logits, with `MaskEdges.margin` cells around them, at the image's size."""
        mask = np.zeros(self.guide.size_hw, np.bool_)
        if patch.logits.size:
            self._follow(patch, mask)
        if mask.shape != size_hw:
            shades = mask.view(np.uint8) * np.uint8(255)
            mask = cv2.resize(shades, size_hw[::-1], interpolation=cv2.INTER_LINEAR) > 127
        return mask

    def _follow(self, patch: LogitsPatch, mask: BoolArray) -> None:
        inside = patch.logits > 0
        near = _near_border(inside, self.edges.radius)
        window = self.upscaler.reach(patch)
        part = mask[window.top : window.bottom, window.left : window.right]
        part[...] = self.upscaler.spread(inside, patch, window)
        pixels = self.guide.pixels
        for rows, columns, values in self.upscaler.blocks(self._functions(patch, near), patch, near):
            total = values[3]
            for channel in range(3):
                total += values[channel] * pixels[rows, columns, channel]
            np.greater(total, 0, out=mask[rows, columns])
        if self.clean_up is not None:
            corner = np.array((window.left, window.top))
            area = mask.shape[0] * mask.shape[1]
            clean_mask(
                part,
                self.clean_up,
                points_xy=self.points_xy - corner,
                labels=self.labels,
                has_box=self.has_box,
                area=area,
            )

    def _functions(self, patch: LogitsPatch, near: BoolArray) -> FloatArray:
        """Return of each cell a function (4, h, w) of color on the scale 0 to 255: three slopes and a constant."""
        colors, radius = self.guide.colors(self.edges, self.upscaler), self.edges.radius
        height, width = patch.logits.shape
        here = slice(patch.top, patch.top + height), slice(patch.left, patch.left + width)
        # p, I, mu, Sigma, a and b of the paper.
        p, mean_i = np.tanh(patch.logits), colors.mean[:, *here]
        means = _means(np.concatenate([p[None], colors.color[:, *here] * p]), radius)
        slopes = np.einsum("ijhw,jhw->ihw", colors.inverse[:, :, *here], means[1:] - mean_i * means[0])
        constant = means[0] - (slopes * mean_i).sum(axis=0)
        functions = _means(np.concatenate([slopes / 255, constant[None]]).astype(np.float32), radius)
        sides = np.where(patch.logits > 0, np.float32(1), np.float32(-1))
        return np.where(near, functions, np.stack([np.zeros_like(sides)] * 3 + [sides]))


def _near_border(inside: BoolArray, radius: int) -> BoolArray:
    """Return which cells (h, w) have one of the other side within a radius, counted along rows and columns."""
    window, cells = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8), inside.view(np.uint8)
    return np.asarray(cv2.dilate(cells, window) != cv2.erode(cells, window), np.bool_)


def _colors(pixels: Pixels, edges: MaskEdges, upscaler: Upscaler) -> _Colors:
    cells = upscaler.valid_cells
    # The last cells may reach beyond the picture.
    bottom, right = (
        max(round(count * pixels_per_cell) - side, 0)
        for count, pixels_per_cell, side in zip(cells, upscaler.pixels_per_cell, pixels.shape, strict=False)
    )
    if bottom or right:
        pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
    small = cv2.resize(pixels, cells[::-1], interpolation=cv2.INTER_AREA)
    # In double precision: what is left of gray windows is a small difference of large numbers.
    color = np.moveaxis(small, 2, 0).astype(np.float64) / 255
    mean = _means(color, edges.radius)
    pairs = _means((color[:, None] * color).reshape(9, *cells), edges.radius).reshape(3, 3, *cells)
    covariance = pairs - mean[:, None] * mean + edges.eps * np.eye(3)[:, :, None, None]
    inverse = np.linalg.inv(covariance.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)
    return _Colors(color.astype(np.float32), mean.astype(np.float32), inverse.astype(np.float32))


def _means(planes: AnyArray, radius: int) -> AnyArray:
    """Return the means of planes (n, h, w) in windows of 2 radius + 1 cells, cut off at the border."""
    side = 2 * radius + 1

    def sums(plane: AnyArray) -> AnyArray:
        return cv2.boxFilter(plane, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)

    counts = sums(np.ones(planes.shape[1:], planes.dtype))
    return np.stack([sums(np.ascontiguousarray(plane)) / counts for plane in planes])
