# SPDX-License-Identifier: Apache-2.0
"""The official decoder made of a bundle's, against the bundle itself and against the reference's rule."""

import numpy as np
import onnx
import pytest
import torch

from segship.backends import onnxruntime
from segship.bundle import Bundle
from segship.catalog import find_model
from segship.errors import InputError
from segship.promptable.task import EXACT_BAR
from segship.ship.contracts import select_single_mask
from segship.ship.official import Engine, compare, object_cases, official_decoder, official_decoder_spec
from tests.ship.graph.test_trace import assert_contract
from tests.small_bundle import make_bundle


@pytest.fixture(scope="module")
def tiny():
    return Bundle.open(find_model("tiny"))


@pytest.fixture(scope="module")
def cases(tiny):
    return {single: object_cases(tiny, single_mask=single) for single in (False, True)}


@pytest.mark.parametrize("single", [False, True])
def test_the_official_decoder_answers_as_the_bundle_does(tiny, cases, single):
    model, spec = official_decoder(tiny, single_mask=single), official_decoder_spec(tiny.manifest.geometry, single)
    onnx.checker.check_model(model, full_check=True)
    assert_contract(model, spec)
    pictures = cases[single][:1]
    assert {one.prompts["point_labels"].shape[1] for one in pictures[0].objects} >= {2, 3}
    with onnxruntime.Session(model.SerializeToString(), spec) as session:

        def decode(embeddings, one, picture):
            size = np.array(picture.size_hw, np.float32)
            return session.run({"image_embeddings": embeddings, **one.prompts, "orig_im_size": size})

        rows = compare("made", pictures, Engine(lambda picture: picture.image_embeddings, decode), EXACT_BAR)
    assert all(row.passed for row in rows), [str(row) for row in rows]
    assert [row.what for row in rows] == ["image_embeddings", "low_res_masks", "iou_predictions", "masks", "masks"]


def test_one_mask_is_the_one_that_the_reference_chooses(cases):
    four, one = (cases[single][0].objects for single in (False, True))
    for every, single in zip(four, one, strict=True):
        points = every.prompts["point_labels"].shape[1]
        logits, scores = select_single_mask(torch.from_numpy(every.logits), torch.from_numpy(every.scores), points)
        np.testing.assert_array_equal(single.scores, scores.numpy())
        np.testing.assert_array_equal(single.logits, logits.numpy())


def test_no_object_of_a_call_has_empty_places(cases):
    labels = [one.prompts["point_labels"] for one in cases[True][1].objects]
    assert all(found.shape[0] == 1 and found.shape[1] and -2 not in found for found in labels)


def test_graphs_of_other_programs_are_refused(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path)
    monkeypatch.setattr(type(bundle.manifest), "foreign", "something")
    with pytest.raises(InputError, match="has graphs of another program") as caught:
        official_decoder(bundle, single_mask=False)
    assert caught.value.code == "foreign_graphs"
