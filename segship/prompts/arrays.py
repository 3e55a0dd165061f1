# SPDX-License-Identifier: Apache-2.0
"""Whatever a user gives as points, labels, boxes or mask input, as one checked array each; used by `segship.prompts`.

Shapes, types, finite numbers and labels are checked here, without an image. Every array that is returned is a copy and
read-only. Codes are listed in `segship.prompts`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from segship.errors import PromptError
from segship.spec import LABEL_BACKGROUND, LABEL_FOREGROUND

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]

POINTS_ACCEPTED = "(N, 2) for N points of one object, or (B, N, 2) for B objects"
_LABELS_ACCEPTED = "(N,) for points (N, 2), or (B, N) for points (B, N, 2)"
_BOXES_ACCEPTED = "(4,) for one object, or (B, 4) for B objects, as x0 y0 x1 y1"
_MASK_INPUT_ACCEPTED = "(h, w) or (1, h, w) for one object, or (B, 1, h, w) for B objects"


def _read_array(value: npt.ArrayLike, name: str, accepted: str, code: str, kinds: str = "iuf") -> npt.NDArray[Any]:
    """Return an array of finite numbers; ``kinds`` are numpy's letters of the number types that are accepted."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise PromptError(f"{name} is not a regular array of numbers; accepted is {accepted}.", code=code) from None
    # An empty list carries no type. Whole numbers past 64 bits become objects, and are too large for any image.
    if array.dtype == object and all(type(number) is int for number in array.flat):
        raise PromptError(f"{name} has a number past 64 bits; give pixels of the image.", code="non_finite")
    if array.size and array.dtype.kind not in kinds:
        raise PromptError(f"{name} has the type {array.dtype}; accepted are numbers, {accepted}.", code=code)
    if array.size and not np.isfinite(array).all():
        raise PromptError(f"{name} has a number that is NaN or infinite; give finite numbers.", code="non_finite")
    return array


def _as_float32(array: npt.NDArray[Any], name: str) -> FloatArray:
    with np.errstate(over="ignore"):
        # Always a copy, so that later changes of the caller's array change nothing here.
        converted = array.astype(np.float32, copy=True)
    if not np.isfinite(converted).all():
        raise PromptError(f"{name} has a number too large for float32; give finite numbers.", code="non_finite")
    converted.setflags(write=False)
    return converted


def read_points(points: npt.ArrayLike | None) -> FloatArray | None:
    """Return points as (B, N, 2) float32."""
    if points is None:
        return None
    array = _read_array(points, "points", POINTS_ACCEPTED, "bad_shape")
    if array.size == 0:
        return None
    if array.ndim not in (2, 3) or array.shape[-1] != 2:
        hint = " One point is [[x, y]]." if array.ndim == 1 else ""
        raise PromptError(f"points has the shape {array.shape}; accepted is {POINTS_ACCEPTED}.{hint}", code="bad_shape")
    return _as_float32(array if array.ndim == 3 else array[None], "points")


def read_labels(labels: npt.ArrayLike | None, points: FloatArray | None) -> LabelArray | None:
    """Return one label a point as (B, N) int64; foreground where none are given."""
    if labels is None:
        return None if points is None else np.full(points.shape[:2], LABEL_FOREGROUND, np.int64)
    array = _read_array(labels, "labels", _LABELS_ACCEPTED, "bad_shape", kinds="iufb")
    if points is None:
        if array.size == 0:
            return None
        raise PromptError(
            f"labels has {array.size} values and there are no points; give one label a point. "
            "A box has its own argument, boxes, and needs no label.",
            code="length_mismatch",
        )
    objects, count = points.shape[:2]
    if array.shape != (objects, count) and not (objects == 1 and array.shape == (count,)):
        raise PromptError(
            f"labels has the shape {array.shape}; the points are for {objects} objects with {count} points each. "
            f"Give one label a point: {_LABELS_ACCEPTED}.",
            code="length_mismatch",
        )
    wrong = array[(array != LABEL_BACKGROUND) & (array != LABEL_FOREGROUND)]
    if wrong.size:
        raise PromptError(
            f"labels has the value {wrong[0]}; accepted are 1 for foreground and 0 for background. "
            "The corners of a box go into boxes.",
            code="bad_label",
        )
    stored = array.reshape(objects, count).astype(np.int64, copy=True)
    stored.setflags(write=False)
    return stored


def read_boxes(boxes: npt.ArrayLike | None) -> FloatArray | None:
    """Return boxes as (B, 4) float32, as they were given: corners in any order, anywhere."""
    if boxes is None:
        return None
    array = _read_array(boxes, "boxes", _BOXES_ACCEPTED, "bad_shape")
    if array.size == 0:
        return None
    if array.ndim not in (1, 2) or array.shape[-1] != 4:
        raise PromptError(f"boxes has the shape {array.shape}; accepted is {_BOXES_ACCEPTED}.", code="bad_shape")
    return _as_float32(array.reshape(-1, 4), "boxes")


def read_mask_input(mask_input: npt.ArrayLike | None) -> FloatArray | None:
    """Return a mask input as (B, 1, h, w) float32."""
    if mask_input is None:
        return None
    accepted = f"{_MASK_INPUT_ACCEPTED}: the low_res_masks of an earlier prediction, not a binary mask"
    array = _read_array(mask_input, "mask_input", accepted, "bad_mask_input")
    shape = (1,) * (4 - array.ndim) + array.shape
    if array.ndim not in (2, 3, 4) or array.size == 0 or (array.ndim == 3 and array.shape[0] != 1) or shape[1] != 1:
        raise PromptError(f"mask_input has the shape {array.shape}; accepted is {accepted}.", code="bad_mask_input")
    return _as_float32(array.reshape(shape), "mask_input")
