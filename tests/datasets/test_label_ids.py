# SPDX-License-Identifier: Apache-2.0
"""Classes as a data set's own numbers, and back by the code that reads its annotations."""

import numpy as np
import pytest

from segship.datasets.classes import ClassTable
from segship.datasets.known import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    annotation_to_classes,
    classes_to_label_ids,
    label_ids,
    label_ids_to_train_ids,
)
from segship.errors import OutputError


def test_cityscapes_has_the_ids_of_its_labels():
    classes = np.array([[0, 13, 18, 255]], np.uint8)
    labels = classes_to_label_ids(classes, CITYSCAPES)
    assert labels.tolist() == [[7, 26, 33, 0]] and labels.dtype == np.uint8
    assert np.array_equal(label_ids_to_train_ids(labels), classes)


def test_ade20k_and_coco_stuff_count_from_one():
    classes = np.arange(150, dtype=np.uint8)[None]
    labels = classes_to_label_ids(classes, ADE20K)
    assert (labels[0, 0], labels[0, -1]) == (1, 150)
    assert np.array_equal(annotation_to_classes(labels), classes)
    assert label_ids(COCO_STUFF)[-1] == 171


def test_own_classes_have_none():
    table = ClassTable("own", ("weed",), ((0, 9, 0),))
    assert label_ids(table) is None
    with pytest.raises(OutputError, match="write classes") as caught:
        classes_to_label_ids(np.zeros((2, 2), np.uint8), table)
    assert caught.value.code == "no_label_ids"
