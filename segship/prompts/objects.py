# SPDX-License-Identifier: Apache-2.0
"""What a user gives, `Prompts`, checked against its image and split into objects; codes are listed in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from segship.errors import PromptError
from segship.prompts.arrays import (
    POINTS_ACCEPTED,
    FloatArray,
    LabelArray,
    read_boxes,
    read_labels,
    read_mask_input,
    read_points,
)
from segship.spec import LABEL_FOREGROUND
from segship.transforms import Size


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """The most that one call takes."""

    points_per_object: int = 64
    objects: int = 64
    json_bytes: int = 1024 * 1024
    json_depth: int = 16


DEFAULT_LIMITS = PromptLimits()


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Prompts:
    """Prompts for B objects of one image, in the image frame; all parts that are given have the same B.

    Anything numpy can make an array of is taken, copied, and stored in the shapes below. Labels default to 1. An empty
    list of points, labels or boxes counts as not given. Objects with different numbers of points are a list of
    `Prompts`.

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
    labels: LabelArray | None
    boxes: FloatArray | None
    mask_input: FloatArray | None

    # Written out so that the arguments are array-likes while the attributes are arrays.
    def __init__(
        self,
        points: npt.ArrayLike | None = None,
        labels: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
    ) -> None:
        point_array = read_points(points)
        object.__setattr__(self, "points", point_array)
        object.__setattr__(self, "labels", read_labels(labels, point_array))
        object.__setattr__(self, "boxes", read_boxes(boxes))
        object.__setattr__(self, "mask_input", read_mask_input(mask_input))
        counts = {name: len(part) for name, part in self._parts().items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} for {count}" for name, count in counts.items())
            raise PromptError(
                f"The prompts are for different numbers of objects: {found}. Give every part once per object; "
                f"one object is not repeated for the others, and points are {POINTS_ACCEPTED}.",
                code="length_mismatch",
            )

    @property
    def object_count(self) -> int:
        """B, or 0 if nothing was given."""
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
    labels: LabelArray
    box: FloatArray | None = None
    mask_input: FloatArray | None = None

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
    limits: PromptLimits = DEFAULT_LIMITS,
) -> ResolvedPrompts:
    """Check prompts against their image and split them into objects.

    Parameters
    ----------
    prompts
        One or more; several are put one behind the other.
    original_size
        (height, width) of the upright original image.
    outside
        What happens to a point outside the image: ``error`` refuses it, ``clip`` moves it to the edge. A box is cut at
        the edge either way, and refused if all of it is outside.
    limits
        The most objects, and points an object.

    Raises
    ------
    PromptError
        ``no_prompts``, ``too_many_objects``, ``too_many_points``, ``point_outside``, ``empty_box`` or ``box_outside``.
    """
    given = [prompts] if isinstance(prompts, Prompts) else list(prompts)
    counts = [part.object_count for part in given]
    if not counts or 0 in counts:
        raise PromptError(
            "There are no prompts; give points, boxes or a mask_input for every object. "
            "To segment everything, use generate_masks.",
            code="no_prompts",
        )
    if sum(counts) > limits.objects:
        raise PromptError(
            f"The prompts are for {sum(counts)} objects; at most {limits.objects} are taken in one call.",
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
    limits: PromptLimits,
    notes: dict[str, None],
) -> ObjectPrompt:
    if len(given.points) > limits.points_per_object:
        raise PromptError(
            f"Object {index} has {len(given.points)} points; at most {limits.points_per_object} are taken.",
            code="too_many_points",
        )
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
            f"Object {index} has a point at x={x:g}, y={y:g}, outside the image; "
            f"accepted are x from 0 to {width} and y from 0 to {height}.",
            code="point_outside",
        )
    notes["point_clipped"] = None
    return clipped


def _resolve_box(box: FloatArray, index: int, original_size: Size, notes: dict[str, None]) -> FloatArray:
    height, width = original_size
    found = "Object {} has the box x0={:g}, y0={:g}, x1={:g}, y1={:g}".format(index, *box)
    corners = np.sort(box.reshape(2, 2), axis=0)
    if (corners[0] == corners[1]).any():
        raise PromptError(f"{found}, which has no area; move two corners apart.", code="empty_box")
    clipped = np.clip(corners, 0, np.array([width, height], np.float32))
    if (clipped[0] >= clipped[1]).any():
        raise PromptError(
            f"{found}, all of it outside the image; the image goes from 0, 0 to {width}, {height}.", code="box_outside"
        )
    if (corners != box.reshape(2, 2)).any():
        notes["box_reversed"] = None
    if (clipped != corners).any():
        notes["box_clipped"] = None
    return clipped.reshape(4)
