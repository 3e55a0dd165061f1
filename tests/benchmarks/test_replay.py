# SPDX-License-Identifier: Apache-2.0
"""The replay workload: the same masks for the same point whoever asks, and as many as it promises."""

import numpy as np
import pytest

from benchmarks.replay import Replay

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
