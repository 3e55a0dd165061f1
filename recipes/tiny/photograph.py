# SPDX-License-Identifier: Apache-2.0
"""What lamp, lens, sensor and file do to a painted scene: light patches, blur, tone, colour cast, noise, JPEG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.tiny.shapes import Mask, Rng
from recipes.tiny.textures import TextureBank

# float32 throughout; numpy's types do not follow that through arithmetic with scalars.
Picture = NDArray[Any]


def photograph(image: Picture, patch: Mask, rng: Rng, bank: TextureBank) -> NDArray[np.uint8]:
    """Return the (S, S, 3) uint8 photograph of a painted (S, S, 3) float32 scene.

    ``patch`` (S, S) uint8 is the outline of a shadow or a light spot that belongs to no object.
    """
    image = _light(image, patch, rng, bank)
    image = _lens(image, rng)
    image = _sensor(image, rng)
    picture = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(30, 96))
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return picture


def _light(image: Picture, patch: Mask, rng: Rng, bank: TextureBank) -> Picture:
    size = len(image)
    if rng.random() < 0.35:
        soft = cv2.GaussianBlur(patch, (0, 0), rng.uniform(1, 20) * size / 256).astype(np.float32) / 255
        image = image * (1 + np.float32(rng.uniform(-0.55, 0.35)) * soft)[..., None]
    if rng.random() < 0.5:
        tile = bank.soft(int(rng.integers(bank.soft_count)))
        crop = int(rng.uniform(80, 400))
        y, x = rng.integers(0, len(tile) - crop, 2)
        field = cv2.resize(tile[y : y + crop, x : x + crop], (size, size)).astype(np.float32) / 255 - 0.5
        image = image * (1 + field * np.float32(rng.uniform(0.1, 0.6)))[..., None]
    if rng.random() < 0.3:
        # Fine structure over everything, as grain or rain is.
        grain: Picture = bank.texture(int(rng.integers(bank.count))).astype(np.float32) - 128
        grain = cv2.resize(grain, (size, size)) if size > len(grain) else grain[:size, :size]
        image = image + grain[..., None] * np.float32(rng.uniform(0, 0.15))
    if rng.random() < 0.15:
        top, bottom = rng.uniform(0, 0.6, 2)
        haze = np.linspace(top, bottom, size, dtype=np.float32)[:, None, None]
        image = image * (1 - haze) + np.float32(rng.uniform(150, 240)) * haze
    return image


def _lens(image: Picture, rng: Rng) -> Picture:
    size = len(image)
    sigma = rng.choice([0, 0.5, 0.9, 1.5], p=[0.4, 0.38, 0.15, 0.07]) * size / 256
    if sigma:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if rng.random() < 0.2:
        ramp = np.linspace(-1, 1, size, dtype=np.float32) ** 2
        image = image * (1 - np.float32(rng.uniform(0.05, 0.3)) * (ramp[:, None] + ramp[None]) / 2)[..., None]
    return image


def _sensor(image: Picture, rng: Rng) -> Picture:
    image = image * np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    if rng.random() < 0.5:
        image = 255 * np.clip(image / 255, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.3:
        mean = image.mean()
        image = (image - mean) * np.float32(rng.uniform(0.5, 1)) + mean
    if rng.random() < 0.1:
        image = np.repeat(image.mean(2, keepdims=True), 3, 2)
    shape = image.shape[:2]
    image = image + rng.standard_normal((*shape, 1), dtype=np.float32) * np.float32(rng.uniform(0, 6))
    if rng.random() < 0.5:
        image = image + rng.standard_normal((*shape, 3), dtype=np.float32) * np.float32(rng.uniform(0, 6))
    return image
