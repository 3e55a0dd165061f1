# SPDX-License-Identifier: Apache-2.0
"""The replay workload: the same masks for the same point whoever asks, and as many as it promises."""

import numpy as np
import pytest

from benchmarks.replay import Replay
from benchmarks.subjects.replayed import _ReplayedSelection
from segship.spec import SamGeometry, selective_decoder_spec

SIZES = {"input_size": (683, 1024), "image_size": 1024, "low_res_size": 256}


def grid(per_side, input_size=(683, 1024)):
    steps = (np.arange(per_side) + 0.5) / per_side
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel() * input_size[1], y.ravel() * input_size[0]], axis=-1)


def test_answers_do_not_depend_on_batches_order_or_rounding():
    points = grid(8)
    ious, masks = Replay(8, **SIZES).answer(points)
    replay = Replay(8, **SIZES)
    order = np.random.default_rng(0).permutation(64)
    for begin in range(0, 64, 5):
        part = order[begin : begin + 5]
        rounded = (points[part] + 1e-3).astype(np.float32)
        again, drawn = replay.answer(rounded)
        assert np.array_equal(again, ious[part]) and np.array_equal(drawn, masks[part])
    assert replay.points == 64 and replay.seconds > 0


def test_three_in_ten_pass_the_threshold():
    ious, _ = Replay(32, **SIZES).answer(grid(32)[:1])
    assert ious.shape == (1, 3)
    every = np.concatenate([Replay(32, **SIZES).answer(grid(32)[row : row + 1])[0] for row in range(0, 1024, 16)])
    assert 0.2 < (every > 0.88).mean() < 0.4
    assert abs((Replay(32, **SIZES)._ious > 0.88).mean() - 0.3) < 0.03


def test_masks_are_ellipses_around_their_point():
    _, masks = Replay(8, **SIZES).answer(grid(8)[27:28])
    x, y = grid(8)[27] / 4
    for mask in masks[0]:
        rows, columns = np.nonzero(mask > 0)
        assert mask[round(y), round(x)] > 0
        assert abs(rows.mean() - y) < 2 and abs(columns.mean() - x) < 2
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert len(rows) == pytest.approx(np.pi / 4 * width * height, rel=0.15)


def test_a_point_outside_the_grid_is_noticed():
    with pytest.raises(AssertionError, match="none of the grid"):
        Replay(8, **SIZES).answer(grid(8)[:1] + 20)


class Selective:
    """A decoder that makes zeros for the masks that it is asked for, and remembers what was asked."""

    def __init__(self):
        self.spec = selective_decoder_spec(SamGeometry(1024, 256, 64))
        self.asked = []

    def run(self, inputs):
        self.asked.append(inputs["min_iou"])
        # Scores of random weights, of which none would pass.
        kept = np.argwhere(np.zeros_like(inputs["min_iou"]) > inputs["min_iou"])
        _, rows, columns, _ = inputs["upscaled"].shape
        masks = np.zeros((len(kept), 4 * rows, 4 * columns), np.float32)
        return {"iou_predictions": np.zeros_like(inputs["min_iou"]), "kept": kept, "low_res_masks": masks}


def test_a_selective_decoder_makes_the_masks_of_the_recorded_scores_and_no_others():
    points = grid(8)[20:31]
    ious, masks = Replay(8, **SIZES).answer(points)
    replay, inner = Replay(8, **SIZES), Selective()
    session = _ReplayedSelection(inner, replay)
    wanted = np.tile(np.float32([np.inf, 0.88, 0.88, 0.88]), (11, 1))
    inputs = {"point_coords": points[:, None], "min_iou": wanted, "upscaled": np.zeros((1, 43, 64, 1), np.float32)}
    answer = session.run(inputs)
    objects, tokens = np.nonzero(ious > 0.88)
    assert 0 < len(objects) < 33
    assert np.array_equal(answer["kept"], np.stack([objects, tokens + 1], axis=1))
    assert np.array_equal(answer["low_res_masks"], masks[objects, tokens, :172])
    assert np.array_equal(answer["iou_predictions"][:, 1:], ious) and not answer["iou_predictions"][:, 0].any()
    assert np.isinf(inner.asked[0]).all() and (inner.asked[0] < 0).sum() == len(objects)
    assert replay.made == (len(np.unique(objects)), len(objects))
    assert replay.passing_part() == pytest.approx(0.3, abs=0.1)
