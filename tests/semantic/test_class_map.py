# SPDX-License-Identifier: Apache-2.0
"""What a class map says."""

import numpy as np
import pytest

from segship.datasets.classes import ClassTable
from segship.datasets.known import CITYSCAPES
from segship.errors import InputError
from segship.semantic.class_map import ClassMap


def test_areas_masks_and_colors():
    array = np.array([[0, 0, 13], [10, 0, 255]], np.uint8)
    class_map = ClassMap(array, CITYSCAPES)
    assert class_map.areas() == {"road": 3, "sky": 1, "car": 1}
    assert list(class_map.areas())[0] == "road"
    assert np.array_equal(class_map.mask("car"), array == 13)
    assert class_map.coloured()[0, 2].tolist() == [0, 0, 142]
    assert class_map.coloured()[1, 2].tolist() == [0, 0, 0]
    assert class_map.coverage == 5 / 6
    assert class_map.classes[13] == "car" and class_map.palette[13] == (0, 0, 142)


def test_no_two_classes_have_one_name_so_areas_cover_the_picture():
    with pytest.raises(InputError, match="the class 'a' stands twice in own; give every class a name of its own"):
        ClassTable("own", ("a",) * 19, ((0, 0, 0),) * 19)
    table = ClassTable("own", tuple(f"a{index}" for index in range(19)), ((0, 0, 0),) * 19)
    array = np.arange(19 * 4, dtype=np.uint8).reshape(4, 19) % 19
    assert sum(ClassMap(array, table).areas().values()) == array.size
