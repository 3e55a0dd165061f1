# SPDX-License-Identifier: Apache-2.0
"""One result with everything in it: two objects, three masks each, one of them empty."""

from __future__ import annotations

import numpy as np
import pytest

from segship.predictor import MaskPrediction
from segship.prompts import ObjectPrompt
from segship.writers import Result


@pytest.fixture
def result() -> Result:
    rng = np.random.default_rng(0)
    masks = rng.random((2, 3, 37, 53)) < 0.3
    masks[1, 2] = False
    prediction = MaskPrediction(
        masks=masks,
        iou_predictions=np.array([[0.5, 0.9, 0.7], [0.8, 0.1, 0.8]], np.float32),
        low_res_masks=rng.normal(size=(2, 3, 16, 16)).astype(np.float32),
        original_size=(37, 53),
        notes=("box_clipped",),
    )
    objects = (
        ObjectPrompt(
            np.array([[10.1, 20], [30, 5]], np.float32), np.array([1, 0]), np.array([0, 0, 53, 37], np.float32)
        ),
        ObjectPrompt(np.array([[40, 30]], np.float32), np.array([1]), None, np.zeros((1, 16, 16), np.float32)),
    )
    pixels = rng.integers(0, 256, (37, 53, 3), np.uint8)
    return Result("my photo", "dir/my photo.jpg", pixels, prediction, objects, ("trailing_data",))
