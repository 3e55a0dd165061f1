# SPDX-License-Identifier: Apache-2.0
"""A class for every mask, by vote of the class map under it.

Segment Anything finds outlines and no names, a semantic model finds names and blurs neighbours of one class together;
the vote gives instances with both. On the use road between `segship.promptable.everything` and
`segship.writers.instances`.

Every pixel of a mask has a vote for its class. The class with the most votes wins, of equal ones the one with the lower
number. `ClassVote.label_purity` is the part of the mask's pixels that voted for it. `ClassVote.label_confidence` counts
the same votes by their worth, which is the probability that the model gives the pixel's class: their sum over all
pixels of the mask. A class map without probabilities has votes that are worth 1, and then both are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segship.errors import InputError
from segship.masks.rle import Runs, runs_to_crop
from segship.semantic.class_map import ClassMap

if TYPE_CHECKING:
    from segship.promptable.everything.records import MaskRecord

NOBODY = "object"
"""Name of what no class map says anything about; the writers' own word for a mask without a name."""


@dataclass(frozen=True, slots=True)
class ClassVote:
    """What the class map says of one mask.

    Attributes
    ----------
    number
        The class; None if no pixel of the mask has one.
    name
        Its name, or ``object``.
    label_confidence
        0 to 1, at most the purity: the probabilities of the pixels that voted for the class, over all pixels of the
        mask.
    label_purity
        0 to 1: the part of the mask's pixels that voted for the class.
    """

    number: int | None
    name: str
    label_confidence: float
    label_purity: float


def label_masks(records: Sequence[MaskRecord], class_map: ClassMap) -> tuple[ClassVote, ...]:
    """Return the class of each record's mask, by vote of the class map under it.

    Parameters
    ----------
    records
        Such as `segship.generate_masks` gives.
    class_map
        Of the same image, from `SemanticPredictor.segment`; with ``SemanticOptions(probability=True)`` votes are worth
        their probability.

    Returns
    -------
    tuple
        One vote a record, in their order.

    Raises
    ------
    InputError
        ``other_size``: a record is of an image of another size.
    """
    for record in records:
        check_size(record.size, class_map)
    return tuple(vote_class(record.runs, class_map) for record in records)


def vote_class(runs: Runs, class_map: ClassMap) -> ClassVote:
    """Return the class of the mask with the run lengths (n,), by vote.

    Examples
    --------
    >>> import numpy as np
    >>> from segship.datasets.known import CITYSCAPES
    >>> class_map = ClassMap(np.array([[0, 13], [13, 13]], np.uint8), CITYSCAPES)
    >>> vote_class(np.array([0, 4]), class_map)
    ClassVote(number=13, name='car', label_confidence=0.75, label_purity=0.75)
    """
    height, width = class_map.array.shape
    crop, (x0, y0) = runs_to_crop(runs, (height, width))
    place = (slice(y0, y0 + crop.shape[0]), slice(x0, x0 + crop.shape[1]))
    votes = class_map.array[place][crop]
    counts = np.bincount(votes, minlength=256)[: len(class_map.classes)]
    if not counts.any():
        return ClassVote(None, NOBODY, 0.0, 0.0)
    winner = int(counts.argmax())
    purity = int(counts[winner]) / len(votes)
    confidence = purity
    if class_map.probability is not None:
        worth = class_map.probability[place][crop][votes == winner]
        # In double precision, and never more than all of them could be.
        confidence = min(purity, float(worth.sum(dtype=np.float64)) / len(votes))
    return ClassVote(winner, class_map.classes[winner], confidence, purity)


def check_size(size: tuple[int, int], class_map: ClassMap) -> None:
    """Refuse masks of another size than the class map's as ``other_size``."""
    if size != class_map.array.shape:
        found = class_map.array.shape
        message = (
            f"the masks are of an image of {size[0]} x {size[1]} pixels (height x width) and the class map of "
            f"{found[0]} x {found[1]}; make both of the same image"
        )
        raise InputError(message, code="other_size")
