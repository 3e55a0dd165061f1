# SPDX-License-Identifier: Apache-2.0
"""Points, boxes and mask inputs: what a user means by them, checked, and as tensors of ``mask_decoder``.

Third step of the use road: `Prompts` holds what was given, `resolve_prompts` checks it against the image and splits it
into objects, `encode_prompts` makes the tensors. `segship.promptable.prompt_text` reads prompts from text. Rank decides
meaning: points (N, 2) are N points of one object, points (B, N, 2) are B objects.

Codes of `PromptError`: ``bad_shape`` (wrong rank, or not numbers), ``length_mismatch``, ``non_finite``, ``bad_label``,
``bad_mask_input``, ``no_prompts``, ``too_many_objects``, ``too_many_points``, ``point_outside``, ``empty_box``,
``box_outside``.

Notes of `ResolvedPrompts`: ``point_clipped`` (moved to the edge), ``box_reversed`` (corners put in order),
``box_clipped`` (cut at the edge), ``no_positive_prompt`` (an object has background points and nothing else).

The image frame is closed: a point at x = width or y = height, the far edge of the last pixel, is inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Never

import numpy as np
import numpy.typing as npt

from segship.arrays import AnyArray, FloatArray, IntArray, Points, Size
from segship.errors import PromptError, way
from segship.promptable.transforms import to_model_frame
from segship.spec import (
    LABEL_BACKGROUND,
    LABEL_BOX_BOTTOM_RIGHT,
    LABEL_BOX_TOP_LEFT,
    LABEL_EMPTY,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
)

POINTS_ACCEPTED = "(N, 2) for N points of one object, or (B, N, 2) for B objects"
_LABELS_ACCEPTED = "(N,) for points (N, 2), or (B, N) for points (B, N, 2)"
_BOXES_ACCEPTED = "(4,) for one object, or (B, 4) for B objects, as x0 y0 x1 y1"
_MASK_INPUT_ACCEPTED = "(h, w) or (1, h, w) for one object, or (B, 1, h, w) for B objects"


def _read_array(value: npt.ArrayLike, name: str, accepted: str, code: str, kinds: str = "iuf") -> AnyArray:
    """Return an array of finite numbers; ``kinds`` are numpy's letters of the number types that are accepted."""
    try:
        array = np.asarray(value)
        # Among numbers numpy takes True for 1, and of whole numbers past 64 bits it makes objects.
        items = np.asarray(value, object).flat if isinstance(value, list | tuple) and "b" not in kinds else ()
    except (ValueError, TypeError, OverflowError):
        raise PromptError(f"{name} is not a regular array of numbers; accepted is {accepted}", code=code) from None
    if any(isinstance(item, bool | np.bool_) for item in items):
        raise PromptError(f"{name} has True or False; accepted are numbers, {accepted}", code=code)
    numbers = (int, float, bool) if "b" in kinds else (int, float)
    if array.dtype == object and all(type(number) in numbers for number in array.flat):
        array = _past_64_bits(array, name)
    if array.size and array.dtype.kind not in kinds:
        raise PromptError(f"{name} has the type {array.dtype}; accepted are numbers, {accepted}", code=code)
    if array.size and not np.isfinite(array).all():
        raise PromptError(f"{name} has a number that is NaN or infinite; give finite numbers", code="non_finite")
    return array


def _past_64_bits(array: AnyArray, name: str) -> AnyArray:
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise PromptError(
            f"{name} has a number too large for float32; give finite numbers", code="non_finite"
        ) from None


def _as_float32(array: AnyArray, name: str) -> FloatArray:
    with np.errstate(over="ignore"):
        # Always a copy, so that later changes of the caller's array change nothing here.
        converted = array.astype(np.float32, copy=True)
    if not np.isfinite(converted).all():
        raise PromptError(f"{name} has a number too large for float32; give finite numbers", code="non_finite")
    converted.setflags(write=False)
    return converted


def read_points(points: npt.ArrayLike | None) -> FloatArray | None:
    """Return points as (B, N, 2) float32."""
    if points is None:
        return None
    array = _read_array(points, "points", POINTS_ACCEPTED, "bad_shape")
    if array.size == 0:
        # No objects; but of rank 2, or for some objects, these are objects without a point.
        objects = array.shape[:2] if array.ndim == 3 else (len(array), 0)
        return None if objects[0] or array.ndim == 2 else np.zeros((*objects, 2), np.float32)
    if array.ndim not in (2, 3) or array.shape[-1] != 2:
        hint = "; one point is [[x, y]]" if array.ndim == 1 else ""
        raise PromptError(f"points has the shape {array.shape}; accepted is {POINTS_ACCEPTED}.{hint}", code="bad_shape")
    return _as_float32(array if array.ndim == 3 else array[None], "points")


