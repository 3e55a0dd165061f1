# SPDX-License-Identifier: Apache-2.0
"""The prompts that all sides get."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.prepared import PHOTO_SIZE

CLICK = (0.475, 0.375)
"""Where the one click is, as parts of width and height."""


def image_points(objects: int) -> Any:
    """Return points (N, 1, 2) float64 in the photograph, one an object, seeded, on whole pixels."""
    rng = np.random.default_rng(0)
    return np.floor(rng.uniform(0, PHOTO_SIZE, (objects, 1, 2)))


def model_frame_points(objects: int, image_size: int) -> Any:
    """Return the same points in the model frame, float32."""
    width, height = PHOTO_SIZE
    scale = image_size / max(PHOTO_SIZE)
    resized = np.array([int(width * scale + 0.5), int(height * scale + 0.5)])
    return (image_points(objects) * (resized / PHOTO_SIZE)).astype(np.float32)
