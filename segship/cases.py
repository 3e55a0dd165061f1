# SPDX-License-Identifier: Apache-2.0
"""Images and prompt mixes on which a graph is compared with its model, or a backend with the graph.

Three images of different shapes, one of them a photograph, and for each the forms of prompt that exist: clicks, boxes,
both, mask inputs, and objects with different numbers of points in one call. Everything is seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from segship.images import read_image
from segship.images.reading import demo_photograph
from segship.promptable.prompts import Prompts
from segship.semantic.preprocessing import ScaleLimits, SemanticPreprocessing, resize_pixels, to_tensor

SCENE_SIZES_HW = ((240, 320), (300, 200))
SHAPES_PER_SCENE = 12


@dataclass(frozen=True, slots=True)
class PromptMix:
    """One call of the decoder: a name for reports, and the prompts as a function of nothing but the image's size."""

    name: str
    prompts: tuple[Prompts, ...]


def comparison_images() -> tuple[NDArray[np.uint8], ...]:
    """Return three (H, W, 3) uint8 RGB images: the demo photograph and two drawn scenes."""
    photograph = read_image(demo_photograph()).pixels
    scenes = (draw_scene(size_hw, seed) for seed, size_hw in enumerate(SCENE_SIZES_HW))
    return (photograph, *scenes)


def comparison_tensors(
    size_hw: tuple[int, int], pixel_mean: tuple[float, float, float], pixel_std: tuple[float, float, float]
) -> tuple[NDArray[np.float32], ...]:
    """Return the comparison images as inputs of a semantic graph: (1, 3, H, W) float32, stretched to a size."""
    # The scale is not used: neither the ratio of sides nor antialiasing matters to a comparison.
    settings = SemanticPreprocessing(ScaleLimits(1, 1), pixel_mean, pixel_std)
    return tuple(to_tensor(resize_pixels(picture, size_hw), settings) for picture in comparison_images())


def draw_scene(size_hw: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Draw ellipses on a gradient with noise: (H, W, 3) uint8 RGB, the same for the same seed."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    ramp = np.linspace(40, 200, width, dtype=np.float32)[None, :, None] + np.zeros((height, 1, 3), np.float32)
    image = np.ascontiguousarray(ramp)
    for _ in range(SHAPES_PER_SCENE):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(8, width // 4)), int(rng.integers(8, height // 4)))
        colour = tuple(float(value) for value in rng.integers(0, 256, 3))
        cv2.ellipse(image, centre, axes, float(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
    noisy = image + rng.normal(0, 6, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def prompt_mixes(size_hw: Sequence[int], low_res_size: int, seed: int = 0) -> tuple[PromptMix, ...]:
    """Return the prompt mixes for an image of the given height and width."""
    height, width = size_hw
    mask = smooth_mask(low_res_size, seed)

    def at(x: float, y: float) -> list[float]:
        return [x * width, y * height]

    box = [*at(0.2, 0.15), *at(0.8, 0.75)]
    click = Prompts(points=[at(0.5, 0.45)])
    both = Prompts(points=[at(0.5, 0.45), at(0.1, 0.1)], labels=[1, 0])
    three = Prompts(points=[at(0.3, 0.3), at(0.4, 0.35), at(0.9, 0.9)], labels=[1, 1, 0])
    boxed = Prompts(boxes=box)
    cut = Prompts(boxes=box, points=[at(0.7, 0.7)], labels=[0])
    refined = Prompts(points=[at(0.5, 0.45)], mask_input=mask)
    masked = Prompts(mask_input=mask)
    return (
        PromptMix("one click", (click,)),
        PromptMix("two clicks", (both,)),
        PromptMix("box", (boxed,)),
        PromptMix("box and background click", (cut,)),
        PromptMix("click and mask", (refined,)),
        PromptMix("mask alone", (masked,)),
        PromptMix("seven objects in one call", (click, both, three, boxed, cut, refined, masked)),
    )


def smooth_mask(side: int, seed: int) -> NDArray[np.float32]:
    """Return seeded smooth logits (side, side) float32, roughly in -8..8, as an earlier prediction would be."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 6, (8, 8)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
