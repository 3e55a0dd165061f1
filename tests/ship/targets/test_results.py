# SPDX-License-Identifier: Apache-2.0
"""Kept results of targets, and the table of README.md that is made of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from segship.cli.main import main
from segship.ship.families import families
from segship.ship.targets import TARGETS
from segship.ship.targets.results import (
    RESULTS_FILE,
    Result,
    cells_of,
    markdown_table,
    merge_results,
    read_results,
    results_json,
)

README = Path(__file__).parents[3] / "README.md"
ROW = Result("mnn", "tiny", "sam", None, "masks: IoU mean 1", "mnn 3.6", True, "2026-11-29", "mnn 3.6")


def test_the_readme_has_the_table_of_the_results_and_every_target_is_in_it():
    results = read_results()
    assert markdown_table(results) in README.read_text("utf-8")
    assert {row.target for row in results} == set(TARGETS)
    assert {row.family for row in results} <= set(families())
    # In the order and the form in which they are written again.
    assert results_json(merge_results((), results)) == RESULTS_FILE.read_text("utf-8")


def test_newer_results_take_the_place_of_those_of_the_same_target_and_model():
    newer, other = replace(ROW, date="2026-11-30"), replace(ROW, model="vit_t")
    assert merge_results((ROW, other), (newer,)) == (newer, other)


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({}, 5, "mnn 3.6"),
        ({"own": False}, 5, "in mnn 3.6, never in its own engine"),
        ({"ran": None, "own": False, "compared": None}, 5, "never"),
        ({"refused": "it has no layer | for it", "ran": None}, 3, "no: it has no layer | for it"),
    ],
)
def test_a_table_says_where_it_ran(changes, place, words):
    row = replace(ROW, **changes)
    assert cells_of(row)[place] == words
    assert markdown_table([row]).count("|") == 3 * (len(cells_of(row)) + 1)


def test_the_command_line_lists_targets_and_results(capsys):
    assert main(["models", "--targets"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in TARGETS)
