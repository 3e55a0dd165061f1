# SPDX-License-Identifier: Apache-2.0
"""Figures as the field writes them."""

import json
import math

import numpy as np

from segship.datasets.classes import ClassTable
from segship.datasets.folders import FailedSample
from segship.evaluation.report import ConfusionMatrix, Evaluation, percent

TABLE = ClassTable("three", ("road", "sky", "train"), ((0, 0, 0),) * 3)
COUNTS = np.array([[50, 25, 0, 0], [0, 24, 0, 1], [0, 0, 0, 0]], np.int64)


def evaluation():
    failed = (FailedSample("a", "truncated", "it ends"),)
    return Evaluation(TABLE, ConfusionMatrix(3, COUNTS), 4, failed, {"data_set": "three"}, 2, 1.26)


def test_figures_are_percentages_with_two_decimals():
    assert evaluation().rows() == [("road", 66.67, 66.67), ("sky", 48.0, 96.0), ("train", None, None)]
    assert evaluation().summary() == {"aAcc": 74.0, "mIoU": 57.33, "mAcc": 81.33}
    assert percent(math.nan) is None


def test_the_document_is_json_and_holds_the_counts():
    document = json.loads(evaluation().encode())
    assert document["data_set"] == "three" and document["mIoU"] == 57.33
    assert document["classes"][2] == {"name": "train", "IoU": None, "Acc": None}
    assert (document["samples"], document["scored"], document["resumed"], document["seconds"]) == (4, 3, 2, 1.3)
    assert document["failed"] == [{"name": "a", "code": "truncated", "message": "it ends"}]
    assert np.array_equal(document["confusion"], COUNTS)
    assert evaluation().to_dict() == {key: value for key, value in document.items() if key != "confusion"}
