# SPDX-License-Identifier: Apache-2.0
"""Objects among the decoder graphs: which path each takes, how many at once, and the caller's order."""

import dataclasses

import numpy as np
import pytest

from segship.backends.torch import Session
from segship.decoding import (
    MOST_SHARED_PLACES,
    bytes_per_object,
    decode_arrays,
    image_side_bytes,
    objects_per_call,
)
from segship.models.sam import MaskDecoderGraph
from segship.models.shared_decoder import ImageSideGraph, SharedDecoderGraph
from segship.predictor import Predictor
from segship.prompts import Prompts
from segship.spec import SamGeometry, image_side_spec, mask_decoder_spec, shared_decoder_spec
from tests.oracle import SMALL_VIT
from tests.small_models import small_predictor, small_sam
from tests.test_predictor import IMAGE

SAM = SamGeometry(1024, 256, 64)


class Counting(Session):
    """A session that remembers how many objects and places each call had."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def run(self, inputs):
        self.calls.append(inputs["point_labels"].shape if "point_labels" in inputs else ())
        return super().run(inputs)


@pytest.fixture
def sessions():
    sam, geometry = small_sam(), SMALL_VIT.geometry
    return {
        "mask_decoder": Counting(MaskDecoderGraph(sam), mask_decoder_spec(geometry)),
        "image_side": Counting(ImageSideGraph(sam), image_side_spec(geometry)),
        "shared_decoder": Counting(SharedDecoderGraph(sam), shared_decoder_spec(geometry)),
    }


@pytest.fixture(scope="module")
def embeddings():
    return np.random.default_rng(0).normal(size=(1, 32, 8, 8)).astype(np.float32)


def make_prompts(objects, *, masked=(), places=2, seed=1):
    """Return prompt tensors of objects with as many clicks each; those named have a mask input."""
    rng = np.random.default_rng(seed)
    has_mask = np.zeros(objects, np.float32)
    has_mask[list(masked)] = 1
    return {
        "point_coords": rng.uniform(0, 128, (objects, places, 2)).astype(np.float32),
        "point_labels": np.ones((objects, places), np.float32),
        "mask_input": rng.normal(size=(objects, 1, 32, 32)).astype(np.float32),
        "has_mask_input": has_mask,
    }


def assert_close(expected, actual):
    for wanted, found in zip(expected, actual, strict=True):
        assert np.abs(wanted - found).max() <= 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("masked", [(), (0,), (2, 5), (1, 3, 6), range(7)])
@pytest.mark.parametrize("per_call", [1, 3, 8])
def test_objects_with_and_without_masks_come_back_in_order(sessions, embeddings, masked, per_call):
    prompts = make_prompts(7, masked=masked)
    plain = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
    sessions["mask_decoder"].calls.clear()
    found = decode_arrays(sessions, embeddings, None, prompts, per_call=per_call)
    assert_close((plain["iou_predictions"], plain["low_res_masks"]), found)
    for name, objects in (("mask_decoder", len(masked)), ("shared_decoder", 7 - len(masked))):
        assert sum(shape[0] for shape in sessions[name].calls) == objects
        assert all(shape[0] <= per_call for shape in sessions[name].calls)


@pytest.mark.parametrize("objects", [1, 2, 5, 8, 9])
def test_any_number_of_objects_equals_one_at_a_time(sessions, embeddings, objects):
    prompts = make_prompts(objects)
    together = decode_arrays(sessions, embeddings, None, prompts, per_call=8)
    alone = [
        decode_arrays(sessions, embeddings, None, {name: a[i : i + 1] for name, a in prompts.items()}, per_call=8)
        for i in range(objects)
    ]
    assert_close([np.concatenate(part) for part in zip(*alone, strict=True)], together)


def test_what_the_embedding_holds_is_not_made_again(sessions, embeddings):
    side = sessions["image_side"].run({"image_embeddings": embeddings})
    sessions["image_side"].calls.clear()
    prompts = make_prompts(3)
    held = decode_arrays(sessions, embeddings, side, prompts, per_call=8)
    assert not sessions["image_side"].calls
    made = decode_arrays(sessions, embeddings, None, prompts, per_call=8)
    assert len(sessions["image_side"].calls) == 1
    for expected, actual in zip(held, made, strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_objects_with_many_points_take_the_general_decoder(sessions, embeddings):
    decode_arrays(sessions, embeddings, None, make_prompts(2, places=MOST_SHARED_PLACES), per_call=8)
    assert not sessions["mask_decoder"].calls
    sessions["shared_decoder"].calls.clear()
    decode_arrays(sessions, embeddings, None, make_prompts(2, places=MOST_SHARED_PLACES + 1), per_call=8)
    assert sessions["mask_decoder"].calls and not sessions["shared_decoder"].calls


def test_one_long_object_does_not_pad_the_others(sessions, embeddings):
    prompts = make_prompts(3, places=MOST_SHARED_PLACES + 4)
    prompts["point_labels"][:2, 2:] = -2
    plain = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
    found = decode_arrays(sessions, embeddings, None, prompts, per_call=8)
    assert_close((plain["iou_predictions"], plain["low_res_masks"]), found)
    assert sessions["shared_decoder"].calls == [(2, 2)]


def test_bundles_without_the_new_graphs_decode_as_before(sessions, embeddings):
    old = {"mask_decoder": sessions["mask_decoder"]}
    prompts = make_prompts(3, masked=(1,))
    expected = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
    ious, masks = decode_arrays(old, embeddings, None, prompts, per_call=8)
    np.testing.assert_array_equal(ious, expected["iou_predictions"])
    np.testing.assert_array_equal(masks, expected["low_res_masks"])


def test_a_predictor_gives_the_same_masks_with_and_without_the_shared_path():
    whole = small_predictor()
    old = {name: whole._sessions[name] for name in ("image_encoder", "mask_decoder")}
    plain = Predictor(whole.manifest, old, encoder_sha256=whole.encoder_sha256, backend="torch")
    mask = np.ones((32, 32), np.float32)
    prompts = [
        Prompts(points=[[50, 40]]),
        Prompts(points=[[50, 40]], mask_input=mask),
        Prompts(boxes=[42, 60, 70, 87]),
        Prompts(points=[[9, 9], [50, 40], [80, 80]], labels=[0, 1, 1]),
    ]
    embedding, bare = whole.encode(IMAGE), plain.encode(IMAGE)
    assert embedding.image_side is not None and bare.image_side is None
    expected = plain.decode(bare, prompts)
    for given in (embedding, dataclasses.replace(embedding, image_side=None)):
        found = whole.decode(given, prompts)
        assert_close((expected.iou_predictions, expected.low_res_masks), (found.iou_predictions, found.low_res_masks))


def test_objects_per_call_follow_cache_and_memory():
    assert objects_per_call(SAM) == 8
    assert objects_per_call(SamGeometry(2048, 256, 128)) == 2
    assert objects_per_call(SAM, bytes_left=3 * bytes_per_object(SAM)) == 3
    assert objects_per_call(SAM, bytes_left=0) == 1
    assert objects_per_call(SAM, on_gpu=True) == 64


def test_bytes_of_what_an_embedding_holds_are_those_of_its_arrays():
    held = small_predictor().encode(IMAGE).image_side
    assert sum(array.nbytes for array in held.values()) == image_side_bytes(SMALL_VIT.geometry)
    assert image_side_bytes(SAM) == 4 * 4096 * (11 * 128 + 3 + 256)
