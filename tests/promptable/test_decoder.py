# SPDX-License-Identifier: Apache-2.0
"""Objects among the decoder graphs: which path each takes, how many at once, and the caller's order."""

import dataclasses

import numpy as np
import pytest

from segship.backends.torch import Session
from segship.promptable.decoder import (
    MOST_SHARED_PLACES,
    Decoder,
    image_side_bytes,
    objects_per_call,
)
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import Prompts
from segship.ship.families.sam.model import MaskDecoderGraph
from segship.ship.families.sam.shared_decoder import ImageSideGraph, SelectiveDecoderGraph, SharedDecoderGraph
from segship.spec import SamGeometry, image_side_spec, mask_decoder_spec, selective_decoder_spec, shared_decoder_spec
from tests.oracle import SMALL_VIT
from tests.promptable.test_predictor import IMAGE
from tests.small_models import small_predictor, small_sam

SAM = SamGeometry(1024, 256, 64)


class Counting(Session):
    """A session that remembers how many objects and places each call had."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def run(self, inputs):
        self.calls.append(inputs["point_labels"].shape if "point_labels" in inputs else ())
        return super().run(inputs)


@pytest.fixture(params=["selective_decoder", "shared_decoder"])
def sharing(request):
    """The graph of new bundles for objects without a mask, and that of older ones."""
    return request.param


@pytest.fixture
def sessions(sharing):
    sam, geometry = small_sam(), SMALL_VIT.geometry
    module, spec = {
        "selective_decoder": (SelectiveDecoderGraph(sam), selective_decoder_spec(geometry)),
        "shared_decoder": (SharedDecoderGraph(sam), shared_decoder_spec(geometry)),
    }[sharing]
    return {
        "mask_decoder": Counting(MaskDecoderGraph(sam), mask_decoder_spec(geometry)),
        "image_side": Counting(ImageSideGraph(sam), image_side_spec(geometry)),
        sharing: Counting(module, spec),
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
def test_objects_with_and_without_masks_come_back_in_order(sessions, sharing, embeddings, masked, per_call):
    prompts = make_prompts(7, masked=masked)
    plain = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
    sessions["mask_decoder"].calls.clear()
    found = Decoder(sessions, per_call).decode(embeddings, None, prompts)
    assert_close((plain["iou_predictions"], plain["low_res_masks"]), found)
    for name, objects in (("mask_decoder", len(masked)), (sharing, 7 - len(masked))):
        assert sum(shape[0] for shape in sessions[name].calls) == objects
        assert all(shape[0] <= per_call for shape in sessions[name].calls)


@pytest.mark.parametrize("objects", [1, 2, 5, 8, 9])
def test_any_number_of_objects_equals_one_at_a_time(sessions, embeddings, objects):
    prompts = make_prompts(objects)
    together = Decoder(sessions, 8).decode(embeddings, None, prompts)
    alone = [
        Decoder(sessions, 8).decode(embeddings, None, {name: a[i : i + 1] for name, a in prompts.items()})
        for i in range(objects)
    ]
    assert_close([np.concatenate(part) for part in zip(*alone, strict=True)], together)


def thresholds(*values):
    return np.array(values, np.float32)


INF = float("inf")


@pytest.mark.parametrize("size_hw", [(32, 32), (21, 32), (32, 10), (17, 3)])
@pytest.mark.parametrize("per_call", [3, 8])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_passing_masks_are_those_that_a_filter_leaves(sessions, sharing, embeddings, share, per_call, size_hw):
    prompts = make_prompts(7)
    ious, masks = Decoder(sessions, per_call).decode(embeddings, None, prompts)
    middle = np.sort(ious[:, 1:], axis=None)
    bound = {0.0: INF, 0.4: middle[[11, 12]].mean(), 1.0: -INF}[share]
    minimum = thresholds(INF, bound, bound, bound)
    found = Decoder(sessions, per_call).select(embeddings, None, prompts, min_iou=minimum, size_hw=size_hw)
    objects, tokens = np.nonzero(ious > minimum)
    assert len(objects) == {0.0: 0, 0.4: 9, 1.0: 21}[share]
    np.testing.assert_array_equal(found.objects, objects)
    np.testing.assert_array_equal(found.tokens, tokens)
    np.testing.assert_array_equal(found.iou_predictions, ious)
    np.testing.assert_array_equal(found.scores, ious[objects, tokens])
    assert found.low_res_masks.shape == (len(objects), *size_hw)
    wanted = masks[objects, tokens, : size_hw[0], : size_hw[1]]
    assert not len(wanted) or np.abs(wanted - found.low_res_masks).max() <= 1e-5 * np.abs(masks).max()


def test_a_score_that_equals_its_threshold_does_not_pass(sessions, embeddings):
    prompts = make_prompts(2)
    decoder = Decoder(sessions, 8)
    ious = decoder.decode(embeddings, None, prompts)[0]
    for minimum, passes in ((ious[1, 2], False), (np.nextafter(ious[1, 2], np.float32(-INF)), True)):
        bounds = thresholds(INF, INF, minimum, INF)
        found = decoder.select(embeddings, None, prompts, min_iou=bounds, size_hw=(32, 32))
        assert (1 in found.objects) == passes


def test_objects_with_a_mask_input_are_filtered_too(sessions, embeddings):
    prompts = make_prompts(4, masked=(1, 2))
    ious, masks = Decoder(sessions, 8).decode(embeddings, None, prompts)
    minimum = thresholds(*[np.median(ious)] * 4)
    found = Decoder(sessions, 8).select(embeddings, None, prompts, min_iou=minimum, size_hw=(20, 30))
    np.testing.assert_array_equal(np.argwhere(ious > minimum), np.stack([found.objects, found.tokens], axis=1))
    assert_close((masks[found.objects, found.tokens, :20, :30],), (found.low_res_masks,))


def test_masks_that_nobody_wants_are_not_made(embeddings):
    sam, geometry = small_sam(), SMALL_VIT.geometry
    made = []

    class Watching(Counting):
        def run(self, inputs):
            answer = super().run(inputs)
            made.append(answer["low_res_masks"].shape)
            return answer

    graphs = {
        "image_side": Counting(ImageSideGraph(sam), image_side_spec(geometry)),
        "selective_decoder": Watching(SelectiveDecoderGraph(sam), selective_decoder_spec(geometry)),
    }
    for minimum in (INF, -INF):
        bounds = thresholds(INF, minimum, INF, INF)
        Decoder(graphs, 8).select(embeddings, None, make_prompts(3), min_iou=bounds, size_hw=(9, 32))
    assert made == [(0, 12, 32), (3, 12, 32)]


def test_full_calls_of_a_selection_take_a_session_for_their_sizes(embeddings):
    sam, geometry, asked = small_sam(), SMALL_VIT.geometry, []
    selective = Counting(SelectiveDecoderGraph(sam), selective_decoder_spec(geometry))
    full = Counting(SelectiveDecoderGraph(sam), selective_decoder_spec(geometry))
    selective.fixed = lambda sizes: asked.append(sizes) or full
    graphs = {"image_side": Session(ImageSideGraph(sam), image_side_spec(geometry)), "selective_decoder": selective}
    prompts = make_prompts(7)
    Decoder(graphs, 3).select(embeddings, None, prompts, min_iou=thresholds(INF, INF, INF, INF), size_hw=(9, 32))
    points = full.calls[0][1]
    side = (1, geometry.embedding_size)
    assert asked == 2 * [{"objects": 3, "points": points, "rows": side, "columns": side}]
    assert [shape[0] for shape in full.calls] == [3, 3] and [shape[0] for shape in selective.calls] == [1]
    Decoder(graphs, 3).decode(embeddings, None, prompts)
    assert len(asked) == 2


def test_scores_that_are_not_numbers_leave_masks_that_are_none(embeddings):
    sam, geometry = small_sam(), SMALL_VIT.geometry
    graphs = {
        "image_side": Session(ImageSideGraph(sam), image_side_spec(geometry)),
        "selective_decoder": Session(SelectiveDecoderGraph(sam), selective_decoder_spec(geometry)),
    }
    prompts = make_prompts(3)
    prompts["point_coords"][1] = np.nan
    ious, masks = Decoder(graphs, 8).decode(embeddings, None, prompts)
    assert masks.shape == (3, 4, 32, 32)
    assert np.isnan(ious[1]).all() and np.isnan(masks[1]).all()
    assert np.isfinite(ious[[0, 2]]).all() and np.isfinite(masks[[0, 2]]).all()


def test_what_the_embedding_holds_is_not_made_again(sessions, embeddings):
    side = sessions["image_side"].run({"image_embeddings": embeddings})
    sessions["image_side"].calls.clear()
    prompts = make_prompts(3)
    held = Decoder(sessions, 8).decode(embeddings, side, prompts)
    assert not sessions["image_side"].calls
    made = Decoder(sessions, 8).decode(embeddings, None, prompts)
    assert len(sessions["image_side"].calls) == 1
    for expected, actual in zip(held, made, strict=True):
        np.testing.assert_array_equal(expected, actual)


def test_objects_with_many_points_take_the_general_decoder(sessions, sharing, embeddings):
    Decoder(sessions, 8).decode(embeddings, None, make_prompts(2, places=MOST_SHARED_PLACES))
    assert not sessions["mask_decoder"].calls
    sessions[sharing].calls.clear()
    Decoder(sessions, 8).decode(embeddings, None, make_prompts(2, places=MOST_SHARED_PLACES + 1))
    assert sessions["mask_decoder"].calls and not sessions[sharing].calls


def test_one_long_object_does_not_pad_the_others(sessions, sharing, embeddings):
    prompts = make_prompts(3, places=MOST_SHARED_PLACES + 4)
    prompts["point_labels"][:2, 2:] = -2
    plain = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
    found = Decoder(sessions, 8).decode(embeddings, None, prompts)
    assert_close((plain["iou_predictions"], plain["low_res_masks"]), found)
    assert sessions[sharing].calls == [(2, 2)]


def test_bundles_without_the_new_graphs_decode_as_before(sessions, embeddings):
    old = {"mask_decoder": sessions["mask_decoder"]}
    prompts = make_prompts(3, masked=(1,))
    expected = sessions["mask_decoder"].run({"image_embeddings": embeddings, **prompts})
    ious, masks = Decoder(old, 8).decode(embeddings, None, prompts)
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


def test_objects_per_call_follow_the_cache():
    assert objects_per_call(SAM) == 8
    assert objects_per_call(SamGeometry(2048, 256, 128)) == 2
    assert objects_per_call(SAM, on_gpu=True) == 64


def test_bytes_of_what_an_embedding_holds_are_those_of_its_arrays():
    held = small_predictor().encode(IMAGE).image_side
    assert sum(array.nbytes for array in held.values()) == image_side_bytes(SMALL_VIT.geometry)
    assert image_side_bytes(SAM) == 4 * 4096 * (11 * 128 + 3 + 256)
