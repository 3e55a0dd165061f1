# SPDX-License-Identifier: Apache-2.0
"""Labels, ids and polygons of Cityscapes."""

import json

import numpy as np
import pytest

from segship.datasets.classes import IGNORED
from segship.datasets.known import (
    CITYSCAPES,
    LABELS,
    classes_to_label_ids,
    label_ids_to_train_ids,
    polygons_to_train_ids,
)
from segship.errors import InputError

SCORED_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def annotation(*objects, width=20, height=10):
    entries = [
        {"label": label, "polygon": polygon, **({"deleted": 1} if deleted else {})}
        for label, polygon, deleted in objects
    ]
    return json.dumps({"imgWidth": width, "imgHeight": height, "objects": entries})


def rectangle(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def test_labels_are_34_ids_and_the_plate_and_19_of_them_are_scored():
    assert sorted(label.id for label in LABELS) == [-1, *range(34)]
    scored = [label for label in LABELS if label.train_id != IGNORED]
    assert [label.id for label in sorted(scored, key=lambda label: label.train_id)] == SCORED_IDS
    assert [label.name for label in scored] == list(CITYSCAPES.classes)


def test_ids_and_train_ids_turn_into_each_other():
    ids = np.arange(256, dtype=np.uint8)[None]
    train_ids = label_ids_to_train_ids(ids)
    expected = np.full(256, IGNORED)
    for train_id, id in enumerate(SCORED_IDS):
        expected[id] = train_id
    assert train_ids[0].tolist() == expected.tolist()
    back = classes_to_label_ids(train_ids, CITYSCAPES)[0]
    assert back.tolist() == [id if id in SCORED_IDS else 0 for id in range(256)]


def test_polygons_are_drawn_in_order_and_groups_count_as_their_kind():
    document = annotation(
        ("road", rectangle(0, 0, 19, 9), False),
        ("cargroup", rectangle(2, 2, 6, 6), False),
        ("license plate", rectangle(3, 3, 4, 4), False),
        ("person", rectangle(10, 1, 12, 8), True),
        ("ego vehicle", rectangle(0, 8, 19, 9), False),
    )
    expected = np.zeros((10, 20), np.uint8)
    expected[2:7, 2:7] = CITYSCAPES.classes.index("car")
    expected[8:] = IGNORED
    assert np.array_equal(polygons_to_train_ids(document), expected)


def test_what_no_polygon_covers_is_ignored():
    assert (polygons_to_train_ids(annotation()) == IGNORED).all()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("[1]", "no annotation"),
        ("{", "no annotation"),
        (annotation(("spaceship", rectangle(0, 0, 1, 1), False)), "spaceship"),
        (annotation(("road", [[0, 0]], False)), "1 corners"),
        (annotation(("road", [[0, "x"], [1, 1]], False)), "pairs"),
        (annotation(width=0), "0 x 10"),
        (annotation(width=10**6), "1000000"),
    ],
)
def test_documents_that_are_no_annotation_are_refused(document, words):
    with pytest.raises(InputError, match=words) as caught:
        polygons_to_train_ids(document)
    assert caught.value.code == "bad_annotation"
