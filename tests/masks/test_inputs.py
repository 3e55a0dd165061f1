# SPDX-License-Identifier: Apache-2.0
"""What the masks' functions take for a mask and for a number."""

from __future__ import annotations

import numpy as np
import pytest

from segship.errors import InputError
from segship.masks.rle import read_mask, read_number


def test_every_number_but_zero_is_a_set_pixel() -> None:
    for dtype in (np.bool_, np.uint8, np.int64):
        mask = read_mask(np.array([[0, 1], [255, 0]]).astype(dtype))
        assert mask.dtype == np.bool_ and mask.tolist() == [[False, True], [True, False]]


def test_bool_mask_is_not_copied() -> None:
    mask = np.zeros((2, 3), bool)
    assert read_mask(mask) is mask


@pytest.mark.parametrize("shape", [(), (4,), (1, 4, 4)])
def test_other_ranks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="first has the shape .* accepted is one mask, .H, W.") as caught:
        read_mask(np.zeros(shape, bool), "first")
    assert caught.value.code == "bad_shape"


def test_logits_are_refused() -> None:
    with pytest.raises(InputError, match="float32; give bool or whole numbers, such as logits > 0") as caught:
        read_mask(np.zeros((2, 2), np.float32))
    assert caught.value.code == "bad_array_dtype"


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_number_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="threshold is .*; accepted is a number from 0 to 1") as caught:
        read_number(value, "threshold", most=1)
    assert caught.value.code == "bad_option"


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_number_without_a_limit_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(InputError, match="accepted is a finite number from 0 up"):
        read_number(value, "tolerance")
    assert read_number(0, "tolerance") == 0.0
