# SPDX-License-Identifier: Apache-2.0
"""Both libraries under the same names, on the same small seeded weights, and what "the same masks" means."""

from types import SimpleNamespace

import numpy as np

from segship import compat
from segship.masks.scores import mask_iou
from tests.oracle import SMALL_VIT, build_reference, reference
from tests.small_models import small_predictor, small_sam


def the_reference():
    """The names that notebooks import, of the reference, and its model."""
    package = reference()
    from segment_anything.utils.transforms import ResizeLongestSide

    model = build_reference(SMALL_VIT)
    model.load_state_dict(small_sam().state_dict(), strict=True)
    names = ("SamPredictor", "SamAutomaticMaskGenerator")
    return SimpleNamespace(
        **{name: getattr(package, name) for name in names}, ResizeLongestSide=ResizeLongestSide
    ), model


def the_facade():
    """The same names of segship, and its model."""
    return compat, compat.Sam(small_predictor())


def assert_same_answers(mine, theirs):
    """Compare lists of arrays: masks by their IoU, numbers by their largest difference."""
    assert len(mine) == len(theirs)
    for my_array, their_array in zip(mine, theirs, strict=True):
        my_array, their_array = np.asarray(my_array), np.asarray(their_array)
        assert my_array.shape == their_array.shape and my_array.dtype == their_array.dtype
        if my_array.dtype != bool:
            assert np.abs(my_array - their_array).max() <= 1e-4 * np.abs(their_array).max()
            continue
        height, width = my_array.shape[-2:]
        pairs = zip(my_array.reshape(-1, height, width), their_array.reshape(-1, height, width), strict=True)
        assert all(mask_iou(my_mask, their_mask) >= 0.999 for my_mask, their_mask in pairs)
