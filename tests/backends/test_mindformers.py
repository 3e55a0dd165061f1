# SPDX-License-Identifier: Apache-2.0
"""The pipeline held against MindFormers' own, network and all, as `tests.backends.record_mindformers` recorded it."""

import numpy as np
import pytest

from segship.pipelines import pipeline
from segship.ship.checkpoints.ckpt import mindformers_name
from segship.ship.targets import convert
from tests.backends import record_mindformers as recorded
from tests.small_models import save_checkpoint, small_sam

KNOWN = dict(np.load(recorded.RECORDING))
OVERWRITTEN = "box and point"
"""Whose point MindFormers forgets."""
# Parts of the largest value, and what was found: GELU by tanh, and what is float16 there.
EMBEDDING_BAR, LOGITS_BAR, IOU_BAR = 5e-4, 5e-3, 1e-3


@pytest.fixture(scope="module", params=["torch", "mindspore"])
def task(request, tmp_path_factory):
    """The pipeline on the checkpoint that MindFormers was given, with the picture set."""
    pytest.importorskip(request.param)
    source = save_checkpoint(tmp_path_factory.mktemp("mindformers") / "small.pth")
    convert(source, source.with_suffix(".ckpt"))
    task = pipeline("segment_anything", model=str(source.with_suffix(".ckpt")), backend=request.param)
    task.set_image(recorded.picture())
    return task


def off(found, known):
    """How far an array is off, as a part of the largest value."""
    assert found.shape == known.shape and found.dtype == known.dtype
    return np.abs(found - known).max() / np.abs(known).max()


def test_the_checkpoint_fits_their_network_key_for_key():
    """They were loaded by `load_param_into_net`, which left none over and missed none."""
    assert [*KNOWN["names"]] == sorted(map(mindformers_name, small_sam().state_dict()))


def test_embeddings_of_a_picture_are_theirs(task):
    assert off(task.get_image_embedding(), KNOWN["embedding"]) <= EMBEDDING_BAR


@pytest.mark.parametrize("case", [case for case in recorded.cases() if case != OVERWRITTEN])
def test_answers_are_theirs(task, case):
    """Not the masks at the size of the picture, which they scale with corners aligned."""
    inputs, parameters = recorded.cases()[case]
    found = task(recorded.arrays(inputs), **parameters)
    assert off(found["low_res_masks"], KNOWN[f"{case}/low_res_masks"]) <= LOGITS_BAR
    assert np.abs(found["iou_predictions"] - KNOWN[f"{case}/iou_predictions"]).max() <= IOU_BAR


def test_points_beside_a_box_count_here_and_not_there(task):
    inputs, parameters = recorded.cases()[OVERWRITTEN]
    theirs = KNOWN[f"{OVERWRITTEN}/low_res_masks"]
    assert np.array_equal(theirs, KNOWN["one box/low_res_masks"])
    assert off(task(recorded.arrays(inputs), **parameters)["low_res_masks"], theirs) > 0.1