def read_labels(labels: npt.ArrayLike | None, points: FloatArray | None) -> IntArray | None:
    """Return one label a point as (B, N) int64; foreground where none are given."""
    if labels is None:
        return None if points is None else np.full(points.shape[:2], LABEL_FOREGROUND, np.int64)
    array = _read_array(labels, "labels", _LABELS_ACCEPTED, "bad_shape", kinds="iufb")
    if points is None or not len(points):
        if array.size == 0:
            return None if points is None else np.zeros(points.shape[:2], np.int64)
        raise PromptError(
            f"labels has {array.size} values and there are no points; give one label a point; "
            "a box has its own argument, boxes, and needs no label",
            code="length_mismatch",
        )
    objects, count = points.shape[:2]
    if array.shape != (objects, count) and not (objects == 1 and array.shape == (count,)):
        raise PromptError(
            f"labels has the shape {array.shape}; the points are for {objects} objects with {count} points each; "
            f"give one label a point: {_LABELS_ACCEPTED}",
            code="length_mismatch",
        )
    wrong = array[(array != LABEL_BACKGROUND) & (array != LABEL_FOREGROUND)]
    if wrong.size:
        raise PromptError(
            f"labels has the value {wrong[0]}; accepted are 1 for foreground and 0 for background; "
            "the corners of a box go into boxes",
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
    if array.size == 0 and array.shape[:1] == (0,):
        return np.zeros((0, 4), np.float32)
    if array.ndim not in (1, 2) or array.shape[-1] != 4:
        raise PromptError(f"boxes has the shape {array.shape}; accepted is {_BOXES_ACCEPTED}", code="bad_shape")
    return _as_float32(array.reshape(-1, 4), "boxes")


def read_mask_input(mask_input: npt.ArrayLike | None) -> FloatArray | None:
    """Return a mask input as (B, 1, h, w) float32."""
    if mask_input is None:
        return None
    accepted = (
        f"{_MASK_INPUT_ACCEPTED}: the low_res_masks of an earlier prediction, not a binary mask, of which "
        "mask_to_logits makes one"
    )
    array = _read_array(mask_input, "mask_input", accepted, "bad_mask_input")
    shape = (1,) * (4 - array.ndim) + array.shape
    has_pixels = array.size > 0 or (array.ndim == 4 and not len(array))
    if array.ndim not in (2, 3, 4) or not has_pixels or (array.ndim == 3 and array.shape[0] != 1) or shape[1] != 1:
        raise PromptError(f"mask_input has the shape {array.shape}; accepted is {accepted}", code="bad_mask_input")
    return _as_float32(array.reshape(shape), "mask_input")


_CLIP = way("outside='clip'", "--clip", '"clip": true')
_EVERYTHING = way("segship.generate_masks", "`segship everything`", "the route everything")


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """The most that one call takes; a server sets its own.

    Attributes
    ----------
    points_per_object, objects
        Counts; None takes any number.
    json_bytes, json_depth
        Length and nesting of a JSON document.
    memory_bytes
        What the low-resolution masks of all objects, logits that were asked for and the decoder's tensors may take.
    """

    points_per_object: int | None = None
    objects: int | None = None
    json_bytes: int = 1024 * 1024
    json_depth: int = 16
    memory_bytes: int = 8 * 2**30


DEFAULT_LIMITS = PromptLimits()

CHANGES = {
    "point_clipped": "a point outside the image was moved to its edge",
    "box_clipped": "a box was cut at the edge of the image",
    "box_reversed": "the corners of a box were put in order, x0 < x1 and y0 < y1",
}
"""Notes of prompts that were used otherwise than given, in words for the warnings of facades."""
ONE_MASK = "one_mask_model"
NO_PICTURE = "no_picture"
NOTES = {
    **CHANGES,
    "no_positive_prompt": "an object has background points alone; a foreground point or a box says what is meant",
    ONE_MASK: "the model gives one mask of an object, which its graph chooses, so there are no three to choose from",
    NO_PICTURE: "the embedding holds no picture, so masks have the borders of the decoder's cells; encode it again",
}
"""What the notes of prompts mean."""
# What others call them, or one of them.
_MEANT = {
    **dict.fromkeys(("point", "point_coords", "coords"), "points"),
    **dict.fromkeys(("label", "point_labels"), "labels"),
    **dict.fromkeys(("box", "bbox", "bboxes"), "boxes"),
    **dict.fromkeys(("mask", "masks", "mask_inputs"), "mask_input"),
}


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Prompts:
    """Prompts for B objects of one image, in the image frame; all parts that are given have the same B.

    Anything numpy can make an array of is taken, copied, and stored in the shapes below. Labels default to 1. Objects
    with different numbers of points are a list of `Prompts`. No boxes, (0, 4) or [], are no objects, which is answered
    with no masks; so are points (0, N, 2) or []. Beside a part that is for objects they count as not given.

    Attributes
    ----------
    points
        (B, N, 2) float32 x y pixels, or None. Given as (N, 2) or (B, N, 2).
    labels
        (B, N) int64, 1 foreground and 0 background, or None. Given as (N,) or (B, N), as the points are.
    boxes
        (B, 4) float32 x0 y0 x1 y1 pixels, or None. Given as (4,) or (B, 4).
    mask_input
        (B, 1, h, w) float32 logits of an earlier prediction, over the model frame, or None. Given as (h, w),
        (1, h, w) or (B, 1, h, w).

    Raises
    ------
    PromptError
        ``bad_shape``, ``bad_mask_input``, ``length_mismatch``, ``non_finite`` or ``bad_label``.
    """

    points: FloatArray | None
    labels: IntArray | None
    boxes: FloatArray | None
    mask_input: FloatArray | None

    # Written out so that the arguments are array-likes while the attributes are arrays.
    def __init__(
        self,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        **unknown: Never,
    ) -> None:
        for name in unknown:
            meant = _MEANT.get(name)
            advice = f"{meant} is meant" if meant else "accepted are points, labels, boxes and mask_input"
            raise TypeError(f"there is no parameter {name!r}; {advice}")
        point_array = read_points(points)
        object.__setattr__(self, "points", point_array)
        object.__setattr__(self, "labels", read_labels(labels, point_array))
        object.__setattr__(self, "boxes", read_boxes(boxes))
        object.__setattr__(self, "mask_input", read_mask_input(mask_input))
        if self.object_count:
            for name in ("points", "labels", "boxes", "mask_input"):
                part = getattr(self, name)
                object.__setattr__(self, name, None if part is not None and not len(part) else part)
        counts = {name: len(part) for name, part in self._parts().items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} for {count}" for name, count in counts.items())
            raise PromptError(
                f"the prompts are for different numbers of objects: {found}; give every part once per object; "
                f"one object is not repeated for the others, and points are {POINTS_ACCEPTED}",
                code="length_mismatch",
            )

    def __repr__(self) -> str:
        return f"Prompts({', '.join(f'{name} {part.shape}' for name, part in self._parts().items())})"

    @property
    def object_count(self) -> int:
        """B; 0 for no objects, and if nothing was given."""
        return max((len(part) for part in self._parts().values()), default=0)

    def _parts(self) -> dict[str, FloatArray]:
        parts = {"points": self.points, "boxes": self.boxes, "mask_input": self.mask_input}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True, slots=True, eq=False)
