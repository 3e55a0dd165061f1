# SPDX-License-Identifier: Apache-2.0
"""From the decoder's logits to what a prediction holds: masks cleaned, and cut to what their pixels depend on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segship.masks.cleanup import MaskCleanUp, box_window, clean_low_res, clear_outside_box
from segship.masks.held import GivenMasks, HeldMasks
from segship.masks.upscaling import Cells, Upscaler, crop_cells
from segship.prediction import ImageEmbedding
from segship.prompts import ObjectPrompt
from segship.transforms import to_model_frame


def hold_masks(
    low_res: NDArray[np.float32],
    embedding: ImageEmbedding,
    objects: Sequence[ObjectPrompt],
    enlarging: Upscaler,
    cleaning: MaskCleanUp | None,
    *,
    pixels_per_cell: float,
    return_logits: bool,
) -> HeldMasks | GivenMasks:
    """Clean masks if that is wanted, and keep what their pixels depend on.

    Parameters
    ----------
    low_res
        (N, k, 4h, 4w) logits.
    embedding, objects
        What they were decoded from.
    enlarging
        For masks of this image.
    cleaning
        None leaves the masks as they are.
    pixels_per_cell
        Pixels of the model frame for each of a mask.
    return_logits
        Make (N, k, H, W) float32 logits at once, instead of masks when somebody asks for them.
    """
    masks = [[enlarging.valid(logits) for logits in entry] for entry in low_res]
    limits = [enlarging.everything] * len(objects)
    if cleaning is not None:
        for index, prompt in enumerate(objects):
            masks[index] = [_cleaned(cells, prompt, embedding, cleaning, pixels_per_cell) for cells in masks[index]]
            if cleaning.box_margin is not None and prompt.box is not None:
                limits[index] = box_window(prompt.box, cleaning.box_margin, embedding.original_size)
    if not return_logits:
        return HeldMasks([[crop_cells(cells) for cells in entry] for entry in masks], enlarging, limits)
    pixels = np.empty((*low_res.shape[:2], *embedding.original_size), np.float32)
    for entry, index in np.ndindex(low_res.shape[:2]):
        pixels[entry, index] = enlarging.enlarge(masks[entry][index])
        clear_outside_box(pixels[entry, index], limits[entry])
    return GivenMasks(pixels)


def _cleaned(
    cells: Cells, prompt: ObjectPrompt, embedding: ImageEmbedding, cleaning: MaskCleanUp, pixels_per_cell: float
) -> Cells:
    """Clean the part of a low-resolution mask that is not padding."""
    height, width = (int(np.ceil(side / pixels_per_cell)) for side in embedding.input_size)
    points = to_model_frame(prompt.points, embedding.original_size, embedding.input_size) / np.float32(pixels_per_cell)
    part = cells.logits[:height, :width]
    cleaned = clean_low_res(part, cleaning, points_xy=points, labels=prompt.labels, has_box=prompt.box is not None)
    if cleaned is part:
        return cells
    # A cell of padding may lie next to the image, and the image depends on it a little.
    whole = cells.logits.copy()
    whole[:height, :width] = cleaned
    return cells._replace(logits=whole)
