# SPDX-License-Identifier: Apache-2.0
"""Which classes can be counted."""

import pytest

from segship.datasets.classes import ClassTable
from segship.datasets.known import ADE20K, CITYSCAPES, COCO_STUFF, thing_classes
from segship.errors import InputError


def test_cityscapes_has_the_eight_that_its_instances_have():
    things = thing_classes(CITYSCAPES)
    assert things == {"person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"}
    # They stand together at the end of its classes.
    assert CITYSCAPES.classes[11:] == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def test_ade20k_has_100_things_and_50_kinds_of_stuff():
    things = thing_classes(ADE20K)
    assert len(things) == 100
    # The first and the last of the instance task, some between, and some that people take for things.
    assert {"bed", "windowpane", "person", "door", "car", "flag", "clock", "step", "food"} <= things
    assert not {"wall", "tree", "house", "blanket", "tent", "tower", "blind", "crt screen", "shower"} & things
    numbers = [number for number, name in enumerate(ADE20K.classes) if name in things]
    # The sum of the numbers that the data set's own file of the instance task lists.
    assert (numbers[0], numbers[-1], sum(numbers)) == (7, 149, 8031)


def test_coco_stuff_begins_with_the_80_things_of_coco():
    things = thing_classes(COCO_STUFF)
    assert len(things) == 80
    assert {"person", "toothbrush", "hair drier", "dining table"} <= things
    assert not {"banner", "wall-brick", "sky-other", "table", "fruit"} & things


def test_own_classes_are_things_unless_the_caller_says_which():
    table = ClassTable("own", ("weed", "soil"), ((0, 9, 0), (9, 9, 9)))
    assert thing_classes(table) == {"weed", "soil"}
    assert thing_classes(table, ["weed"]) == {"weed"}
    assert thing_classes(CITYSCAPES, []) == frozenset()
    with pytest.raises(InputError, match="'crop' is no class of own; accepted are weed, soil") as caught:
        thing_classes(table, ["weed", "crop"])
    assert caught.value.code == "unknown_class"
