# SPDX-License-Identifier: Apache-2.0
"""What procedural streets are painted on: a camera, a picture, and the labelled polygons in the order of painting.

Units are metres: X to the right of the camera, Y up from the ground, Z ahead. A polygon covers what lies below it in
the picture and, drawn in the same order, in the truth; so both always agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

# float32 throughout; numpy's types do not follow that through arithmetic with scalars.
Picture = NDArray[Any]
Color = ArrayLike
"""Red, green and blue, 0 to 255."""

Place = tuple[slice, slice]

_LEAST_AREA = 2.0
"""Smaller polygons, in pixels, are left out; an annotator would not see them either."""
_LEAST_DETAIL = 0.4


class Labelled(NamedTuple):
    """One polygon of the annotation."""

    label: str
    """Name of a label of Cityscapes."""
    corners: NDArray[np.int64]
    """(N, 2): x, y pixels inside the picture."""


class Camera(NamedTuple):
    """A camera that looks along the street."""

    focal: float
    """In pixels."""
    height: float
    """Above the ground, in metres."""
    vanishing_x: float
    horizon_y: float
    """Where the street vanishes, in pixels."""

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return (N, 2) pixels of (N, 3) points X, Y, Z in metres."""
        x, y, z = np.asarray(points, np.float64).reshape(-1, 3).T
        z = np.maximum(z, 0.3)
        return np.stack([self.vanishing_x + self.focal * x / z, self.horizon_y + self.focal * (self.height - y) / z], 1)


class Canvas:
    """A picture being painted.

    Parameters
    ----------
    rng
        Where every choice comes from.
    size_hw
        (height, width) in pixels.
    """

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size_hw
        self.image: Picture = np.zeros((*size_hw, 3), np.float32)
        self.polygons: list[Labelled] = []
        self.camera = Camera(
            focal=rng.uniform(0.85, 1.15) * self.width,
            height=rng.uniform(1.2, 1.6),
            vanishing_x=rng.uniform(0.4, 0.6) * self.width,
            horizon_y=rng.uniform(0.4, 0.5) * self.height,
        )
        self._noise = {scale: self._make_noise(scale) for scale in (0.0, 1.2, 5.0, 20.0)}

    def _make_noise(self, scale: float) -> Picture:
        noise: Any = self.rng.standard_normal((self.height, self.width), dtype=np.float32)
        if scale:
            noise = cv2.GaussianBlur(noise, (0, 0), scale * self.height / 256)
            noise /= noise.std() + np.float32(1e-6)
        return np.asarray(noise)

    def put(
        self,
        label: str,
        corners: ArrayLike,
        color: Color,
        *,
        grain: float = 4.0,
        scale: float = 1.2,
        shade: float = 0.0,
    ) -> NDArray[np.bool_]:
        """Paint a polygon over what is there, and write it down.

        Parameters
        ----------
        label
            What it is.
        corners
            (N, 2) x, y pixels; what lies outside the picture is cut off.
        color
            See `Color`.
        grain, scale
            Deviation of its texture in values of pixels, and how coarse it is: 0, 1.2, 5 or 20.
        shade
            How much darker its bottom is than its top, 0 to 1.

        Returns
        -------
        ndarray
            (H, W) bool: the pixels that were painted.
        """
        covered = np.zeros((self.height, self.width), bool)
        pixels = self._visible(corners, _LEAST_AREA)
        if pixels is not None:
            place, inside = _stencil(pixels)
            covered[place] = inside
            self.polygons.append(Labelled(label, pixels))
            self._paint(place, inside, color, (grain, scale, shade))
        return covered

    def detail(
        self,
        corners: ArrayLike,
        color: Color,
        *,
        grain: float = 4.0,
        scale: float = 1.2,
        within: NDArray[np.bool_] | None = None,
    ) -> None:
        """Paint a polygon that belongs to what was painted before, only ``within`` (H, W) if that is given."""
        pixels = self._visible(corners, _LEAST_DETAIL)
        if pixels is not None:
            place, inside = _stencil(pixels)
            self._paint(place, inside if within is None else inside & within[place], color, (grain, scale, 0.0))

    def _visible(self, corners: ArrayLike, least_area: float) -> NDArray[np.int64] | None:
        """Return the corners of what is seen of a polygon, in whole pixels; None if that is too little."""
        points = np.asarray(corners, np.float64)
        (left, top), (right, bottom) = points.min(0), points.max(0)
        if left > self.width - 1 or top > self.height - 1 or right < 0 or bottom < 0:
            return None
        if left < 0 or top < 0 or right > self.width - 1 or bottom > self.height - 1:
            points = cut_to_frame(points, self.height, self.width)
        if len(points) < 3 or cv2.contourArea(points.astype(np.float32)) < least_area:
            return None
        return np.rint(points).astype(np.int64)

    def _paint(
        self, place: Place, inside: NDArray[np.bool_], color: Color, texture: tuple[float, float, float]
    ) -> None:
        grain, scale, shade = texture
        paint = np.asarray(color, np.float32) + self._noise[scale][place][..., None] * np.float32(grain)
        if shade:
            paint *= 1 - np.float32(shade) * np.linspace(0, 1, len(inside), dtype=np.float32)[:, None, None]
        self.image[place][inside] = paint[inside]

    def darken(self, corners: ArrayLike, factor: float) -> None:
        """Lay a shadow over what is there."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(mask, [np.rint(np.asarray(corners)).astype(np.int32)], 1)
        self.image[mask > 0] *= np.float32(factor)

    def quad(self, x: ArrayLike, y: ArrayLike, z: ArrayLike) -> NDArray[np.float64]:
        """Project four corners given by their X, Y and Z; a single value stands for all four."""
        sides = [np.broadcast_to(np.asarray(values, np.float64), 4) for values in (x, y, z)]
        return self.camera.project(np.stack(sides, 1))


def _stencil(pixels: NDArray[np.int64]) -> tuple[Place, NDArray[np.bool_]]:
    """Draw a polygon as the annotation will be drawn: its frame in the picture, and what is inside."""
    (left, top), (right, bottom) = pixels.min(0).tolist(), (pixels.max(0) + 1).tolist()
    stencil = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(stencil).polygon([(x - left, y - top) for x, y in pixels.tolist()], fill=1)
    return (slice(top, bottom), slice(left, right)), np.array(stencil) > 0


def cut_to_frame(corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Cut a polygon (N, 2) off at the edges of a picture (Sutherland and Hodgman's clipping)."""
    for axis, bound, sign in ((0, 0.0, 1), (0, width - 1.0, -1), (1, 0.0, 1), (1, height - 1.0, -1)):
        kept = []
        for here, after in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            inside, next_inside = sign * (here[axis] - bound) >= 0, sign * (after[axis] - bound) >= 0
            if inside:
                kept.append(here)
            if inside != next_inside:
                kept.append(here + (after - here) * ((bound - here[axis]) / (after[axis] - here[axis])))
        if not kept:
            return np.zeros((0, 2))
        corners = np.array(kept)
    return corners
