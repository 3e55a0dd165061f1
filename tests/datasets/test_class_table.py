# SPDX-License-Identifier: Apache-2.0
"""Class tables of the three data sets."""

import numpy as np
import pytest

from segship.datasets.known import ADE20K, CITYSCAPES, COCO_STUFF


@pytest.mark.parametrize(("table", "count"), [(CITYSCAPES, 19), (ADE20K, 150), (COCO_STUFF, 171)])
def test_every_class_has_a_name_of_its_own_and_a_color(table, count):
    assert len(table.classes) == len(set(table.classes)) == len(table.palette) == count
    assert all(0 <= value <= 255 for color in table.palette for value in color)


def test_well_known_entries():
    assert (CITYSCAPES.classes[13], CITYSCAPES.palette[13]) == ("car", (0, 0, 142))
    assert (ADE20K.classes[0], ADE20K.palette[0]) == ("wall", (120, 120, 120))
    assert (ADE20K.classes[44], ADE20K.classes[149]) == ("chest of drawers", "flag")
    assert (COCO_STUFF.classes[0], COCO_STUFF.classes[170]) == ("person", "wood")


def test_coloring_paints_unknown_numbers_black():
    painted = CITYSCAPES.paint(np.array([[0, 13, 255]], np.uint8))
    assert painted.tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]
