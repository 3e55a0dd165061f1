# SPDX-License-Identifier: Apache-2.0
"""Sides in processes of their own: turns, memory, agreement, failures; and what is made of the figures."""

import json

import numpy as np
import pytest

from benchmarks import machine, sides, table
from benchmarks.comparison import Bound, Comparison, Target, bounds, common_parser, ratios, run_comparison
from benchmarks.sides import SidePlan, agreement, compare_sides

TOY = "tests.benchmarks.toy_subjects:Toy"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(sides, "PAUSE_SECONDS", 0.0)


def plan(name, seconds=0.001, value=1.0, **more):
    taken = {key: more.pop(key) for key in ("rounds", "block", "warm_up") if key in more}
    return SidePlan(name, TOY, {"seconds": seconds, "value": value, **more}, **taken)


def test_sides_take_turns_and_their_answers_are_compared(capfd):
    slow, fast = compare_sides([plan("slow", 0.03), plan("fast", value=1.5)], rounds=2, threads=1)
    assert len(slow.seconds) == len(fast.seconds) == 2
    assert 0.03 <= slow.median_s < 0.3 and fast.median_s < slow.median_s
    assert slow.agreement == {"value_relative_rmse": 0.0, "records_set": 1.0}
    assert fast.agreement["value_relative_rmse"] == pytest.approx(0.5)
    lines = [line for line in capfd.readouterr().out.splitlines() if " round " in line]
    assert [line.split(": ")[1] for line in lines] == ["slow", "fast", "slow", "fast"]


def test_a_block_has_one_more_call_that_does_not_count():
    (side,) = compare_sides([plan("one")], rounds=2, threads=1, block=3)
    # One to warm up, and in each round one that does not count and three that do.
    assert len(side.seconds) == 6 and side.extra["calls"] == 1 + 2 * 4


def test_a_side_may_take_part_in_fewer_rounds_and_start_cold():
    first, second = compare_sides([plan("a", rounds=1, warm_up=0, block=1), plan("b")], rounds=3, threads=1, block=2)
    assert (len(first.seconds), len(second.seconds)) == (1, 6)
    assert first.cold_s == first.seconds[0]


def test_peak_memory_is_that_of_the_side_alone():
    small, large = compare_sides([plan("small"), plan("large", megabytes=300)], rounds=1, threads=1)
    assert 250e6 < large.peak_bytes - small.peak_bytes < 350e6


@pytest.mark.parametrize("moment", ["load", "call"])
def test_a_side_that_fails_is_told_and_the_others_go_on(capfd, moment):
    found = compare_sides([plan("bad", fails=moment), plan("good")], rounds=2, threads=1)
    assert [side.name for side in found] == ["good"]
    assert "LEFT OUT: bad ended with status 1" in capfd.readouterr().out


def test_agreement_of_masks_is_their_mean_iou_and_of_sets_what_is_shared():
    first, second = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    first[0, :2], second[0, :1] = True, True
    found = agreement({"masks": first, "k_set": np.array([1, 2])}, {"masks": second, "k_set": np.array([2, 3])})
    assert found == {"masks_mean_iou": 0.75, "k_set": 0.5}


def test_answers_of_other_shapes_are_no_comparison():
    with pytest.raises(SystemExit, match="shape"):
        agreement({"a": np.zeros(3)}, {"a": np.zeros(4)})


def make_comparison(**more):
    fields = {
        "name": "toys",
        "what": "toys",
        "groups": [[plan("slow", 0.03), plan("fast")], [plan("large", megabytes=200)]],
        "targets": [Target("fast", "slow", 2.0), Target("fast", "slow", 1e9, aim=2e9), Target("fast", "absent", 1.0)],
        "bounds": [Bound("slow", 0.001), Bound("large", 1e6, of="peak_mb"), Bound("absent", 1.0)],
        "rounds": 2,
        "notes": ["a note"],
    }
    return Comparison(**{**fields, **more})


def test_results_hold_everything_and_the_table_is_made_of_them(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    arguments = common_parser("").parse_args(["--threads", "1"])
    run_comparison(make_comparison(), arguments)
    document = json.loads((tmp_path / "toys.json").read_text())
    assert document["date"] and document["command"] and document["machine"]["cpu"] and document["versions"]["numpy"]
    assert [row["holds"] for row in document["figures"]["targets"]] == [True, False]
    assert [row["holds"] for row in document["figures"]["bounds"]] == [False, True]
    text = (tmp_path / "README.md").read_text()
    for words in (
        "| slow | fp32 | 1 |",
        "**missed**",
        "at least 2: holds",
        "aim 2e+09",
        "Note: a note.",
        "peak memory",
    ):
        assert words in text


def test_only_the_sides_asked_for_run_and_nothing_is_saved_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    arguments = common_parser("").parse_args(["--only", "fast;large", "--no-save", "--threads", "1"])
    figures = run_comparison(make_comparison(), arguments)
    assert [[row["name"] for row in rows] for rows in figures["groups"]] == [["fast"], ["large"]]
    assert figures["targets"] == [] and not list(tmp_path.iterdir())


def test_a_ratio_is_taken_inside_one_group_alone():
    both = make_comparison(targets=[Target("fast", "large", 1.0)])
    for plans in both.groups:
        both.rows.append(compare_sides(plans, rounds=1, threads=1, compare=False))
    assert ratios(both) == []
    assert [row["side"] for row in bounds(both)] == ["slow", "large"]


def test_names_of_sides_are_not_shared_within_a_command():
    from benchmarks import click, decoders, encoders, everything_replay, gpu, preprocess

    groups = [
        *encoders.plans("w", "vit_b"),
        *encoders.plans("w", "vit_t"),
        decoders.plans("w", "vit_b", 8),
        click.plans("w", "vit_b"),
        everything_replay.plans("w", "vit_b", 32, ["fp32", "bf16"], 1),
        preprocess.plans("w", "vit_b"),
        *gpu.plans("w", "vit_h", "cuda", 32),
    ]
    for group in groups:
        names = [side.name for side in group]
        assert len(set(names)) == len(names)


def test_every_target_names_sides_that_there_are():
    from benchmarks import decoders, encoders, everything_replay

    cases = [
        (encoders.plans("w", "vit_b"), encoders.targets("vit_b")),
        (encoders.plans("w", "vit_t"), encoders.targets("vit_t")),
        ([decoders.plans("w", "vit_b", 8)], decoders.targets(8)),
        ([everything_replay.plans("w", "vit_b", 32, ["fp32"], 1)], everything_replay.targets()),
    ]
    for groups, wanted in cases:
        for target in wanted:
            assert any({target.side, target.against} <= {side.name for side in group} for group in groups), target
