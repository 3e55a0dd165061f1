# SPDX-License-Identifier: Apache-2.0
"""A small Cityscapes and a small ADE20K of drawn streets, and counts that are obvious."""

from collections import Counter

import numpy as np
import pytest

from recipes.streets.scenes import write_ade20k, write_cityscapes
from segship.datasets.folders import find_samples, read_truth

SIZE = (48, 96)
COUNT = 5


@pytest.fixture(scope="session")
def made_cities(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(root, {"val": COUNT}, size_hw=SIZE, seed=2)
    return root


@pytest.fixture(scope="session")
def made_ade20k(tmp_path_factory):
    root = tmp_path_factory.mktemp("ade20k")
    write_ade20k(root, {"val": 3}, size_hw=SIZE, seed=2)
    return root


@pytest.fixture
def samples(made_cities):
    return find_samples("cityscapes", made_cities)


@pytest.fixture
def truths(samples):
    return [read_truth(sample) for sample in samples]


@pytest.fixture
def shifted(truths):
    """Predictions that are truths moved to the right, with a class for what is ignored."""
    return [np.roll(np.where(truth == 255, 3, truth).astype(np.uint8), 4, axis=1) for truth in truths]


def percentages_slowly(predictions, truths, classes):
    """IoU and accuracy of each class, mIoU, aAcc and mAcc in percent, from pairs of numbers, one pixel at a time."""
    pairs = Counter()
    for prediction, truth in zip(predictions, truths, strict=True):
        pairs.update(
            (int(true), int(found))
            for true, found in zip(truth.ravel(), prediction.ravel(), strict=True)
            if true != 255
        )
    iou, accuracy = [], []
    for number in range(classes):
        both = pairs[number, number]
        true = sum(count for (here, _), count in pairs.items() if here == number)
        found = sum(count for (_, here), count in pairs.items() if here == number)
        iou.append(100 * both / (true + found - both) if true + found else None)
        accuracy.append(100 * both / true if true else None)
    known = [[value for value in figures if value is not None] for figures in (iou, accuracy)]
    right = sum(count for (true, found), count in pairs.items() if true == found)
    summary = {
        "aAcc": 100 * right / pairs.total(),
        "mIoU": sum(known[0]) / len(known[0]),
        "mAcc": sum(known[1]) / len(known[1]),
    }
    return iou, accuracy, summary


@pytest.fixture
def check_score():
    """Compare an evaluation with the slow count."""

    def check(evaluation, predictions, truths):
        iou, accuracy, summary = percentages_slowly(predictions, truths, len(evaluation.table.classes))
        for row, *expected in zip(evaluation.rows(), iou, accuracy, strict=True):
            for mine, other in zip(row[1:], expected, strict=True):
                assert mine is other is None or mine == pytest.approx(other, abs=0.00501), row
        assert evaluation.summary() == pytest.approx(summary, abs=0.00501)

    return check
