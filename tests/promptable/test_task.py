# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.promptable import task
from segship.spec import LABEL_EMPTY, check_arrays
from tests.small_bundle import make_bundle

RUN = RunOptions(backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return calibrate([], tmp_path_factory.mktemp("list") / "list", CalibrateOptions(limit=2, objects=2))


def test_feeds_are_what_every_graph_is_given(small_export, images):
    manifest = small_export[0].manifest
    sessions = open_sessions(small_export[0], RUN)
    feeds = list(task.feeds(manifest, images.path, sessions))
    assert len(feeds) == len(images)
    for feed in feeds:
        assert feed.keys() == {"image_encoder", "mask_decoder", "image_side", "selective_decoder"} == sessions.keys()
        for graph, calls in feed.items():
            for inputs in calls:
                check_arrays(inputs, manifest.graph_spec(graph).inputs, graph)
        # Click, clicks, box and refined; the last alone has a mask, which the other decoder does not take.
        assert [len(calls) for calls in feed.values()] == [1, 4, 1, 3]
        *plain, refined = feed["mask_decoder"]
        assert all(not call["has_mask_input"].any() and not call["mask_input"].any() for call in plain)
        assert refined["has_mask_input"].all() and refined["mask_input"].reshape(2, -1).any(axis=1).all()
        assert any((call["point_labels"] == LABEL_EMPTY).any() or len(call["point_labels"][0]) > 2 for call in plain)


def test_a_refined_mask_begins_with_what_the_model_itself_ranks_first(small_export, images):
    manifest, sessions = small_export[0].manifest, open_sessions(small_export[0], RUN)
    (feed, _) = task.feeds(manifest, images, sessions)
    *_, refined = feed["mask_decoder"]
    first = {**refined, "mask_input": np.zeros_like(refined["mask_input"]), "has_mask_input": np.zeros(2, np.float32)}
    found = sessions["mask_decoder"].run(first)
    for row, mask in enumerate(refined["mask_input"]):
        best = 1 + found["iou_predictions"][row, 1:].argmax()
        assert np.array_equal(mask[0], found["low_res_masks"][row, best])


def test_feeds_of_a_bundle_with_two_graphs(tmp_path, images):
    bundle = make_bundle(tmp_path)
    feeds = list(task.feeds(bundle.manifest, images, open_sessions(bundle, RUN)))
    assert all(feed.keys() == {"image_encoder", "mask_decoder"} for feed in feeds)
