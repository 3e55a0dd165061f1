# SPDX-License-Identifier: Apache-2.0
"""A graph of one size or batch is brought to any; what it gives is checked."""

import numpy as np
import pytest

from segship.backends.fake import Session
from segship.errors import BackendUnavailable, BundleError
from segship.semantic.predictor import GraphRunner
from segship.semantic.views import SemanticOptions
from segship.spec import semantic_spec
from tests.semantic.networks import Network

CLASSES = 3


def runner(output="logits", size=None, answer=None):
    """A graph whose class is that of the sum of a pixel's channels, and whose logits are those of one at a time."""

    def usual(inputs):
        numbers = inputs["image"].sum(axis=1).round().astype(np.uint8) % CLASSES
        if output == "class_map":
            return {"class_map": numbers}
        return {"logits": np.stack([(numbers == number).astype(np.float32) for number in range(CLASSES)], axis=1)}

    return GraphRunner(Session(semantic_spec(CLASSES, output, size), answer or usual), CLASSES)


def images(count, height, width):
    return np.random.default_rng(0).integers(0, 9, (count, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("output", ["logits", "class_map"])
def test_what_lies_in_the_frame_is_answered_as_by_a_graph_of_any_size(output):
    free, fixed = runner(output), runner(output, (12, 16))
    assert free.frame is None and fixed.frame == (12, 16)
    for height, width in ((12, 16), (7, 16), (5, 3)):
        tensors = images(2, height, width)
        answers = fixed.run(tensors)
        assert answers.shape[-2:] == (height, width)
        assert np.array_equal(answers, free.run(tensors))


def test_class_maps_and_logits_are_told_apart():
    assert runner("logits").gives_logits and not runner("class_map").gives_logits
    Network("class_map").predictor.check_options(SemanticOptions())
    options = SemanticOptions(window=(12, 16), ratios=(0.5, 1.0), flip=True)
    Network("logits", (12, 16)).predictor.check_options(options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_enough(value):
    def answer(inputs):
        logits = np.zeros((1, CLASSES, 4, 4), np.float32)
        logits[0, 1, 2, 3] = value
        return {"logits": logits}

    with pytest.raises(BackendUnavailable, match="not finite .* in fake") as caught:
        runner(answer=answer).run(images(1, 4, 4))
    assert caught.value.code == "nonfinite_output"


def test_a_graph_with_more_classes_than_names_is_refused():
    session = Session(semantic_spec(4, "logits"), lambda inputs: {"logits": np.zeros((1, 4, 4, 4), np.float32)})
    with pytest.raises(BundleError, match="4 planes of logits, and the manifest names 3 classes") as caught:
        GraphRunner(session, CLASSES).run(images(1, 4, 4))
    assert caught.value.code == "graph_interface"
