# SPDX-License-Identifier: Apache-2.0
"""Cost is known before the work begins, and memory stays within it."""

import tracemalloc

import numpy as np
import pytest

from segship.errors import InputError
from segship.promptable.everything.cost import estimate_cost
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate
from tests.promptable.everything.world import World
from tests.small_models import small_predictor


def test_cost_counts_crops_points_and_calls():
    options = AmgOptions(points_per_side=32, crop_n_layers=1, crop_n_points_downscale_factor=2)
    cost = estimate_cost(small_predictor(), (1200, 1800), options)
    assert (cost.crops, cost.points, cost.candidates) == (5, 1024 + 4 * 256, 3 * 2048)
    assert cost.points_per_call == 8 and cost.decoder_calls == 2048 // 8
    assert (cost.pred_iou_thresh, cost.stability_score_thresh) == (0.88, 0.95)
    assert cost.to_dict()["peak_bytes"] == cost.peak_bytes


def test_points_per_batch_is_an_upper_bound():
    assert estimate_cost(small_predictor(), (60, 90), AmgOptions(points_per_batch=3)).points_per_call == 3


def test_a_bound_makes_the_portions_smaller():
    predictor = World((240, 360), objects=3).predictor()
    free = estimate_cost(predictor, (240, 360), AmgOptions())
    bound = estimate_cost(predictor, (240, 360), AmgOptions(memory_bytes=free.peak_bytes // 3))
    assert bound.peak_bytes <= free.peak_bytes // 3
    assert bound.held_bytes < free.held_bytes or bound.points_per_call < free.points_per_call


def test_a_bound_that_cannot_be_kept_is_refused_with_numbers():
    with pytest.raises(InputError, match=r"4000 x 3000 pixels needs at least [\d,]+") as caught:
        estimate_cost(small_predictor(), (3000, 4000), AmgOptions(memory_bytes=10_000_000))
    assert caught.value.code == "over_memory"


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 200))])
def test_measured_peak_stays_below_the_prediction(seed):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(40, 900)), int(rng.integers(40, 900)))
    world = World(size, objects=60, n_layers=int(rng.integers(0, 2)), seed=seed)
    options = AmgOptions(
        points_per_side=int(rng.integers(1, 9)),
        points_per_batch=int(rng.integers(1, 65)),
        pred_iou_thresh=float(rng.choice([0.0, 0.88])),
        stability_score_thresh=float(rng.choice([0.0, 0.95])),
        crop_n_layers=world.n_layers,
        mode=str(rng.choice(["fast", "reference"])),
        partition=bool(rng.integers(2)),
    )
    predictor = world.predictor()
    generate(predictor, world.image, options)
    tracemalloc.start()
    result = generate(predictor, world.image, options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= result.cost.peak_bytes
