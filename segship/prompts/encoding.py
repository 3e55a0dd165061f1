# SPDX-License-Identifier: Apache-2.0
"""Checked prompts as the tensors of ``mask_decoder``: order of tokens, the "not a point" token, empty places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from segship.errors import PromptError
from segship.prompts.arrays import FloatArray
from segship.prompts.objects import ObjectPrompt
from segship.spec import LABEL_BOX_BOTTOM_RIGHT, LABEL_BOX_TOP_LEFT, LABEL_EMPTY, LABEL_NOT_A_POINT
from segship.transforms import Size, to_model_frame


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
) -> dict[str, npt.NDArray[Any]]:
    """Return the prompt tensors of ``mask_decoder``.

    Parameters
    ----------
    objects
        The N objects of one call; see `resolve_prompts`.
    original_size, input_size
        (height, width) of the original image and of its resized copy.
    low_res_size
        Side of a mask input, in pixels.
    rules
        Of the model that will take them.

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
        ``no_prompts`` without objects, ``bad_mask_input`` for a mask input of another size.
    """
    if not objects:
        raise PromptError("There are no objects to encode; give at least one.", code="no_prompts")
    tokens = [_object_tokens(entry, original_size, input_size, rules) for entry in objects]
    longest = max(1, *(len(labels) for _, labels in tokens))
    point_coords = np.zeros((len(objects), longest, 2), np.float32)
    point_labels = np.full((len(objects), longest), LABEL_EMPTY, np.float32)
    mask_input = np.zeros((len(objects), 1, low_res_size, low_res_size), np.float32)
    has_mask_input = np.zeros(len(objects), np.float32)
    for row, (entry, (coords, labels)) in enumerate(zip(objects, tokens, strict=True)):
        point_coords[row, : len(labels)] = coords
        point_labels[row, : len(labels)] = labels
        if entry.mask_input is not None:
            _check_mask_input_size(entry.mask_input, row, low_res_size)
            mask_input[row] = entry.mask_input
            has_mask_input[row] = 1
    return {
        "point_coords": point_coords,
        "point_labels": point_labels,
        "mask_input": mask_input,
        "has_mask_input": has_mask_input,
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


def _check_mask_input_size(mask_input: FloatArray, index: int, low_res_size: int) -> None:
    expected = (1, low_res_size, low_res_size)
    if mask_input.shape != expected:
        raise PromptError(
            f"Object {index} has a mask_input of shape {mask_input.shape}; this model takes {expected}, "
            "the low_res_masks of an earlier prediction.",
            code="bad_mask_input",
        )
