# SPDX-License-Identifier: Apache-2.0
"""The images on which a graph is compared with its model, or a backend with the graph; everything is seeded."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.images.reading import demo_photograph, read_image

SCENE_SIZES_HW = ((240, 320), (300, 200))
SHAPES_PER_SCENE = 12


def comparison_images() -> tuple[NDArray[np.uint8], ...]:
    """Return three (H, W, 3) uint8 RGB images of different shapes: the demo photograph and two drawn scenes."""
    photograph = read_image(demo_photograph()).pixels
    scenes = (draw_scene(size_hw, seed) for seed, size_hw in enumerate(SCENE_SIZES_HW))
    return (photograph, *scenes)


def draw_scene(size_hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Draw ellipses on a gradient with noise: (H, W, 3) uint8 RGB, the same for the same seed."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    ramp = np.linspace(40, 200, width, dtype=np.float32)[None, :, None] + np.zeros((height, 1, 3), np.float32)
    image = np.ascontiguousarray(ramp)
    for _ in range(SHAPES_PER_SCENE):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(8, width // 4)), int(rng.integers(8, height // 4)))
        color = tuple(float(value) for value in rng.integers(0, 256, 3))
        cv2.ellipse(image, center, axes, float(rng.integers(180)), 0, 360, color, -1, cv2.LINE_AA)
    noisy = image + rng.normal(0, 6, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def draw_labelled_scene(
    size_hw: tuple[int, int], seed: int | tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Draw textured ellipses, boxes and triangles over each other on a slope of colors.

    Returns (H, W, 3) uint8 RGB, and (H, W) uint16: the number of what is seen at each pixel, 0 for the background.
    """
    rng = np.random.default_rng(seed)
    height, width = size_hw
    slope = cv2.resize(rng.uniform(0, 255, (2, 2, 3)).astype(np.float32), (width, height))
    labels, spread = np.zeros(size_hw, np.uint16), rng.uniform(0.1, 0.35)
    for number in range(1, int(rng.integers(4, 16))):
        center, sides = rng.uniform(0, (width, height)), rng.uniform(0.03, spread, 2) * max(size_hw)
        turned = cv2.boxPoints((center.tolist(), (2 * sides).tolist(), float(rng.uniform(0, 180)))).astype(np.int32)
        shape = np.zeros(size_hw, np.uint8)
        if kind := int(rng.integers(3)):
            cv2.fillPoly(shape, [turned[: kind + 2]], 1)
        else:
            cv2.ellipse(shape, cv2.minAreaRect(turned), 1, -1)
        cells = rng.uniform(0, 255, 3) + rng.normal(0, rng.uniform(0, 40), (*(rng.integers(2, 40, 2)), 3))
        texture = cv2.resize(cells.astype(np.float32), (width, height))
        slope, labels = np.where(shape[..., None], texture, slope), np.where(shape, np.uint16(number), labels)
    blurred = cv2.GaussianBlur(slope, (0, 0), float(rng.uniform(0.4, 1.5)))
    noisy = blurred + rng.normal(0, rng.uniform(0, 12), slope.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def smooth_mask(side: int, seed: int) -> NDArray[np.float32]:
    """Return seeded smooth logits (side, side) float32, roughly in -8..8, as an earlier prediction would be."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 6, (8, 8)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
