# SPDX-License-Identifier: Apache-2.0
"""Points, boxes and mask inputs: what a user means by them, checked, and as tensors of ``mask_decoder``.

Third step of the use road: `Prompts` holds what was given, `resolve_prompts` checks it against the image and splits it
into objects, `encode_prompts` makes the tensors. `segship.prompts.text` reads prompts from text. Rank decides meaning:
points (N, 2) are N points of one object, points (B, N, 2) are B objects.

Codes of `PromptError`: ``bad_shape`` (wrong rank, or not numbers), ``length_mismatch``, ``non_finite``, ``bad_label``,
``bad_mask_input``, ``no_prompts``, ``too_many_objects``, ``too_many_points``, ``point_outside``, ``empty_box``,
``box_outside``.

Notes of `ResolvedPrompts`: ``point_clipped`` (moved to the edge), ``box_reversed`` (corners put in order),
``box_clipped`` (cut at the edge), ``no_positive_prompt`` (an object has background points and nothing else).

The image frame is closed: a point at x = width or y = height, the far edge of the last pixel, is inside.
"""

from segship.prompts.encoding import PromptRules, encode_prompts
from segship.prompts.objects import (
    DEFAULT_LIMITS,
    ObjectPrompt,
    PromptLimits,
    Prompts,
    ResolvedPrompts,
    resolve_prompts,
)

__all__ = [
    "DEFAULT_LIMITS",
    "ObjectPrompt",
    "PromptLimits",
    "PromptRules",
    "Prompts",
    "ResolvedPrompts",
    "encode_prompts",
    "resolve_prompts",
]
