# SPDX-License-Identifier: Apache-2.0
"""The class of every pixel, plane by plane, against argmax and softmax of all planes at once."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segship.semantic.argmax import argmax_logits, argmax_probabilities, resize_classes


def random_logits(classes=7, height=13, width=18, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (classes, height, width)).astype(np.float32)


@pytest.mark.parametrize("size", [(13, 18), (29, 31), (7, 50)])
def test_classes_and_probabilities_are_those_of_all_planes_at_once(size):
    logits = random_logits()
    before = logits.copy()
    resized = F.interpolate(torch.from_numpy(logits)[None], size, mode="bilinear", align_corners=False)[0]
    found = argmax_logits(logits, size, probability=True)
    assert (found.classes == resized.argmax(0).numpy()).mean() > 0.999 and found.classes.dtype == np.uint8
    np.testing.assert_allclose(found.probability, resized.softmax(0).max(0).values, atol=1e-5)
    assert np.array_equal(logits, before)
    assert argmax_logits(logits, size).probability is None


def test_of_equal_logits_the_first_class_wins():
    logits = np.zeros((3, 2, 2), np.float32)
    logits[1, 0, 0] = logits[2, 0, 0] = 1
    assert argmax_logits(logits, (2, 2)).classes.tolist() == [[1, 0], [0, 0]]


def test_large_logits_have_probabilities():
    logits = np.array([[[1e4]], [[1e4]], [[-1e4]]], np.float32)
    assert argmax_logits(logits, (1, 1), probability=True).probability.tolist() == [[0.5]]


def test_means_of_softmaxes_are_their_own_probability():
    probabilities = torch.from_numpy(random_logits()).softmax(0).numpy()
    found = argmax_probabilities(probabilities, probability=True)
    assert np.array_equal(found.classes, probabilities.argmax(0))
    assert np.array_equal(found.probability, probabilities.max(0))
    assert argmax_probabilities(probabilities).probability is None


@pytest.mark.parametrize("size", [(55, 83), (13, 18), (5, 7), (26, 36)])
def test_class_maps_are_resized_as_nearest_exact(size):
    classes = random_logits().argmax(0).astype(np.uint8)
    expected = F.interpolate(torch.from_numpy(classes)[None, None].float(), size, mode="nearest-exact")[0, 0]
    assert np.array_equal(resize_classes(classes, size), expected.numpy().astype(np.uint8))
