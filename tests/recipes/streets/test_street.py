# SPDX-License-Identifier: Apache-2.0
"""Procedural streets: the picture and the annotation belong together, and all classes turn up."""

import json

import numpy as np
import pytest

from recipes.streets.street import draw_street
from segship.datasets.classes import IGNORED
from segship.datasets.known import CITYSCAPES, LABELS, polygons_to_train_ids
from segship.errors import InputError

SIZE = (64, 128)


def test_the_same_seed_gives_the_same_street():
    first, again, other = draw_street(5, SIZE), draw_street(5, SIZE), draw_street(6, SIZE)
    assert np.array_equal(first.pixels, again.pixels) and first.to_json() == again.to_json()
    assert not np.array_equal(first.pixels, other.pixels)


def test_the_annotation_has_the_official_form():
    names = {label.name for label in LABELS}
    for seed in range(4):
        document = json.loads(draw_street(seed, SIZE).to_json())
        assert (document["imgHeight"], document["imgWidth"]) == SIZE
        for entry in document["objects"]:
            assert entry["label"] in names or entry["label"].removesuffix("group") in names
            corners = np.array(entry["polygon"])
            assert corners.shape[1:] == (2,) and len(corners) >= 3 and corners.dtype == np.int64
            assert (corners >= 0).all() and (corners < SIZE[::-1]).all()


def test_every_pixel_has_an_annotation_and_every_scored_class_turns_up():
    counts, unscored = np.zeros(256, np.int64), 0
    for seed in range(60):
        scene = draw_street(seed, SIZE)
        truth = polygons_to_train_ids(scene.to_json())
        counts += np.bincount(truth.ravel(), minlength=256)
        unscored += (truth == IGNORED).mean() / 60
    missing = [name for name, count in zip(CITYSCAPES.classes, counts, strict=False) if not count]
    assert missing == [] and 0 < unscored < 0.15


def test_classes_look_different_so_that_they_can_be_learnt():
    """The mean colors of sky, road and vegetation differ by far more than noise."""
    sums, counts = np.zeros((256, 3)), np.zeros(256)
    for seed in range(8):
        scene = draw_street(seed, SIZE)
        truth = polygons_to_train_ids(scene.to_json())
        for number in np.unique(truth):
            sums[number] += scene.pixels[truth == number].sum(0)
            counts[number] += (truth == number).sum()
    means = [sums[CITYSCAPES.classes.index(name)] / counts[CITYSCAPES.classes.index(name)] for name in ("sky", "road")]
    assert np.abs(means[0] - means[1]).max() > 40


def test_a_street_of_another_size_is_the_same_street():
    small, large = (draw_street(9, size) for size in ((64, 128), (128, 256)))
    labels = [[label for label, _ in scene.polygons] for scene in (small, large)]
    assert labels[0][0] == labels[1][0] == "sky" and small.pixels.shape == (64, 128, 3)
    assert large.pixels.shape == (128, 256, 3)


@pytest.mark.parametrize("size", [(16, 128), (64, 5000)])
def test_sizes_outside_the_limits_are_refused(size):
    with pytest.raises(InputError, match="32 to 4096"):
        draw_street(0, size)