class ObjectPrompt:
    """The prompts of one object, in the image frame and inside the image.

    Attributes
    ----------
    points
        (n, 2) float32 x y pixels; n may be 0.
    labels
        (n,) int64, 1 foreground and 0 background.
    box
        (4,) float32 x0 y0 x1 y1 pixels with x0 < x1 and y0 < y1, or None.
    mask_input
        (1, h, w) float32 logits, or None.
    """

    points: FloatArray
    labels: IntArray
    box: FloatArray | None = None
    mask_input: FloatArray | None = field(default=None, repr=False)

    @property
    def ambiguous(self) -> bool:
        """Whether one point is all there is, so that several masks are equally right."""
        return len(self.points) == 1 and self.box is None and self.mask_input is None


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedPrompts:
    """Checked prompts, one entry an object, and notes on what was changed; see the module's list."""

    objects: tuple[ObjectPrompt, ...]
    notes: tuple[str, ...] = ()


def resolve_prompts(
    prompts: Prompts | Sequence[Prompts],
    original_size: Size,
    *,
    outside: Literal["error", "clip"] = "error",
    limits: PromptLimits | None = DEFAULT_LIMITS,
) -> ResolvedPrompts:
    """Check prompts against their image and split them into objects.

    Parameters
    ----------
    prompts
        One or more, put one behind the other; an empty list is no objects.
    original_size
        (height, width) of the upright original image.
    outside
        What happens to a point outside the image: ``error`` refuses it, ``clip`` moves it to the edge. A box is cut at
        the edge either way, and refused if all of it is outside.
    limits
        The most objects, and points an object; None, and the default, take any number.

    Raises
    ------
    PromptError
        ``no_prompts``, ``too_many_objects``, ``too_many_points``, ``point_outside``, ``empty_box`` or ``box_outside``.
    """
    given = [prompts] if isinstance(prompts, Prompts) else list(prompts)
    for part in given:
        if not isinstance(part, Prompts):
            message = f"the prompts hold a {type(part).__name__}; accepted are Prompts(points=...), or a list of those"
            raise TypeError(message)
    counts = [part.object_count for part in given]
    if any(not part._parts() for part in given):
        raise PromptError(
            f"there are no prompts; give {way('points, boxes or a mask_input for every object', '--point or --box')}; "
            f"to segment everything, use {_EVERYTHING}",
            code="no_prompts",
        )
    if limits is not None and limits.objects is not None and sum(counts) > limits.objects:
        raise PromptError(
            f"the prompts are for {sum(counts)} objects; at most {limits.objects} are taken in one call",
            code="too_many_objects",
        )
    notes: dict[str, None] = {}
    objects: list[ObjectPrompt] = []
    for part in given:
        for row in range(part.object_count):
            objects.append(_resolve_object(_one_object(part, row), len(objects), original_size, outside, limits, notes))
    return ResolvedPrompts(tuple(objects), tuple(notes))


