# SPDX-License-Identifier: Apache-2.0
"""Stages: whatever their schedule, the same results in the same order, and errors where they belong."""

import threading
import time

import pytest

from segship.run.local import LocalExecutor
from segship.run.plan import make_plan
from segship.run.running import start
from segship.run.stages import QUEUE, Occupancy, Stage, draw_graph, draw_graphviz, run_stages
from segship.run.storage import open_folder
from tests.run.runs import OPTIONS, tables

SCHEDULES = ("serial", "pipeline", "task")


def stages(**works):
    return [Stage(name, work) for name, work in works.items()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_results_and_their_order_do_not_depend_on_the_schedule(schedule):
    def slowly(item):
        time.sleep(0.003 if item % 3 else 0.0)
        return item * 10

    occupancy = Occupancy()
    found = run_stages(range(30), stages(a=slowly, b=lambda x: x + 1, c=slowly), schedule, occupancy)
    assert list(found) == [(number * 10 + 1) * 10 for number in range(30)]
    assert set(occupancy.busy) == {"a", "b", "c"} and 0 < occupancy.shares["a"] <= 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_error_comes_after_what_was_before_it_and_ends_all(schedule):
    def fail(item):
        if item == 5:
            raise KeyError("no")
        return item

    before, threads = [], threading.active_count()
    with pytest.raises(KeyError):
        for item in run_stages(range(10**9), stages(a=lambda x: x, b=fail, c=lambda x: x), schedule, Occupancy()):
            before.append(item)
    assert before == [0, 1, 2, 3, 4] and threading.active_count() == threads


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whoever_stops_listening_stops_the_stages(schedule):
    begun, threads = [], threading.active_count()
    found = run_stages(range(10**9), stages(a=lambda x: begun.append(x) or x, b=lambda x: x), schedule, Occupancy())
    assert next(found) == 0
    time.sleep(0.2)
    found.close()
    assert threading.active_count() == threads
    # Queues are bounded: one in each hand, and what waits.
    assert len(begun) <= 2 * QUEUE + 4


def test_stages_side_by_side_take_the_time_of_the_slowest():
    def wait(item):
        time.sleep(0.02)
        return item

    seconds = {}
    for schedule in SCHEDULES:
        began = time.perf_counter()
        assert len(list(run_stages(range(15), stages(a=wait, b=wait, c=wait), schedule, Occupancy()))) == 15
        seconds[schedule] = time.perf_counter() - began
    assert seconds["pipeline"] < 0.7 * seconds["serial"] and seconds["task"] < 0.9 * seconds["serial"], seconds


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_a_run_has_the_same_bytes_with_any_schedule(source, expected, tmp_path, schedule):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    executor = LocalExecutor(1, schedule)
    done = start(tmp_path, executor=executor)
    assert done.root == expected[0].root and tables(tmp_path) == expected[1]
    assert set(executor.occupancy.busy) == {"read", "encode", "decode"}


def test_drawings_show_threads_queues_and_how_busy_stages_were():
    names, shares = ("read", "encode", "decode"), {"read": 0.05, "encode": 0.4, "decode": 1.0}
    assert draw_graph(names, "serial").count("subgraph") == 1 and "queue" not in draw_graph(names, "serial")
    drawn = draw_graph(names, "pipeline", shares)
    assert drawn.count("subgraph") == 3 and drawn.count(f"queue of {QUEUE}") == 2 and "decode<br/>100% busy" in drawn
    assert "encode -- queue of 2 --> decode" in draw_graph(names, "task")
    assert 'encode -> decode [label="queue of 2"];' in draw_graphviz(names, "task", shares)
