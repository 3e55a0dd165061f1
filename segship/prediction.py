# SPDX-License-Identifier: Apache-2.0
"""The values that a predictor takes and gives: the embedding of an image, and the masks predicted for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segship.errors import PromptError
from segship.prompts import ObjectPrompt

MaskChoice = bool | Literal["best", "auto"]
"""Which of the decoder's four masks come out.

``True``: the three of the ambiguous set. ``False``: the single-mask token. ``"best"``: of the ambiguous three the one
with the highest predicted IoU. ``"auto"``: ``"best"`` for an object that is a single click, the single-mask token for
any clearer object; the choice counts the points that the caller gave, never the padded length of a tensor.
"""

AMBIGUOUS_MASKS = slice(1, 4)


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbedding:
    """One encoded image.

    Attributes
    ----------
    image_embeddings
        (1, C, h, w) float32, the encoder's output.
    original_size
        Height and width of the upright image, in pixels.
    input_size
        Height and width of the resized image inside the model frame, without padding.
    encoder_sha256
        Digest of the encoder that made it; only the decoder of the same bundle accepts it.
    notes
        What was noticed while reading the image, such as ``animated_first_frame``.
    """

    image_embeddings: NDArray[np.float32]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    encoder_sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MaskPrediction:
    """Masks for some objects of one image.

    Attributes
    ----------
    masks
        (objects, masks, H, W) bool in the image frame; float32 logits when they were asked for.
    iou_predictions
        (objects, masks) float32, the model's own estimate of each mask's IoU.
    low_res_masks
        (objects, masks, 4h, 4w) float32 logits in the model frame, h x w the embedding grid; usable as mask input.
    original_size
        Height and width of the image, in pixels.
    objects
        The prompts as they were used, in the image frame: boxes ordered and clipped.
    notes
        What was noticed, such as ``box_clipped`` or ``no_positive_prompt``.
    """

    masks: NDArray[np.bool_] | NDArray[np.float32]
    iou_predictions: NDArray[np.float32]
    low_res_masks: NDArray[np.float32]
    original_size: tuple[int, int]
    objects: tuple[ObjectPrompt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> NDArray[np.bool_]:
        """(objects, masks) bool, True where a mask has no pixel."""
        # Bool masks and logits alike: a pixel is set where it is above 0.
        return np.asarray(~(self.masks > 0).any(axis=(2, 3)), np.bool_)


def choose_masks(
    ious: NDArray[np.float32],
    low_res: NDArray[np.float32],
    objects: Sequence[ObjectPrompt],
    choice: MaskChoice,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pick masks from all four tokens: (N, 4) and (N, 4, h, w) to (N, k) and (N, k, h, w)."""
    if choice is True:
        return ious[:, AMBIGUOUS_MASKS], low_res[:, AMBIGUOUS_MASKS]
    if choice is False:
        return ious[:, :1], low_res[:, :1]
    if choice not in ("best", "auto"):
        raise PromptError(
            f"multimask_output is {choice!r}; accepted are True, False, 'best' and 'auto'", code="bad_multimask_output"
        )
    # argmax takes the first of equals, so ties go to the lower index.
    best = 1 + ious[:, AMBIGUOUS_MASKS].argmax(axis=1)
    if choice == "auto":
        ambiguous = np.array([prompt.ambiguous for prompt in objects])
        best = np.where(ambiguous, best, 0)
    rows = np.arange(len(ious))
    return ious[rows, best][:, None], low_res[rows, best][:, None]


def best_masks(prediction: MaskPrediction) -> MaskPrediction:
    """Keep of every object the mask with the highest predicted IoU, ready to be given as ``mask_input``.

    ``Prompts(mask_input=best_masks(prediction).low_res_masks)`` refines all objects of an earlier prediction.
    """
    best = prediction.iou_predictions.argmax(axis=1)
    rows = np.arange(len(best))
    return replace(
        prediction,
        masks=prediction.masks[rows, best][:, None],
        iou_predictions=prediction.iou_predictions[rows, best][:, None],
        low_res_masks=prediction.low_res_masks[rows, best][:, None],
    )
