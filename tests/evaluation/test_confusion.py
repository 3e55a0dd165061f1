# SPDX-License-Identifier: Apache-2.0
"""The score against a slow, obvious count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.errors import InputError
from segship.evaluation.report import ConfusionMatrix


def scores_slowly(pictures, classes):
    """Per-class IoU and accuracy, and pixel accuracy, one class and one set of pixels at a time."""
    iou, accuracy, right, all_pixels = [], [], 0, 0
    for number in range(classes):
        both = either = true = 0
        for prediction, truth in pictures:
            for mine, other in zip(prediction.ravel(), truth.ravel(), strict=True):
                if other == 255:
                    continue
                both += mine == number and other == number
                either += mine == number or other == number
                true += other == number
        iou.append(both / either if either else math.nan)
        accuracy.append(both / true if true else math.nan)
        right += both
        all_pixels += true
    return iou, accuracy, right / all_pixels if all_pixels else math.nan


def maps(seed, classes, count=3):
    rng = np.random.default_rng(seed)
    choices = [*range(classes), 255]
    for _ in range(count):
        shape = rng.integers(1, 7, 2)
        yield rng.choice(choices, shape).astype(np.uint8), rng.choice(choices, shape).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6))
def test_scores_equal_the_slow_count(seed, classes):
    pictures = list(maps(seed, classes))
    matrix = ConfusionMatrix(classes)
    for prediction, truth in pictures:
        matrix.add(prediction, truth)
    iou, accuracy, pixels = scores_slowly(pictures, classes)
    scores = matrix.scores()
    np.testing.assert_allclose(scores.iou, iou)
    np.testing.assert_allclose(scores.accuracy, accuracy)
    np.testing.assert_allclose(scores.pixel_accuracy, pixels)
    known = [value for value in iou if not math.isnan(value)]
    np.testing.assert_allclose(scores.mean_iou, np.mean(known) if known else math.nan)


def test_perfect_predictions_score_one_and_counting_goes_on_from_counts():
    truth = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    matrix = ConfusionMatrix(3)
    matrix.add(np.where(truth == 255, 1, truth).astype(np.uint8), truth)
    assert matrix.scores().mean_iou == matrix.scores().mean_accuracy == matrix.scores().pixel_accuracy == 1.0
    again = ConfusionMatrix(3, matrix.counts)
    again.add(np.zeros((1, 2), np.uint8), np.array([[0, 1]], np.uint8))
    assert again.scores().pixel_accuracy == pytest.approx(6 / 7)
    assert matrix.counts.sum() == 5


def test_an_empty_count_has_no_figures():
    scores = ConfusionMatrix(2).scores()
    assert np.isnan([scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy]).all()


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), "one size"),
        (np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8), "int64"),
        (np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8), "shape"),
        (np.zeros((1, 1), np.uint8), np.full((1, 1), 7, np.uint8), "holds 7"),
    ],
)
def test_maps_that_do_not_fit_are_refused_and_count_nothing(prediction, truth, words):
    matrix = ConfusionMatrix(3)
    with pytest.raises(InputError, match=words):
        matrix.add(prediction, truth)
    assert matrix.counts.sum() == 0


@pytest.mark.parametrize("counts", [np.zeros((3, 3), np.int64), np.zeros((3, 4)), -np.ones((3, 4), np.int64)])
def test_counts_that_do_not_fit_are_refused(counts):
    with pytest.raises(InputError, match="counts"):
        ConfusionMatrix(3, counts)


@pytest.mark.parametrize("classes", [0, 255])
def test_so_many_classes_are_refused(classes):
    with pytest.raises(InputError, match="classes"):
        ConfusionMatrix(classes)
