# SPDX-License-Identifier: Apache-2.0
"""Masks as users give them, checked once at the door of `segship.masks`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.errors import InputError


def read_mask(mask: npt.ArrayLike, name: str = "mask") -> NDArray[np.bool_]:
    """Return a mask (H, W) as bool; every whole number but 0 is a set pixel.

    Raises
    ------
    InputError
        ``bad_shape`` for another rank, ``bad_array_dtype`` for numbers with a fraction, which may be logits.
    """
    array: NDArray[Any] = np.asarray(mask)
    if array.ndim != 2:
        raise InputError(f"{name} has the shape {array.shape}; accepted is one mask, (H, W).", code="bad_shape")
    if array.dtype.kind not in "biu":
        message = f"{name} has the type {array.dtype}; give bool or whole numbers, such as logits > 0."
        raise InputError(message, code="bad_array_dtype")
    return array if array.dtype == np.bool_ else array != 0


def read_number(value: float, name: str, *, most: float = math.inf) -> float:
    """Return a number from 0 to ``most``; refuses anything else, NaN too."""
    # `not`, since NaN is neither below nor above anything.
    if not 0 <= value <= most or math.isinf(value):
        accepted = "a finite number from 0 up" if math.isinf(most) else f"a number from 0 to {most:g}"
        raise InputError(f"{name} is {value}; accepted is {accepted}.", code="bad_option")
    return float(value)
