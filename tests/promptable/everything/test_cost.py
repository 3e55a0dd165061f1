# SPDX-License-Identifier: Apache-2.0
"""Cost is known before the work begins, and memory stays within it."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from segship.errors import InputError
from segship.machine import describe_machine
from segship.promptable.everything.cost import check_cost, estimate_cost
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"points_per_side": 65}, "the grid has 4,225 points a crop, 4,225 in all; at most 4,096 a crop are begun"),
        ({"points_per_side": None, "point_grids": [np.full((4097, 2), 0.5)]}, "the grid has 4,097 points a crop"),
        ({"points_per_side": 64, "crop_n_layers": 3}, "crop_n_layers is 3, 85 crops; at most 2 layers are begun"),
        ({"points_per_side": 1024, "crop_n_layers": 5}, "the grid has 1,048,576 points a crop, 1,431,306,240 in all"),
    ],
)
def test_what_costs_too_much_is_begun_only_if_that_is_known(options, words):
    world = World((600, 900), objects=1)
    with pytest.raises(InputError, match=f"{words}.*; give fewer .*, or force_cost to begin") as caught:
        generate(world.predictor(), world.image, AmgOptions(**options))
    assert caught.value.code == "over_cost"
    assert check_cost(estimate_cost(world.predictor(), (600, 900), AmgOptions(**options)), FORCED) is None


FORCED = AmgOptions(force_cost=True)


def test_the_largest_grid_and_layers_are_begun():
    options = AmgOptions(points_per_side=64, crop_n_layers=2)
    check_cost(estimate_cost(small_predictor(), (600, 900), options), options)


def test_more_than_half_of_the_memory_is_not_begun(monkeypatch):
    cost = replace(estimate_cost(small_predictor(), (600, 900), AmgOptions()), peak_bytes=3 * 2**30)
    for total, refused in ((5 * 2**30, True), (7 * 2**30, False), (None, False)):
        machine = replace(describe_machine(), memory_bytes=total)
        monkeypatch.setattr("segship.promptable.everything.cost.describe_machine", lambda machine=machine: machine)
        if refused:
            with pytest.raises(InputError, match="3,221,225,472 bytes of memory of the machine's 5,368,709,120"):
                check_cost(cost, AmgOptions())
        else:
            check_cost(cost, AmgOptions())
    assert check_cost(replace(cost, peak_bytes=2**50), FORCED) is None


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_what_takes_more_than_an_hour_is_given_up_at_once(monkeypatch, mode):
    world = World((60, 90), objects=3)
    seen = []
    options = AmgOptions(points_per_side=9, points_per_batch=1, mode=mode)
    monkeypatch.setattr("segship.promptable.everything.cost.MOST_SECONDS", 1e-6)
    with pytest.raises(InputError, match="at the speed of the first points this takes about .* minutes") as caught:
        generate(world.predictor(), world.image, options, progress=lambda done, total: seen.append(done))
    assert caught.value.code == "over_cost" and seen == [1, 2]
    assert generate(world.predictor(), world.image, replace(options, force_cost=True)).points == 81
    if mode == "fast":
        generate(world.predictor(), world.image, replace(options, deadline_seconds=60))


# In a process of its own, since memory that was freed stays with the process.
MEASURE = """
import sys, threading, time
import segship
from segship.promptable.everything.search import generate
from PIL import Image

def resident():
    with open("/proc/self/statm") as text:
        return 4096 * int(text.read().split()[1])

predictor = segship.load("tiny", threads=1)
image = Image.open(segship.demo_photograph()).resize((400, 300))
before, peak, done = resident(), [0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], resident())
watcher = threading.Thread(target=watch)
watcher.start()
options = segship.AmgOptions(points_per_side=int(sys.argv[1]), pred_iou_thresh=0, stability_score_thresh=0)
result = generate(predictor, image, options)
done.set()
watcher.join()
print((peak[0] - before) / result.cost.peak_bytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says of memory")
@pytest.mark.parametrize("points", [24, pytest.param(64, marks=pytest.mark.slow)])
def test_measured_memory_is_near_the_estimate(points):
    command = [sys.executable, "-c", MEASURE, str(points)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.3 < float(ran.stdout) <= 1.1


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
