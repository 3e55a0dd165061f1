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


def smooth_mask(side: int, seed: int) -> NDArray[np.float32]:
    """Return seeded smooth logits (side, side) float32, roughly in -8..8, as an earlier prediction would be."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 6, (8, 8)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
