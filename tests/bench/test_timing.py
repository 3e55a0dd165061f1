# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from segship.bench.report import Timing, measure


def test_percentiles_lie_between_calls_and_rate_goes_by_the_mean():
    timing = Timing(tuple(float(value) for value in range(1, 102)), items=8)
    assert (timing.percentile(50), timing.percentile(90), timing.percentile(99)) == (51.0, 91.0, 100.0)
    assert timing.per_second == pytest.approx(8000 / 51)


def test_warm_up_does_not_count():
    calls = []
    timing = measure(lambda: calls.append(1), warm_up=3, repeats=5, seconds=10)
    assert len(calls) == 8 and len(timing.milliseconds) == 5


def test_no_call_is_begun_after_the_time_but_one_always_counts():
    timing = measure(lambda: time.sleep(0.02), warm_up=0, repeats=1000, seconds=0.05)
    assert 1 <= len(timing.milliseconds) <= 3
    assert len(measure(lambda: time.sleep(0.01), warm_up=50, repeats=9, seconds=0.001).milliseconds) == 1


def test_times_are_milliseconds_of_the_call():
    timing = measure(lambda: time.sleep(0.03), warm_up=0, repeats=2, seconds=10)
    assert all(30 <= value < 500 for value in timing.milliseconds)
    assert timing.to_dict()["min_ms"] == pytest.approx(min(timing.milliseconds), rel=1e-4)
