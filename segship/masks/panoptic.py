# SPDX-License-Identifier: Apache-2.0
"""Labelled masks and a class map as one picture without overlaps: things one by one, stuff class by class.

Follows the merging of Panoptic Segmentation (arXiv:1801.00868, section 7) as panopticapi's
combine_semantic_and_instance_predictions.py has it: things in the order of their scores, each where nothing lies yet,
those left out of which more than half is taken; then stuff, without pieces that are too small. What differs, since
these masks are not a detector's: the score is the predicted IoU, of equal ones the larger mask comes first; masks that
are mostly of other classes take no part; masks of a stuff class give their outlines to that class, instead of being
segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segship.arrays import BoolArray, Pixels
from segship.errors import InputError
from segship.masks.rle import Runs, runs_to_area, runs_to_crop

# panopticapi's limit of 64 x 64 pixels, and the size of most of COCO's images, to which it belongs.
_STUFF_AREA = 64 * 64
_COCO_PIXELS = 640 * 480


@dataclass(frozen=True, slots=True)
class PanopticOptions:
    """How masks and a class map are merged.

    Attributes
    ----------
    least_purity
        Masks of which a smaller part is of their class take no part.
    most_hidden
        Things of which a larger part lies under things of a higher score are left out.
    stuff_area
        Pixels that a class of stuff needs; None takes 4,096 as panopticapi does, and in images smaller than 640 x 480
        the same part of them.
    """

    least_purity: float = 0.5
    most_hidden: float = 0.5
    stuff_area: int | None = None

    def __post_init__(self) -> None:
        for name in ("least_purity", "most_hidden"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; accepted are 0 to 1", code="bad_option")
        if self.stuff_area is not None and self.stuff_area < 0:
            raise InputError(f"stuff_area is {self.stuff_area}; accepted are 0 and more", code="bad_option")


class LabelledMask(NamedTuple):
    """What is read of a mask."""

    runs: Runs
    """(n,) int64 run lengths."""
    category: int
    """Its class; one that the class map does not have takes no part."""
    score: float
    """Higher ones are painted first."""
    purity: float
    """See `PanopticOptions.least_purity`."""


class Segment(NamedTuple):
    """One segment of a panoptic picture."""

    category: int
    """Its class."""
    mask: int | None
    """Which mask it is; None for stuff."""


def merge_panoptic(
    masks: Sequence[LabelledMask], class_map: Pixels, is_thing: BoolArray, options: PanopticOptions
) -> tuple[NDArray[np.uint32], list[Segment]]:
    """Return segment ids (H, W) uint32, 0 for nothing, 1 for the first segment, and the segments, things first.

    The class map is (H, W) uint8, numbers from K on are no class; ``is_thing`` (K,) bool, whether a class is countable.
    """
    order = _by_score([index for index, mask in enumerate(masks) if _takes_part(mask, is_thing, options)], masks)
    ids = np.zeros(class_map.shape, np.uint32)
    segments: list[Segment] = []
    for index in order:
        if is_thing[masks[index].category] and _paint_thing(ids, masks[index].runs, len(segments) + 1, options):
            segments.append(Segment(masks[index].category, index))
    classes = _with_outlines(class_map, [masks[index] for index in order if not is_thing[masks[index].category]])
    least = options.stuff_area
    if least is None:
        least = min(_STUFF_AREA, _STUFF_AREA * classes.size // _COCO_PIXELS)
    for number in np.flatnonzero(~is_thing).tolist():
        left = (classes == number) & (ids == 0)
        if np.count_nonzero(left) >= max(1, least):
            segments.append(Segment(number, None))
            ids[left] = len(segments)
    return ids, segments


def _takes_part(mask: LabelledMask, is_thing: BoolArray, options: PanopticOptions) -> bool:
    return mask.category < len(is_thing) and mask.purity >= options.least_purity


def _by_score(indices: Sequence[int], masks: Sequence[LabelledMask]) -> list[int]:
    # sorted is stable: of equal ones the earlier is first.
    return sorted(indices, key=lambda index: (-masks[index].score, -runs_to_area(masks[index].runs)))


def _paint_thing(ids: NDArray[np.uint32], runs: Runs, number: int, options: PanopticOptions) -> bool:
    """Give what is free of a mask its id, in place, and return whether enough of it was free."""
    crop, (x0, y0) = runs_to_crop(runs, (ids.shape[0], ids.shape[1]))
    part = ids[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]]
    free = crop & (part == 0)
    area, visible = np.count_nonzero(crop), np.count_nonzero(free)
    if not visible or (area - visible) / area > options.most_hidden:
        return False
    part[free] = number
    return True


def _with_outlines(class_map: Pixels, stuff: Sequence[LabelledMask]) -> Pixels:
    """Return the class map with masks of stuff painted over it, so that the ones of higher scores are on top."""
    classes = class_map.copy()
    for mask in reversed(stuff):
        crop, (x0, y0) = runs_to_crop(mask.runs, (classes.shape[0], classes.shape[1]))
        classes[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = mask.category
    return classes