def _one_object(prompts: Prompts, row: int) -> ObjectPrompt:
    return ObjectPrompt(
        points=np.zeros((0, 2), np.float32) if prompts.points is None else prompts.points[row],
        labels=np.zeros(0, np.int64) if prompts.labels is None else prompts.labels[row],
        box=None if prompts.boxes is None else prompts.boxes[row],
        mask_input=None if prompts.mask_input is None else prompts.mask_input[row],
    )


def _resolve_object(
    given: ObjectPrompt,
    index: int,
    original_size: Size,
    outside: Literal["error", "clip"],
    limits: PromptLimits | None,
    notes: dict[str, None],
) -> ObjectPrompt:
    most = None if limits is None else limits.points_per_object
    if most is not None and len(given.points) > most:
        message = f"object {index} has {len(given.points)} points; at most {most} are taken"
        raise PromptError(message, code="too_many_points")
    resolved = replace(given, points=_resolve_points(given.points, index, original_size, outside, notes))
    if given.box is not None:
        resolved = replace(resolved, box=_resolve_box(given.box, index, original_size, notes))
    has_positive = given.box is not None or given.mask_input is not None or LABEL_FOREGROUND in given.labels
    if not has_positive:
        notes["no_positive_prompt"] = None
    return resolved


def _resolve_points(
    points: FloatArray, index: int, original_size: Size, outside: Literal["error", "clip"], notes: dict[str, None]
) -> FloatArray:
    height, width = original_size
    clipped = np.clip(points, 0, np.array([width, height], np.float32))
    is_outside = (clipped != points).any(axis=1)
    if not is_outside.any():
        return points
    if outside == "error":
        x, y = points[is_outside][0]
        raise PromptError(
            f"object {index} has a point at x={x:g}, y={y:g}, outside the image; "
            f"accepted are x from 0 to {width} and y from 0 to {height}, or {_CLIP}, which moves it to the edge",
            code="point_outside",
        )
    notes["point_clipped"] = None
    return clipped


def _resolve_box(box: FloatArray, index: int, original_size: Size, notes: dict[str, None]) -> FloatArray:
    height, width = original_size
    found = "object {} has the box x0={:g}, y0={:g}, x1={:g}, y1={:g}".format(index, *box)
    corners = np.sort(box.reshape(2, 2), axis=0)
    if (corners[0] == corners[1]).any():
        raise PromptError(f"{found}, which has no area; move two corners apart", code="empty_box")
    clipped = np.clip(corners, 0, np.array([width, height], np.float32))
    if (clipped[0] >= clipped[1]).any():
        raise PromptError(
            f"{found}, all of it outside the image; the image goes from 0, 0 to {width}, {height}", code="box_outside"
        )
    if (corners != box.reshape(2, 2)).any():
        notes["box_reversed"] = None
    if (clipped != corners).any():
        notes["box_clipped"] = None
    return clipped.reshape(4)


