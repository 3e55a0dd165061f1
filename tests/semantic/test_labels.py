# SPDX-License-Identifier: Apache-2.0
"""Votes of a class map, against counts of pixels one by one."""

from collections import Counter

import numpy as np
import pytest

from segship.datasets.known import CITYSCAPES
from segship.errors import InputError
from segship.masks.rle import mask_to_runs
from segship.promptable.everything.records import MaskRecord
from segship.semantic.class_map import ClassMap
from segship.semantic.labels import ClassVote, label_masks, vote_class

SIZE = (23, 31)


def record_of(mask):
    return MaskRecord(mask_to_runs(mask), mask.shape, int(mask.sum()), (0, 0, 1, 1), 0.9, (), 0.9, (0, 0, 1, 1))


def vote_slowly(mask, class_map):
    """One pixel at a time."""
    votes, worth = Counter(), Counter()
    for y, x in np.argwhere(mask).tolist():
        number = int(class_map.array[y, x])
        if number != 255:
            votes[number] += 1
            worth[number] += 1.0 if class_map.probability is None else float(class_map.probability[y, x])
    if not votes:
        return ClassVote(None, "object", 0.0, 0.0)
    winner = min(votes, key=lambda number: (-votes[number], number))
    area = int(mask.sum())
    return ClassVote(winner, CITYSCAPES.classes[winner], worth[winner] / area, votes[winner] / area)


@pytest.mark.parametrize("with_probability", [False, True])
def test_votes_are_those_of_pixels_one_by_one(with_probability):
    rng = np.random.default_rng(0)
    # Three classes, so that there are ties, and a tenth without a class.
    array = rng.choice([2, 5, 13], SIZE).astype(np.uint8)
    array[rng.random(SIZE) < 0.1] = 255
    probability = rng.random(SIZE).astype(np.float32) if with_probability else None
    class_map = ClassMap(array, CITYSCAPES, (), probability)
    masks = [rng.random(SIZE) < density for density in (0.002, 0.004, 0.01, 0.05, 0.5, 1.1)]
    votes = label_masks([record_of(mask) for mask in masks], class_map)
    for mask, vote in zip(masks, votes, strict=True):
        expected = vote_slowly(mask, class_map)
        assert (vote.number, vote.name) == (expected.number, expected.name)
        assert vote.label_purity == expected.label_purity
        assert vote.label_confidence == pytest.approx(expected.label_confidence, abs=1e-6)
        assert vote.label_confidence <= vote.label_purity


def test_without_probabilities_confidence_is_the_purity():
    array = np.zeros(SIZE, np.uint8)
    array[:5] = 13
    mask = np.zeros(SIZE, bool)
    mask[3:9, 2:12] = True
    (vote,) = label_masks([record_of(mask)], ClassMap(array, CITYSCAPES))
    assert vote == ClassVote(0, "road", 4 / 6, 4 / 6)


def test_of_equal_votes_the_lower_number_wins():
    array = np.full(SIZE, 13, np.uint8)
    array[0] = 4
    mask = np.zeros(SIZE, bool)
    mask[:2] = True
    assert vote_class(mask_to_runs(mask), ClassMap(array, CITYSCAPES)).name == "fence"


def test_masks_without_pixels_or_classes_have_no_class():
    nothing = ClassVote(None, "object", 0.0, 0.0)
    class_map = ClassMap(np.full(SIZE, 255, np.uint8), CITYSCAPES)
    assert label_masks([record_of(np.ones(SIZE, bool))], class_map) == (nothing,)
    assert label_masks([record_of(np.zeros(SIZE, bool))], ClassMap(np.zeros(SIZE, np.uint8), CITYSCAPES)) == (nothing,)
    assert label_masks([], class_map) == ()


def test_a_class_map_of_another_size_is_refused():
    class_map = ClassMap(np.zeros((31, 23), np.uint8), CITYSCAPES)
    with pytest.raises(InputError, match="23 x 31 pixels .* class map of 31 x 23") as caught:
        label_masks([record_of(np.ones(SIZE, bool))], class_map)
    assert caught.value.code == "other_size"
