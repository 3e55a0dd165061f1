# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in MindSpore, held against torch; run by ``make test-mindspore``."""

import numpy as np
import pytest
import torch

import segship
from segship.backends.session import RunOptions
from segship.errors import BackendUnavailable, CheckpointError
from segship.ship.loading import open_checkpoint as open_in_torch
from segship.ship.targets import convert
from tests.oracle import SMALL_VIT
from tests.small_models import save_checkpoint

pytest.importorskip("mindspore")
from segship.ship.families.sam import cells

SIDE, LOW = SMALL_VIT.image_size, 4 * SMALL_VIT.embedding_size


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The small model as MindFormers would have it."""
    source = save_checkpoint(tmp_path_factory.mktemp("mindspore") / "small.pth")
    convert(source, source.with_suffix(".ckpt"))
    return source.with_suffix(".ckpt")


@pytest.fixture(scope="module")
def pair(checkpoint):
    """The sessions of MindSpore and those of torch."""
    return cells.open_checkpoint(checkpoint, RunOptions()).sessions, open_in_torch(checkpoint, RunOptions()).sessions


def same(pair, graph, inputs):
    found, expected = (sessions[graph].run(inputs) for sessions in pair)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == np.float32
        assert np.abs(found[name] - array).max() <= 1e-5 * max(1, np.abs(array).max()), name


def prompts(objects, points, seed=0, mask=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-2, 4, (objects, points)).astype(np.float32)
    labels[:, 0] = 1
    return {
        "image_embeddings": rng.normal(size=(1, 32, LOW // 4, LOW // 4)).astype(np.float32),
        "point_coords": (rng.random((objects, points, 2)) * SIDE).astype(np.float32),
        "point_labels": labels,
        "mask_input": rng.normal(size=(objects, 1, LOW, LOW)).astype(np.float32),
        "has_mask_input": np.full(objects, mask, np.float32),
    }


@pytest.mark.parametrize("batch", [1, 2])
def test_embeddings_are_those_of_torch(pair, batch):
    images = np.random.default_rng(batch).normal(size=(batch, 3, SIDE, SIDE)).astype(np.float32)
    same(pair, "image_encoder", {"image": images})


@pytest.mark.parametrize(("objects", "points"), [(1, 1), (2, 3), (5, 4), (11, 5)])
@pytest.mark.parametrize("mask", [False, True])
def test_masks_are_those_of_torch_for_any_number_of_objects_and_points(pair, objects, points, mask):
    same(pair, "mask_decoder", prompts(objects, points, mask=mask))


def test_attention_in_tiles_is_the_same(checkpoint, pair, monkeypatch):
    monkeypatch.setattr(cells, "SCORES_BYTES", 2 * 4 * 8**4)
    tiled = cells.open_checkpoint(checkpoint, RunOptions()).sessions
    image = {"image": np.random.default_rng(3).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)}
    same((tiled, pair[1]), "image_encoder", image)


@pytest.mark.parametrize(
    ("objects", "calls"),
    [(1, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 3)]), (4, [(0, 4)]), (8, [(0, 8)]), (9, [(0, 8), (8, 9)])],
)
def test_objects_are_decoded_in_calls_of_two_sizes(objects, calls):
    assert cells._calls(objects) == calls


def test_the_pipeline_of_mindformers_runs_on_its_own_framework(checkpoint):
    image = segship.demo_photograph()
    inputs = {"image": image, "points": [[300, 200], [100, 100]], "labels": [1, 0], "boxes": [80, 80, 380, 300]}
    from segship.pipelines import pipeline

    found, expected = (
        pipeline("segment_anything", model=str(checkpoint), backend=backend)(inputs, return_logits=True)
        for backend in ("mindspore", "torch")
    )
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() <= 1e-4 * np.abs(array).max()


def test_what_it_runs_and_how_is_said(checkpoint):
    with segship.load(checkpoint, backend="mindspore") as predictor:
        assert predictor.backend == "mindspore" and "mindspore 2." in repr(predictor)


def test_other_models_are_refused(tmp_path):
    from tests.small_semask import save_checkpoint as save_semask

    with pytest.raises(BackendUnavailable, match="runs vit_b, vit_l and vit_h; use backend=torch") as refusal:
        cells.open_checkpoint(save_semask(tmp_path / "semantic.pth"), RunOptions())
    assert refusal.value.code == "graph_unavailable"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("mask_decoder.iou_token.weight"), "iou_token.weight is missing instead of"),
        (lambda state: state.update(extra=torch.ones(1)), "extra is unexpected"),
        (lambda state: state.update({"mask_decoder.iou_token.weight": torch.ones(2, 32)}), r"is \(2, 32\) float32"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, words):
    def wrap(state):
        state = dict(state)
        change(state)
        return state

    path = save_checkpoint(tmp_path / "small.pth", wrap=wrap)
    with pytest.raises(CheckpointError, match=words) as refusal:
        cells.open_checkpoint(path, RunOptions())
    assert refusal.value.code == "state_mismatch"
