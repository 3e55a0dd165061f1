# SPDX-License-Identifier: Apache-2.0
"""Names of classes beside the weights: used where they are plain, left alone otherwise."""

import pytest

from segship.ship.checkpoints.survey import Labels, find_labels

NAMES, COLOURS = ("road", "tree"), ((1, 2, 3), (4, 5, 255))


def test_names_and_colours_of_mmcv_are_found():
    meta = {"CLASSES": NAMES, "PALETTE": [list(colour) for colour in COLOURS], "config": "model = dict()"}
    assert find_labels({"meta": meta, "state_dict": {}}) == Labels(NAMES, COLOURS)


@pytest.mark.parametrize(
    "palette", [None, [[1, 2, 3]], [[1, 2, 3], [4, 5, 256]], [[1, 2], [3, 4]], [[1, 2, 3], [True] * 3]]
)
def test_colours_that_are_none_are_left_alone(palette):
    assert find_labels({"meta": {"CLASSES": list(NAMES), "PALETTE": palette}}) == Labels(NAMES, None)


@pytest.mark.parametrize(
    "classes", [None, [], "road", ["road", 7], ["road", ""], ["a\x1b[2J"], ["x" * 129], ["a"] * 256]
)
def test_names_that_are_none_are_left_alone(classes):
    assert find_labels({"meta": {"CLASSES": classes}}) is None


@pytest.mark.parametrize("contents", [None, [], {"meta": "road"}, {"state_dict": {}}])
def test_files_without_them_have_none(contents):
    assert find_labels(contents) is None
