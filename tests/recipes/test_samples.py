# SPDX-License-Identifier: Apache-2.0
"""Samples are in the shipped frame and their prompts fit their targets."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.tiny.samples import (
    BOXES,
    CLICKS,
    PROMPTS,
    Sample,
    SampleBuilder,
    Truth,
    candidate_at,
    known_masks,
    to_frame,
    truth_in_frame,
)
from recipes.tiny.scenes import make_scene
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD

SIZE = 64


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    builder, rng = SampleBuilder(SIZE), np.random.default_rng(0)
    built = [builder.build(rng, make_scene(seed, 96)) for seed in range(12)]
    return [sample for sample in built if sample is not None]


def test_frame_is_normalised_then_padded_right_and_bottom() -> None:
    frame = to_frame(np.full((20, 40, 3), 200, np.uint8), SIZE)
    expected = (200 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(frame[:, :32, :], np.broadcast_to(expected[:, None, None], (3, 32, SIZE)), rtol=1e-5)
    assert not frame[:, 32:].any()


def test_truth_keeps_step_with_the_frame() -> None:
    labels = np.zeros((30, 60), np.uint8)
    labels[:, 30:] = 7
    truth = truth_in_frame(Truth((labels, labels, labels)), SIZE)
    assert truth.size_hw == (16, 32)
    assert set(np.unique(truth.maps[0][:, :16])) == {0} and set(np.unique(truth.maps[0][:, 16:])) == {7}


def test_every_prompt_has_a_target_and_its_shares_sum_to_one(samples: list[Sample]) -> None:
    for sample in samples:
        np.testing.assert_allclose(sample.weights.sum(1), np.ones(PROMPTS), rtol=1e-5)
        assert (sample.targets.reshape(PROMPTS, 3, -1).any(2) >= (sample.weights > 0)).all()


def test_first_click_lies_in_every_target_it_may_mean(samples: list[Sample]) -> None:
    for sample in samples:
        for index in range(CLICKS):
            x, y = ((sample.coords[index, 0] + 0.5) // 4).astype(int)
            for target in sample.targets[index][sample.weights[index] > 0]:
                assert target[y, x] > 0


def test_clicks_carry_the_not_a_point_token_and_boxes_do_not(samples: list[Sample]) -> None:
    for sample in samples:
        assert ((sample.labels[:-BOXES] == -1).sum(1) == 1).all()
        assert (sample.labels[-BOXES:] == [2, 3, -2]).all()


def test_boxes_surround_their_target(samples: list[Sample]) -> None:
    for sample in samples:
        for index in range(PROMPTS - BOXES, PROMPTS):
            y, x = np.nonzero(sample.targets[index, 0])
            truth = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * 4
            slack = 8 + 0.13 * (truth[2:] - truth[:2]).max()
            assert np.abs(sample.coords[index, :2].ravel() - truth).max() <= slack


def test_equal_masks_of_two_levels_count_once() -> None:
    leaf = np.ones((20, 20), np.uint8)
    leaf[5:15, 5:15] = 2
    masks, shares = known_masks(Truth((leaf, leaf, leaf * 0)), (leaf == 2).astype(np.uint8), 0, (10, 10))
    assert len(masks) == 1 and shares.tolist() == [1.0]


def test_a_click_anywhere_asks_for_what_is_there() -> None:
    leaf = np.zeros((20, 20), np.uint8)
    leaf[:, 12:], leaf[2:4, 2:4], obj = 3, 5, np.ones((20, 20), np.uint8)
    truth = Truth((leaf, obj, leaf * 0))
    rng = np.random.default_rng(0)
    found = [candidate_at(rng, truth, (10, 15)) for _ in range(20)]
    assert {(level, int(mask.sum())) for level, mask in filter(None, found)} == {(0, 160), (1, 400)}
    assert candidate_at(rng, Truth((leaf * 0, leaf * 0, leaf * 0)), (2, 2)) is None
    built = SampleBuilder(SIZE, anywhere=1).build(rng, make_scene(3, 96))
    assert built is not None
    for target, (x, y) in zip(built.targets[:CLICKS, 0], built.coords[:CLICKS, 0], strict=True):
        assert target[int((y + 0.5) // 4), int((x + 0.5) // 4)] > 0