@dataclass(frozen=True, slots=True)
class PromptRules:
    """How a model family wants its prompts.

    Attributes
    ----------
    padding_point
        When SAM's "not a point" token follows an object's points: ``without_box``, only for points without a box, as
        SAM 1 was trained; ``always``; or ``never``.
    """

    padding_point: Literal["without_box", "always", "never"] = "without_box"


def encode_prompts(
    objects: Sequence[ObjectPrompt],
    *,
    original_size: Size,
    input_size: Size,
    low_res_size: int,
    rules: PromptRules,
) -> dict[str, AnyArray]:
    """Return the prompt tensors of ``mask_decoder``.

    Sizes are those of the original image and of its resized copy; ``low_res_size`` is the side of a mask input.

    Returns
    -------
    dict
        ``point_coords`` (N, P, 2) float32 x y in the model frame, ``point_labels`` (N, P) float32, ``mask_input``
        (N, 1, low_res_size, low_res_size) float32 and ``has_mask_input`` (N,) float32. An object's tokens are its
        points, the "not a point" token where the rules want it, and the corners of its box; empty places, label -2,
        fill the rest. P is at least 1.

    Raises
    ------
    PromptError
        ``bad_mask_input`` for a mask input of another size.
    """
    tokens = [_object_tokens(entry, original_size, input_size, rules) for entry in objects]
    longest = max((len(labels) for _, labels in tokens), default=1) or 1
    point_coords = np.zeros((len(objects), longest, 2), np.float32)
    point_labels = np.full((len(objects), longest), LABEL_EMPTY, np.float32)
    mask_input = np.zeros((len(objects), 1, low_res_size, low_res_size), np.float32)
    has_mask_input = np.zeros(len(objects), np.float32)
    for row, (entry, (coords, labels)) in enumerate(zip(objects, tokens, strict=True)):
        point_coords[row, : len(labels)] = coords
        point_labels[row, : len(labels)] = labels
        if entry.mask_input is not None:
            if entry.mask_input.shape != mask_input.shape[1:]:
                raise PromptError(
                    f"object {row} has a mask_input of shape {entry.mask_input.shape}; this model takes "
                    f"{mask_input.shape[1:]}, the low_res_masks of an earlier prediction",
                    code="bad_mask_input",
                )
            mask_input[row] = entry.mask_input
            has_mask_input[row] = 1
    return {
        "point_coords": point_coords,
        "point_labels": point_labels,
        "mask_input": mask_input,
        "has_mask_input": has_mask_input,
    }


def encode_clicks(
    points_xy: Points, *, original_size: Size, input_size: Size, low_res_size: int, rules: PromptRules
) -> dict[str, AnyArray]:
    """Return what `encode_prompts` does for N objects of one foreground point each, (N, 2) in the image frame."""
    # Rounded first, as `Prompts` stores points.
    coords = to_model_frame(points_xy.astype(np.float32), original_size, input_size)[:, None]
    labels = np.full((len(coords), 1), LABEL_FOREGROUND, np.float32)
    if rules.padding_point != "never":
        coords = np.concatenate([coords, np.zeros_like(coords)], axis=1)
        labels = np.concatenate([labels, np.full_like(labels, LABEL_NOT_A_POINT)], axis=1)
    return {
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((len(coords), 1, low_res_size, low_res_size), np.float32),
        "has_mask_input": np.zeros(len(coords), np.float32),
    }


def _object_tokens(
    entry: ObjectPrompt, original_size: Size, input_size: Size, rules: PromptRules
) -> tuple[FloatArray, FloatArray]:
    """Return coordinates (n, 2) in the model frame and labels (n,) of one object, without empty places."""
    coords = [to_model_frame(entry.points, original_size, input_size)]
    labels = [*entry.labels.tolist()]
    has_points_alone = len(entry.points) > 0 and entry.box is None
    if rules.padding_point == "always" or (rules.padding_point == "without_box" and has_points_alone):
        coords.append(np.zeros((1, 2), np.float32))
        labels.append(LABEL_NOT_A_POINT)
    if entry.box is not None:
        coords.append(to_model_frame(entry.box.reshape(2, 2), original_size, input_size))
        labels += [LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT]
    return np.concatenate(coords), np.array(labels, np.float32)
