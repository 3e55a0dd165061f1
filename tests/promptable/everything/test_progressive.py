# SPDX-License-Identifier: Apache-2.0
"""With a deadline: coarse first, finer where nothing is yet, and an end in time."""

import pytest

from segship.promptable.everything import search as progressive
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import Deadline, generate
from tests.promptable.everything.world import World


@pytest.fixture(scope="module")
def world():
    return World((240, 360), objects=300, n_layers=1)


def test_without_time_the_coarsest_points_are_asked_and_it_says_so(world):
    result = generate(world.predictor(), world.image, AmgOptions(points_per_side=16, deadline_seconds=1e-9))
    assert 0 < result.points <= 8
    assert result.notes == ("deadline_reached",)
    assert 0 < result.coverage < 1


def test_with_time_enough_points_under_a_mask_are_left_out_and_little_is_lost(world):
    unhurried = generate(world.predictor(), world.image, AmgOptions(points_per_side=16))
    hurried = generate(world.predictor(), world.image, AmgOptions(points_per_side=16, deadline_seconds=1e6))
    assert hurried.notes == ()
    assert hurried.points < unhurried.points == 256
    assert hurried.coverage >= unhurried.coverage - 0.05


def test_more_time_never_covers_less(world, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progressive, "time", clock)
    monkeypatch.setattr("segship.promptable.everything.search.time", clock)
    covered, asked = [], []
    for seconds in (10, 40, 160, 640):
        clock.now = 0.0
        result = generate(
            world.predictor(), world.image, AmgOptions(points_per_side=16, crop_n_layers=1, deadline_seconds=seconds)
        )
        # Each look costs a second, and a step looks a few times.
        assert clock.now <= seconds + 5
        covered.append(result.coverage)
        asked.append(result.points)
    assert asked == sorted(asked) and asked[0] < asked[-1]
    assert covered[-1] >= covered[0]


class Clock:
    """Time that goes on by a second whenever somebody looks."""

    now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


def test_a_deadline_remembers_that_it_was_reached():
    deadline = Deadline(at=progressive.time.monotonic() + 100)
    assert deadline.allows(1) and not deadline.reached
    assert not deadline.allows(1000) and deadline.reached
